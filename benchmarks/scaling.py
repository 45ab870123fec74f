"""Measures how dispatching scales: `python benchmarks/scaling.py --actors 1 4 16 64`, or `--null 1000000`.

`--actors` runs a stand-in generator that sleeps 20 s per shard, on Ray actors that reserve no CPU, with the output on
local disk. It compares the time from the first dispatch to the last commit with the least that so many actors need.
`--null` dispatches shards that are done at once, and records the driver's memory. The exit code is 1 if the largest
number of actors is used too little, or costs the driver too much time. With few actors the driver's time is mostly
spent on waiting, so it is not judged.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)

from stereo_jobs.records import Row, ShardRecord, StereoPair
from stereo_jobs.run import driver
from stereo_jobs.run.driver import RunProgress
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.task import Outcome, Pool, ShardTask
from tests import standin

SECONDS = 20.0
"""Seconds that one shard takes."""
MIN_EFFICIENCY = 0.95
"""The least efficiency that passes, with the largest number of actors."""
MAX_DRIVER_MS = 10.0
"""The most driver time per shard that passes, with the largest number of actors."""

OPEN_POOL = driver.open_pool


class Sleeping(standin.StandIn):
    """Sleeps for each batch; one batch is one shard."""

    def generate(self, rows: Sequence[Row]) -> list[StereoPair]:
        time.sleep(SECONDS)
        return [standin.pair(row) for row in rows]


def load(recipe: Recipe, device: str, batch_size: int) -> Sleeping:
    return Sleeping(batch_size)


def make_spec(folder: Path, rows: int, **runtime: object) -> JobSpec:
    manifest = folder / "rows.parquet"
    pq.write_table(pa.table({"id": [f"{i:07d}" for i in range(rows)], "prompt": ["a red circle"] * rows}), manifest)
    return parse_spec(
        {
            "manifest": str(manifest),
            "output": str(folder / "out"),
            "recipe": {"quality": {"enabled": False}},
            "runtime": runtime,
        }
    )


class Clock:
    """Measures the time of dispatching: from the open pool, before the first dispatch, to the last progress report."""

    def __init__(self) -> None:
        self.first = self.last = self.cpu_first = self.cpu_last = 0.0
        self.memory: list[tuple[int, float]] = []

    def opening(self, open_pool: Callable[..., Pool]) -> Callable[..., Pool]:
        """Wrap `open_pool` so that the clock starts once all actors are ready."""

        def opened(*args: object, **kwargs: object) -> Pool:
            pool = open_pool(*args, **kwargs)
            self.first, self.cpu_first = time.monotonic(), time.process_time()
            return pool

        return opened

    def __call__(self, state: RunProgress) -> None:
        if state.starting:
            return
        self.last, self.cpu_last = time.monotonic(), time.process_time()
        if not self.memory or state.made >= self.memory[-1][0] + state.planned / 10:
            self.memory.append((state.made, psutil.Process().memory_info().rss / 2**20))


def sleeping(actors: int, shards_each: int) -> dict[str, Any]:
    """Measure one cluster size."""
    with tempfile.TemporaryDirectory() as folder:
        shards = actors * shards_each
        runtime = {"actors": actors, "cpus_per_actor": 0, "device": "cpu", "shard_rows": 2, "batch_size": 2}
        spec = make_spec(Path(folder), 2 * shards, **runtime)
        clock, started = Clock(), time.monotonic()
        driver.open_pool = clock.opening(OPEN_POOL)
        driver.run(spec, load=load, watch=clock)
    took = clock.last - clock.first
    return {
        "actors": actors,
        "shards": shards,
        "start_s": round(clock.first - started, 1),
        "dispatch_s": round(took, 2),
        "efficiency": round(shards_each * SECONDS / took, 4),
        "driver_cpu_ms_per_shard": round((clock.cpu_last - clock.cpu_first) / shards * 1000, 2),
    }


class NullPool:
    """A pool of 128 shards in flight that are done as soon as it is asked."""

    def __init__(self) -> None:
        self.tasks: list[ShardTask] = []

    def free(self) -> int:
        return 128 - len(self.tasks)

    def busy(self) -> int:
        return len(self.tasks)

    def workers(self) -> int:
        return 64

    def takes(self, task: ShardTask) -> bool:
        return True

    def submit(self, task: ShardTask) -> None:
        self.tasks.append(task)

    def wait(self, timeout_s: float) -> list[Outcome]:
        done, self.tasks = self.tasks, []
        return [Outcome(task, _record(task)) for task in done]

    def stop(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def _record(task: ShardTask) -> ShardRecord:
    return ShardRecord(
        generation=task.plan.generation,
        shard=task.shard,
        fingerprint=task.plan.fingerprint,
        planned=1,
        succeeded=1,
        failed=0,
        seconds=1.0,
        worker="null",
    )


def null(shards: int) -> dict[str, Any]:
    """Measure shards of one row that no worker makes."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        driver.open_pool = clock.opening(lambda *args, **kwargs: NullPool())
        driver.run(make_spec(Path(folder), shards, shard_rows=1), load=load, watch=clock)
    return {
        "shards": shards,
        "dispatch_s": round(clock.last - clock.first, 1),
        "driver_cpu_ms_per_shard": round((clock.cpu_last - clock.cpu_first) / shards * 1000, 4),
        "memory_mib": {made: round(mib) for made, mib in clock.memory},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="*", default=[])
    parser.add_argument("--shards-each", type=int, default=5)
    parser.add_argument("--null", type=int, default=0)
    options = parser.parse_args()
    problems = []
    for actors in sorted(options.actors):
        found = sleeping(actors, options.shards_each)
        print(json.dumps(found), flush=True)
        if actors == max(options.actors):
            problems += too_much(found)
    if options.null:
        found = null(options.null)
        print(json.dumps(found), flush=True)
        problems += too_much(found)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def too_much(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with a result."""
    spent, efficiency = found["driver_cpu_ms_per_shard"], found.get("efficiency", 1.0)
    problems = []
    if efficiency < MIN_EFFICIENCY:
        problems.append(f"{found['actors']} actors: efficiency {efficiency}, needs {MIN_EFFICIENCY}")
    if spent > MAX_DRIVER_MS:
        problems.append(f"{found['shards']} shards: {spent} ms of driver time each, may be {MAX_DRIVER_MS:g}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
