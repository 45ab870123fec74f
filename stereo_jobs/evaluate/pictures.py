"""The worst, the mean and the best scene of a method beside what the others make of it (the paper's Fig. 4)."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
_GAP, _LINE = 6, 18
_LARGEST = 320


def worst_mean_best(scores: Mapping[str, float]) -> dict[str, str]:
    """The scenes with the lowest score, the one nearest to the mean, and the highest; scores are finite."""
    mean = sum(scores.values()) / len(scores)
    return {
        "worst": min(scores, key=lambda scene: scores[scene]),
        "mean": min(scores, key=lambda scene: abs(scores[scene] - mean)),
        "best": max(scores, key=lambda scene: scores[scene]),
    }


def sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Pixels]]]]) -> bytes:
    """PNG of captioned pictures in rows. Each row: its caption, and captions with H,W,3 pictures of one size."""
    side = max(max(picture.shape[:2]) for _, cells in rows for _, picture in cells)
    scale = min(max(1, _LARGEST // 2 // side), 2) if side < _LARGEST else _LARGEST / side
    width, height = (round(n * scale) for n in rows[0][1][0][1].shape[1::-1])
    columns = max(len(cells) for _, cells in rows)
    page = Image.new("RGB", (columns * (width + _GAP) + _GAP, len(rows) * (height + 2 * _LINE + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for r, (caption, cells) in enumerate(rows):
        top = _GAP + r * (height + 2 * _LINE + _GAP)
        draw.text((_GAP, top), caption, "black", font)
        for c, (text, picture) in enumerate(cells):
            at = (_GAP + c * (width + _GAP), top + _LINE)
            page.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), at)
            draw.text((at[0], at[1] + height + 1), text, "black", font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
