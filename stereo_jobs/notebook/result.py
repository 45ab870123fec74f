"""A pair that shows and saves itself."""

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.notebook.inputs import InputRefusedError
from stereo_jobs.pipeline.scoring import measure_pair
from stereo_jobs.quality.measure import Metrics
from stereo_jobs.records import StereoPair
from stereo_jobs.views import anaglyph, coloured, side_by_side

_SHOWN_PX = 1600
"""Largest width and height of a picture in a notebook."""


@dataclass(frozen=True, repr=False)
class StereoImage:
    """A stereo pair with its labels. A notebook shows it as both views side by side.

    Attributes:
        pair: all arrays and numbers of the pair.
    """

    pair: StereoPair

    @property
    def left(self) -> Image.Image:
        """The left view."""
        return Image.fromarray(self.pair.left)

    @property
    def right(self) -> Image.Image:
        """The right view."""
        return Image.fromarray(self.pair.right)

    @property
    def disparity(self) -> NDArray[np.float32]:
        """Disparity of the left view that was really applied, H,W float32 pixels."""
        return self.pair.disparity

    @property
    def mask_nonocc_left(self) -> NDArray[np.bool_]:
        """Left pixels that the right view shows, too: H,W bool."""
        return self.pair.mask_nonocc_left

    @property
    def mask_hole_right(self) -> NDArray[np.bool_]:
        """Right pixels that the left view does not show, and which diffusion made: H,W bool."""
        return self.pair.mask_hole_right

    @property
    def mask_border_right(self) -> NDArray[np.bool_]:
        """Hole pixels of the right view that lie beyond the left view's frame: H,W bool."""
        return self.pair.mask_border_right

    @cached_property
    def quality(self) -> Metrics:
        """How good the pair is, measured without ground truth: the `qc_*` columns of a job (docs/quality.md)."""
        return measure_pair(self.pair)

    def anaglyph(self) -> Image.Image:
        """Mix both views into one image for red-cyan glasses."""
        return Image.fromarray(anaglyph(self.pair.left, self.pair.right))

    def side_by_side(self, *, cross_eyed: bool = False) -> Image.Image:
        """Put both views into one image; with `cross_eyed` the right view stands on the left."""
        return Image.fromarray(side_by_side(self.pair.left, self.pair.right, cross_eyed=cross_eyed))

    def disparity_image(self) -> Image.Image:
        """Colour the disparity, to look at: dark blue is far, yellow is near."""
        return Image.fromarray(coloured(self.pair.disparity))

    def save(self, folder: str | Path = ".", name: str = "pair", *, replace: bool = False) -> dict[str, Path]:
        """Write both views, anaglyph and disparity as files `<name>-left.png` and so on.

        Args:
            folder: where to; it is made if it does not exist.
            name: how the files' names begin.
            replace: whether to replace files that exist.

        Returns:
            The files: `left`, `right`, `anaglyph`, `disparity` (float32 TIFF, pixels of the left view) and
            `disparity_image` (coloured PNG, to look at).

        Raises:
            InputRefusedError: a file exists, or cannot be written.
        """
        files = saved_files(folder, name)
        if not replace:
            refuse_existing(files.values(), "replace=True")
        pictures = [self.left, self.right, self.anaglyph(), self.disparity_image()]
        encoded = [encode_png(np.asarray(picture)) for picture in pictures]
        encoded.insert(3, encode_disparity(self.pair.disparity))
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for path, data in zip(files.values(), encoded, strict=True):
                path.write_bytes(data)
        except OSError as error:
            raise InputRefusedError(f"{folder}: cannot be written to ({error}); choose another folder") from None
        return files

    def __repr__(self) -> str:
        height, width = self.pair.disparity.shape
        low, high = self.pair.disparity.min(), self.pair.disparity.max()
        holes = 100 * self.pair.mask_hole_right.mean()
        return f"<StereoImage {width}x{height}, disparity {low:.1f} to {high:.1f} px, {holes:.0f} % holes>"

    def _repr_png_(self) -> bytes:
        picture, buffer = self.side_by_side(), io.BytesIO()
        picture.thumbnail((2 * _SHOWN_PX, _SHOWN_PX))
        picture.save(buffer, "PNG")
        return buffer.getvalue()


class StereoImages(list[StereoImage]):
    """Pairs of a list of prompts. A notebook shows them below each other."""

    def _repr_html_(self) -> str:
        encoded = [(html.escape(repr(each)), base64.b64encode(each._repr_png_()).decode()) for each in self]
        return "".join(f'<p><img alt="{text}" src="data:image/png;base64,{png}"></p>' for text, png in encoded)


def saved_files(folder: str | Path, name: str) -> dict[str, Path]:
    """Return the files that `StereoImage.save` writes, by what they hold."""
    endings = {"left": "left.png", "right": "right.png", "anaglyph": "anaglyph.png", "disparity": "disparity.tif"}
    endings["disparity_image"] = "disparity.png"
    return {key: Path(folder) / f"{name}-{ending}" for key, ending in endings.items()}


def refuse_existing(files: Iterable[Path], remedy: str) -> None:
    """Raise InputRefusedError if any of the files exists; the message names the remedy."""
    for path in files:
        if path.exists():
            raise InputRefusedError(f"{path}: exists; give another folder, or {remedy} to replace it")
