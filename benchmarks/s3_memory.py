"""Memory of a worker over many shards on S3: `python benchmarks/s3_memory.py [--shards 1000] [--ray]`.

A stand-in generator makes shards of two rows. Manifest, pictures and output are on S3: a SeaweedFS server on loopback,
or the one at `--endpoint`, with a bucket for `--place` and the AWS credential chain. Without `--ray` the worker shares
its process with the driver.

Prints one JSON object and one line. The exit code is 1 if a worker holds over 50 MB more after the last shard than
after the first hundred, or if it has more threads or open files.
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
from stereo_jobs.spec import JobSpec, Recipe, StorageSpec, parse_spec
from tests import seaweed, standin

WARM_SHARDS = 100
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
                "actors": 1,
                "storage": {"endpoint_url": endpoint},
            },
        }
    )


def sample() -> dict[str, int] | None:
    """Return what the worker holds now: memory in MB, threads, open files."""
    for file in Path(os.environ["HOME"]).glob("worker-*"):
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(int(file.name.removeprefix("worker-")))
            memory = round(worker.memory_info().rss / 2**20)
            return {"rss_mb": memory, "threads": worker.num_threads(), "files": worker.num_fds()}
    return None


def measure(spec: JobSpec, shards: int, local: bool) -> dict[str, Any]:
    """Run the job, and sample its worker as the shards are done."""
    samples: list[dict[str, int]] = []

    def watch(progress: RunProgress) -> None:
        now = sample()
        done = progress.done // ROWS_PER_SHARD
        if now and (not samples or done > samples[-1]["shards"]):
            samples.append({"shards": done} | now)

    started = time.monotonic()
    run(spec, local=local, load=load, watch=watch)
    seconds = time.monotonic() - started
    warm = [each for each in samples if each["shards"] >= min(WARM_SHARDS, shards // 2)]
    growth = {name: warm[-1][name] - warm[0][name] for name in ("rss_mb", "threads", "files")}
    return {
        "shards": shards,
        "worker": "this process" if local else "Ray actor",
        "seconds": round(seconds, 1),
        "first": samples[0],
        "warm": warm[0],
        "last": warm[-1],
        "growth": growth,
        "ok": growth["rss_mb"] <= MAX_GROWTH_MB and max(growth["threads"], growth["files"]) <= MAX_MORE,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--ray", action="store_true", help="in a Ray actor instead of this process")
    parser.add_argument("--endpoint", help="an S3 server; by default SeaweedFS is started")
    parser.add_argument("--place", default=f"s3://{seaweed.BUCKET}/memory", help="where on S3 to write")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        endpoint = arguments.endpoint or stack.enter_context(seaweed.serve())
        spec = make_spec(f"{arguments.place}/{uuid.uuid4().hex[:8]}", endpoint, arguments.shards)
        result = measure(spec, arguments.shards, local=not arguments.ray)
    print(json.dumps(result))
    warm, last = result["warm"], result["last"]
    print(
        f"{result['worker']}: {warm['rss_mb']} MB after {warm['shards']} shards, {last['rss_mb']} MB after "
        f"{last['shards']}; {last['threads']} threads, {last['files']} open files; {result['seconds']} s"
    )
    return int(not result["ok"])


if __name__ == "__main__":
    sys.exit(main())
