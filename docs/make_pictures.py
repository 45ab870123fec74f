"""Draws pictures of the documentation from a finished dataset.

python docs/make_pictures.py out/demo docs/images/demo.png                        # its first six pairs, with labels
python docs/make_pictures.py out/demo docs/images/edges.png --large 2 3 4 5 8 12 13 14   # these pairs, enlarged
"""

import argparse
import io

import numpy as np
from PIL import Image

from stereo_jobs.data.images import decode_disparity
from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.views import anaglyph, coloured

ZOOM, GAP = 2, 6
LARGE = 4
"""Zoom of pairs that are shown for their edges and holes."""


def strip(row: dict) -> np.ndarray:
    """Left, right, anaglyph and disparity of one pair, side by side."""
    left, right = (np.asarray(Image.open(io.BytesIO(row[name]["bytes"]))) for name in ("left", "right"))
    disparity = coloured(decode_disparity(row["disparity"]["bytes"]))
    return beside([left, right, anaglyph(left, right), disparity], ZOOM)


def large_strip(row: dict) -> np.ndarray:
    """Left and right view of one pair, side by side, large enough to see every pixel."""
    return beside([np.asarray(Image.open(io.BytesIO(row[name]["bytes"]))) for name in ("left", "right")], LARGE)


def beside(images: list[np.ndarray], zoom: int) -> np.ndarray:
    """Enlarge images and put them side by side."""
    images = [image.repeat(zoom, 0).repeat(zoom, 1) for image in images]
    gap = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([part for image in images for part in (image, gap)][:-1])


def first_rows(output: str, count: int) -> list[dict]:
    """The first `count` rows of a dataset."""
    storage = open_storage(output)
    rows: list[dict] = []
    for info in storage.list(layout.DATA_PREFIX):
        rows += read_table(storage.read(info.key)).to_pylist()
        if len(rows) >= count:
            break
    return rows[:count]


def main() -> None:
    """Draw two columns of strips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("picture")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--large", type=int, nargs="+", metavar="ROW", help="these rows, their views alone, enlarged")
    arguments = parser.parse_args()
    if arguments.large:
        rows = first_rows(arguments.output, max(arguments.large) + 1)
        strips = [large_strip(rows[number]) for number in arguments.large]
    else:
        strips = [strip(row) for row in first_rows(arguments.output, arguments.pairs)]
    wide = np.full((GAP, strips[0].shape[1], 3), 255, np.uint8)
    half = -(-len(strips) // 2)
    columns = [
        np.vstack([part for image in strips[start : start + half] for part in (image, wide)][:-1])
        for start in (0, half)
    ]
    between = np.full((columns[0].shape[0], 4 * GAP, 3), 255, np.uint8)
    Image.fromarray(np.hstack([columns[0], between, columns[1]])).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
