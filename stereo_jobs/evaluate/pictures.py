"""Sheets of pictures: the worst, mean and best scene of a method beside the results of all others (Fig. 4)."""

import io
import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from stereo_jobs.pixels import Image

_SIDE = 320
"""Maximum width and height of a picture on a sheet: larger ones are reduced, those up to half of it are doubled."""
_GAP, _LINE, _LETTER = 8, 13, 6
_CAPTION_LINES = 3


def worst_mean_best(scores: Mapping[str, float]) -> dict[str, str]:
    """The scenes with the lowest score, the score nearest to the mean, and the highest; scores must be finite."""
    mean = sum(scores.values()) / len(scores)
    return {
        "worst": min(scores, key=lambda scene: scores[scene]),
        "mean": min(scores, key=lambda scene: abs(scores[scene] - mean)),
        "best": max(scores, key=lambda scene: scores[scene]),
    }


def sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Image]]]]) -> bytes:
    """A sheet of captioned pictures, as PNG.

    Args:
        rows: heading of each row, and its captions with pictures H,W,3 uint8, which may differ in size from row to row.
    """
    sizes = [_shown(cells[0][1]) for _, cells in rows]
    widest = max(width for width, _ in sizes)
    belows = [height + (2 + _CAPTION_LINES) * _LINE for _, height in sizes]
    columns = max(len(cells) for _, cells in rows)
    page = PillowImage.new("RGB", (columns * (widest + _GAP) + _GAP, sum(belows) + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for r, ((heading, cells), (width, height)) in enumerate(zip(rows, sizes, strict=True)):
        top = _GAP + sum(belows[:r])
        draw.text((_GAP, top), heading, "black", font)
        for c, (caption, picture) in enumerate(cells):
            left, at = _GAP + c * (widest + _GAP), top + _LINE + 4
            page.paste(
                PillowImage.fromarray(picture).resize((width, height), PillowImage.Resampling.LANCZOS), (left, at)
            )
            lines = textwrap.wrap(caption, max(8, widest // _LETTER))[:_CAPTION_LINES]
            for n, line in enumerate(lines):
                draw.text((left, at + height + 2 + n * _LINE), line, "black", font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _shown(picture: Image) -> tuple[int, int]:
    """Width and height of a picture on a sheet."""
    height, width = picture.shape[:2]
    scale = min(2.0 if 2 * max(height, width) <= _SIDE else 1.0, _SIDE / max(height, width))
    return round(width * scale), round(height * scale)
