"""Does the right view have the disparity it should have? `python benchmarks/geometry.py --scenes 16`

A stereo matcher looks at ToyScapes of the test split, plain and structured in turn, with known disparity: the true
pair, the right view of `best`, and that before its composite, beside the same of whole latent pixels, as published.
Prints the share of the visible, matched pixels that are more than a pixel off the true disparity, and two ratios.
"""

import argparse
import json
from typing import Any

import numpy as np

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.evaluate.details import score_details
from stereo_jobs.notebook import StereoPipeline
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import Level, draw_scene

SIZE = 128
LEVELS: tuple[Level, Level] = ("plain", "structured")
QUIET = {"mode": "image", "quality": {"enabled": False}}


def make(scenes: list[ToyScape], **method: Any) -> list[StereoPair]:
    pipeline = StereoPipeline.from_pretrained(**QUIET, method={"geometry": "metric"} | method)
    rows = [
        Row(f"{i}", "", "", i, 8.0, {"image": encode_png(s.left), "disparity": encode_disparity(s.disparity)})
        for i, s in enumerate(scenes)
    ]
    pairs = pipeline.generate(rows)
    assert all(isinstance(pair, StereoPair) for pair in pairs), pairs
    return pairs


def raw(pair: StereoPair) -> np.ndarray:
    """Its right view before the composite, if it has one."""
    return pair.right if pair.raw_right is None else pair.raw_right


def bad(scenes: list[ToyScape], rights: list[np.ndarray]) -> float:
    shares = [
        score_details(s.left, right, s.right, s.disparity)["bad_1"] for s, right in zip(scenes, rights, strict=True)
    ]
    return float(np.nanmean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    options = parser.parse_args()
    scenes = [render(draw_scene(i // 2, "test", LEVELS[i % 2]), SIZE, SIZE) for i in range(options.scenes)]
    best, integer = make(scenes), make(scenes, warp="integer")
    official = make(scenes, preset="official", inversion="direct")
    shares = {
        "true pair": bad(scenes, [scene.right for scene in scenes]),
        "best": bad(scenes, [pair.right for pair in best]),
        "best, before the composite": bad(scenes, [raw(pair) for pair in best]),
        "integer, before the composite": bad(scenes, [raw(pair) for pair in integer]),
        "official": bad(scenes, [raw(pair) for pair in official]),
    }
    report = {name: round(share, 4) for name, share in shares.items()}
    report["raw over integer"] = round(
        shares["best, before the composite"] / shares["integer, before the composite"], 3
    )
    report["composite over true"] = round(shares["best"] / shares["true pair"], 3)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
