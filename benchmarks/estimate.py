"""Is `plan --estimate` right? `python benchmarks/estimate.py --rows 48`

Each job is estimated, then run, by the commands that a user types (`plan --estimate`, `run --local`), with the embedded
models and ToyScapes. Real seconds are those of the whole command; so are the CPU seconds, of all its threads. The jobs
differ in what limits them: the models, the threads that score and encode, or the cores that both share. Prints a table,
and the same as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs.spec import StorageSpec
from stereo_jobs.toyscapes.manifest import write_manifest

REPOSITORY = Path(__file__).parent.parent
JOBS: dict[str, dict[str, Any]] = {
    "text": {"mode": "text", "quality": {"enabled": False}},
    "text, quality control": {"mode": "text"},
    "photos, baseline, quality control": {"mode": "image", "method": {"right_view": "stretch"}},
}
"""Recipes by the name of the job. The last one runs no U-Net."""


class Ended(NamedTuple):
    """What a command printed, and what it took.

    Attributes:
        facts: its JSON.
        wall_s: seconds from its start to its end.
        cpu_s: CPU seconds of all its threads.
    """

    facts: dict[str, Any]
    wall_s: float
    cpu_s: float


def command(*words: object) -> Ended:
    """Run a command of `stereo-jobs` in a process of its own; its JSON is on its standard output."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    program = [sys.executable, "-m", "stereo_jobs", *map(str, words), "--json"]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(json.loads(done.stdout.splitlines()[-1]), wall_s, cpu_s)


def compare(recipe: dict[str, Any], rows: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """Estimate a job, then run it."""
    with tempfile.TemporaryDirectory(prefix="estimate-") as name:
        folder = Path(name)
        manifest, spec = folder / "rows.parquet", folder / "job.json"
        write_manifest(str(manifest), StorageSpec(), rows=rows, mode=recipe["mode"])
        job = {"manifest": str(manifest), "output": str(folder / "out"), "recipe": recipe, "runtime": runtime}
        spec.write_text(json.dumps(job))
        planned, real = command("plan", spec, "--estimate"), command("run", spec, "--local")
    estimate = planned.facts["estimate"]
    measured = estimate["rehearsal"]
    return {
        "pairs": estimate["pairs"],
        "slowest": estimate["slowest"],
        "estimated_s": round(estimate["wall_s"], 1),
        "real_s": round(real.wall_s, 1),
        "ratio": round(estimate["wall_s"] / real.wall_s, 3),
        "load_s": round(measured["load_s"], 1),
        "cpu_s_a_pair": round(real.cpu_s / estimate["pairs"], 3),
        "bytes_ratio": round(estimate["bytes"] / real.facts["bytes"], 3),
        "measured": measured,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each job."""
    lines = [
        "| job | pairs | limited by | estimated s | real s | estimated / real | bytes, estimated / real |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, job in found.items():
        lines.append(
            f"| {name} | {job['pairs']} | {job['slowest']} | {job['estimated_s']} | {job['real_s']} | "
            f"{job['ratio']:.2f} | {job['bytes_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48, help="pairs of each job")
    parser.add_argument("--shard-rows", type=int, default=8, help="pairs of a shard")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--size", type=int, help="working width and height; by default that of the checkpoint")
    parser.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help="which jobs to take")
    options = parser.parse_args()
    found = {}
    for name in options.job:
        recipe = JOBS[name] | {"method": JOBS[name].get("method", {}) | {"steps": options.steps}}
        if options.size:
            recipe["size"] = {"width": options.size, "height": options.size}
        runtime = {"device": "auto", "shard_rows": options.shard_rows, "lease_ttl_s": 0}
        found[name] = compare(recipe, options.rows, runtime)
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    print(table(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
