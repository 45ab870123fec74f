"""Can the verdict tell? True ToyScapes pairs and faults planted into them: a confusion table.

    python benchmarks/verdict.py                        # 100 scenes of the test split, the defaults of the spec
    python benchmarks/verdict.py --split train --fix    # where thresholds lie between truth and fault: fixing them
    python benchmarks/verdict.py --data DIR             # true pairs of Middlebury or KITTI, as they are

Thresholds are fixed on the train split and reported on the test split; no caption is in both. Depth is estimated by the
embedded model, or by one in a folder (`--depth`).
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stereo_jobs.baselines import stretch
from stereo_jobs.evaluate.datasets import TruthScene, open_dataset
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.measure import Metrics, measure
from stereo_jobs.quality.verdict import judge
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import resize
from stereo_jobs.stereo.fill import fill_sparse
from stereo_jobs.stereo.warp import forward_warp
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import Split, draw_scene

OFFSET_PX = 3.0
CAST = (1.12, 1.0, 0.88)
BLUR_PX = 3.0
RIM_PX = (1, 3)
"""Fewest and most columns of an object that a ghost leaves behind, at 128 columns."""
RIM_ALPHA = (0.3, 1.0)
"""Smallest and largest share of the object's colour in them."""
SPECKS = 0.05
"""Share of the hole pixels that are replaced by random colours."""
GRAIN_LEVELS = 24.0
"""Standard deviation of the grain that is added to holes."""
OTHER = 1_000_000
"""Distance of the seeds of two scenes of one planted fault."""


@dataclass(frozen=True)
class Labelled:
    """A pair and its labels as quality control is given them."""

    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    disparity: NDArray[np.float32]
    nonocc_left: NDArray[np.bool_]
    hole_right: NDArray[np.bool_]


def scene(seed: int, split: Split, size: int) -> ToyScape:
    return render(draw_scene(seed, split), size, size)


# --- Faults: a true pair and the view of another scene -> a faulty pair ---


def swapped(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, left=pair.right, right=pair.left)


def copied(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, right=pair.left)


def halved(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, disparity=pair.disparity * np.float32(0.5))


def offset(pair: Labelled, other: ToyScape) -> Labelled:
    shift = OFFSET_PX * pair.left.shape[1] / 128
    return replace(pair, disparity=pair.disparity + np.float32(shift))


def lowered(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, right=np.concatenate([pair.right[:1]] * 3 + [pair.right[:-3]]))


def cast(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, right=np.clip(pair.right * np.array(CAST) + 0.5, 0, 255).astype(np.uint8))


def black(pair: Labelled, other: ToyScape) -> Labelled:
    return replace(pair, right=np.where(pair.hole_right[..., None], np.uint8(0), pair.right))


def blurred(pair: Labelled, other: ToyScape) -> Labelled:
    wide = BLUR_PX * pair.left.shape[1] / 128
    smooth = cv2.GaussianBlur(pair.right, (0, 0), wide)
    return replace(pair, right=np.where(pair.hole_right[..., None], smooth, pair.right).astype(np.uint8))


def other_depth(pair: Labelled, other: ToyScape) -> Labelled:
    right, hole = stretch(pair.left, other.disparity)
    return Labelled(pair.left, right, other.disparity, other.nonocc_left, hole)


def haunted(pair: Labelled, other: ToyScape) -> Labelled:
    """The outermost columns of the object stay behind beside the hole, mixed with the background there."""
    rng = np.random.default_rng(_number(other))
    columns = round(int(rng.integers(RIM_PX[0], RIM_PX[1] + 1)) * pair.left.shape[1] / 128)
    alpha = rng.uniform(*RIM_ALPHA)
    right, hole = pair.right.astype(np.float64), pair.hole_right
    rows, ends = np.nonzero(hole[:, :-1] & ~hole[:, 1:])
    warp = forward_warp(torch.from_numpy(pair.disparity)[None], torch.ones(1), subpixel=True)
    behind = warp(torch.from_numpy(pair.disparity)[None, None])[0, 0].numpy()[rows, ends + 1]
    outline = np.rint(ends + 1 + behind).astype(int)  # the left view's first background column
    for column in range(columns):
        to, source = ends + 1 + column, outline - columns + column
        kept = (to < hole.shape[1]) & (source >= 0) & (source < hole.shape[1])
        at = rows[kept], to[kept]
        right[at] += alpha * (pair.left[rows[kept], source[kept]] - right[at]) * ~hole[at][:, None]
    return replace(pair, right=(right + 0.5).astype(np.uint8))


def speckled(pair: Labelled, other: ToyScape) -> Labelled:
    rng = np.random.default_rng(_number(other))
    struck = pair.hole_right & (rng.random(pair.hole_right.shape) < SPECKS)
    colours = rng.integers(0, 256, pair.right.shape, np.uint8)
    return replace(pair, right=np.where(struck[..., None], colours, pair.right))


def grainy(pair: Labelled, other: ToyScape) -> Labelled:
    grain = np.random.default_rng(_number(other)).normal(0, GRAIN_LEVELS, (*pair.hole_right.shape, 1))
    noisy = np.clip(pair.right + grain + 0.5, 0, 255).astype(np.uint8)
    return replace(pair, right=np.where(pair.hole_right[..., None], noisy, pair.right))


def _number(other: ToyScape) -> int:
    """A seed that differs from scene to scene."""
    return int(other.left.sum())


FAULTS: dict[str, tuple[str, Callable[[Labelled, ToyScape], Labelled]]] = {
    "swapped eyes": ("swapped_eyes", swapped),
    "right = left": ("no_parallax", copied),
    "label x 0.5": ("disparity_scale", halved),
    "label + 3 px": ("disparity_offset", offset),
    "right 3 px down": ("vertical_shift", lowered),
    "colour cast": ("color_cast", cast),
    "holes black": ("empty_holes", black),
    "holes blurred": ("blurred_holes", blurred),
    "depth of another scene": ("other_depth", other_depth),
    "rim beside the hole": ("ghost", haunted),
    "specks in holes": ("speckle", speckled),
    "grain in holes": ("speckle", grainy),
}
TRUE = "true pair"
WATCHED = {
    "vertical_shift": "vertical_px",
    "color_cast": "color_delta",
    "swapped_eyes": "fit_a",
    "disparity_offset": "fit_b",
    "no_parallax": "identity",
    "disparity_scale": "identity",
    "empty_holes": "seam",
    "seam": "seam",
    "blurred_holes": "hole_sharpness",
    "other_depth": "depth_rank",
    "ghost": "ghost",
    "speckle": "speckle",
}
"""The metric that each rule reads."""
OFF = {"left_right": "lr_consistency", "backwarp": "backwarp_lpips", "siou": "siou"} | {
    "holes": "hole_share",
    "depth_doubt": "depth_confidence",
}
"""The same of rules that are off by default and have no fault of their own."""


# --- Measuring ---


class Meter:
    """Measures pairs, without an estimator all but depth; remembers the depth of left views."""

    def __init__(self, estimator: DepthEstimator | None) -> None:
        self.estimator = estimator
        self.depths: dict[bytes, list[NDArray[np.float32]]] = {}
        self.seconds: list[float] = []

    def __call__(self, pair: Labelled) -> Metrics:
        depth, mirrored = self._depths(pair.left)
        began = time.process_time()
        metrics = measure(**vars(pair), depth=depth, mirrored_depth=mirrored)
        self.seconds.append(time.process_time() - began)
        return metrics

    def _depths(self, left: NDArray[np.uint8]) -> list[NDArray[np.float32]] | tuple[None, None]:
        if self.estimator is None:
            return None, None
        key = left.tobytes()
        if key not in self.depths:
            with torch.inference_mode():
                found = self.estimator.inverse_depth([left, np.ascontiguousarray(left[:, ::-1])])
            self.depths = {key: [resize(depth[None], left.shape[:2])[0].cpu().numpy() for depth in found]}
        return self.depths[key]


def measured(meter: Meter, split: Split, scenes: int, size: int, first: int = 0) -> dict[str, list[Metrics]]:
    """Metrics of the true pair and of every fault, for every scene."""
    results: dict[str, list[Metrics]] = {name: [] for name in (TRUE, *FAULTS)}
    for seed in range(first, first + scenes):
        view, other = scene(seed, split, size), scene(seed + OTHER, split, size)
        pair = Labelled(view.left, view.right, view.disparity, view.nonocc_left, view.hole_right)
        results[TRUE].append(meter(pair))
        for name, (_, plant) in FAULTS.items():
            results[name].append(meter(plant(pair, other)))
    return results


def of_scene(scene: TruthScene) -> Labelled:
    """A camera's pair with its true disparity; what is hidden follows from it."""
    warp = forward_warp(fill_sparse(torch.from_numpy(scene.disparity)[None]), torch.ones(1), subpixel=True)
    return Labelled(scene.left, scene.right, scene.disparity, warp.visible[0].numpy(), ~warp.filled[0].numpy())


# --- Tables ---


def confusion(results: dict[str, list[Metrics]], config: QualityConfig) -> str:
    """Markdown: how many pairs of each kind got which verdict."""
    verdicts = {name: Counter(judge(m, config).reject_reason or "accepted" for m in ms) for name, ms in results.items()}
    seen = set().union(*verdicts.values())
    columns = ["accepted", *dict.fromkeys(reason for reason, _ in FAULTS.values())]
    columns += sorted(seen - set(columns))
    lines = ["| pair | meant | " + " | ".join(columns) + " |", "|---|---" + "|---:" * len(columns) + "|"]
    for name, counts in verdicts.items():
        meant = "accepted" if name == TRUE else FAULTS[name][0]
        cells = [f"**{counts[c]}**" if c == meant else str(counts[c] or "") for c in columns]
        lines.append(f"| {name} | {meant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def limits(results: dict[str, list[Metrics]]) -> str:
    """Markdown: for every rule, its metric on true pairs and on the fault it is meant for, if there is one."""
    lines = [
        "| rule | metric | true 1 % | 5 % | 50 % | 95 % | 99 % | fault 5 % | 50 % | 95 % |",
        "|---|---" + "|---:" * 8 + "|",
    ]
    for name, (rule, _) in FAULTS.items():
        metric = WATCHED[rule]
        true, fault = (_values(results[kind], metric) for kind in (TRUE, name))
        cells = [
            f"{v:.3f}"
            for v in (*np.quantile(true, [0.01, 0.05, 0.5, 0.95, 0.99]), *np.quantile(fault, [0.05, 0.5, 0.95]))
        ]
        lines.append(f"| {rule} | {metric} | " + " | ".join(cells) + " |")
    for rule, metric in OFF.items():
        true = np.quantile(_values(results[TRUE], metric), [0.01, 0.05, 0.5, 0.95, 0.99])
        lines.append(f"| {rule} (off) | {metric} | " + " | ".join(f"{v:.3f}" for v in true) + " |  |  |  |")
    return "\n".join(lines)


def true_pairs(folder: Path, estimator: DepthEstimator) -> str:
    """Markdown: verdict and metrics of each scene of a data set, without and with estimated depth."""
    metrics = list(dict.fromkeys([*WATCHED.values(), *OFF.values(), "bad_2", "control_bad_2"]))
    lines = [f"| scene | depth | verdict | {' | '.join(metrics)} |", "|---|---|---|" + "---:|" * len(metrics)]
    dataset = open_dataset(folder)
    for name in dataset.ids:
        pair = of_scene(dataset.read(name))
        for depth, meter in (("none", Meter(None)), ("estimated", Meter(estimator))):
            found = meter(pair)
            values = [getattr(found, metric) for metric in metrics]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            verdict = judge(found, QualityConfig()).reject_reason or "accepted"
            lines.append(f"| {name} | {depth} | {verdict} | {' | '.join(cells)} |")
    return "\n".join(lines)


def everything(results: dict[str, list[Metrics]]) -> str:
    """Markdown: mean of every metric for every kind."""
    names = [name for name in asdict(results[TRUE][0]) if any(_values(ms, name).size for ms in results.values())]
    lines = ["| metric | " + " | ".join(results) + " |", "|---" + "|---:" * len(results) + "|"]
    for metric in names:
        means = [_values(ms, metric) for ms in results.values()]
        lines.append(f"| {metric} | " + " | ".join(f"{v.mean():.3f}" if v.size else "" for v in means) + " |")
    return "\n".join(lines)


def _values(metrics: list[Metrics], name: str) -> NDArray[np.float64]:
    found = [getattr(m, name) for m in metrics]
    return np.array([value for value in found if value is not None], np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Middlebury 2014 or KITTI 2015: its true pairs instead")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--first", type=int, default=1000, help="first seed; take one that no threshold was moved for")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--depth", type=Path, help="folder of a depth estimator; default: the embedded one")
    parser.add_argument("--metrics", type=Path, help="JSON file that keeps the metrics; judged from it where it exists")
    parser.add_argument("--fix", action="store_true", help="show each rule's metric on true and faulty pairs, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.depth:
        estimator = DepthEstimator(options.depth, "inverse", torch.float32, "cpu")
    else:
        estimator = DepthEstimator.load(resolve_recipe(Recipe()).models.depth, "cpu")
    if options.data:
        print(true_pairs(options.data, estimator))
        return
    if options.metrics and options.metrics.exists():
        kept = json.loads(options.metrics.read_text())
        results = {name: [Metrics(**values) for values in rows] for name, rows in kept["results"].items()}
        each = kept["ms"]
    else:
        meter = Meter(estimator)
        results = measured(meter, options.split, options.scenes, options.size, options.first)
        each = 1000 * float(np.median(meter.seconds))
    if options.metrics:
        rows = {name: [asdict(metrics) for metrics in found] for name, found in results.items()}
        options.metrics.write_text(json.dumps({"ms": each, "results": rows}))
    print(confusion(results, QualityConfig()))
    if options.fix:
        print("\n" + limits(results) + "\n\n" + everything(results))
    print(f"\n{len(results[TRUE])} scenes of the {options.split} split; {each:.0f} ms a pair, one thread")


if __name__ == "__main__":
    main()
