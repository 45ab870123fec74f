"""Rows in, stereo pairs out: the one function that a notebook, `--local`, Ray and evaluation all call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stereo_jobs.batches import batches, left_of
from stereo_jobs.models.depth import DepthEstimator
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize, scaled_disparity
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory, denoise, denoise_pair
from stereo_jobs.stereo.warp import border_holes, forward_warp, upsample

T = TypeVar("T")


@dataclass(frozen=True)
class _Lefts:
    """Left images made alone, with what the right views need of them. All stacked along the batch."""

    trajectory: Trajectory
    images: NDArray[np.uint8]
    inverse_depth: Tensor
    conditional: Tensor
    unconditional: Tensor
    finite: Tensor
    evaluations: int

    def take(self, indices: list[int]) -> "_Lefts":
        """The same for some of them, in another order, also repeatedly."""
        at = torch.tensor(indices, device=self.inverse_depth.device)
        return _Lefts(
            Trajectory(self.trajectory.latents[:, at]),
            self.images[indices],
            self.inverse_depth[at],
            self.conditional[at],
            self.unconditional[at],
            self.finite[at],
            self.evaluations,
        )


class StereoPipeline:
    """Loaded models and one recipe; holds no state between calls.

    Args:
        stable_diffusion: makes the images.
        depth: estimates inverse depth on the left image.
        recipe: resolved, with its size written out.
        batch_size: every network call has this batch shape, short batches are padded: float results depend on
            the shape (about 1e-6), so a row's result then does not depend on its neighbours.
    """

    inputs: tuple[str, ...] = ()
    """Image columns of the manifest that this mode reads."""

    def __init__(
        self, stable_diffusion: StableDiffusion, depth: DepthEstimator, recipe: Recipe, batch_size: int
    ) -> None:
        if recipe.size is None:
            raise ValueError("the recipe must be resolved: its size is not written out")
        self.sd = stable_diffusion
        self.depth = depth
        self.recipe = recipe
        self.method = recipe.method
        self.batch_size = batch_size
        self.latent_size = (
            recipe.size.height // stable_diffusion.latent_factor,
            recipe.size.width // stable_diffusion.latent_factor,
        )

    @classmethod
    def load(cls, recipe: Recipe, device: str, batch_size: int) -> "StereoPipeline":
        """Load the models of a resolved recipe."""
        models = recipe.models
        return cls(
            StableDiffusion.load(models.stable_diffusion, device),
            DepthEstimator.load(models.depth, device),
            recipe,
            batch_size,
        )

    @torch.inference_mode()
    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        """StereoDiffusion from text (Sec. 3.4 b): a pair or an error for every row, in order."""
        results: dict[str, StereoPair | RowError] = {row.id: row.error for row in rows if row.error}
        for batch in batches([row for row in rows if not row.error], self.batch_size):
            unique = list({left_of(row): row for row in batch}.values())
            index = {left_of(row): i for i, row in enumerate(unique)}
            lefts = self._make_lefts(unique)
            for start in range(0, len(batch), self.batch_size):
                part = batch[start : start + self.batch_size]
                of_part = [index[left_of(row)] for row in part]
                for result in self._make_pairs(part, lefts.take(_padded(of_part, self.batch_size))):
                    results[result.id] = result
        return [results[row.id] for row in rows]

    def _make_lefts(self, rows: list[Row]) -> _Lefts:
        """Denoise each left image alone and estimate its depth."""
        padded = _padded(rows, self.batch_size)
        conditional = self.sd.encode_prompts([row.prompt for row in padded])
        unconditional = self.sd.encode_prompts([row.negative_prompt for row in padded])
        start = torch.cat([self._noise(row.seed) for row in padded])
        model = GuidedUNet(self.sd.unet, conditional, unconditional, self.method.guidance_scale)
        trajectory = denoise(model, self.sd.scheduler(self.method.steps), start)
        images, finite = self._decode(trajectory.final)
        depth = self.depth.inverse_depth(images)
        finite &= _finite(trajectory.final) & _finite(depth)
        return _Lefts(trajectory, images, depth, conditional, unconditional, finite, model.evaluations)

    def _make_pairs(self, rows: list[Row], lefts: _Lefts) -> Iterator[StereoPair | RowError]:
        """Make the right views of `rows`; `lefts` is padded to the batch size in the same order."""
        method, factor = self.method, self.sd.latent_factor
        padded = _padded(rows, self.batch_size)
        scale = torch.tensor([row.scale_percent for row in padded], dtype=torch.float64)
        depth = lefts.inverse_depth.nan_to_num(0.0, 0.0, 0.0)
        on_grid = relative_disparity(resize(depth, self.latent_size))
        half = 0.5 if method.shift_both else 1.0
        shift = scaled_disparity(on_grid, scale * half)
        to_right = forward_warp(shift, scale)
        to_left = forward_warp(-shift, -scale) if method.shift_both else None
        deblur = torch.cat([self._noise(row.seed, stream=1) for row in padded])
        model = GuidedUNet(self.sd.unet, lefts.conditional, lefts.unconditional, method.guidance_scale)
        latents = denoise_pair(
            model,
            self.sd.scheduler(method.steps),
            lefts.trajectory,
            method=method,
            to_right=to_right,
            to_left=to_left,
            hole_noise=deblur if method.fill == "noise" else None,
        )
        left, left_finite = self._decode(latents.left) if method.changes_left else (lefts.images, lefts.finite)
        right, right_finite = self._decode(latents.right)
        usable = lefts.finite & left_finite & right_finite & _finite(latents.left) & _finite(latents.right)
        applied = upsample(shift.trunc() * factor / half, factor)
        requested = scaled_disparity(relative_disparity(depth), scale)
        masks = (
            upsample(to_right.visible, factor),
            upsample(~to_right.filled, factor),
            upsample(border_holes(to_right.filled), factor),
        )
        for i, row in enumerate(rows):
            if not usable[i]:
                yield RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
                continue
            visible, hole, border = (mask[i].cpu().numpy() for mask in masks)
            yield StereoPair(
                id=row.id,
                left=left[i],
                right=right[i],
                disparity=applied[i].float().cpu().numpy(),
                disparity_requested=requested[i].float().cpu().numpy(),
                disparity_of="first_left" if method.changes_left else "left",
                mask_nonocc_left=visible,
                mask_hole_right=hole,
                mask_border_right=border,
                unet_evaluations=lefts.evaluations + model.evaluations,
            )

    def _decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
        """Latents B,4,h,w -> images B,H,W,3 uint8, and which of them hold no NaN (in the others it is black)."""
        pixels = self.sd.decode(latents)
        rounded = (pixels.nan_to_num(0.0) * 255).round().to(torch.uint8)  # [0,1] -> [0,255]
        return rounded.permute(0, 2, 3, 1).cpu().numpy(), _finite(pixels)

    def _noise(self, seed: int, stream: int = 0) -> Tensor:
        """Unit noise on the latent grid, 1,4,h,w: drawn on the CPU, alike on every device."""
        generator = torch.Generator().manual_seed((seed + stream) % 2**63)
        shape = (1, self.sd.latent_channels, *self.latent_size)
        return torch.randn(shape, generator=generator).to(self.sd.device)


def _finite(x: Tensor) -> Tensor:
    """Which samples are finite throughout. B,... -> B bool."""
    return torch.isfinite(x).flatten(1).all(1)


def _padded(items: list[T], size: int) -> list[T]:
    return items + items[-1:] * (size - len(items))
