"""Every choice of the method in one frozen description; presets only fill it in."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A preset is nothing but values for `MethodConfig`; no code asks for its name.
PRESETS: dict[str, dict[str, Any]] = {
    # The arithmetic of the published code: shift after 20 % of 50 DDIM steps, whole latent pixels.
    "official": {
        "scheduler": "ddim",
        "steps": 50,
        "guidance_scale": 9.0,
        "photo_guidance_scale": 7.5,
        "inversion": "null_text",
        "geometry": "relative",
        "edge_px": 0,
        "warp": "integer",
        "fill": "zero",
        "shift_step": 0.2,
        "shift_both": False,
        "warp_condition": False,
        "recopy_interval": 10,
        "attention": "uni",
        "attention_step": 0.2,
        "composite": False,
        "grain": 0.0,
    },
    # Exact left and exact geometry; diffusion draws the holes, from the background that borders them.
    "best": {
        "scheduler": "ddim",
        "steps": 50,
        "guidance_scale": 7.5,
        "photo_guidance_scale": 1.0,
        "inversion": "direct",
        "geometry": "relative",
        "edge_px": 2,
        "warp": "pixel",
        "fill": "mirror",
        "shift_step": 0.4,
        "shift_both": False,
        "warp_condition": True,
        "recopy_interval": 1,
        "attention": "uni",
        "attention_step": 0.2,
        "composite": True,
        "grain": 0.7,
    },
}

RightView = Literal["stereodiffusion", "identity", "leave_blank", "stretch", "layered", "repaint", "given"]

Fraction = int | float


class MethodConfig(BaseModel):
    """StereoDiffusion (Sec. 3): the switches of one generation, validated at construction.

    Fields that are left out take the value of `preset`. Steps are 0-based indices of denoising steps; a value
    between 0 and 1 is a share of `steps` and is replaced by the index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["official", "best"] = Field(
        "best",
        description="Fills in every field that is not given: `official` is the paper's published arithmetic, "
        "`best` ours.",
    )
    right_view: RightView = Field(
        "stereodiffusion",
        description="What makes the right view: this method, or a baseline of Table 1 on the same left view and "
        "disparity (docs/benchmarks.md), which of the switches below reads geometry, edge_px, warp (integer: whole "
        "pixels) and, for repaint, steps, guidance and composite. given: the row's own `given_right`.",
    )
    scheduler: Literal["ddim", "dpm++"] = Field(
        "ddim",
        description="Sampler: DDIM (Eq. 1, eta 0), or DPM-Solver++(2M) on Karras levels, for 20 to 25 steps.",
    )
    steps: int = Field(50, ge=2, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        7.5,
        ge=1,
        le=30,
        description="Classifier-free guidance of text and depth; 1 needs no unconditional half of the batch.",
    )
    photo_guidance_scale: float = Field(1.0, ge=1, le=30, description="The same for photos.")
    inversion: Literal["ddim", "null_text", "direct"] = Field(
        "direct",
        description="How a photo gets its latents (Sec. 3.4). ddim: denoised again from its inverted noise. null_text: "
        "the same with optimised unconditional embeddings (Eq. 9-10). direct: the inverted latents themselves; the "
        "left view is the photo, exactly.",
    )
    null_text_iterations: int = Field(10, ge=1, le=1000, description="Most optimisation steps per denoising step.")
    geometry: Literal["relative", "metric"] = Field(
        "relative",
        description="relative: depth is min-max normalised per image and scale_percent sets the range. metric: the "
        "row's disparity in pixels, or Eq. 2 from its metric depth, focal_px, baseline and doffs_px.",
    )
    edge_px: int = Field(
        2,
        ge=0,
        le=16,
        description="Depth edges blurred over this many pixels are made sharp again before the shift; 0: as they are, "
        "and so is disparity in known pixels (geometry: metric).",
    )
    warp: Literal["integer", "subpixel", "pixel"] = Field(
        "pixel",
        description="Stereo Pixel Shift of the latent: whole latent pixels; x_0 with sub-pixel shifts and noise with "
        "whole ones; or x_0 warped in the image and encoded again.",
    )
    fill: Literal["zero", "noise", "background", "mirror"] = Field(
        "mirror",
        description="Holes after the shift: zero; unit noise (the paper's Deblur, Eq. 8); or, noised to the level of "
        "the step, the background's pixel beside them (background), or the background mirrored into them (mirror).",
    )
    shift_step: Fraction = Field(0.4, ge=0, description="Step after which the latent is shifted (Sec. 3.1).")
    shift_both: bool = Field(False, description="Move each view half of the way instead of only the right.")
    warp_condition: bool = Field(
        True, description="Depth mode: the right view's depth condition is warped, too; false gives both views one."
    )
    two_pass: bool = Field(
        False,
        description="Depth mode: finish the left image, then treat it as a photo (the paper's remedy of Fig. 7).",
    )
    recopy_interval: int = Field(
        1,
        ge=0,
        description="Symmetric Pixel Shift Masking Denoise (Sec. 3.2): copy the left latent again after "
        "every step divisible by this; 0 switches it off.",
    )
    recopy_last_step: int | None = Field(None, ge=0, description="No copy after this step; null: until the end.")
    attention: Literal["off", "uni", "bi"] = Field(
        "uni", description="Self-attention across the views (Sec. 3.3, Alg. 1)."
    )
    attention_step: Fraction = Field(0.2, ge=0, description="Step from which self-attention is modified.")
    composite: bool = Field(
        True,
        description="The right image takes the left's own pixels, warped at full resolution, wherever they are seen; "
        "diffusion fills the holes. False: the decoded latent as it is.",
    )
    grain: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Composite: share of the fine grain, lost by the VAE in the background continued into a hole, "
        "that the hole gets back; 0: diffused pixels as they are.",
    )
    trusted_loss: float | None = Field(
        9.0,
        gt=0,
        le=255,
        description="Composite: holes are as diffusion drew them where the VAE loses no more than this of the picture "
        "(RMS, levels of 255); beyond, its share falls with the square of the loss, and the rest is the background's "
        "pixel beside them, smoothed across rows. Null: always as drawn.",
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
                raise ValueError(f"{name} must be a whole step, or a share of the steps between 0 and 1; got {value}")
        if self.shift_step >= self.steps - 1:
            raise ValueError(
                f"shift_step must be below steps - 1 = {self.steps - 1}, so that the right view is denoised "
                f"at least once after the shift; got {self.shift_step} (the paper shifts at 20 % of the steps)"
            )
        if self.shift_both and self.composite:
            raise ValueError(
                "composite must be false with shift_both: the composite takes the left view's pixels as they are, "
                "and shift_both moves them"
            )
        if self.inversion == "null_text" and self.photo_guidance_scale == 1:
            raise ValueError(
                "inversion null_text needs photo_guidance_scale above 1 (the paper: 7.5): at 1 the embeddings that "
                "it optimises are not used"
            )
        return self

    @property
    def first_pair_step(self) -> int:
        """The first step that is denoised for the pair."""
        return int(self.shift_step) + 1

    def recopies_after(self, step: int) -> bool:
        """Symmetric Pixel Shift Masking Denoise (Sec. 3.2): is the left latent copied again after `step`?"""
        if self.recopy_interval == 0 or step <= self.shift_step:
            return False
        within = self.recopy_last_step is None or step <= self.recopy_last_step
        return within and step % self.recopy_interval == 0

    @property
    def diffuses_pair(self) -> bool:
        """Whether the right view is denoised beside the left one, which then needs latents of every step."""
        return self.right_view == "stereodiffusion"

    @property
    def changes_left(self) -> bool:
        """Whether the left view is denoised again together with the right one, and differs from the first."""
        return self.diffuses_pair and (self.attention == "bi" or self.shift_both)
