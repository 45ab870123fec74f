"""What does the quality control of a pair cost? `python benchmarks/quality_cost.py`

CPU seconds of one thread for each part of it, without models other than LPIPS: structured ToyScapes of the test split,
their disparity stretched to 8 and 15 % of the width, the right view filled row by row, a raw view, and a depth map of
the size that a worker keeps. Each figure is the median over the pairs. Prints a table, and the same as JSON.
"""

import argparse
import importlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

from stereo_jobs.baselines import stretch
from stereo_jobs.pipeline.scoring import use_one_thread
from stereo_jobs.quality.measure import measure
from stereo_jobs.quality.working_size import WorkingSize
from stereo_jobs.stereo.warp import forward_warp
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

FIRST_SEED = 6000
PARTS = {
    "matching": ["measure.match", "geometry.match"],
    "agreement": ["geometry.agreement"],
    "robust line": ["matcher.robust_line"],
    "left-right": ["geometry.left_right_consistency", "geometry.parallax_ratio"],
    "vertical": ["geometry.vertical_shift"],
    "warp": ["labelled_pair.forward_warp", "labelled_pair.background_columns"],
    "fill": ["labelled_pair.fill_sparse", "labelled_pair.extend_background"],
    "back-warp": ["appearance.back_warp"],
    "PSNR": ["appearance._psnr"],
    "SSIM": ["appearance._ssim"],
    "LPIPS": ["appearance._lpips"],
    "SIoU": ["appearance.siou"],
    "colour": ["appearance.colour_drift"],
    "sharpness": ["appearance.hole_sharpness"],
    "seam": ["appearance.seam"],
    "ghosts": ["appearance.ghost"],
    "speckle": ["appearance.speckle"],
    "depth": ["measure.depth_rank", "measure.depth_doubt"],
}
"""Functions of `stereo_jobs.quality`, named by the module that calls them, by the part that they are counted for."""


class Clock:
    """Counts the CPU seconds of each part; those of a part that another one calls are not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self.seconds[part] += spent - self._inner.pop()
                self._inner[-1] += spent

        return run


def pair_of(seed: int, size: int, share: float) -> dict[str, Any]:
    """The arguments of `measure` for a pair whose nearest point moves by this share of the width."""
    scene = render(draw_scene(seed, "test", "structured"), size, size)
    low, span = float(scene.disparity.min()), float(np.ptp(scene.disparity))
    disparity = np.asarray((scene.disparity - low) / span * share * size, np.float32)
    warp = forward_warp(torch.from_numpy(disparity)[None], torch.ones(1), subpixel=True)
    right, hole = stretch(scene.left, disparity)
    raw = cv2.GaussianBlur(right, (0, 0), size / 512)
    depth = WorkingSize.compared(size, size).values(disparity)
    return {
        "left": scene.left,
        "right": right,
        "disparity": disparity,
        "nonocc_left": warp.visible[0].numpy(),
        "hole_right": hole,
        "raw_right": raw,
        "depth": depth,
        "mirrored_depth": np.ascontiguousarray(depth[:, ::-1]),
    }


def cost(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Median CPU seconds of each part, and of all."""
    found: list[dict[str, float]] = []
    for pair in pairs:
        clock = Clock()
        with ExitStack() as patches:
            for part, functions in PARTS.items():
                for function in functions:
                    owner, _, name = function.rpartition(".")
                    module = importlib.import_module(f"stereo_jobs.quality.{owner}")
                    patches.enter_context(patch.object(module, name, clock.timed(part, getattr(module, name))))
            clock.timed("rest", measure)(**pair)
        found.append(clock.seconds)
    return {part: float(np.median([seconds[part] for seconds in found])) for part in (*PARTS, "rest")} | {
        "all": float(np.median([sum(seconds.values()) for seconds in found]))
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Markdown: seconds of each part, the most expensive first."""
    parts = sorted(next(iter(columns.values())), key=lambda part: -max(column[part] for column in columns.values()))
    lines = ["| part | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    return "\n".join(lines + [f"| {p} | " + " | ".join(f"{c[p]:.3f}" for c in columns.values()) + " |" for p in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.08, 0.15], help="largest disparity over width")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    use_one_thread()
    columns: dict[str, dict[str, float]] = {}
    for size in options.sizes:
        for share in options.shares:
            pairs = [pair_of(FIRST_SEED + n, size, share) for n in range(options.pairs)]
            cost(pairs[:1])  # loads LPIPS, and lets libraries set themselves up
            columns[f"{size} px, {share:.0%}"] = cost(pairs)
    print(table(columns) + "\n")
    print(json.dumps(columns))


if __name__ == "__main__":
    main()
