"""What does a job cost over a bare loop of `generate`? `python benchmarks/bare_loop.py --rows 256`

The loop takes the rows batch by batch, measures nothing and writes nothing. The job makes the same pairs with the same
models in one worker of this process (`--local`), measures and judges them, encodes them, and commits them to disk. Both
compute on one thread; the job's other threads use the other cores. Rows alternate between the two in parts, so that
other work on the machine meets both. Loading the models does not count. Prints seconds, their ratio, and JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.spec_reading import parse_spec

BATCH = 4
PARTS = 4
PROMPT = "a red circle on the left, green floor, grey wall"


def make_spec(folder: Path, ids: list[int], steps: int) -> JobSpec:
    rows = {"id": [f"{i:06d}" for i in ids], "prompt": [PROMPT] * len(ids), "seed": ids}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    return parse_spec(
        {
            "manifest": str(folder / "rows.parquet"),
            "output": str(folder / "out"),
            "recipe": {"method": {"steps": steps}},
            "runtime": {"batch_size": BATCH, "shard_rows": 32, "device": "cpu"},
        }
    )


def job(generator: PairGenerator | None, ids: list[int], steps: int) -> tuple[PairGenerator, float]:
    """Run a job; returns its generator, and the seconds since that was loaded."""
    loaded: list[PairGenerator] = []
    ready = [0.0]

    def load(recipe: Recipe, device: str, batch_size: int) -> PairGenerator:
        torch.set_num_threads(1)
        loaded.append(generator or PairGenerator.load(recipe, device, batch_size))
        ready[0] = time.monotonic()
        return loaded[0]

    with tempfile.TemporaryDirectory() as folder:
        status = run(make_spec(Path(folder), ids, steps), local=True, load=load)
        seconds = time.monotonic() - ready[0]
    assert status.complete and not status.failed, status
    return loaded[0], seconds


def loop(generator: PairGenerator, ids: list[int]) -> float:
    """Seconds of the loop for the same rows."""
    torch.set_num_threads(1)
    rows = [Row(f"{i:06d}", PROMPT, "", i, generator.recipe.scale_percent) for i in ids]
    began = time.monotonic()
    for start in range(0, len(rows), BATCH):
        pairs = generator.generate(rows[start : start + BATCH])
        assert all(isinstance(pair, StereoPair) for pair in pairs), pairs
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps; fewer make the rest weigh more")
    options = parser.parse_args()
    generator, _ = job(None, list(range(BATCH)), options.steps)  # loads, and lets libraries set themselves up
    each = options.rows // PARTS
    seconds = {"loop": 0.0, "job": 0.0}
    for part in range(PARTS):
        ids = list(range(part * each, (part + 1) * each))
        for way in ("loop", "job") if part % 2 == 0 else ("job", "loop"):
            seconds[way] += loop(generator, ids) if way == "loop" else job(generator, ids, options.steps)[1]
    ratio = seconds["job"] / seconds["loop"]
    print("| rows | steps | loop s | job s | job / loop |\n|---:|---:|---:|---:|---:|")
    print(f"| {PARTS * each} | {options.steps} | {seconds['loop']:.1f} | {seconds['job']:.1f} | {ratio:.3f} |")
    print(json.dumps({"rows": PARTS * each, "steps": options.steps} | seconds | {"ratio": ratio}))


if __name__ == "__main__":
    main()
