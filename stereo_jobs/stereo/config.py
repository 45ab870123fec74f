"""Every switch of the method in one frozen config; presets only fill it in."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stereo_jobs.stereo.timesteps import SamplerChoice

# A preset is only a set of values for `MethodConfig`; no code asks for its name.
PRESETS: dict[str, dict[str, Any]] = {
    # The arithmetic of the published code: shift after 20 % of 50 DDIM steps, whole latent pixels.
    "official": {
        "scheduler": "ddim",
        "steps": 50,
        "guidance_scale": 9.0,
        "pair_guidance_scale": None,
        "photo_guidance_scale": 7.5,
        "inversion": "null_text",
        "geometry": "relative",
        "refine_edges": False,
        "warp": "integer",
        "rims": False,
        "fill": "zero",
        "shift_step": 0.2,
        "shift_both": False,
        "warp_condition": False,
        "recopy_interval": 10,
        "attention": "uni",
        "attention_step": 0.2,
        "composite": False,
        "hole_detail": False,
    },
    # Exact left view and exact geometry; diffusion draws only the holes, starting from the background beside them.
    "best": {
        "scheduler": "auto",
        "steps": 20,
        "guidance_scale": 7.5,
        "pair_guidance_scale": 1.0,
        "photo_guidance_scale": 1.0,
        "inversion": "direct",
        "geometry": "relative",
        "refine_edges": True,
        "warp": "pixel",
        "rims": True,
        "fill": "mirror",
        "shift_step": 0.4,
        "shift_both": False,
        "warp_condition": True,
        "recopy_interval": 1,
        "attention": "uni",
        "attention_step": 0.2,
        "composite": True,
        "hole_detail": False,
    },
}

RightView = Literal["stereodiffusion", "identity", "leave_blank", "stretch", "layered", "repaint", "given"]

Fraction = int | float
"""A step: a whole number is its index, a number between 0 and 1 a share of all steps."""


class MethodConfig(BaseModel):
    """The switches of the method (StereoDiffusion, Sec. 3), validated at construction.

    Fields that are left out take the preset's value. Steps are 0-based indices of denoising steps; a value between 0
    and 1 is a share of `steps` and is replaced by the index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["official", "best"] = Field(
        "best",
        description="Fills in every field that is not given. official: the arithmetic of the paper's published code. "
        "best: this project's improvements.",
    )
    right_view: RightView = Field(
        "stereodiffusion",
        description="What makes the right view: this method, or a baseline of Table 1 on the same left view and "
        "disparity (docs/benchmarks.md). Baselines use only these switches: geometry, refine_edges, warp (integer: "
        "whole pixels) and, for repaint, steps, guidance and composite. given: the row's own `given_right`.",
    )
    scheduler: SamplerChoice = Field(
        "auto",
        description="Sampler. auto: dpm++_karras, or dpm++ for a checkpoint of timestep_spacing trailing. ddim: DDIM "
        "(Eq. 1, eta 0). dpm++: DPM-Solver++(2M). Both run at the checkpoint's own `timestep_spacing`. dpm++_karras: "
        "DPM-Solver++(2M) on Karras noise levels, the most exact for 20 to 25 steps; not for checkpoints made for few "
        "steps (spacing trailing).",
    )
    steps: int = Field(20, ge=2, le=1000, description="Number of denoising steps.")
    guidance_scale: float = Field(
        7.5,
        ge=1,
        le=30,
        description="Scale of classifier-free guidance in modes text and depth; 1 halves the U-Net evaluations.",
    )
    pair_guidance_scale: float | None = Field(
        1.0,
        ge=1,
        le=30,
        description="Modes text and depth: scale of guidance in the steps after the shift, which draw the right view's "
        "holes. null: that of guidance_scale.",
    )
    photo_guidance_scale: float = Field(
        1.0, ge=1, le=30, description="Scale of classifier-free guidance for photos; 1 halves the U-Net evaluations."
    )
    inversion: Literal["ddim", "null_text", "direct", "renoise"] = Field(
        "direct",
        description="How the latents of a photo are found (Sec. 3.4). ddim: DDIM inversion, then denoised again. "
        "null_text: the same with optimised unconditional embeddings (Eq. 9-10). direct: the inverted latents "
        "themselves, so that the left view is exactly the photo. renoise: the photo with noise at each step's level, "
        "without any U-Net evaluation, for holes a little worse; the left view is the photo, too.",
    )
    null_text_iterations: int = Field(
        10, ge=1, le=1000, description="Inversion null_text: maximum optimisation steps per denoising step."
    )
    geometry: Literal["relative", "metric"] = Field(
        "relative",
        description="Where disparity comes from. relative: depth is min-max normalised per image, and scale_percent "
        "sets the range. metric: the row's disparity in pixels, or Eq. 2 from its metric depth, focal_px, baseline and "
        "doffs_px.",
    )
    refine_edges: bool = Field(
        True,
        description="Put the edges of depth maps, which estimators blur, on the edges of the picture before the "
        "shift, and give objects the tips and outlines that estimators lose. Disparity in known pixels (geometry: "
        "metric) is never changed.",
    )
    warp: Literal["integer", "subpixel", "pixel"] = Field(
        "pixel",
        description="How the latent is shifted (Stereo Pixel Shift). integer: by whole latent pixels. subpixel: x_0 by "
        "fractions of a latent pixel, its noise by whole ones. pixel: x_0 is warped as an image and encoded again.",
    )
    rims: bool = Field(
        True,
        description="Take the soft outlines of objects apart: the object's share of each mixed pixel (alpha) moves "
        "with the object and is laid over what is behind it; with refine_edges, other traces of its colour beside "
        "holes are taken away. Only where pixels of the left image are moved (warp: pixel, or composite) and the left "
        "view is not denoised again (attention: bi, shift_both).",
    )
    fill: Literal["zero", "noise", "background", "mirror"] = Field(
        "mirror",
        description="What holes contain after the shift. zero: zeros. noise: unit noise (the paper's Deblur, Eq. 8). "
        "background: the background's pixel beside them. mirror: the background mirrored into them. Both backgrounds "
        "are noised to the step's noise level.",
    )
    shift_step: Fraction = Field(0.4, ge=0, description="Step after which the latent is shifted (Sec. 3.1).")
    shift_both: bool = Field(False, description="Shift each view by half instead of only the right view.")
    warp_condition: bool = Field(
        True,
        description="Depth mode: warp the depth condition of the right view, too; false gives both views the same one.",
    )
    two_pass: bool = Field(
        False,
        description="Depth mode: finish the left image first, then treat it as a photo (the paper's remedy, Fig. 7).",
    )
    recopy_interval: int = Field(
        1,
        ge=0,
        description="Symmetric Pixel Shift Masking Denoise (Sec. 3.2): after every step divisible by this number, the "
        "left latent is shifted and copied into the right one again; 0 switches it off.",
    )
    recopy_last_step: int | None = Field(
        None, ge=0, description="Last step after which the left latent is copied again; null: the last of all steps."
    )
    attention: Literal["off", "uni", "bi"] = Field(
        "uni",
        description="Self-attention across the views (Sec. 3.3, Alg. 1). off: none. uni: both views attend to the left "
        "view. bi: both attend to both, which changes the left view, too.",
    )
    attention_step: Fraction = Field(0.2, ge=0, description="First step with self-attention across the views.")
    keep_left: bool = Field(
        True,
        description="Attention uni: keep what the right view attends to from the left view's own denoising or direct "
        "inversion, so that the pair's steps run for the right view alone. Takes about 0.25 GB of the device's memory "
        "per pair for Stable Diffusion 1.5 at 512x512 in float16 (preset official: 1.8 GB). false: run both views.",
    )
    composite: bool = Field(
        True,
        description="Wherever the right view shows pixels of the left image, take them, warped at full resolution; "
        "only the holes are diffused. False: the right image is the decoded latent.",
    )

    hole_detail: bool = Field(
        False,
        description="Composite: draw the holes of a photo larger than the working size again at the photo's own "
        "resolution, through windows of the working size. Holes become sharper; each window costs up to half of the "
        "steps, with at most 64 windows and a few coarser ones. Off in both presets: with the embedded models the "
        "holes are sharper, but farther from the truth.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "best")
        filled = (PRESETS.get(preset, {}) | given) if isinstance(preset, str) else dict(given)
        steps = filled.get("steps")
        for name in ("shift_step", "attention_step"):
            value = filled.get(name)
            if isinstance(value, float) and 0 < value < 1 and isinstance(steps, int | float):
                filled[name] = int(value * steps + 1e-9)  # 0.29 of 100 is 28.999999999999996 in floats
        return filled

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        for name in ("shift_step", "attention_step"):
            value = getattr(self, name)
            if value % 1 != 0:
                raise ValueError(f"{name} must be a whole step, or a share of the steps between 0 and 1, got {value}")
        if self.shift_step >= self.steps - 1:
            raise ValueError(
                f"shift_step must be below steps - 1 = {self.steps - 1}, so that the right view is denoised at least "
                f"once after the shift, got {self.shift_step}; the paper shifts at 20 % of the steps, shift_step: 0.2"
            )
        if self.shift_both and self.composite:
            raise ValueError(
                "composite must be false with shift_both: the composite takes pixels of the left image, and shift_both "
                "moves the left view away from it"
            )
        if self.inversion == "null_text" and self.photo_guidance_scale == 1:
            raise ValueError(
                "inversion null_text needs photo_guidance_scale above 1: at 1 the embeddings that it optimises are not "
                "used; the paper uses 7.5"
            )
        return self

    @property
    def first_pair_step(self) -> int:
        """Index of the first step in which the pair is denoised: the one after `shift_step`."""
        return int(self.shift_step) + 1

    def recopies_after(self, step: int) -> bool:
        """Whether Symmetric Pixel Shift Masking Denoise (Sec. 3.2) copies the left latent again after `step`."""
        if self.recopy_interval == 0 or step <= self.shift_step:
            return False
        within = self.recopy_last_step is None or step <= self.recopy_last_step
        return within and step % self.recopy_interval == 0

    @property
    def refines_edges(self) -> bool:
        """Whether depth edges are moved to those of the picture; known disparity is never changed."""
        return self.refine_edges and self.geometry == "relative"

    @property
    def diffuses_pair(self) -> bool:
        """Whether diffusion makes the right view; the left view's latents of every step are then needed."""
        return self.right_view == "stereodiffusion"

    @property
    def attention_start(self) -> int:
        """Index of the pair's first step with self-attention across the views."""
        return max(self.first_pair_step, int(self.attention_step))

    @property
    def keeps_left(self) -> bool:
        """Whether the pair's steps can do without the left view, if what it was attended to in them was kept."""
        return self.keep_left and self.diffuses_pair and self.attention == "uni" and not self.shift_both

    @property
    def samples_photo(self) -> bool:
        """Whether the left view of a photo is denoised from its inversion, so that it differs from the photo."""
        return self.inversion in ("ddim", "null_text")

    @property
    def changes_left(self) -> bool:
        """Whether the left view is denoised again together with the right one, so that it differs from the first."""
        return self.diffuses_pair and (self.attention == "bi" or self.shift_both)
