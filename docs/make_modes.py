"""Runs one held-out ToyScape through every mode and preset as jobs, and draws a picture of the pairs.

python docs/make_modes.py out/modes docs/images/modes.png

The rows are text, depth, photo and inpaint. The left half is `official`, the right half is `best`; each shows left
view, right view, anaglyph and disparity.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_pictures import GAP, first_rows, strip
from PIL import Image

from stereo_jobs.data.images import encode_png
from stereo_jobs.run.driver import run
from stereo_jobs.spec import StorageSpec
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.toyscapes.manifest import write_manifest
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

SEED = 3
MODES = ("text", "depth", "image", "inpaint")
PRESETS = ("official", "best")


def write_inpaint(target: Path) -> None:
    """Write a manifest of one row: the scene as a photo, its caption, and a mask over its object."""
    scene = draw_scene(SEED, "test", "structured")
    mask = np.zeros((128, 128), np.uint8)
    mask[40:112, 24:104] = 255
    columns = {
        "id": ["inpaint"],
        "prompt": [scene.caption],
        "image": [encode_png(render(scene, 128, 128).left)],
        "mask": [encode_png(mask)],
    }
    pq.write_table(pa.table(columns), target)


def generate(folder: Path, mode: str, preset: str) -> dict:
    """Run the job of a mode and preset, or resume it; returns its one row."""
    manifest = folder / f"{mode}.parquet"
    if not manifest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if mode == "inpaint":
            write_inpaint(manifest)
        else:
            write_manifest(str(manifest), StorageSpec(), rows=1, mode=mode, level="structured", start=SEED)
    recipe = {"mode": mode, "method": {"preset": preset}, "scale_percent": 10.0}
    spec = parse_spec({"manifest": str(manifest), "output": str(folder / f"{mode}-{preset}"), "recipe": recipe})
    run(spec, local=True)
    return first_rows(spec.output, 1)[0]


def main() -> None:
    """Draw one line of strips for each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("picture")
    options = parser.parse_args()
    lines = []
    for mode in MODES:
        official, best = (strip(generate(options.output, mode, preset)) for preset in PRESETS)
        between = np.full((best.shape[0], 4 * GAP, 3), 255, np.uint8)
        lines += [np.hstack([official, between, best])]
    wide = np.full((GAP, lines[0].shape[1], 3), 255, np.uint8)
    picture = np.vstack([part for line in lines for part in (line, wide)][:-1])
    Image.fromarray(picture).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
