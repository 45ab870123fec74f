"""Every choice of the method in one frozen description; presets only fill it in."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A preset is nothing but values for `MethodConfig`; no code asks for its name.
PRESETS: dict[str, dict[str, Any]] = {
    # The arithmetic of the published code: text at guidance 9, shift after 20 % of 50 DDIM steps.
    "official": {
        "scheduler": "ddim",
        "steps": 50,
        "guidance_scale": 9.0,
        "geometry": "relative",
        "warp": "integer",
        "fill": "zero",
        "shift_step": 10,
        "shift_both": False,
        "recopy_interval": 10,
        "attention": "uni",
        "attention_step": 10,
    },
}


class MethodConfig(BaseModel):
    """StereoDiffusion (Sec. 3): the switches of one generation, validated at construction.

    Fields that are left out take the value of `preset`. Steps are 0-based indices of denoising steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["official"] = Field("official", description="Fills in every field that is not given.")
    scheduler: Literal["ddim"] = Field("ddim", description="Sampler of Eq. 1; DDIM with eta 0.")
    steps: int = Field(50, ge=2, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        9.0, ge=1, le=30, description="Classifier-free guidance; 1 needs no unconditional half of the batch."
    )
    geometry: Literal["relative"] = Field(
        "relative",
        description="relative: depth is min-max normalised per image and scale_percent sets the range.",
    )
    warp: Literal["integer"] = Field("integer", description="Stereo Pixel Shift in whole latent pixels.")
    fill: Literal["zero", "noise"] = Field(
        "zero",
        description="Holes after the shift: zero, or unit noise (the paper's Deblur, Eq. 8).",
    )
    shift_step: int = Field(10, ge=0, description="Step after which the latent is shifted (Sec. 3.1).")
    shift_both: bool = Field(False, description="Move each view half of the way instead of only the right.")
    recopy_interval: int = Field(
        10,
        ge=0,
        description="Symmetric Pixel Shift Masking Denoise (Sec. 3.2): copy the left latent again after "
        "every step divisible by this; 0 switches it off.",
    )
    recopy_last_step: int | None = Field(None, ge=0, description="No copy after this step; null: until the end.")
    attention: Literal["off", "uni", "bi"] = Field(
        "uni", description="Self-attention across the views (Sec. 3.3, Alg. 1)."
    )
    attention_step: int = Field(10, ge=0, description="Step from which self-attention is modified.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "official")
        return PRESETS.get(preset, {}) | given if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.shift_step >= self.steps - 1:
            raise ValueError(
                f"shift_step must be below steps - 1 = {self.steps - 1}, so that the right view is denoised "
                f"at least once after the shift; got {self.shift_step} (the paper shifts at 20 % of the steps)"
            )
        return self

    def recopies_after(self, step: int) -> bool:
        """Symmetric Pixel Shift Masking Denoise (Sec. 3.2): is the left latent copied again after `step`?"""
        if self.recopy_interval == 0 or step <= self.shift_step:
            return False
        within = self.recopy_last_step is None or step <= self.recopy_last_step
        return within and step % self.recopy_interval == 0

    @property
    def changes_left(self) -> bool:
        """Whether the left view is denoised again together with the right one, and differs from the first."""
        return self.attention == "bi" or self.shift_both
