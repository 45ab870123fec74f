"""From a photo to its latents at every noise level (StereoDiffusion, Sec. 3.4, Eq. 9-10)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stereo_jobs.stereo.attention import InputRecorder, Keep
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory
from stereo_jobs.stereo.solver import Solver

_LOSS_SCALE = 2.0**16
"""Loss scaling (Micikevicius et al. 2018, Sec. 3.2): gradients of a photo's loss are too small for float16."""


def renoised(solver: Solver, x_0: Tensor, noise: Tensor) -> Trajectory:
    """The forward process (Ho et al. 2020, Eq. 4) in place of an inversion: x_0 with one noise at every level.

    Sampling from these latents does not lead back to x_0. They serve where the left view is set to them at every step,
    is x_0 in the end, and only the right view is denoised. No U-Net is evaluated.

    Args:
        solver: the noise levels.
        x_0: B,4,h,w.
        noise: B,4,h,w unit noise.
    """
    latents = [solver.renoise(x_0, noise, i) for i in range(solver.steps)]
    evaluations = torch.zeros(len(x_0), dtype=torch.int64)
    return Trajectory(torch.stack([*latents, x_0]), x_0.expand(solver.steps, *x_0.shape), evaluations)


def ddim_inversion(
    model: GuidedUNet, solver: Solver, x_0: Tensor, condition: Tensor | None = None, *, keep: Keep | None = None
) -> Trajectory:
    """DDIM inversion (Song et al. 2021; StereoDiffusion, Eq. 9): latents of a given x_0 with more and more noise.

    Eq. 9 as printed lacks a root and has its "-1" outside the root; this is the x_0 / noise form that it stands for.

    Args:
        model: noise predictor; with guidance other than 1, sampling from the result does not lead back to x_0.
        solver: the steps, taken backwards.
        x_0: B,4,h,w.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.
        keep: which inputs of self-attention to keep; None: none. Those of step i are of the latent after the step, one
            level less noisy than what enters it.

    Returns:
        The latents in sampling order, from noise to x_0. Setting the left view to them at every step is `direct`
        inversion, which is exact and optimises nothing.
    """
    latents = [x_0]
    recorder = InputRecorder(torch.arange(len(x_0), device=x_0.device), keep)
    with recorder.installed(model.unet):
        for i in reversed(range(solver.steps)):
            recorder.begin(i)
            output = model(latents[-1][None], i, solver.timesteps[i], None if condition is None else condition[None])[0]
            latents.append(solver.invert(i, latents[-1], output))
    evaluations = torch.full((len(x_0),), solver.steps * model.evaluations_per_view)
    return Trajectory(torch.stack(latents[::-1]), x_0.expand(solver.steps, *x_0.shape), evaluations, recorder.kept)


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
    views = None if condition is None else condition[None]
    embeddings = list(model.unconditional.float().detach())
    kept, latents, cleans = [], [pivot.latents[0]], []
    clean: Tensor | None = None
    evaluations = torch.zeros(len(pivot.final), dtype=torch.int64)
    for i, timestep in enumerate(solver.timesteps):
        with torch.no_grad():
            with_text = model.predict(latents[-1][None], timestep, [model.conditional], views)[0, 0]
        step = _GuidedStep(model, solver, i, latents[-1], with_text, clean, views)
        rate, enough = 1e-2 * (1 - i / max(100, solver.steps)), 1e-5 + 2e-5 * i
        embeddings, spent = _optimise(
            step, embeddings, pivot.latents[i + 1], rate=rate, iterations=iterations, enough=enough
        )
        kept.append(torch.stack(embeddings))
        with torch.no_grad():
            following, clean = step(kept[-1])
        evaluations += spent + 2  # one with text, and one to go on
        latents.append(following)
        cleans.append(clean)
    return NullText(torch.stack(kept), Trajectory(torch.stack(latents), torch.stack(cleans), evaluations))


@dataclass(frozen=True)
class _GuidedStep:
    """One denoising step from a latent, as a function of the unconditional embeddings.

    Attributes:
        model: noise predictor.
        solver: the steps.
        i: index of the step.
        x: B,4,h,w, the latent that enters it.
        with_text: B,4,h,w, prediction with the prompts.
        clean: B,4,h,w, x_0 as step i - 1 predicted it; None in the first step.
        condition: 1,B,1,h,w depth for a depth-conditioned U-Net.
    """

    model: GuidedUNet
    solver: Solver
    i: int
    x: Tensor
    with_text: Tensor
    clean: Tensor | None
    condition: Tensor | None

    def __call__(self, unconditional: Tensor) -> tuple[Tensor, Tensor]:
        """The next latent and the predicted x_0, B,4,h,w each, for embeddings B,n,c; one evaluation for each sample."""
        timestep = self.solver.timesteps[self.i]
        without = self.model.predict(self.x[None], timestep, [unconditional], self.condition)[0, 0]
        guided = without + self.model.guidance_scale * (self.with_text - without)
        return self.solver.step(self.i, self.x, guided, self.clean)


def _optimise(
    step: _GuidedStep,
    embeddings: list[Tensor],
    target: Tensor,
    *,
    rate: float,
    iterations: int,
    enough: float,
) -> tuple[list[Tensor], Tensor]:
    """Optimise the embeddings of B samples until a denoising step leads to its target (StereoDiffusion, Eq. 10).

    Args:
        step: the step.
        embeddings: n,c for each sample, to start from.
        target: B,4,h,w, the pivot's latent after the step.
        rate: Adam's learning rate.
        iterations: the largest number of optimiser steps.
        enough: loss at which a sample stops.

    Returns:
        The embeddings, and the number of optimiser steps (and U-Net evaluations) of each sample, B int64.
    """
    weights = [embedding.clone().requires_grad_(True) for embedding in embeddings]
    optimizer = torch.optim.Adam(weights, lr=rate)
    spent = torch.zeros(len(weights), dtype=torch.int64)
    active = list(range(len(weights)))
    for _ in range(iterations):
        if not active:
            break
        with torch.enable_grad():
            reached, _ = step(torch.stack(weights))
            losses = (reached - target).square().flatten(1).mean(1)
            # Not `backward`: it would leave gradients in the U-Net as well.
            scaled = torch.autograd.grad(_LOSS_SCALE * losses[active].sum(), [weights[sample] for sample in active])
        optimizer.zero_grad()  # without a gradient, Adam leaves a finished sample as it is
        for sample, slope in zip(active, scaled, strict=True):
            weights[sample].grad = slope / _LOSS_SCALE  # in float32, as the weights are
        optimizer.step()
        spent[active] += 1
        active = [sample for sample in active if losses[sample] >= enough]
    return [weight.detach() for weight in weights], spent
