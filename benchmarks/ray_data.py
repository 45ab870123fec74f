"""A job beside the same work with Ray Data: `python benchmarks/ray_data.py --rows 64 --rounds 3`

Both read the same Parquet manifest, load the same embedded models into two Ray actors, make, measure and encode the
same pairs, and write them as Parquet. Ray Data does it as `read_parquet(...).map_batches(...).write_parquet(...)`.
Each run has a process of its own, the two in turn. Seconds are counted from its start: until both actors are ready,
until the first pairs are on disk, until the end; and CPU seconds of the whole tree of processes. Prints the medians,
the ratios of the job to Ray Data, and the same as JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ACTORS = 2
BATCH = 4
RECIPE = {"method": {"steps": 4, "shift_step": 1, "attention_step": 1, "recopy_interval": 2}}
COLUMNS = ["ready s", "first pairs s", "total s", "after ready s", "CPU s"]


def write_manifest(folder: Path, rows: int) -> str:
    path = folder / "rows.parquet"
    prompts = ["a red circle on the left, green floor, grey wall"] * rows
    table = pa.table({"id": [f"{i:06d}" for i in range(rows)], "prompt": prompts, "seed": list(range(rows))})
    pq.write_table(table, path)
    return str(path)


# --- The two ways, each in a process of its own ---


def with_a_job(manifest: str, output: str, shard_rows: int) -> None:
    from stereo_jobs.run.driver import run
    from stereo_jobs.spec_reading import parse_spec

    runtime = {"actors": ACTORS, "batch_size": BATCH, "shard_rows": shard_rows, "device": "cpu"}
    run(parse_spec({"manifest": manifest, "output": output, "recipe": RECIPE, "runtime": runtime}), load=load_and_tell)


def load_and_tell(recipe: Any, device: str, batch_size: int) -> Any:
    """Load the models as a worker does, and tell when they are loaded."""
    from stereo_jobs.workers.worker import load_generator

    generator = load_generator(recipe, device, batch_size)
    Path(os.environ["READY"], str(os.getpid())).touch()
    return generator


class Maker:
    """What an actor of Ray Data does with a batch of rows."""

    def __init__(self) -> None:
        from stereo_jobs.models.resolve import resolve_recipe
        from stereo_jobs.spec_reading import parse_recipe

        self.generator = load_and_tell(resolve_recipe(parse_recipe(RECIPE)), "cpu", BATCH)

    def __call__(self, rows: pa.Table) -> pa.Table:
        from stereo_jobs.data.shards import encode_pair
        from stereo_jobs.pipeline.scoring import score_pair, use_one_thread
        from stereo_jobs.records import Row

        use_one_thread()  # as in a worker: two actors on two cores
        recipe = self.generator.recipe
        wanted = [Row(row["id"], row["prompt"], "", row["seed"], 8.0) for row in rows.to_pylist()]
        made = [
            pair
            for start in range(0, len(wanted), BATCH)
            for pair in self.generator.generate(wanted[start : start + BATCH])
        ]
        return pa.Table.from_pylist([encode_pair(pair) | score_pair(pair, recipe.quality) for pair in made])


def with_ray_data(manifest: str, output: str, shard_rows: int) -> None:
    import ray

    rows = pq.read_metadata(manifest).num_rows
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    ray.data.DataContext.get_current().enable_progress_bars = False
    (
        ray.data.read_parquet(manifest, override_num_blocks=-(-rows // shard_rows))
        .map_batches(
            Maker,
            batch_size=shard_rows,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=ACTORS),
            num_cpus=0.5,
        )
        .write_parquet(output)
    )


WAYS = {"job": with_a_job, "Ray Data": with_ray_data}

# --- Watching one run from outside ---


def measure(way: str, rows: int, shard_rows: int) -> dict[str, float]:
    """Run it in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ready").mkdir()
        (folder / "home").mkdir()
        manifest, output = write_manifest(folder, rows), folder / "out"
        data = output / "data" if way == "job" else output
        environment = os.environ | {
            "READY": str(folder / "ready"),
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--way", way, manifest, str(output), str(shard_rows)]
        began, found, spent = time.monotonic(), {}, dict[int, float]()
        with (folder / "log").open("wb") as log:
            process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
            while process.poll() is None:
                time.sleep(0.1)
                spent |= cpu_seconds(process)
                now = time.monotonic() - began
                if len(list((folder / "ready").iterdir())) == ACTORS:
                    found.setdefault("ready s", now)
                if any(file.suffix == ".parquet" and file.stat().st_size for file in data.glob("*.parquet")):
                    found.setdefault("first pairs s", now)
        if process.returncode:
            raise SystemExit(f"{way} failed:\n{(folder / 'log').read_text()[-3000:]}")
        made = sum(pq.read_metadata(file).num_rows for file in data.glob("*.parquet"))
        assert made == rows, f"{way} made {made} of {rows} pairs"
    found["total s"] = time.monotonic() - began
    found["after ready s"] = found["total s"] - found["ready s"]
    found["CPU s"] = sum(spent.values())
    return {column: round(found[column], 2) for column in COLUMNS}


def cpu_seconds(process: psutil.Popen) -> dict[int, float]:
    """CPU seconds so far of the process and all that it has started."""
    seconds: dict[int, float] = {}
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.Error:
        return seconds
    for each in tree:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        seconds[each.pid] = times.user + times.system
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=8, help="rows of a shard, and of a block of Ray Data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs=4, metavar=("WAY", "MANIFEST", "OUTPUT", "SHARD_ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, manifest, output, shard_rows = options.way
        WAYS[way](manifest, output, int(shard_rows))
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
            runs[way].append(measure(way, options.rows, options.shard_rows))
            print(way, runs[way][-1], file=sys.stderr, flush=True)
    medians = {way: {column: median(run[column] for run in runs[way]) for column in COLUMNS} for way in WAYS}
    ratios = {column: round(medians["job"][column] / medians["Ray Data"][column], 3) for column in COLUMNS}
    print("| | " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * len(COLUMNS) + "|")
    for name, row in (medians | {"job / Ray Data": ratios}).items():
        print(f"| {name} | " + " | ".join(f"{row[column]:g}" for column in COLUMNS) + " |")
    print(json.dumps({"rows": options.rows, "shard_rows": options.shard_rows, "runs": runs, "ratios": ratios}))


if __name__ == "__main__":
    main()
