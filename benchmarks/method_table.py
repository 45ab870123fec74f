"""Methods and single switches on held-out ToyScapes, photo mode with true disparity: means and paired intervals.

    python benchmarks/method_table.py --work out/table                 # every method, 200 scenes; hours on a CPU
    python benchmarks/method_table.py --work out/table --scenes 32 --methods "best;official;stretch"

Scores are kept in the work folder, one file per method: a run that was cut off goes on, and more scenes can be added.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from stereo_jobs.baselines import FILLS
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.evaluate.scoring import Truth, score_geometry, score_pair, score_right
from stereo_jobs.generate import StereoPipeline
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.records import Row, RowError
from stereo_jobs.spec import Recipe
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import draw_scene

OFFICIAL = {"preset": "official", "geometry": "metric"}
BEST = {"preset": "best", "geometry": "metric"}
METHODS: dict[str, dict[str, object]] = {
    # The published arithmetic, and each of our choices alone on top of it. The inversion is ours in all but one.
    "official, null-text": OFFICIAL,
    "official": OFFICIAL | {"inversion": "direct"},
    "official, ddim inversion": OFFICIAL | {"inversion": "ddim"},
    "official, guidance 1": OFFICIAL | {"inversion": "direct", "photo_guidance_scale": 1.0},
    "official, attention off": OFFICIAL | {"inversion": "direct", "attention": "off"},
    "official, attention bi": OFFICIAL | {"inversion": "direct", "attention": "bi"},
    "official, no re-copy": OFFICIAL | {"inversion": "direct", "recopy_interval": 0},
    "official, deblur": OFFICIAL | {"inversion": "direct", "fill": "noise"},
    "official, sub-pixel": OFFICIAL | {"inversion": "direct", "warp": "subpixel"},
    "official, pixel": OFFICIAL | {"inversion": "direct", "warp": "pixel"},
    "official, background": OFFICIAL | {"inversion": "direct", "fill": "background"},
    "official, composite": OFFICIAL | {"inversion": "direct", "composite": True},
    "official, dpm++ 20": OFFICIAL | {"inversion": "direct", "scheduler": "dpm++", "steps": 20},
    # Ours, and each choice taken back alone.
    "best": BEST,
    "best, attention off": BEST | {"attention": "off"},
    "best, attention bi": BEST | {"attention": "bi"},
    "best, no re-copy": BEST | {"recopy_interval": 0},
    "best, sub-pixel": BEST | {"warp": "subpixel"},
    "best, integer": BEST | {"warp": "integer"},
    "best, noise": BEST | {"fill": "noise"},
    "best, no composite": BEST | {"composite": False},
    "best, shift at 0.2": BEST | {"shift_step": 0.2},
    "best, shift at 0.6": BEST | {"shift_step": 0.6},
    "best, shift at 0.8": BEST | {"shift_step": 0.8},
    "best, edges 0": BEST | {"edge_px": 0},
    "best, dpm++ 20": BEST | {"scheduler": "dpm++", "steps": 20},
}
COLUMNS = (
    *("psnr", "ssim", "lpips", "psnr_nonocc", "psnr_occ", "ssim_occ", "lpips_occ"),
    *("sharpness", "change", "bad_1", "bad_1_raw", "left_psnr", "evaluations", "seconds"),
)
BATCH = 4


@lru_cache(maxsize=64)
def scene(seed: int) -> ToyScape:
    """Held-out scenes, plain and structured in turn."""
    return render(draw_scene(seed // 2, "test", "structured" if seed % 2 else "plain"))


def truth_of(view: ToyScape) -> Truth:
    return Truth(view.right, view.disparity, view.nonocc_left, view.hole_right)


@lru_cache(maxsize=1)
def pipeline(name: str, models: str) -> StereoPipeline:
    torch.set_num_threads(1)
    paths = {"path": f"{models}/sd"}, {"path": f"{models}/depth"}
    chosen = {"stable_diffusion": paths[0], "depth": paths[1]} if models != "demo" else {}
    recipe = resolve_recipe(Recipe(mode="image", method=METHODS[name], models=chosen))  # type: ignore[arg-type]
    return StereoPipeline.load(recipe, "cpu", BATCH)


def score_scenes(task: tuple[str, str, list[int]]) -> list[dict[str, float]]:
    """Scores of some scenes by one method."""
    name, models, seeds = task
    if name in FILLS:
        return [_score_fill(name, seed) for seed in seeds]
    rows = [
        Row(f"s{seed}", "", "", seed, 8.0, {"image": encode_png(v.left), "disparity": encode_disparity(v.disparity)})
        for seed in seeds
        for v in [scene(seed)]
    ]
    began = time.process_time()
    made = pipeline(name, models).generate(rows)
    seconds = (time.process_time() - began) / len(rows)
    results = []
    for seed, pair in zip(seeds, made, strict=True):
        if isinstance(pair, RowError):
            raise RuntimeError(f"{name}: scene {seed}: {pair.error_message}")
        results.append({"seed": seed, **score_pair(pair, truth_of(scene(seed))), "seconds": seconds})
    return results


def _score_fill(name: str, seed: int) -> dict[str, float]:
    view = scene(seed)
    right, _ = FILLS[name](view.left, view.disparity)
    bad = score_geometry(view.left, right, truth_of(view))
    return {"seed": seed, **score_right(right, view.left, truth_of(view)), "bad_1": bad}


def run(name: str, models: str, scenes: int, work: Path, processes: int) -> dict[int, dict[str, float]]:
    """All scores of a method, from its file and, where that lacks some, made now."""
    path = work / f"{name.replace(' ', '_').replace(',', '').replace('+', 'p')}.jsonl"
    done = {int(row["seed"]): row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    missing = [seed for seed in range(scenes) if seed not in done]
    tasks = [(name, models, missing[i : i + BATCH]) for i in range(0, len(missing), BATCH)]
    with get_context("spawn").Pool(processes) as pool, path.open("a") as file:
        for rows in pool.imap(score_scenes, tasks):
            for row in rows:
                done[int(row["seed"])] = row
                file.write(json.dumps(row) + "\n")
            file.flush()
    return {seed: done[seed] for seed in range(scenes)}


def table(scores: dict[str, dict[int, dict[str, float]]], part: str, seeds: list[int]) -> Iterator[str]:
    """Markdown: mean of each column, and half the 95 % interval of the paired difference to `best`."""
    yield f"\n### {part}, {len(seeds)} scenes\n"
    yield "| method | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, rows in scores.items():
        shared = [seed for seed in seeds if seed in rows]
        cells = []
        for column in COLUMNS:
            values = np.array([rows[seed].get(column, np.nan) for seed in shared], float)
            if not len(values) or np.isnan(values).all():
                cells.append("")
                continue
            text = f"{np.nanmean(values):.3f}"
            if "best" in scores and name != "best" and column not in ("evaluations", "seconds", "left_psnr"):
                ours = np.array([scores["best"][seed].get(column, np.nan) for seed in shared], float)
                difference = (values - ours)[~np.isnan(values - ours)]
                if len(difference) > 1:
                    text += f" ±{1.96 * difference.std(ddof=1) / len(difference) ** 0.5:.3f}"
            cells.append(text)
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the scores")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--models", default="demo", help="`demo`, or a folder with sd/ and depth/")
    parser.add_argument("--methods", default="", help="some of them, separated by semicolons; default all")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = [name.strip() for name in options.methods.split(";") if name.strip()] or [*FILLS, *METHODS]
    scores = {}
    for name in names:
        scenes = min(options.scenes, 32) if "null-text" in name else options.scenes
        scores[name] = run(name, options.models, scenes, options.work, options.processes)
    seeds = list(range(options.scenes))
    for part, chosen in (("all", seeds), ("plain", seeds[::2]), ("structured", seeds[1::2])):
        print("\n".join(table(scores, part, chosen)))


if __name__ == "__main__":
    main()
