"""The method for a notebook: one call, one result that shows itself. The job runs the same `generate`."""

import hashlib
import io
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stereo_jobs.batches import Generator
from stereo_jobs.curation import measure_pair
from stereo_jobs.data.images import encode_disparity, encode_png, to_rgb
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.quality.measure import Metrics
from stereo_jobs.records import Camera, Row, RowError, StereoPair
from stereo_jobs.spec import Mode, check_scale_percent
from stereo_jobs.views import anaglyph, side_by_side

Picture = Image.Image | NDArray[np.uint8]


class InputRefusedError(StereoJobsError):
    """What was given cannot be made into a pair; the message names the input, the rule and the remedy."""

    exit_code = 2


@dataclass(frozen=True)
class StereoImage:
    """A stereo pair with its labels, as `stereo_jobs.records.StereoPair` documents them."""

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
        """Applied disparity of the left view, H,W pixels."""
        return self.pair.disparity

    @property
    def mask_nonocc_left(self) -> NDArray[np.bool_]:
        """Left pixels that the right view shows, too."""
        return self.pair.mask_nonocc_left

    @property
    def mask_hole_right(self) -> NDArray[np.bool_]:
        """Right pixels that diffusion made."""
        return self.pair.mask_hole_right

    @cached_property
    def quality(self) -> Metrics:
        """How good the pair is without ground truth: the `qc_*` columns of a job; docs/quality.md explains them."""
        return measure_pair(self.pair)

    def anaglyph(self) -> Image.Image:
        """For red-cyan glasses."""
        return Image.fromarray(anaglyph(self.pair.left, self.pair.right))

    def side_by_side(self, *, cross_eyed: bool = False) -> Image.Image:
        """Both views in one picture."""
        return Image.fromarray(side_by_side(self.pair.left, self.pair.right, cross_eyed=cross_eyed))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.side_by_side().save(buffer, "PNG")
        return buffer.getvalue()


class NotebookCalls:
    """The calls of a notebook, on top of `generate`: one input, one result."""

    def for_mode(self, mode: Mode) -> Generator:
        """What makes pairs of a mode."""
        raise NotImplementedError

    def __call__(self, prompt: str, *, seed: int = 0, scale_percent: float = 8.0, negative: str = "") -> StereoImage:
        """A pair from a prompt; `scale_percent` is the shift of the nearest point in percent of the width."""
        return self._one("text", Row("", prompt, negative, seed, scale_percent))

    def from_image(
        self,
        image: Picture,
        prompt: str = "",
        *,
        disparity: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        seed: int = 0,
        scale_percent: float = 8.0,
    ) -> StereoImage:
        """A pair whose left view is a photo.

        Args:
            image: of any size.
            prompt: what it shows; may stay empty.
            disparity: H,W pixels, for geometry `metric`; else depth is estimated.
            mask: H,W, true where the photo is to be filled first.
            seed: of what diffusion draws.
            scale_percent: as for text.
        """
        inputs = {"image": encode_png(_pixels(image))}
        if disparity is not None:
            inputs["disparity"] = encode_disparity(_flat("disparity", disparity).astype(np.float32))
        if mask is not None:
            inputs["mask"] = encode_png(_flat("mask", mask).astype(bool))
        mode: Mode = "image" if mask is None else "inpaint"
        return self._one(mode, Row("", prompt, "", seed, scale_percent, inputs=inputs))

    def from_depth(
        self,
        depth: ArrayLike,
        prompt: str,
        *,
        depth_kind: str = "inverse",
        camera: Camera | None = None,
        seed: int = 0,
        scale_percent: float = 8.0,
    ) -> StereoImage:
        """A pair from a prompt and a depth map H,W: `inverse` grows towards the viewer, `metric` away from it."""
        inputs = {"depth": encode_disparity(_flat("depth", depth).astype(np.float32))}
        row = Row("", prompt, "", seed, scale_percent, inputs, depth_kind, camera or Camera())
        return self._one("depth", row)

    def _one(self, mode: Mode, row: Row) -> StereoImage:
        try:
            check_scale_percent(row.scale_percent)
        except ValueError as error:
            raise InputRefusedError(f"scale_percent: {error}, got {row.scale_percent:g}") from None
        row = replace(row, seed=int(row.seed))  # a NumPy integer would overflow
        digest = hashlib.sha256(repr((mode, row.prompt, row.seed)).encode()).hexdigest()[:12]
        made = self.for_mode(mode).generate([replace(row, id=digest)])[0]
        if isinstance(made, RowError):
            raise InputRefusedError(made.error_message)
        return StereoImage(made)


def _pixels(image: Picture) -> NDArray[np.uint8]:
    """H,W or H,W,3 or H,W,4 uint8; what Pillow holds in another mode, or turned, as it looks."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    flat = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not flat or not pixels.size:
        raise InputRefusedError(
            f"image: must be a PIL image or H,W,3 uint8 in [0, 255]; got shape {pixels.shape} of {pixels.dtype}"
        )
    return pixels


def _flat(name: str, values: ArrayLike) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise InputRefusedError(f"{name}: must be H,W numbers; got shape {array.shape} of {array.dtype}")
    return array
