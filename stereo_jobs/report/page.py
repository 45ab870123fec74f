"""One HTML page and one JSON object about a dataset: verdicts, distributions, worst, best and first pairs."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stereo_jobs.data.images import decode_disparity, encode_png
from stereo_jobs.data.storage import Storage
from stereo_jobs.logs import printable
from stereo_jobs.output import layout
from stereo_jobs.output.plan import Job
from stereo_jobs.output.progress import Status
from stereo_jobs.output.row_errors import summarise
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.report.columns import POSITION, SHARD, read_rows, read_scalars
from stereo_jobs.report.problems import prompt_lines
from stereo_jobs.report.statistics import Distribution, Ranking, distribution, distributions, numbers, rank, reasons
from stereo_jobs.views import anaglyph, coloured

MOST_ROWS = 1_000_000
"""Larger datasets are sampled by evenly spaced shards: then distributions are estimates, while verdicts stay exact."""
DECODED_PAIRS = 256
"""Maximum number of pairs whose disparities and holes are decoded; they are evenly spaced."""
ENDS = 6
"""Number of worst pairs, and of best pairs, on the page."""
SHOWN_SIDE = 512
"""Longest side of a picture on the page, in pixels: with photos as cameras take them it would have gigabytes."""

_COLUMNS = ["id", "prompt", "seed", "scale_percent", "left", "right", "disparity", "mask_hole_right"]


def build(storage: Storage, job: Job, status: Status, pairs: int) -> tuple[str, str]:
    """Write the page and the JSON file below the output; returns their URIs.

    Args:
        storage: the storage of the output.
        job: the plans of the output; their recipe has the thresholds.
        status: counts and verdicts.
        pairs: the number of pairs to show, from the first on.
    """
    scalars = read_scalars(storage, MOST_ROWS)
    quality = QualityConfig.model_validate(job.plans[0].recipe["quality"])
    found = distributions(scalars, quality)
    measured = any(each.name == "qc_hole_share" for each in found)
    disparity, holes = _decoded(storage, scalars, with_holes=not measured)
    if holes is not None:
        found.append(holes)
    ranking = rank(scalars, ENDS) or Ranking("", [], [])
    errors = summarise(storage, job)
    facts: dict[str, Any] = {
        "output": storage.uri,
        "status": status.as_json(),
        "read_pairs": len(scalars),
        "errors": errors.as_json(),
        "rejected": {reason: {"count": len(ids), "first": ids[:5]} for reason, ids in reasons(scalars).items()},
        "distributions": [asdict(each) for each in found],
        "disparity_px": None if disparity is None else asdict(disparity),
        "ranked_by": ranking.column or None,
        "worst": _ends(scalars, ranking.column, ranking.worst),
        "best": _ends(scalars, ranking.column, ranking.best),
    }
    page = _template().render(
        facts=facts,
        status=status,
        errors=errors,
        notes=prompt_lines(status.prompts),
        plots=[*([disparity] if disparity else []), *found],
        worst=_entries(storage, scalars, ranking.worst, ranking.column),
        best=_entries(storage, scalars, ranking.best, ranking.column),
        first=_entries(storage, scalars, range(min(pairs, len(scalars)))),
    )
    storage.replace(layout.REPORT_DATA, json.dumps(facts, allow_nan=False).encode())
    storage.replace(layout.REPORT, page.encode())
    return storage.locate(layout.REPORT), storage.locate(layout.REPORT_DATA)


def _template() -> jinja2.Template:
    text = resources.files("stereo_jobs.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, finalize=_visible)
    return environment.from_string(text)


def _visible(value: Any) -> Any:
    """Escape what would hide or reorder text on the page; finished markup is left as it is."""
    return printable(value) if type(value) is str else value


def _places(scalars: pa.Table, indices: Sequence[int]) -> list[tuple[int, int]]:
    rows = scalars.select([SHARD, POSITION]).take(list(indices)) if indices else scalars.slice(0, 0)
    return list(zip(rows[SHARD].to_pylist(), rows[POSITION].to_pylist(), strict=True)) if len(rows) else []


def _decoded(storage: Storage, scalars: pa.Table, with_holes: bool) -> tuple[Distribution | None, Distribution | None]:
    """Distributions of evenly spaced pairs: disparities in pixels, and hole shares where no column has them."""
    chosen = sorted({int(i) for i in np.linspace(0, len(scalars) - 1, min(DECODED_PAIRS, len(scalars)))})
    pixels: list[NDArray[np.float32]] = []
    holes: list[float] = []
    columns = ("disparity", "mask_hole_right") if with_holes else ("disparity",)
    for row in read_rows(storage, _places(scalars, chosen), columns):
        disparity = decode_disparity(row["disparity"]["bytes"]).ravel()
        pixels.append(disparity[:: max(1, disparity.size // 10_000)])
        if with_holes:
            holes.append(float((_pixels(row["mask_hole_right"]["bytes"]) > 0).mean()))
    return (
        distribution("disparity", np.concatenate(pixels)) if pixels else None,
        distribution("hole_share", np.array(holes)) if holes else None,
    )


def _ends(scalars: pa.Table, column: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Ids of rows with their values of the column."""
    values = numbers(scalars, column)
    return [{"id": scalars["id"][i].as_py(), column: float(values[i])} for i in indices]


def _entries(
    storage: Storage, scalars: pa.Table, indices: Sequence[int], column: str | None = None
) -> list[dict[str, Any]]:
    """Rows as the template takes them, each with its value of `column` as a note."""
    values = numbers(scalars, column) if column else None
    rows = read_rows(storage, _places(scalars, indices), _COLUMNS)
    why = scalars["reject_reason"] if "reject_reason" in scalars.column_names else None
    return [
        {
            **_entry(row),
            "note": "" if values is None else f"{column} {values[i]:.4g}",
            "reject_reason": why[i].as_py() if why is not None else None,
        }
        for i, row in zip(indices, rows, strict=True)
    ]


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
            ("disparity", _inline(encode_png(coloured(disparity)))),
            ("holes of the right view", _inline(row["mask_hole_right"]["bytes"])),
        ],
    }


def _pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _inline(png: bytes) -> str:
    """A picture as a data URI, shrunk to `SHOWN_SIDE`."""
    with Image.open(io.BytesIO(png)) as picture:
        if max(picture.size) > SHOWN_SIDE:
            picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            png = encode_png(np.asarray(picture))
    return "data:image/png;base64," + base64.b64encode(png).decode()
