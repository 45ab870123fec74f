"""RePaint (Lugmayr et al. 2022): inpainting by a plain diffusion model that goes back and forth in time."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from stereo_jobs.stereo.sampler import GuidedUNet, Inpainted
from stereo_jobs.stereo.solver import Solver

JUMP_LENGTH = 10
RESAMPLES = 10


def repaint(
    model: GuidedUNet,
    solver: Solver,
    known: Tensor,
    mask: Tensor,
    noise: Callable[[], Tensor],
    *,
    jump_length: int = JUMP_LENGTH,
    resamples: int = RESAMPLES,
    condition: Tensor | None = None,
) -> Inpainted:
    """RePaint (Lugmayr et al. 2022, Alg. 1), on latents.

    Each step draws the inside of the mask from the model (DDPM, eta 1) and takes the outside from the known x_0, noised
    to the same level. After `jump_length` steps the whole latent is noised again, so that each stretch of steps is
    drawn `resamples` times and both parts come to agree. With the published lengths and guidance 1, 50 steps take 410
    U-Net evaluations and 250 steps 2,410.

    Args:
        model: noise predictor.
        solver: the steps; only its noise levels are used, not its sampler.
        known: B,4,h,w, x_0 of the image.
        mask: B,h,w bool, True where the image is to be filled.
        noise: draws new unit noise, B,4,h,w, at every call.
        jump_length: steps between two resamplings.
        resamples: how often each stretch of steps is drawn.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.

    Returns:
        An x_0 that equals `known` outside the mask.
    """
    inside = mask[:, None]
    views = None if condition is None else condition[None]
    x, evaluations = noise(), 0
    for i, following in pairwise(levels(solver.steps, jump_length, resamples)):
        if following < i:  # one step back in time: add noise
            ratio = float(solver.alphas[following] / solver.alphas[i])
            x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise()
            continue
        x = _ancestral_step(solver, i, x, model(x[None], i, solver.timesteps[i], views)[0], noise)
        evaluations += model.evaluations_per_view
        last = following == solver.steps
        x = torch.where(inside, x, known if last else solver.renoise(known, noise(), following))
    return Inpainted(x, evaluations)


def levels(steps: int, jump_length: int, resamples: int) -> Iterator[int]:
    """The noise levels that RePaint visits, one after the other: from 0 (noise) to `steps` (image), one apart."""
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)  # key: steps to go, less one
    to_go = steps - 1
    yield 0
    while to_go >= 0:
        if left.get(to_go, 0) > 0:
            left[to_go] -= 1
            for _ in range(jump_length):
                to_go += 1
                yield steps - 1 - to_go
        to_go -= 1
        yield steps - 1 - to_go


def _ancestral_step(solver: Solver, i: int, x: Tensor, output: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """One DDPM step (Ho et al. 2020), as DDIM with eta 1: from level i to i + 1, with new noise except at the end."""
    clean, predicted = solver.split(output, x, i)
    here, there = float(solver.alphas[i]), float(solver.alphas[i + 1])
    fresh = 0.0 if i + 1 == solver.steps else ((1 - there) / (1 - here) * (1 - here / there)) ** 0.5
    x = there**0.5 * clean + (1 - there - fresh**2) ** 0.5 * predicted
    return x + fresh * noise() if fresh else x
