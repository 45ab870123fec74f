"""Single pairs from prompts, photos and depth maps, with the generator that a job has, too."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, overload

from stereo_jobs.data.manifest import draw_scale
from stereo_jobs.errors import SpecError
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.notebook.arguments import explained
from stereo_jobs.notebook.inputs import InputRefusedError, Map, Picture, map_bytes, mask_bytes, photo_bytes
from stereo_jobs.notebook.progress import bar_of_steps
from stereo_jobs.notebook.result import StereoImage, StereoImages
from stereo_jobs.pipeline.generator import PairGenerator, choose_device
from stereo_jobs.pipeline.threads import computing_on, sensible_threads
from stereo_jobs.records import Camera, Row, RowError, StereoPair
from stereo_jobs.spec import DEMO, Mode, Recipe, check_scale_percent
from stereo_jobs.spec_reading import parse_recipe

DepthKind = Literal["inverse", "metric"]


class StereoPipeline:
    """The method for single calls: one input, one result.

    In a notebook: `StereoPipeline.from_pretrained()("a red circle on the left, green floor, grey wall")`.

    In each call `scale_percent` is the shift of the nearest point in percent of the width. Where a call leaves out
    `scale_percent` or `negative_prompt`, the recipe's value is used.

    Args:
        generator: loaded models and a recipe.
        threads: threads of the CPU to compute on; None: one for small models, which are slower on more, and torch's
            own number for large ones. With one thread the pixels are those of a job.
        progress: whether calls show a bar; None: in notebooks and terminals.
    """

    def __init__(self, generator: PairGenerator, *, threads: int | None = None, progress: bool | None = None) -> None:
        self.generator = generator
        self.threads = threads
        self.progress = progress
        self._others: dict[Mode, StereoPipeline] = {}

    def __repr__(self) -> str:
        size, mode = self.recipe.size, self.recipe.mode
        shape = f"{size.width}x{size.height}" if size else ""
        return f"<StereoPipeline {self.recipe.models.names}; mode {mode}, {shape}, {self.generator.sd.device}>"

    @classmethod
    @explained(SpecError)
    def from_pretrained(
        cls,
        stable_diffusion: str = DEMO,
        *,
        depth: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] | None = None,
        device: Literal["auto", "cuda", "cpu"] = "auto",
        mode: Mode | None = None,
        method: Mapping[str, Any] | None = None,
        scale_percent: float | Mapping[str, float] | None = None,
        size: Mapping[str, int] | None = None,
        negative_prompt: str | None = None,
        quality: Mapping[str, Any] | None = None,
        models: Mapping[str, Any] | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> "StereoPipeline":
        """Load models for single calls: `pipeline(prompt)`, `.from_image(...)`, `.from_depth(...)`.

        Arguments from `mode` to `models` are the fields of a job's recipe (docs/spec.md); what is left out has the
        value that a job has.

        Args:
            stable_diffusion: a folder in diffusers format, a Hub id, or `demo`.
            depth: a folder in transformers format, a Hub id, or `demo`; must be given for any other
                `stable_diffusion` than `demo`.
            dtype: precision of Stable Diffusion's networks; None for float32.
            device: `auto`, `cuda` or `cpu`.
            mode: mode whose checkpoint is loaded first; None: text, or image for a method that prompts do not fit. The
                calls load others when they need them.
            method: switches of the method, such as `{"preset": "official"}` or `{"steps": 20}`.
            scale_percent: shift of the nearest point in percent of the width, where a call names none.
            size: `{"width": ..., "height": ...}` of generated images.
            negative_prompt: what images do not show, where a call does not say.
            quality: fields of quality control.
            models: further fields of the models, such as `{"safety_checker": True}`.
            threads: threads of the CPU to compute on; None: one for small models, torch's own number for large ones.
            progress: whether calls show a bar; None: in notebooks and terminals.

        Raises:
            SpecError: a field or an argument is wrong.
            ModelError: a model cannot be used.
        """
        if mode is None and _refuses_prompts(method or {}):
            mode = "image"
        fields: dict[str, Any] = {"mode": mode, "method": method, "scale_percent": scale_percent, "size": size}
        fields |= {"negative_prompt": negative_prompt, "quality": quality}
        named = _models(stable_diffusion, depth, dtype, models)
        recipe = parse_recipe({"models": named, **{key: v for key, v in fields.items() if v is not None}})
        found = _device(device)
        return cls(PairGenerator.load(resolve_recipe(recipe), found, batch_size=1), threads=threads, progress=progress)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.generator.recipe

    def for_mode(self, mode: Mode) -> "StereoPipeline":
        """Return a pipeline of the same recipe in another mode; it is loaded when it is first used.

        Raises:
            SpecError: the method cannot be used in this mode.
            ModelError: the model cannot be used in this mode.
        """
        if mode == self.recipe.mode:
            return self
        if mode not in self._others:
            sd = self.recipe.models.stable_diffusion
            if sd.path == DEMO:  # which has a checkpoint of its own for depth
                sd = sd.model_copy(update={"revision": None})
            models = self.recipe.models.model_copy(update={"stable_diffusion": sd})
            recipe = self.recipe.model_copy(update={"mode": mode, "models": models})
            parse_recipe(recipe.model_dump())  # refuses a method that this mode cannot use
            recipe = resolve_recipe(recipe)
            generator = self.generator
            if "depth" in (mode, self.recipe.mode):
                other = generator.load(recipe, generator.sd.device, generator.batch_size)
            else:  # the same checkpoint
                other = generator.with_recipe(recipe, generator.batch_size)
            self._others[mode] = StereoPipeline(other, threads=self.threads, progress=self.progress)
        return self._others[mode]

    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        """Make a pair or an error for every row, in order; see `PairGenerator.generate`."""
        threads = sensible_threads(self.generator) if self.threads is None else self.threads
        with computing_on(threads), bar_of_steps(self.generator, len(rows), self.progress):
            return self.generator.generate(rows)

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImage: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImages: ...

    @explained(InputRefusedError)
    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        negative_prompt: str | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImage | StereoImages:
        """Make a pair from a prompt, or a list of pairs from a list of prompts.

        Args:
            prompt: what the images show; or several prompts, each for a pair of its own.
            negative_prompt: what they do not show.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width.

        Raises:
            InputRefusedError: an input cannot be used.
        """
        if isinstance(prompt, str):
            return self._one("text", prompt, negative_prompt, seed, scale_percent)
        if not isinstance(prompt, list | tuple):
            raise InputRefusedError(f"prompt: must be a text or a list of texts, got {type(prompt).__name__}")
        rows = [self._row("text", each, negative_prompt, seed, scale_percent) for each in prompt]
        return self._make("text", rows)

    @explained(InputRefusedError)
    def from_image(
        self,
        image: Picture,
        prompt: str = "",
        *,
        negative_prompt: str | None = None,
        disparity: Map | None = None,
        depth: Map | None = None,
        depth_kind: DepthKind = "inverse",
        camera: Camera | None = None,
        mask: Map | None = None,
        seed: int = 0,
        scale_percent: float | None = None,
    ) -> StereoImage:
        """Make a pair whose left view is a photo. Without disparity and depth, depth is estimated.

        Args:
            image: the photo, of any size: path of its file, PIL image, or H,W,3 uint8 in [0, 255].
            prompt: what it shows; may stay empty.
            negative_prompt: what it does not show.
            disparity: H,W pixels, or path of a file with them; used instead of `depth` where both are given.
            depth: H,W depth, or path of a file with it.
            depth_kind: `inverse` depth grows towards the viewer, `metric` away from it.
            camera: turns metric depth into disparity (Eq. 2), for geometry `metric`.
            mask: H,W, true where the photo is to be filled first, or path of a picture of it.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width, for geometry `relative`.

        Raises:
            InputRefusedError: an input cannot be used.
        """
        inputs = {"image": photo_bytes("image", image)}
        for name, values in (("disparity", disparity), ("depth", depth)):
            if values is not None:
                inputs[name] = map_bytes(name, values)
        if mask is not None:
            inputs["mask"] = mask_bytes("mask", mask)
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

    @explained(InputRefusedError)
    def from_depth(
        self,
        depth: Map,
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
            depth: H,W depth, or path of a file with it.
            prompt: what the images show.
            negative_prompt: what they do not show.
            depth_kind: `inverse` depth grows towards the viewer, `metric` away from it.
            camera: turns metric depth into disparity (Eq. 2), for geometry `metric`.
            seed: seed of what diffusion draws.
            scale_percent: shift of the nearest point in percent of the width, for geometry `relative`.

        Raises:
            InputRefusedError: an input cannot be used.
        """
        inputs = {"depth": map_bytes("depth", depth)}
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
        **inputs: Any,
    ) -> StereoImage:
        """Make one pair; see `_row`."""
        return self._make(mode, [self._row(mode, prompt, negative_prompt, seed, scale_percent, **inputs)])[0]

    def _make(self, mode: Mode, rows: list[Row]) -> StereoImages:
        """Make the pairs of rows. Raises InputRefusedError for the first that cannot be made."""
        made = self.for_mode(mode).generate(rows)
        for row, result in zip(rows, made, strict=True):
            if isinstance(result, RowError):
                about = f"{row.prompt!r}: " if len(rows) > 1 else ""
                raise InputRefusedError(f"{about}{result.error_message}")
        return StereoImages(StereoImage(pair) for pair in made if isinstance(pair, StereoPair))

    def _row(
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
    ) -> Row:
        """Return the arguments of a call as a row, checked. Raises InputRefusedError."""
        _check_text("prompt", prompt)
        seed = _whole("seed", seed)
        scale = draw_scale(self.recipe, seed) if scale_percent is None else _checked_scale(scale_percent)
        if depth_kind not in get_args(DepthKind):
            raise InputRefusedError(f"depth_kind: must be inverse or metric, got {depth_kind!r}")
        negative = self.recipe.negative_prompt if negative_prompt is None else negative_prompt
        _check_text("negative_prompt", negative)
        name = hashlib.sha256(repr((mode, prompt, seed)).encode()).hexdigest()[:12]
        return Row(name, prompt, negative, seed, scale, inputs or {}, depth_kind, camera or Camera())


def _models(
    stable_diffusion: str, depth: str | None, dtype: str | None, models: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The models of a recipe from the arguments of `from_pretrained`. Raises SpecError."""
    named = dict(models or {})
    for field, given in (("stable_diffusion", {"path": stable_diffusion, "dtype": dtype}), ("depth", {"path": depth})):
        own = {key: value for key, value in given.items() if value is not None}
        if field not in named and own:
            named[field] = own
        elif own and own != {"path": DEMO}:
            raise SpecError(f"models: names {field}, which another argument names, too; leave one of them out")
    return named


def _refuses_prompts(method: Mapping[str, Any]) -> bool:
    """Whether the method needs what a prompt does not have: known disparities, or a right view that is given."""
    return method.get("geometry") == "metric" or method.get("right_view") == "given"


def _device(name: str) -> str:
    """Choose the device of the models. Raises SpecError if this machine has none of this name."""
    if name not in ("auto", "cuda", "cpu"):
        raise SpecError(f"device: must be auto, cuda or cpu, got {name!r}")
    if name == "cuda" and choose_device("auto") != "cuda":
        raise SpecError("device: there is no GPU that torch can use here; write device='cpu', or leave it out")
    return choose_device(name)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputRefusedError(f"{name}: must be a text, got {type(value).__name__}")


def _whole(name: str, value: object) -> int:
    """Return a whole number of any library as Python's; NumPy's would overflow."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputRefusedError(f"{name}: must be a whole number, got {value!r}") from None


def _checked_scale(value: float) -> float:
    try:
        return check_scale_percent(float(value))
    except (TypeError, ValueError) as error:
        raise InputRefusedError(f"scale_percent: {error}, got {value!r}") from None
