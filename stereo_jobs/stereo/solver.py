"""Deterministic samplers as pure arithmetic: DDIM (Eq. 1) and DPM-Solver++.

Symbols: alpha is the cumulative product of the noise schedule, so that x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) e.
Levels count from the noise: `alphas[i]` belongs to the latent that enters step i, `alphas[steps]` to the result.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

Sampler = Literal["ddim", "dpm++"]
Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Solver:
    """The steps of one run.

    Attributes:
        sampler: `ddim` (eta 0) or `dpm++` (DPM-Solver++(2M), Lu et al. 2022, on Karras levels).
        timesteps: of the steps, from noise to image; int64 on the CPU.
        alphas: steps+1 float64 on the CPU.
        prediction: what the U-Net predicts.
    """

    sampler: Sampler
    timesteps: Tensor
    alphas: Tensor
    prediction: Prediction

    @classmethod
    def of(cls, config: dict[str, Any], steps: int, sampler: Sampler) -> Self:
        """The solver of a checkpoint's scheduler configuration.

        Args:
            config: scheduler_config.json: betas, number of training steps, `steps_offset`, `prediction_type`.
            steps: fewer than it was trained with.
            sampler: which arithmetic.
        """
        trained = int(config.get("num_train_timesteps", 1000))
        alphas = torch.cumprod(1 - _betas(config, trained), 0)
        if sampler == "ddim":
            # "Leading" spacing, as the published code: 981, 961, ..., 1 for 50 of 1000 steps and an offset of 1.
            offset = int(config.get("steps_offset", 0))
            timesteps = (torch.arange(steps) * (trained // steps) + offset).flip(0).clamp(max=trained - 1)
            # `set_alpha_to_one: false`: the result counts as the least noisy latent, not as noiseless.
            levels = torch.cat([alphas[timesteps], alphas[:1]])
        elif sampler == "dpm++":
            levels = _karras(alphas, steps)
            timesteps = (_log_snr(alphas) - _log_snr(levels[:-1])[:, None]).abs().argmin(1)  # the nearest trained
        else:
            raise ValueError(f"sampler: must be ddim or dpm++, got {sampler!r}")
        return cls(sampler, timesteps, levels, config.get("prediction_type", "epsilon"))

    @property
    def steps(self) -> int:
        """How many."""
        return len(self.timesteps)

    def split(self, output: Tensor, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Predicted x_0 and noise, from the U-Net's output for the latent of level i."""
        signal, noise = self.levels(i)
        if self.prediction == "v_prediction":
            return signal * x - noise * output, signal * output + noise * x
        return (x - noise * output) / signal, output

    def step(self, i: int, x: Tensor, output: Tensor, clean_before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: from the latent of level i to that of level i + 1, and the x_0 it predicted.

        Args:
            i: step.
            x: ...,4,h,w latent of level i.
            output: of the U-Net for it.
            clean_before: x_0 as step i - 1 predicted it; `dpm++` needs it for its second order.
        """
        clean, noise = self.split(output, x, i)
        signal_next, noise_next = self.levels(i + 1)
        if self.sampler == "ddim":
            return signal_next * clean + noise_next * noise, clean
        here, there = self._half_log_snr(i), self._half_log_snr(i + 1)
        target = clean
        last_of_few = i == self.steps - 1 < 14  # long runs keep the second order to the end, as diffusers does
        if clean_before is not None and i > 0 and not last_of_few:
            ratio = (here - self._half_log_snr(i - 1)) / (there - here)
            target = clean + (clean - clean_before) / (2 * ratio)
        shrink = noise_next / self.levels(i)[1]
        return shrink * x - signal_next * float(torch.expm1(here - there)) * target, clean

    def invert(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """DDIM inversion (Eq. 9): from level i + 1 back to the noisier level i, with the noise predicted at x."""
        clean, noise = self.split(output, x, i + 1)
        signal, spread = self.levels(i)
        return signal * clean + spread * noise

    def levels(self, i: int) -> tuple[float, float]:
        """sqrt(alpha) and sqrt(1 - alpha) of level i."""
        alpha = float(self.alphas[i])
        return alpha**0.5, (1 - alpha) ** 0.5

    def renoise(self, clean: Tensor, noise: Tensor, i: int) -> Tensor:
        """x_t of level i from x_0 and noise: what `scheduler.add_noise` gives at the level after step i - 1."""
        signal, spread = self.levels(i)
        return signal * clean + spread * noise

    def noise_of(self, x: Tensor, clean: Tensor, i: int) -> Tensor:
        """The noise that is in a latent of level i whose x_0 is known."""
        signal, spread = self.levels(i)
        return (x - signal * clean) / spread

    def _half_log_snr(self, i: int) -> Tensor:
        return 0.5 * _log_snr(self.alphas[i])


def _log_snr(alphas: Tensor) -> Tensor:
    return alphas.log() - (1 - alphas).log()


def _karras(alphas: Tensor, steps: int) -> Tensor:
    """steps+1 levels evenly spaced in sigma^(1/7) (Karras et al. 2022, Eq. 5), from the noisiest to the least noisy.

    Few steps err most where sigma changes most, near the noise and near the image; this spends them there.
    """
    sigmas = ((1 - alphas) / alphas).sqrt()
    last, first = float(sigmas[0]) ** (1 / 7), float(sigmas[-1]) ** (1 / 7)
    return 1 / (1 + torch.linspace(first, last, steps + 1, dtype=torch.float64) ** 14)


def _betas(config: dict[str, Any], trained: int) -> Tensor:
    start, end = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, trained, dtype=torch.float64) ** 2
    if kind == "linear":
        return torch.linspace(start, end, trained, dtype=torch.float64)
    raise ValueError(f"beta_schedule: {kind!r} is not known; Stable Diffusion 1.x and 2.x use scaled_linear")
