"""A random fault test with a seed: `python -m tests.chaos --faults 100 --seed 1`.

Jobs run one after the other on a cluster of two nodes and a head, against a real S3 server behind a proxy, while one
fault after the other occurs. In the end every job must be complete: each row once, equal to that of an undisturbed run,
and none failed. Prints one JSON object. The exit code is 1 if anything is wrong. The same seed gives the same faults at
the same intervals. `--plan FAULT FAULT ...` names the faults instead.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)

from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.output import layout
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, StorageSpec
from stereo_jobs.spec_reading import parse_spec
from tests import seaweed, standin
from tests.cluster.nodes import SETTINGS, Nodes, environment
from tests.datasets import failures, rows, verdict
from tests.fault_proxy import FaultProxy
from tests.run.processes import start
from tests.waiting import PATIENCE_S, wait_until

INTERRUPTED = {75, -signal.SIGKILL, 5, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT}
"""Exit codes of runs that the next one resumes. A signal itself ends a run that does not handle it yet."""

FAULTS = {
    "actor_killed": 8,
    "node_killed": 3,
    "node_frozen": 2,
    "driver_killed": 3,
    "driver_drained": 2,
    "driver_hung_up": 1,
    "driver_interrupted_twice": 1,
    "head_killed": 1,
    "store_away": 2,
    "store_slow": 2,
    "store_busy": 2,
    "store_breaks_off": 2,
    "store_alters": 2,
    "lease_damaged": 1,
    "record_damaged": 1,
    "totals_damaged": 1,
    "manifest_overwritten": 1,
}
"""Methods of `Chaos`, each with its weight."""


class Chaos:
    """The cluster, the store, the current job, and what has happened to them."""

    def __init__(self, seed: int, count: int, folder: Path, store: str, proxy: FaultProxy) -> None:
        self.random, self.started = random.Random(seed), time.monotonic()
        self.folder, self.store, self.proxy, self.count = folder, store, proxy, count
        self.told = folder / "told"
        self.told.touch()
        self.manifest = folder / "rows.parquet"
        names = [f"row-{i:04d}" for i in range(count)]
        for path, more in ((self.manifest, ""), (folder / "other.parquet", " other")):
            pq.write_table(pa.table({"id": names, "prompt": [f"slow told:{self.told}{more}"] * count}), path)
        self.content = self.manifest.read_bytes()
        self.jobs: list[JobSpec] = []
        self.starts = 0
        self.exits: Counter[int] = Counter()
        self.refused = 0
        """Runs that ended with 2 because the manifest was another one, as they must."""
        self.found: list[str] = []
        """What was wrong with how a run reacted to a fault."""
        self.struck: Counter[str] = Counter()
        self.nodes: Nodes
        self.new_cluster()
        self.new_job()

    # --- What runs ---

    def new_cluster(self) -> None:
        self.nodes = Nodes(Path(tempfile.mkdtemp(prefix="ray-")))
        os.environ["RAY_ADDRESS"] = self.nodes.address
        for _ in range(2):
            self.nodes.add()

    def new_job(self) -> None:
        self.jobs.append(self.spec(f"s3://{seaweed.BUCKET}/chaos-{secrets.token_hex(4)}", self.proxy.endpoint))
        self.start()

    def spec(self, output: str, endpoint: str | None = None) -> JobSpec:
        runtime = {"shard_rows": 2, "batch_size": 2, "lease_ttl_s": 10.0, "shard_attempts": 20}
        return parse_spec(
            {
                "manifest": str(self.manifest),
                "output": output,
                "recipe": {"quality": {"enabled": False}},
                "runtime": runtime | {"storage": {"endpoint_url": endpoint}},
            }
        )

    def start(self) -> None:
        self.starts += 1
        with (self.folder / "said").open("a") as said:
            self.driver = start(self.jobs[-1], self.folder, "--ray", errors=said)

    def go_on(self, finished: bool = False) -> None:
        """Restart a run that was interrupted. A finished job is followed by another one, unless `finished`."""
        code = self.driver.poll()
        if code is None:
            return
        self.exits[code] += 1
        if code == 0 and not finished:
            self.new_job()
        elif code:
            self.start()

    def mend(self) -> None:
        """Replace nodes that Ray has declared dead, like a cluster that scales on demand."""
        for node in self.nodes.all[1:]:
            if not node.alive():
                node.kill()
                self.nodes.all.remove(node)
                self.nodes.add()

    # --- Faults ---

    def actor_killed(self) -> None:
        def actors() -> list[psutil.Process]:
            self.mend()
            return [actor for node in self.nodes.all for actor in node.actors()]

        wait_until(lambda: actors() or self.driver.poll() is not None, what="an actor")
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            self.random.choice(actors()).kill()

    def node_killed(self) -> None:
        self.random.choice(self.nodes.all[1:]).kill()
        self.mend()

    def node_frozen(self) -> None:
        node = self.random.choice(self.nodes.all[1:])
        node.signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(1, 30))
        node.signal(signal.SIGCONT)

    def driver_killed(self) -> None:
        self.driver.kill()
        self.driver.wait()

    def driver_drained(self) -> None:
        self.driver.send_signal(signal.SIGTERM)
        self.driver.wait()

    def driver_hung_up(self) -> None:
        self.wait_for_work()
        self.driver.send_signal(signal.SIGHUP)
        self.driver.wait()

    def driver_interrupted_twice(self) -> None:
        self.driver.send_signal(signal.SIGINT)
        time.sleep(0.5)
        self.driver.send_signal(signal.SIGINT)
        started = time.monotonic()
        self.driver.wait()
        if time.monotonic() - started > 10:
            self.found.append(f"the second Ctrl-C took {time.monotonic() - started:.0f} s")

    def head_killed(self) -> None:
        self.nodes.head.kill()
        self.driver.kill()  # the driver is on the same machine
        self.driver.wait()
        self.nodes.end()
        self.new_cluster()

    def store_away(self) -> None:
        self.proxy.away = True
        time.sleep(self.random.uniform(1, 20))
        self.proxy.heal()

    def store_slow(self) -> None:
        self.proxy.delay_s = 0.5
        time.sleep(self.random.uniform(1, 20))
        self.proxy.heal()

    def store_busy(self) -> None:
        self.proxy.slow_down_share = 0.1
        time.sleep(self.random.uniform(1, 20))
        self.proxy.heal()

    def store_breaks_off(self) -> None:
        self.proxy.cut_share = 0.1
        time.sleep(self.random.uniform(1, 20))
        self.proxy.heal()

    def store_alters(self) -> None:
        self.proxy.altered_share = 0.2
        time.sleep(self.random.uniform(1, 20))
        self.proxy.heal()

    def lease_damaged(self) -> None:
        self.wait_for_work()
        self.damage(layout.LEASE)

    def totals_damaged(self) -> None:
        self.wait_for_work()
        self.damage(layout.PROGRESS)

    def record_damaged(self) -> None:
        self.wait_for_work()
        if records := self.records():
            self.damage(self.random.choice(records))

    def wait_for_work(self) -> None:
        """Wait until the current run has an output with a shard in it, or has ended."""

        def at_work() -> bool:
            self.mend()
            return bool(self.records()) or self.driver.poll() is not None

        wait_until(at_work, what="a shard")

    def records(self) -> list[str]:
        """Records of the current job."""
        return [info.key for info in self.storage().list(layout.RECORDS_PREFIX)]

    def damage(self, key: str) -> None:
        damages = (b"", b"[]", b"{}", b"\xff\xfe", b'{"holder": 7, "shards": 1e400}')
        self.storage().replace(key, self.random.choice(damages))

    def storage(self) -> Storage:
        """The output of the current job, past the proxy."""
        return open_storage(self.jobs[-1].output, StorageSpec(endpoint_url=self.store))

    def manifest_overwritten(self) -> None:
        """Put another manifest in the place of the first until the run ends, as it must, with exit code 2."""
        self.wait_for_work()
        self.replace_manifest((self.folder / "other.parquet").read_bytes())
        try:
            code = self.driver.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.found.append("a run went on for 60 s with another manifest than the planned one")
            self.driver.kill()
            code = self.driver.wait()
        finally:
            self.replace_manifest(self.content)
        if code == 2:
            self.refused += 1

    def replace_manifest(self, content: bytes) -> None:
        fresh = self.manifest.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.manifest)

    # --- The whole ---

    def drawn(self, count: int) -> Iterator[str]:
        """Draw `count` faults at random."""
        for _ in range(count):
            yield from self.random.choices(list(FAULTS), list(FAULTS.values()))

    def strike(self, faults: Iterable[str]) -> None:
        """Cause one fault after the other, a few seconds apart."""
        for fault in faults:
            time.sleep(self.random.uniform(1, 6))
            self.go_on()
            self.mend()
            self.struck[fault] += 1
            seconds = time.monotonic() - self.started
            print(f"{seconds:.0f} s: {self.struck.total()}: {fault}", file=sys.stderr, flush=True)
            getattr(self, fault)()
            self.go_on()

    def finish(self) -> None:
        """Wait until the last job has ended."""
        deadline = time.monotonic() + 600
        while self.driver.poll() != 0 and time.monotonic() < deadline and not self.problems():
            self.go_on(finished=True)
            self.mend()
            time.sleep(0.5)

    def problems(self) -> list[str]:
        """Return the exit codes that no fault explains."""
        expected = INTERRUPTED | {0} | ({2} if self.exits[2] == self.refused else set())
        return self.found + [f"a run ended with {code}" for code in self.exits if code not in expected]

    def check(self) -> tuple[list[str], int, int]:
        """Return what is wrong, the number of rows made, and the number of rows recorded as failed."""
        whole = self.spec(str(self.folder / "whole"))
        standin.time = type("quick", (), {"sleep": staticmethod(lambda seconds: None)})  # type: ignore[assignment]
        run(whole, local=True, load=standin.load)
        expected = rows(whole)
        problems, quarantined, made, failed = self.problems(), [], 0, 0
        for spec in self.jobs:
            run(spec, local=True, load=standin.load)  # makes damaged records again
            found = verdict(spec)
            problems += [] if found.ok else [f"{spec.output}: {problem}" for problem in found.problems]
            there = rows(spec) if found.succeeded else {}
            problems += [f"{spec.output}: {key} differs" for key, row in there.items() if row != expected[key]]
            for key, why in failures(spec).items():
                (quarantined if why == "KilledWorker" else problems).append(f"{spec.output}: {key} failed: {why}")
            made, failed = made + found.succeeded, failed + found.failed
        # A row during which two actors are killed is taken for the cause: nothing tells the two cases apart.
        if len(quarantined) > max(0, self.struck["actor_killed"] - 1):
            problems += quarantined
        return problems, made, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many, drawn at random")
    parser.add_argument(
        "--plan",
        nargs="+",
        choices=FAULTS,
        metavar="FAULT",
        help=f"the faults to cause, in this order: {', '.join(FAULTS)}",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=200, help="rows of each job; each takes 0.4 s")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    started = time.monotonic()
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder), "RAY_ADDRESS": ""}
    with seaweed.serve() as s3, FaultProxy(s3, options.seed).serving() as proxy, environment(SETTINGS | token):
        chaos = Chaos(options.seed, options.rows, folder, s3, proxy)
        try:
            chaos.strike(options.plan or chaos.drawn(options.faults))
            chaos.finish()
        finally:
            chaos.driver.kill()
            chaos.nodes.end()
        generated = len(chaos.told.read_text().split())
        problems, made, failed = chaos.check()
    report = {
        "seed": options.seed,
        "faults": dict(chaos.struck),
        "seconds": round(time.monotonic() - started),
        "jobs": len(chaos.jobs),
        "runs": chaos.starts,
        "exit_codes": dict(chaos.exits),
        "rows": made,
        "rows_failed": failed,
        "rows_generated_in_vain": generated - made,
        "wasted_share": round(1 - made / max(1, generated), 3),
        "problems": problems,
    }
    print(json.dumps(report))
    if not problems:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print((folder / "said").read_text()[-20_000:], file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
