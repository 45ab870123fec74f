"""Middlebury 2014 scenes under both protocols: pixel baselines, the published arithmetic, and ours.

    python benchmarks/middlebury.py --data DIR                         # the embedded models
    python benchmarks/middlebury.py --data DIR --models FOLDER --dtype float16 --device cuda

`paper`: centre square crop, 512 x 512 (bilinear), disparity min-max normalised to 8 % of the width and truncated.
`metric`: true pixels. PSNR, SSIM, LPIPS against the true right view, over all pixels and inside the holes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from stereo_jobs.baselines import FILLS
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.evaluate.datasets import Prepared, middlebury, prepare
from stereo_jobs.generate import StereoPipeline, choose_device
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.quality.truth import TrueScores, score
from stereo_jobs.records import Row, RowError
from stereo_jobs.spec import Recipe, Size

METHODS = {
    "official": {"preset": "official", "geometry": "metric", "inversion": "direct"},
    "best": {"preset": "best", "geometry": "metric", "edge_px": 0},
    "best, shift at 0.6": {"preset": "best", "geometry": "metric", "edge_px": 0, "shift_step": 0.6},
    "best, shift at 0.8": {"preset": "best", "geometry": "metric", "edge_px": 0, "shift_step": 0.8},
}


def fills(scene: Prepared, subpixel: bool) -> Iterator[tuple[str, TrueScores]]:
    for name, fill in FILLS.items():
        right, hole = fill(scene.left, scene.disparity, subpixel=subpixel)
        yield f"{name}{', sub-pixel' if subpixel else ''}", score(right, scene.right, hole)


def methods(scene: Prepared, options: argparse.Namespace) -> Iterator[tuple[str, TrueScores]]:
    size = Size(width=options.size, height=options.size)
    sd = {"path": options.models, "dtype": options.dtype}
    inputs = {"image": encode_png(scene.left), "disparity": encode_disparity(scene.disparity)}
    for name, method in METHODS.items():
        recipe = resolve_recipe(Recipe(mode="image", method=method, size=size, models={"stable_diffusion": sd}))
        made = StereoPipeline.load(recipe, choose_device(options.device), 1).generate(
            [Row("x", "", "", 0, 8.0, inputs)]
        )
        if isinstance(made[0], RowError):
            raise RuntimeError(f"{scene.id}, {name}: {made[0].error_message}")
        yield name, score(made[0].right, scene.right, made[0].mask_hole_right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Middlebury scenes")
    parser.add_argument("--models", default="demo", help="Stable Diffusion: `demo`, a folder, or a Hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--fills-only", action="store_true", help="leave the models out")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    print("| scene | protocol | method | PSNR | SSIM | LPIPS | PSNR in holes | LPIPS in holes | PSNR outside |")
    print("|---|---|---|---|---|---|---|---|---|")
    for scene in middlebury(options.data):
        for protocol in ("paper", "metric"):
            ready = prepare(scene, protocol, options.size)
            rows = [*fills(ready, subpixel=False), *fills(ready, subpixel=True)]
            if not options.fills_only:
                rows += methods(ready, options)
            for name, s in rows:
                print(
                    f"| {scene.id} | {protocol} | {name} | {s.psnr:.2f} | {s.ssim:.3f} | {s.lpips:.3f} "
                    f"| {s.psnr_occ:.2f} | {s.lpips_occ:.3f} | {s.psnr_nonocc:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
