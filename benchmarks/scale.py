"""What looking at a large output and resuming it costs: requests, CPU seconds and peak memory, by number of shards.

    python benchmarks/scale.py                          # 10,000 shards on local disk: takes seconds
    python benchmarks/scale.py --shards 100000 --s3     # on a real S3 server (SeaweedFS) on loopback

The output is simulated: its plan is real, its records are short, and its shard objects are a few bytes, but for those
whose footers a run reads before it begins. 90 % of the shards are done. The roll-up lacks as many of them as a driver
lets it, shards in flight leave gaps among the newest, and the first shard failed and waits to be retried. Each line is
a process of its own:

    look                a look of `status`
    watch               the third look of `status --watch`
    look, no roll-up    the same after `progress.json` was lost
    watch, no roll-up   the third look, if it stays lost
    extend              what `run --extend` does before anything is written, for one more manifest file
    resume              from the start of a run to its first dispatch
    resume, no roll-up  the same after `progress.json` was lost
    refs                rows of a shard, with a manifest of as many files as there are shards, at most 10,000

Requests are HTTP requests of boto3 on S3, and calls of the storage on local disk; `opened` are footers, which Arrow
reads by range with a few requests each. Peak memory includes 120 MB of imported libraries.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
sys.path.insert(0, os.environ["PYTHONPATH"])

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.shards import write_shard
from stereo_jobs.data.storage import LocalStorage, S3Storage, Storage, open_storage
from stereo_jobs.output import audit, layout, progress, watch
from stereo_jobs.output.commits import read_record
from stereo_jobs.output.plan import Job, Plan, load_job
from stereo_jobs.records import ShardRecord
from stereo_jobs.run import driver
from stereo_jobs.run.prepare import prepare
from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import load_spec

DONE = 0.9
NEWER = driver.SAVE_TOTALS_AFTER
"""Shards that were committed after the roll-up was written: the last ones, and some that were in flight before them."""
IN_FLIGHT = 64
"""Shards that are in flight, every other one of the newest."""
ADDED_ROWS = 1000
"""Rows of the manifest file that `extend` adds."""


# --- The simulated output ---


def prepare_output(folder: Path, output: str, settings: dict[str, Any], shards: int, shard_rows: int) -> Path:
    """Plan a job and fill its output. Returns its spec."""
    (folder / "manifest").mkdir()
    write_manifest(folder / "manifest/a.parquet", 0, shards * shard_rows)
    runtime = {"shard_rows": shard_rows, "storage": settings, "lease_ttl_s": 5}
    text = {"manifest": str(folder / "manifest"), "output": output, "runtime": runtime}
    (folder / "job.json").write_text(json.dumps(text | {"recipe": {"quality": {"enabled": False}}}))
    spec = load_spec(str(folder / "job.json"))
    storage = open_storage(spec.output, spec.runtime.storage)
    job = prepare(spec, storage).job
    fill(storage, job.plans[0])
    write_manifest(folder / "manifest/b.parquet", shards * shard_rows, ADDED_ROWS)
    return folder / "job.json"


def write_manifest(path: Path, first: int, rows: int) -> None:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(first, first + rows, 100_000):
            span = range(start, min(start + 100_000, first + rows))
            writer.write_table(pa.table([[f"{i:09d}" for i in span], ["a red circle"] * len(span)], schema=schema))


def fill(storage: Storage, plan: Plan) -> None:
    """Write shard objects, records and the roll-up of all shards that are done."""
    last = int(DONE * plan.shards)
    in_flight = range(last - NEWER - 2 * IN_FLIGHT, last - NEWER, 2)
    newer = [*in_flight[: NEWER // 2], *range(last - NEWER // 2, last)]
    done = [shard for shard in range(1, last) if shard not in in_flight[NEWER // 2 :]]
    read = set(done[:: -(-len(done) // audit.FOOTERS)])

    def objects(shard: int) -> list[tuple[str, bytes]]:
        record = record_of(plan, shard)
        data = write_shard([], pa.schema([]), record, [], plan.recipe) if shard in read else b"simulated"
        record = record.model_copy(update={"bytes": len(data)})
        sums.bytes += len(data)
        return [(layout.data((0, shard)), data), (layout.record((0, shard)), record.model_dump_json().encode())]

    sums = progress.Totals()
    put_all(storage, itertools.chain.from_iterable(map(objects, done)))
    progress.add(sums, Job((plan,)), (record_of(plan, shard) for shard in done if shard not in newer))
    sums.bytes -= sum(read_record(storage, (0, shard)).bytes for shard in newer)
    progress.save(storage, sums)


def record_of(plan: Plan, shard: int) -> ShardRecord:
    rows = plan.shard_rows
    return ShardRecord(
        generation=0, shard=shard, fingerprint=plan.fingerprint, planned=rows, succeeded=rows, failed=0, seconds=1.0
    )


def put_all(storage: Storage, objects: Iterable[tuple[str, bytes]]) -> None:
    """Write objects without the care that a run takes."""
    if isinstance(storage, LocalStorage):
        for folder in (layout.DATA_PREFIX, layout.RECORDS_PREFIX):
            (storage.root / folder).mkdir(parents=True, exist_ok=True)
        for name, data in objects:
            (storage.root / name).write_bytes(data)
        return
    assert isinstance(storage, S3Storage)
    with ThreadPoolExecutor(16) as pool:
        rest = iter(objects)
        while some := list(itertools.islice(rest, 10_000)):
            list(pool.map(lambda item: storage.replace(*item), some))


# --- What is measured ---


def look(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    return {"done": watch.look(storage).status.shards_done}


def watching(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    """The third look: what is counted before it is dropped by `restart`."""
    looks = watch.watch(storage, every_s=1.0, patience_s=1e9, sleep=lambda seconds: None)
    for _ in range(2):
        next(looks)
    COUNTS.restart()
    return {"done": next(looks).status.shards_done}


def extend(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    return {"planned": prepare(spec, storage, extend=True, publish=False).job.pairs}


def resume(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    """A run whose only worker is a pool that stops the run as soon as it is given a shard."""
    from stereo_jobs.errors import InterruptedRunError

    class Stop:
        def free(self) -> int:
            return 1

        def busy(self) -> int:
            return 0

        def takes(self, task: object) -> bool:
            return True

        def submit(self, task: object) -> None:
            dispatched.append(time.monotonic())
            raise InterruptedRunError("dispatched")

        def stop(self) -> float:
            return 0.0

        def close(self) -> None:
            pass

    dispatched: list[float] = []
    driver.open_pool = lambda *args, **kwargs: Stop()
    started = time.monotonic()
    with contextlib.suppress(InterruptedRunError):
        driver.run(spec, local=True)
    return {"dispatched_s": round(dispatched[0] - started, 2)}


def refs(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    plan = load_job(storage).plans[0]
    files = min(plan.shards, 10_000)
    each = plan.files[0].model_copy(update={"rows": plan.pairs // files})
    split = plan.model_copy(update={"files": tuple(each.model_copy(update={"uri": f"{i}"}) for i in range(files))})
    COUNTS.restart()
    shards = range(0, split.shards, max(1, split.shards // 100))
    started = time.perf_counter()
    for shard in shards:
        split.rows_by_file(shard)
    return {"ms_a_shard": round(1000 * (time.perf_counter() - started) / len(shards), 3)}


MEASURED: dict[str, Callable[[JobSpec, Storage], dict[str, Any]]] = {
    "look": look,
    "watch": watching,
    "extend": extend,
    "refs": refs,
    "resume": resume,
    "look, no roll-up": look,
    "watch, no roll-up": watching,
    "resume, no roll-up": resume,
}


class Counts:
    """Counts requests, and measures time and memory of this process."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.calls = Counter[str]()
        self.started, self.cpu = time.monotonic(), time.process_time()

    def attach(self) -> None:
        """Count what storages do from now on."""
        from botocore.httpsession import URLLib3Session

        for kind in (LocalStorage, S3Storage):
            kind.list = self._listing(kind.list)
            kind.for_pyarrow = self._counted("opened", kind.for_pyarrow)
        URLLib3Session.send = self._counted("requests", URLLib3Session.send)
        for name in ("read", "size", "content_tag", "version", "create", "replace"):
            setattr(LocalStorage, name, self._counted("requests", getattr(LocalStorage, name)))

    def _counted(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[what] += 1
            return function(*args, **kwargs)

        return counted

    def _listing(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(function)
        def listing(storage: Storage, *args: Any, **kwargs: Any) -> Iterator[Any]:
            self.calls["listings"] += 1
            self.calls["requests"] += isinstance(storage, LocalStorage)
            for info in function(storage, *args, **kwargs):
                self.calls["keys_listed"] += 1
                yield info

        return listing

    def result(self) -> dict[str, Any]:
        status = Path("/proc/self/status").read_text()
        peak_kb = int(status.partition("VmHWM:")[2].split()[0])
        counts = {name: self.calls[name] for name in ("requests", "listings", "keys_listed", "opened")}
        return counts | {
            "seconds": round(time.monotonic() - self.started, 2),
            "cpu_s": round(time.process_time() - self.cpu, 2),
            "peak_mb": peak_kb // 1024,
        }


COUNTS = Counts()


def measure(name: str, spec_file: str) -> dict[str, Any]:
    spec = load_spec(spec_file)
    storage = open_storage(spec.output, spec.runtime.storage)
    COUNTS.attach()
    COUNTS.restart()
    found = MEASURED[name](spec, storage)
    return {"measured": name} | COUNTS.result() | found


# --- The command ---


def lose_roll_up(spec_file: Path) -> None:
    spec = load_spec(str(spec_file))
    storage = open_storage(spec.output, spec.runtime.storage)
    storage.replace(layout.PROGRESS, b"lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--s3", action="store_true", help="on a real S3 server on loopback (SeaweedFS)")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        with store(folder, arguments.s3) as (output, settings):
            spec = prepare_output(folder, output, settings, arguments.shards, arguments.shard_rows)
            for name in (name for name in MEASURED if name in arguments.only):
                if name.endswith("no roll-up"):
                    lose_roll_up(spec)
                command = [sys.executable, __file__, "--measure", name, str(spec)]
                line = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
                print(json.dumps({"shards": arguments.shards} | line) if arguments.json else as_row(line), flush=True)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def store(folder: Path, s3: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where the output is, and the settings of its storage."""
    if not s3:
        yield str(folder / "out"), {}
        return
    from tests import seaweed

    with seaweed.serve() as endpoint:
        yield f"s3://{seaweed.BUCKET}/out", {"endpoint_url": endpoint}


def as_row(line: dict[str, Any]) -> str:
    """One line of the table; the first one has its head above it."""
    *columns, special = list(line)[:8], list(line)[8:]
    head = f"| {' | '.join(columns[0])} | found |\n|{'---|' * (len(columns[0]) + 1)}\n" * (line["measured"] == "look")
    cells = [str(line[name]) for name in columns[0]]
    return head + f"| {' | '.join(cells)} | {', '.join(f'{name} {line[name]}' for name in special)} |"


if __name__ == "__main__":
    main()
