"""Memory of all processes of a run over many shards on S3: `python benchmarks/s3_memory.py [--shards 1000] [--ray]`.

A stand-in generator makes shards of two rows. Manifest, pictures and output are on S3: a SeaweedFS server on loopback,
or the one at `--endpoint`, with a bucket for `--place` and the AWS credential chain. Without `--ray` the worker shares
its process with the driver. With it there are the driver, two actors, and the actor that keeps their heartbeats.

Prints one JSON object and one line. The exit code is 1 if a process holds over 50 MB more after the last shard than
after the first tenth of them, or if it has more threads or open files.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from stereo_jobs.data.images import encode_png
from stereo_jobs.data.storage import open_storage
from stereo_jobs.run.driver import RunProgress, run
from stereo_jobs.spec import JobSpec, Recipe, StorageSpec
from stereo_jobs.spec_reading import parse_spec
from tests import seaweed, standin

WARM_SHARE = 0.1
"""Share of the shards after which nothing grows any more."""
ACTORS = 2
MAX_GROWTH_MB = 50
MAX_MORE = 4
"""Threads or open files that may come and go."""
ROWS_PER_SHARD = 2


def load(recipe: Recipe, device: str, batch_size: int) -> standin.StandIn:
    """Load a stand-in that reads pictures; a file tells which process has loaded it."""
    Path(os.environ["HOME"], f"worker-{os.getpid()}").touch()
    return standin.load_with_images(recipe, device, batch_size)


def make_spec(place: str, endpoint: str | None, shards: int) -> JobSpec:
    """Write a manifest and its picture to S3."""
    settings = StorageSpec(endpoint_url=endpoint)
    storage, rows = open_storage(place, settings), shards * ROWS_PER_SHARD
    picture = standin.np.zeros((standin.SIZE, standin.SIZE, 3), "uint8")
    storage.create("in/picture.png", encode_png(picture))
    sink = pa.BufferOutputStream()
    columns = {
        "id": [f"{i:07d}" for i in range(rows)],
        "image": [f"{place}/in/picture.png"] * rows,
        "note": ["x"] * rows,
    }
    pq.write_table(pa.table(columns), sink)
    storage.create("in/rows.parquet", sink.getvalue().to_pybytes())
    return parse_spec(
        {
            "manifest": f"{place}/in/rows.parquet",
            "output": f"{place}/out",
            "recipe": {"mode": "image", "quality": {"enabled": False}},
            "runtime": {
                "shard_rows": ROWS_PER_SHARD,
                "batch_size": ROWS_PER_SHARD,
                "actors": ACTORS,
                "storage": {"endpoint_url": endpoint},
            },
        }
    )


Sample = dict[str, int]
"""What a process holds: memory in MB, threads, open files; and how many shards were done then."""


def processes(local: bool) -> dict[str, psutil.Process]:
    """Find the processes of the run, as far as they are there."""
    found = {"driver": psutil.Process()}
    if not local:
        workers = sorted(int(file.name.removeprefix("worker-")) for file in Path(os.environ["HOME"]).glob("worker-*"))
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {f"actor {number}": psutil.Process(pid) for number, pid in enumerate(workers, 1)}
        for child in found["driver"].children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[0].startswith("ray::Heartbeats"):
                    found["heartbeats"] = child
    return found


def sample(process: psutil.Process, shards: int) -> Sample:
    """Look at one process."""
    memory = round(process.memory_info().rss / 2**20)
    return {"shards": shards, "rss_mb": memory, "threads": process.num_threads(), "files": process.num_fds()}


def measure(spec: JobSpec, shards: int, local: bool) -> dict[str, Any]:
    """Run the job, and sample its processes as the shards are done."""
    samples: dict[str, list[Sample]] = {}
    running: dict[str, psutil.Process] = {}

    def watch(progress: RunProgress) -> None:
        done = progress.done // ROWS_PER_SHARD
        if len(running) < (1 if local else ACTORS + 2):
            running.update(processes(local))
        for name, process in running.items():
            seen = samples.setdefault(name, [])
            if not seen or done > seen[-1]["shards"]:
                seen.append(sample(process, done))

    started = time.monotonic()
    run(spec, local=local, load=load, watch=watch)
    seconds = time.monotonic() - started
    found = {name: summary(seen, shards) for name, seen in samples.items()}
    return {
        "shards": shards,
        "seconds": round(seconds, 1),
        "processes": found,
        "ok": len(found) == len(running) and all(each["flat"] for each in found.values()),
    }


def summary(seen: list[Sample], shards: int) -> dict[str, Any]:
    """Compare what a process held in the end with what it held after the first tenth of the shards."""
    warm = [each for each in seen if each["shards"] >= WARM_SHARE * shards]
    first, last = warm[0], warm[-1]
    more = {name: last[name] - first[name] for name in ("rss_mb", "threads", "files")}
    highest = {name: max(each[name] for each in warm) for name in more}
    flat = more["rss_mb"] <= MAX_GROWTH_MB and max(more["threads"], more["files"]) <= MAX_MORE
    return {"begin": seen[0], "warm": first, "last": last, "highest": highest, "growth": more, "flat": flat}


def line(result: dict[str, Any]) -> str:
    """Say it in one line."""
    parts = [
        f"{name} {each['warm']['rss_mb']} MB after {each['warm']['shards']} shards and {each['last']['rss_mb']} MB "
        f"after {each['last']['shards']} ({each['last']['threads']} threads, {each['last']['files']} open files)"
        for name, each in result["processes"].items()
    ]
    return f"{'flat' if result['ok'] else 'NOT FLAT'}: {'; '.join(parts)}; {result['seconds']} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--ray", action="store_true", help="in Ray actors instead of this process")
    parser.add_argument("--endpoint", help="an S3 server; by default SeaweedFS is started")
    parser.add_argument("--place", default=f"s3://{seaweed.BUCKET}/memory", help="where on S3 to write")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        endpoint = arguments.endpoint or stack.enter_context(seaweed.serve())
        spec = make_spec(f"{arguments.place}/{uuid.uuid4().hex[:8]}", endpoint, arguments.shards)
        result = measure(spec, arguments.shards, local=not arguments.ray)
    print(json.dumps(result))
    print(line(result))
    return int(not result["ok"])


if __name__ == "__main__":
    sys.exit(main())
