"""The method for a notebook: one call, one result that shows itself. A job calls the same `PairGenerator`."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stereo_jobs.data.images import encode_disparity, encode_png, to_rgb
from stereo_jobs.data.manifest import draw_scale
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline.generator import PairGenerator, choose_device
from stereo_jobs.pipeline.scoring import measure_pair
from stereo_jobs.quality.measure import Metrics
from stereo_jobs.records import Camera, Row, RowError, StereoPair
from stereo_jobs.spec import DEMO, Mode, Recipe, check_scale_percent, parse_recipe
from stereo_jobs.views import anaglyph, side_by_side

Picture = Image.Image | NDArray[np.uint8]
DepthKind = Literal["inverse", "metric"]


class InputRefusedError(StereoJobsError):
    """An input cannot be made into a pair; the message names the input, the rule and the remedy."""

    exit_code = 2


@dataclass(frozen=True)
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

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.side_by_side().save(buffer, "PNG")
        return buffer.getvalue()


class StereoPipeline:
    """The method for single calls: one input, one result.

    In a notebook: `StereoPipeline.from_pretrained()("a red circle on the left, green floor, grey wall")`.

    In each call `scale_percent` is the shift of the nearest point in percent of the width. Where a call leaves out
    `scale_percent` or `negative_prompt`, the recipe's value is used.

    Args:
        generator: loaded models and a recipe.
    """

    def __init__(self, generator: PairGenerator) -> None:
        self.generator = generator
        self._others: dict[Mode, StereoPipeline] = {}

    @classmethod
    def from_pretrained(
        cls, stable_diffusion: str = DEMO, *, depth: str | None = None, device: str = "auto", **recipe: Any
    ) -> "StereoPipeline":
        """Load models for single calls: `pipeline(prompt)`, `.from_image(...)`, `.from_depth(...)`.

        Args:
            stable_diffusion: a folder in diffusers format, a Hub id, or `demo`.
            depth: a folder in transformers format, a Hub id, or `demo`; must be given for any other
                `stable_diffusion` than `demo`.
            device: `auto`, `cuda` or `cpu`.
            recipe: fields of a job's recipe, such as `method={"preset": "official"}`, `size` or `negative_prompt`.

        Raises:
            SpecError: a field is wrong.
            ModelError: a model cannot be used.
        """
        models = {"stable_diffusion": {"path": stable_diffusion}}
        if depth is not None:
            models["depth"] = {"path": depth}
        resolved = resolve_recipe(parse_recipe({"models": models} | recipe))
        return cls(PairGenerator.load(resolved, choose_device(device), batch_size=1))

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.generator.recipe

    def for_mode(self, mode: Mode) -> "StereoPipeline":
        """Return a pipeline of the same recipe in another mode; it is loaded when it is first used.

        Raises:
            ModelError: the model cannot be used in this mode.
        """
        if mode == self.recipe.mode:
            return self
        if mode not in self._others:
            sd = self.recipe.models.stable_diffusion
            if sd.path == DEMO:  # which has a checkpoint of its own for depth
                sd = sd.model_copy(update={"revision": None})
            models = self.recipe.models.model_copy(update={"stable_diffusion": sd})
            recipe = resolve_recipe(self.recipe.model_copy(update={"mode": mode, "models": models}))
            generator = self.generator
            if "depth" in (mode, self.recipe.mode):
                other = generator.load(recipe, generator.sd.device, generator.batch_size)
            else:  # the same checkpoint
                other = generator.with_recipe(recipe, generator.batch_size)
            self._others[mode] = StereoPipeline(other)
        return self._others[mode]

    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        """Make a pair or an error for every row, in order; see `PairGenerator.generate`."""
        return self.generator.generate(rows)

    def __call__(
        self, prompt: str, *, negative_prompt: str | None = None, seed: int = 0, scale_percent: float | None = None
    ) -> StereoImage:
        """Make a pair from a prompt.

        Args:
            prompt: what the images show.
            negative_prompt: what they do not show.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width.

        Raises:
            InputRefusedError: an input cannot be used.
        """
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
        """Make a pair whose left view is a photo. Without disparity and depth, depth is estimated.

        Args:
            image: the photo, of any size: a PIL image, or H,W,3 uint8 in [0, 255].
            prompt: what it shows; may stay empty.
            negative_prompt: what it does not show.
            disparity: H,W pixels; used instead of `depth` where both are given.
            depth: H,W depth.
            depth_kind: `inverse` depth grows towards the viewer, `metric` away from it.
            camera: turns metric depth into disparity (Eq. 2), for geometry `metric`.
            mask: H,W, true where the photo is to be filled first.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width, for geometry `relative`.

        Raises:
            InputRefusedError: an input cannot be used.
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
        """Make a pair from a prompt and a depth map.

        Args:
            depth: H,W depth.
            prompt: what the images show.
            negative_prompt: what they do not show.
            depth_kind: `inverse` depth grows towards the viewer, `metric` away from it.
            camera: turns metric depth into disparity (Eq. 2), for geometry `metric`.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width, for geometry `relative`.

        Raises:
            InputRefusedError: an input cannot be used.
        """
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
        pipeline, seed = self.for_mode(mode), int(seed)  # a NumPy integer would overflow
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
        made = pipeline.generate([row])[0]
        if isinstance(made, RowError):
            raise InputRefusedError(made.error_message)
        return StereoImage(made)


def _pixels(image: Picture) -> NDArray[np.uint8]:
    """Return H,W or H,W,3 or H,W,4 uint8; a PIL image of any mode and EXIF orientation becomes what it looks like."""
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
    """Return H,W numbers, or refuse the input `name`."""
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise InputRefusedError(f"{name}: must be H,W numbers; got shape {array.shape} of {array.dtype}")
    return array
