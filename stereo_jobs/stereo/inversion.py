"""From a photo to latents that lead back to it (StereoDiffusion, Sec. 3.4, Eq. 9-10)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory
from stereo_jobs.stereo.solver import Solver

_LOSS_SCALE = 2.0**16
"""Loss scaling (Micikevicius et al. 2018, Sec. 3.2): gradients of a photo's loss are too small for float16."""


def ddim_inversion(model: GuidedUNet, solver: Solver, x_0: Tensor, condition: Tensor | None = None) -> Trajectory:
    """DDIM inversion (Song et al. 2021; StereoDiffusion, Eq. 9): latents of a given x_0 with more and more noise.

    Eq. 9 as printed lacks a root and has its "-1" outside the root; this is the x_0 / noise form that it stands for.

    Args:
        model: noise predictor; with guidance other than 1, sampling from the result does not lead back to x_0.
        solver: the steps, taken backwards.
        x_0: B,4,h,w.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.

    Returns:
        The latents in sampling order, from noise to x_0. Setting the left view to them at every step is `direct`
        inversion, which is exact and optimises nothing.
    """
    latents = [x_0]
    for i in reversed(range(solver.steps)):
        output = model(latents[-1][None], i, solver.timesteps[i], None if condition is None else condition[None])[0]
        latents.append(solver.invert(i, latents[-1], output))
    evaluations = torch.full((len(x_0),), solver.steps * model.evaluations_per_view)
    return Trajectory(torch.stack(latents[::-1]), x_0.expand(solver.steps, *x_0.shape), evaluations)


@dataclass(frozen=True)
class NullText:
    """Optimised unconditional embeddings.

    Attributes:
        embeddings: steps,B,n,c.
        left: the trajectory that sampling with them takes. Its evaluations include those of the optimisation, which
            ends at its own time for each sample.
    """

    embeddings: Tensor
    left: Trajectory


def null_text(
    model: GuidedUNet, solver: Solver, pivot: Trajectory, *, iterations: int, condition: Tensor | None = None
) -> NullText:
    """Null-text inversion (Mokady et al. 2023; StereoDiffusion, Eq. 10): embeddings that keep sampling on the pivot.

    Adam optimises the unconditional embedding of each step, starting from that of the step before. Its learning rate
    is 1e-2 (1 - i/100), or 1e-2 (1 - i/steps) for more than 100 steps. Each sample stops on its own, when its loss is
    below 1e-5 + 2e-5 i.

    Args:
        model: noise predictor with its guidance scale and the B,n,c unconditional embeddings to start from; in float32
            or float16: gradients through a bfloat16 U-Net are too coarse.
        solver: the steps.
        pivot: the trajectory of `ddim_inversion` at guidance 1.
        iterations: the largest number of optimiser steps per denoising step.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.
    """
    samples = pivot.final.shape[0]
    views = None if condition is None else condition[None]
    embeddings = list(model.unconditional.float().detach())
    kept, latents, cleans = [], [pivot.latents[0]], []
    clean: Tensor | None = None
    evaluations = torch.zeros(samples, dtype=torch.int64)
    for i, timestep in enumerate(solver.timesteps):
        x, target = latents[-1], pivot.latents[i + 1]
        with torch.no_grad():
            with_text = model.predict(x[None], timestep, [model.conditional], views)[0, 0]
        evaluations += 1
        weights = [embedding.clone().requires_grad_(True) for embedding in embeddings]
        optimizer = torch.optim.Adam(weights, lr=1e-2 * (1 - i / max(100, solver.steps)))
        active = list(range(samples))
        for _ in range(iterations):
            if not active:
                break
            with torch.enable_grad():
                without = model.predict(x[None], timestep, [torch.stack(weights)], views)[0, 0]
                guided = without + model.guidance_scale * (with_text - without)
                reached, _ = solver.step(i, x, guided, clean)
                losses = (reached - target).square().flatten(1).mean(1)
                # Not `backward`: it would leave gradients in the U-Net as well.
                scaled = torch.autograd.grad(_LOSS_SCALE * losses[active].sum(), [weights[sample] for sample in active])
            optimizer.zero_grad()  # without a gradient, Adam leaves a finished sample as it is
            for sample, slope in zip(active, scaled, strict=True):
                weights[sample].grad = slope / _LOSS_SCALE  # in float32, as the weights are
            optimizer.step()
            evaluations[active] += 1
            active = [sample for sample in active if losses[sample] >= 1e-5 + 2e-5 * i]
        embeddings = [weight.detach() for weight in weights]
        kept.append(torch.stack(embeddings))
        with torch.no_grad():
            without = model.predict(x[None], timestep, [kept[-1]], views)[0, 0]
            guided = without + model.guidance_scale * (with_text - without)
            following, clean = solver.step(i, x, guided, clean)
        evaluations += 1
        latents.append(following)
        cleans.append(clean)
    return NullText(torch.stack(kept), Trajectory(torch.stack(latents), torch.stack(cleans), evaluations))
