"""StereoDiffusion in text mode as a plain loop, in the way of the paper's published code: what `side_by_side.py` times.

The left image is made alone first, for its depth. Then both views are denoised through all steps, stacked along the
batch. Attention maps are computed and multiplied one after the other, pixels are shifted one by one, and nothing is
kept from the first pass. The numbers are those of `preset: official`.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pixels import Image, to_image

GUIDANCE, SCALE_PERCENT = 9.0, 8.0


class ExplicitAttention:
    """A diffusers attention processor that computes softmax(Q K^T) as a tensor of its own (Alg. 1).

    Args:
        edits: says whether both views attend to the left one.
    """

    def __init__(self, edits: Callable[[], bool]) -> None:
        self.edits = edits

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if encoder_hidden_states is None and self.edits():
            key, value = (both[[0, 0, 2, 2]] for both in (key, value))  # left, right of both halves of guidance
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        maps = (torch.einsum("bid,bjd->bij", query, key) * attn.scale).softmax(-1)
        mixed = attn.batch_to_head_dim(torch.einsum("bij,bjd->bid", maps, value))
        return attn.to_out[1](attn.to_out[0](mixed))  # type: ignore[no-any-return]


def shifted(latent: Tensor, disparity: Tensor) -> tuple[Tensor, Tensor]:
    """Shift a latent 4,h,w pixel by pixel (Eq. 3), the nearest last: the right view, and h,w bool where it was written.

    Args:
        latent: 4,h,w of the left view.
        disparity: h,w whole latent pixels.
    """
    right, written = torch.zeros_like(latent), torch.zeros(disparity.shape, dtype=torch.bool)
    nearest = torch.zeros_like(disparity)
    for y in range(disparity.shape[0]):
        for x in range(disparity.shape[1]):
            target = x - int(disparity[y, x])
            if target >= 0 and (not written[y, target] or disparity[y, x] > nearest[y, target]):
                right[:, y, target] = latent[:, y, x]
                nearest[y, target] = disparity[y, x]
                written[y, target] = True
    return right, written


class PlainLoop:
    """The published schedule with the networks of a checkpoint.

    Args:
        sd: Stable Diffusion; its networks get other attention processors while the loop runs.
        depth: estimates depth on the left image.
        steps: denoising steps.
        shift_step: index of the step after which the latent is shifted.
        recopy: the left latent is shifted again after every step divisible by it.
    """

    def __init__(
        self, sd: StableDiffusion, depth: DepthEstimator, steps: int = 50, shift_step: int = 10, recopy: int = 10
    ) -> None:
        self.sd, self.depth = sd, depth
        self.steps, self.shift_step, self.recopy_interval = steps, shift_step, recopy
        self._attends = False

    @torch.no_grad()
    def __call__(self, prompt: str, seed: int, size: tuple[int, int]) -> tuple[Image, Image]:
        """Make the left and the right view of a prompt, H,W,3 uint8 each."""
        sd, unet = self.sd, self.sd.unet
        grid = [n // sd.latent_factor for n in size]
        noise = torch.randn(1, sd.latent_channels, *grid, generator=torch.Generator().manual_seed(seed))
        before = dict(unet.attn_processors)
        unet.set_attn_processor(ExplicitAttention(lambda: self._attends))
        try:
            alone = self._denoise(prompt, noise, None)
            left = to_image(sd.decode(alone))
            disparity = self._disparity(left, grid)
            pair = self._denoise(prompt, torch.cat([noise, noise]), disparity)
        finally:
            unet.set_attn_processor(before)
        views = sd.decode(pair)
        return to_image(views[:1]), to_image(views[1:])

    def _disparity(self, left: Image, grid: list[int]) -> Tensor:
        """Estimate depth and bring it to whole latent pixels of shift, h,w."""
        [values] = self.depth.inverse_depth([left])
        resized = functional.interpolate(values[None, None], left.shape[:2], mode="bicubic", align_corners=False)
        resized = functional.interpolate(resized, grid, mode="bicubic", align_corners=False)[0, 0]
        relative = (resized - resized.min()) / (resized.max() - resized.min())
        return (relative * (SCALE_PERCENT / 100 * grid[1])).trunc()

    def _denoise(self, prompt: str, x: Tensor, disparity: Tensor | None) -> Tensor:
        """Denoise the left view alone, or both views with the shift between them."""
        scheduler = DDIMScheduler.from_config(self.sd.scheduler_config)
        scheduler.set_timesteps(self.steps)
        text = self.sd.encode_prompts(["", prompt]).repeat_interleave(len(x), 0)
        written = torch.zeros(x.shape[-2:], dtype=torch.bool)
        for i, timestep in enumerate(scheduler.timesteps):
            self._attends = disparity is not None and i >= self.shift_step
            without, with_text = self._predict(x, timestep, text)
            x = scheduler.step(without + GUIDANCE * (with_text - without), timestep, x, eta=0.0).prev_sample
            if disparity is None or i < self.shift_step:
                continue
            if i == self.shift_step:
                right, written = shifted(x[0], disparity)
                x = torch.stack([x[0], right])
            elif i % self.recopy_interval == 0:
                again, _ = shifted(x[0], disparity)
                x = torch.stack([x[0], torch.where(written, again, x[1])])
        return x

    def _predict(self, x: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        network: nn.Module = self.sd.unet
        return network(torch.cat([x, x]), timestep, encoder_hidden_states=text).sample.chunk(2)  # type: ignore[no-any-return]
