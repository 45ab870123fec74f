"""Is an estimate right? `python benchmarks/estimate.py --rows 48`

Each job is estimated as `plan --estimate` does, then run as `run --local` does, each in a fresh process. Some jobs have
the embedded models; others have a stand-in for a GPU, which sleeps and returns pairs of 512 x 512 pixels, scored and
encoded like any. Real seconds are those of the run from its beginning to its end, loading included; `once loaded`
leaves out what comes before the first batch. Other work on the machine disturbs both: rounds alternate, and the median
is taken. Prints a table, and the same as JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import progress
from stereo_jobs.pipeline.batching import Generator
from stereo_jobs.records import LeftDepth, ModelScores, Row, RowError, StereoPair
from stereo_jobs.run.driver import run
from stereo_jobs.run.estimate import estimate, measure_rows
from stereo_jobs.run.prepare import prepare
from stereo_jobs.spec import Recipe, StorageSpec
from stereo_jobs.spec_reading import load_spec
from stereo_jobs.toyscapes.manifest import write_manifest
from stereo_jobs.workers.worker import GeneratorFactory, load_generator

REPOSITORY = Path(__file__).parent.parent
STAND_IN_PX = 512


class Kind(NamedTuple):
    """A kind of job.

    Attributes:
        recipe: its recipe.
        sleep_s: seconds for which a stand-in for a GPU sleeps for each pair; None: the embedded models.
    """

    recipe: dict[str, Any]
    sleep_s: float | None = None


UNSCORED = {"quality": {"enabled": False}}
KINDS = {
    "models": Kind(UNSCORED),
    "models, quality control": Kind({}),
    "GPU of 0.5 s a pair": Kind(UNSCORED, 0.5),
    "GPU of 0.5 s a pair, quality control": Kind({}, 0.5),
    "GPU of 0.1 s a pair, quality control": Kind({}, 0.1),
}


class StandIn:
    """Sleeps in place of a GPU, and returns the same pair for every row."""

    inputs: tuple[str, ...] = ()

    def __init__(self, sleep_s: float, batch_size: int) -> None:
        from benchmarks.quality_cost import pair_of

        self.sleep_s, self.batch_size = sleep_s, batch_size
        made = pair_of(6000, STAND_IN_PX, 0.08)
        self._pair = StereoPair(
            id="",
            left=made["left"],
            right=made["right"],
            disparity=made["disparity"],
            disparity_requested=None,
            disparity_of="left",
            mask_nonocc_left=made["nonocc_left"],
            mask_hole_right=made["hole_right"],
            mask_border_right=made["hole_right"],
            unet_evaluations=51,
            raw_right=made["raw_right"],
            model_scores=ModelScores(depth=LeftDepth(made["depth"], made["mirrored_depth"])),
        )

    def decode(self, row: Row) -> Row:
        return row

    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        time.sleep(self.sleep_s * len(rows))
        return [dataclasses.replace(self._pair, id=row.id) for row in rows]


def load_stand_in(sleep_s: float, recipe: Recipe, device: str, batch_size: int) -> Generator:
    return StandIn(sleep_s, batch_size)


class FirstBatch:
    """Loads a generator, and notes when its first batch begins."""

    def __init__(self, load: GeneratorFactory) -> None:
        self._load = load
        self.began: float | None = None

    def load(self, recipe: Recipe, device: str, batch_size: int) -> Generator:
        generator = self._load(recipe, device, batch_size)
        generate = generator.generate

        def noted(rows: Any) -> Any:
            self.began = self.began or time.monotonic()
            return generate(rows)

        generator.generate = noted  # type: ignore[method-assign]
        return generator


def child(verb: str, path: str, sleep_s: float | None) -> dict[str, Any]:
    """What a fresh process does: `estimate` a job, or `run` it."""
    load = load_generator if sleep_s is None else partial(load_stand_in, sleep_s)
    spec = load_spec(path)
    if verb == "estimate":
        storage, job, recipe = prepare(spec, open_storage(spec.output), publish=False)
        measured = measure_rows(spec, recipe, job.plans[0], load)
        status = progress.status(job, progress.totals(storage, job))
        return estimate(measured, status, gpus=1, gpus_per_actor=1.0).as_json()
    began, first = time.monotonic(), FirstBatch(load)
    status = run(spec, local=True, load=first.load)
    ended = time.monotonic()
    return {"seconds": ended - began, "loaded_s": ended - (first.began or began), "bytes": status.bytes}


def in_a_fresh_process(*words: object) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    program = [sys.executable, __file__, "--child", *map(str, words)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(kind: Kind, rows: int, steps: int, shard_rows: int) -> dict[str, Any]:
    """Estimate a job, then run it."""
    with tempfile.TemporaryDirectory(prefix="estimate-") as name:
        folder = Path(name)
        manifest, spec = folder / "rows.parquet", folder / "job.json"
        write_manifest(str(manifest), StorageSpec(), rows=rows, mode="text")
        recipe = {"mode": "text", "method": {"steps": steps}} | kind.recipe
        runtime = {"shard_rows": shard_rows, "lease_ttl_s": 0}
        job = {"manifest": str(manifest), "output": str(folder / "out"), "recipe": recipe, "runtime": runtime}
        spec.write_text(json.dumps(job))
        estimated = in_a_fresh_process("estimate", spec, kind.sleep_s)
        real = in_a_fresh_process("run", spec, kind.sleep_s)
    return {
        "slowest": estimated["slowest"],
        "estimated_s": estimated["wall_s"],
        "real_s": real["seconds"],
        "ratio": estimated["wall_s"] / real["seconds"],
        "loaded_ratio": (estimated["wall_s"] - estimated["rehearsal"]["load_s"]) / real["loaded_s"],
        "bytes_ratio": estimated["bytes"] / real["bytes"],
        "measured": estimated["rehearsal"],
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each kind of job, with medians over the rounds."""
    lines = [
        "| job | limited by | estimated s | real s | estimated / real | once loaded | lowest, highest | bytes |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for name, rounds in found.items():
        median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key not in TEXTS}
        ratios = [one["loaded_ratio"] for one in rounds]
        lines.append(
            f"| {name} | {rounds[0]['slowest']} | {median['estimated_s']:.1f} | {median['real_s']:.1f} | "
            f"{median['ratio']:.2f} | {median['loaded_ratio']:.2f} | {min(ratios):.2f}, {max(ratios):.2f} | "
            f"{median['bytes_ratio']:.2f} |"
        )
    return "\n".join(lines)


TEXTS = ("slowest", "measured")
"""Facts of a round that have no median."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48, help="pairs of each job")
    parser.add_argument("--shard-rows", type=int, default=8, help="pairs of a shard")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the embedded models")
    parser.add_argument("--rounds", type=int, default=3, help="how often each job is estimated and run")
    parser.add_argument("--job", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME", help="jobs to take")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        verb, spec, sleep_s = options.child
        print(json.dumps(child(verb, spec, None if sleep_s == "None" else float(sleep_s))))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.job}
    for _ in range(options.rounds):
        for name in options.job:
            found[name].append(compare(KINDS[name], options.rows, options.steps, options.shard_rows))
            print(f"{name}: {json.dumps(found[name][-1])}", file=sys.stderr, flush=True)
    print(table(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
