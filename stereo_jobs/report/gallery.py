"""One HTML page with the first pairs of a dataset: both views, anaglyph, disparity, holes."""

import base64
import io
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from stereo_jobs.data.images import decode_disparity, encode_png
from stereo_jobs.data.storage import Storage
from stereo_jobs.job import layout
from stereo_jobs.job.commits import committed
from stereo_jobs.job.progress import Status
from stereo_jobs.views import anaglyph

_COLUMNS = ["id", "prompt", "seed", "scale_percent", "left", "right", "disparity", "mask_hole_right"]


def build(storage: Storage, status: Status, pairs: int) -> str:
    """Write the page below the output; returns its URI."""
    shown = [_entry(row) for row in _first_rows(storage, pairs)]
    template = resources.files("stereo_jobs.report").joinpath("gallery.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    page = environment.from_string(template).render(output=storage.uri, status=status, pairs=shown)
    storage.replace(layout.REPORT, page.encode())
    return storage.locate(layout.REPORT)


def _first_rows(storage: Storage, count: int) -> Iterator[dict[str, Any]]:
    objects, _ = committed(storage)
    for key in sorted(objects):
        if count <= 0:
            return
        filesystem, path = storage.for_pyarrow(layout.data(key))
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=16, columns=_COLUMNS):
                rows = batch.to_pylist()[:count]
                yield from rows
                count -= len(rows)


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    left, right, hole = (_pixels(row[name]["bytes"]) for name in ("left", "right", "mask_hole_right"))
    disparity = decode_disparity(row["disparity"]["bytes"])
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "seed": row["seed"],
        "scale_percent": row["scale_percent"],
        "largest": float(disparity.max()) if disparity.size else 0.0,
        "holes": 100 * float((hole > 0).mean()),
        "images": [
            ("left", _inline(row["left"]["bytes"])),
            ("right", _inline(row["right"]["bytes"])),
            ("anaglyph", _inline(encode_png(anaglyph(left, right)))),
            ("disparity", _inline(encode_png(colour(disparity)))),
            ("holes of the right view", _inline(row["mask_hole_right"]["bytes"])),
        ],
    }


def colour(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Disparity as H,W,3 uint8: dark blue is far, yellow is near."""
    low, high = float(disparity.min()), float(disparity.max())
    near = (disparity - low) / (high - low) if high > low else np.zeros_like(disparity)
    stops = np.array([[30, 20, 90], [30, 120, 160], [80, 190, 110], [250, 230, 60]])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(near, at, stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def _pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
