"""Denoising of the left view and of the pair (StereoDiffusion, Eq. 1, Sec. 3.2, Eq. 6-8).

Symbols: `x` is the paper's latent x_t, stacked as V,B,4,h,w with V = 1 view or 2 (left, right); `i` counts
denoising steps from 0.

Until the shift both views are one latent, and with `uni` attention the left never depends on the right. So
the left is denoised once and its latents are kept (`Trajectory`); depth is estimated on it; then only the
steps after the shift run for the pair. A text pair of 50 guided steps takes 100 + 156 = 256 U-Net
evaluations, with the same numbers as the 300 of the published code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stereo_jobs.stereo.attention import pair_attention
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.warp import ForwardWarp


class GuidedUNet:
    """Classifier-free guidance around a U-Net: the noise predictor epsilon_theta of Eq. 1.

    Args:
        unet: a diffusers conditional U-Net.
        conditional: B,n,c text embeddings.
        unconditional: B,n,c embeddings of the negative prompt.
        guidance_scale: w; at 1 the unconditional half is not run at all.
    """

    def __init__(self, unet: nn.Module, conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> None:
        self.unet = unet
        self.guidance_scale = guidance_scale
        self.halves = [conditional] if guidance_scale == 1 else [unconditional, conditional]
        self.evaluations = 0
        """U-Net evaluations so far, per sample of the batch."""

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise (or v) of `x`, V,B,4,h,w; returns the same shape in float32."""
        views = x.shape[0]
        flat = x.flatten(0, 1).to(self.halves[0].dtype)  # V,B,4,h,w -> V*B,4,h,w
        text = torch.cat([half.repeat(views, 1, 1) for half in self.halves])
        out = self.unet(torch.cat([flat] * len(self.halves)), timestep, encoder_hidden_states=text).sample
        self.evaluations += views * len(self.halves)
        halves: Tensor = out.float().reshape(-1, *x.shape)  # halves*V*B,4,h,w -> halves,V,B,4,h,w
        if len(halves) == 1:
            return halves[0]
        without, with_text = halves[0], halves[1]
        return without + self.guidance_scale * (with_text - without)


@dataclass(frozen=True)
class Trajectory:
    """The latents of one view: `latents[i]` enters step i, `latents[-1]` is x_0. steps+1,B,4,h,w."""

    latents: Tensor

    @property
    def final(self) -> Tensor:
        """x_0, B,4,h,w."""
        return self.latents[-1]


@dataclass(frozen=True)
class PairLatents:
    """Final latents of both views, B,4,h,w each."""

    left: Tensor
    right: Tensor


def denoise(model: GuidedUNet, scheduler: Any, x: Tensor) -> Trajectory:
    """DDIM sampling (StereoDiffusion, Eq. 1) of one view, all latents kept. x: B,4,h,w."""
    latents = [x]
    for timestep in scheduler.timesteps:
        noise = model(latents[-1][None], timestep)[0]
        latents.append(scheduler.step(noise, timestep, latents[-1]).prev_sample)
    return Trajectory(torch.stack(latents))


def denoise_pair(
    model: GuidedUNet,
    scheduler: Any,
    first_left: Trajectory,
    *,
    method: MethodConfig,
    to_right: ForwardWarp,
    to_left: ForwardWarp | None = None,
    hole_noise: Tensor | None = None,
) -> PairLatents:
    """Stereo Pixel Shift and Symmetric Pixel Shift Masking Denoise (StereoDiffusion, Sec. 3.1-3.3, Eq. 6-8).

    Args:
        model: noise predictor, with the embeddings of these B pairs.
        scheduler: with its timesteps set; the one that made `first_left`.
        first_left: the left view, denoised alone.
        method: which techniques act, and when.
        to_right: the shift from the left to the right view, on the latent grid.
        to_left: with `shift_both`, the shift of the other half of the way.
        hole_noise: B,4,h,w unit noise for the holes, with `fill: noise` (Deblur, Eq. 8).

    Returns:
        Final latents. The left is `first_left.final` itself, unless the method changes the left.
    """
    start = method.shift_step + 1
    pairs = first_left.final.shape[0]
    into: Tensor | float = 0.0
    if method.fill == "noise":
        if hole_noise is None:
            raise ValueError("fill: noise (Deblur, Eq. 8) needs hole_noise")
        into = hole_noise
    source = first_left.latents[start]
    left = source if to_left is None else to_left(source, into)
    right = to_right(source, into)

    for i in range(start, method.steps):
        timestep = scheduler.timesteps[i]
        attention = method.attention if i >= method.attention_step else "off"
        if attention == "off" and not method.changes_left:
            noise = model(right[None], timestep)
            right = scheduler.step(noise[0], timestep, right).prev_sample
        else:
            with pair_attention(model.unet, attention, pairs):
                noise = model(torch.stack([left, right]), timestep)
            right = scheduler.step(noise[1], timestep, right).prev_sample
            if method.changes_left:
                left = scheduler.step(noise[0], timestep, left).prev_sample
        if not method.changes_left:
            left = first_left.latents[i + 1]
        if method.recopies_after(i):
            # With `shift_both` the current left is already shifted: the copy comes from the first left.
            source = left if to_left is None else first_left.latents[i + 1]
            right = to_right(source, into=right)
            if to_left is not None:
                left = to_left(source, into=left)
    return PairLatents(left=left, right=right)
