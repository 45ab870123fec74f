"""The method for a notebook: one call, one result that shows itself. The job runs the same `generate`."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stereo_jobs.data.images import encode_disparity, encode_png, to_rgb
from stereo_jobs.data.manifest import draw_scale
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.pipeline.batching import Generator
from stereo_jobs.pipeline.scoring import measure_pair
from stereo_jobs.quality.measure import Metrics
from stereo_jobs.records import Camera, Row, RowError, StereoPair
from stereo_jobs.spec import Mode, Recipe, check_scale_percent
from stereo_jobs.views import anaglyph, side_by_side

Picture = Image.Image | NDArray[np.uint8]
DepthKind = Literal["inverse", "metric"]


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

    @property
    def mask_border_right(self) -> NDArray[np.bool_]:
        """Those of them at the frame's edge, beyond what the left view shows."""
        return self.pair.mask_border_right

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
    """The calls of a notebook, on top of `generate`: one input, one result.

    `scale_percent` is the shift of the nearest point in percent of the width. It and `negative_prompt` are the recipe's
    where a call gives none.
    """

    recipe: Recipe

    def for_mode(self, mode: Mode) -> Generator:
        """What makes pairs of a mode."""
        raise NotImplementedError

    def __call__(
        self, prompt: str, *, negative_prompt: str | None = None, seed: int = 0, scale_percent: float | None = None
    ) -> StereoImage:
        """A pair from a prompt."""
        return self._one("text", prompt, negative_prompt, seed, scale_percent)

    def from_image(
        self,
        image: Picture,
        prompt: str = "",
        *,
        negative_prompt: str | None = None,
        disparity: ArrayLike | None = None,
        depth: ArrayLike | None = None,
        depth_kind: DepthKind = "inverse",
        camera: Camera | None = None,
        mask: ArrayLike | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImage:
        """A pair whose left view is a photo. Without disparity and depth, depth is estimated.

        Args:
            image: of any size.
            prompt: what it shows; may stay empty.
            negative_prompt: what it does not show.
            disparity: H,W pixels; goes before `depth`.
            depth: H,W.
            depth_kind: `inverse` depth grows towards the viewer, `metric` away from it.
            camera: makes disparity of metric depth (Eq. 2), for geometry `metric`.
            mask: H,W, true where the photo is to be filled first.
            seed: of what diffusion draws.
            scale_percent: for geometry `relative`.
        """
        inputs = {"image": encode_png(_pixels(image))}
        for name, values in (("disparity", disparity), ("depth", depth)):
            if values is not None:
                inputs[name] = encode_disparity(_flat(name, values).astype(np.float32))
        if mask is not None:
            inputs["mask"] = encode_png(_flat("mask", mask).astype(bool))
        mode: Mode = "image" if mask is None else "inpaint"
        return self._one(
            mode,
            prompt,
            negative_prompt,
            seed,
            scale_percent,
            inputs=inputs,
            depth_kind=depth_kind,
            camera=camera,
        )

    def from_depth(
        self,
        depth: ArrayLike,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        depth_kind: DepthKind = "inverse",
        camera: Camera | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImage:
        """A pair from a prompt and a depth map H,W: `inverse` grows towards the viewer, `metric` away from it."""
        inputs = {"depth": encode_disparity(_flat("depth", depth).astype(np.float32))}
        return self._one(
            "depth",
            prompt,
            negative_prompt,
            seed,
            scale_percent,
            inputs=inputs,
            depth_kind=depth_kind,
            camera=camera,
        )

    def _one(
        self,
        mode: Mode,
        prompt: str,
        negative_prompt: str | None,
        seed: int,
        scale_percent: float | None,
        *,
        inputs: dict[str, bytes] | None = None,
        depth_kind: DepthKind = "inverse",
        camera: Camera | None = None,
    ) -> StereoImage:
        generator, seed = self.for_mode(mode), int(seed)  # a NumPy integer would overflow
        scale = draw_scale(self.recipe, seed) if scale_percent is None else scale_percent
        try:
            check_scale_percent(scale)
        except ValueError as error:
            raise InputRefusedError(f"scale_percent: {error}, got {scale:g}") from None
        if depth_kind not in get_args(DepthKind):
            raise InputRefusedError(f"depth_kind: must be inverse or metric, got {depth_kind!r}")
        name = hashlib.sha256(repr((mode, prompt, seed)).encode()).hexdigest()[:12]
        negative = self.recipe.negative_prompt if negative_prompt is None else negative_prompt
        row = Row(name, prompt, negative, seed, scale, inputs or {}, depth_kind, camera or Camera())
        made = generator.generate([row])[0]
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
