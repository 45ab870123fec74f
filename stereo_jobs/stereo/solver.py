"""Deterministic samplers as pure arithmetic: DDIM (Eq. 1) and DPM-Solver++.

Symbols: alpha is the cumulative product of the noise schedule, so that x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) e.
Noise levels are numbered from the noise to the image: `alphas[i]` belongs to the latent that enters step i,
`alphas[steps]` to the result.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from stereo_jobs.stereo.timesteps import Sampler, SamplerChoice, sampler_for, timesteps_of, training_steps

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Solver:
    """The denoising steps of one run: DDIM (Song et al. 2021) or DPM-Solver++(2M) (Lu et al. 2022).

    Attributes:
        sampler: `ddim` (eta 0), `dpm++`, or `dpm++_karras` (on the noise levels of Karras et al. 2022).
        timesteps: int64 on the CPU, the steps' timesteps as the U-Net counts, from noise to image.
        alphas: steps+1 float64 on the CPU, the noise levels.
        prediction: what the U-Net predicts, `epsilon` or `v_prediction`.
    """

    sampler: Sampler
    timesteps: Tensor
    alphas: Tensor
    prediction: Prediction

    @classmethod
    def of(cls, config: dict[str, Any], steps: int, sampler: SamplerChoice) -> Self:
        """Make the solver from a checkpoint's scheduler configuration.

        Args:
            config: the content of scheduler_config.json: betas, number of training steps, `timestep_spacing`,
                `steps_offset`, `prediction_type`.
            steps: number of denoising steps.
            sampler: `ddim`, `dpm++`, `dpm++_karras` or `auto`.

        Raises:
            ValueError: the checkpoint's `beta_schedule` is not supported, or `timesteps_of` refuses the steps.
        """
        sampler = sampler_for(config, sampler)
        alphas = torch.cumprod(1 - _betas(config, training_steps(config)), 0)
        timesteps = torch.tensor(timesteps_of(config, steps, sampler))
        # `set_alpha_to_one: false`: the result has the noise level of the least noisy latent, not zero noise.
        levels = torch.cat([alphas[timesteps], alphas[:1]])
        if sampler == "dpm++_karras":
            levels = _karras(alphas, steps)
            # Each level gets the timestep that was trained with the nearest level.
            timesteps = (_log_snr(alphas) - _log_snr(levels[:-1])[:, None]).abs().argmin(1)
        return cls(sampler, timesteps, levels, config.get("prediction_type", "epsilon"))

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.timesteps)

    def split(self, output: Tensor, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Split the U-Net's output for the latent `x` at level i into the predicted x_0 and the predicted noise."""
        signal, noise = self.levels(i)
        if self.prediction == "v_prediction":
            return signal * x - noise * output, signal * output + noise * x
        return (x - noise * output) / signal, output

    def step(self, i: int, x: Tensor, output: Tensor, clean_before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take one step (Eq. 1, or DPM-Solver++(2M)): from level i to level i + 1.

        Args:
            i: index of the step.
            x: ...,4,h,w latent at level i.
            output: ...,4,h,w, the U-Net's output for `x`.
            clean_before: x_0 as step i - 1 predicted it; DPM-Solver++ needs it for its second order.

        Returns:
            The latent at level i + 1, and x_0 as this step predicts it.
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
        """DDIM inversion (Eq. 9): go from level i + 1 back to the noisier level i, with the noise predicted at `x`."""
        clean, noise = self.split(output, x, i + 1)
        signal, spread = self.levels(i)
        return signal * clean + spread * noise

    def levels(self, i: int) -> tuple[float, float]:
        """The factors of x_0 and of the noise at level i: sqrt(alpha) and sqrt(1 - alpha)."""
        alpha = float(self.alphas[i])
        return alpha**0.5, (1 - alpha) ** 0.5

    def renoise(self, clean: Tensor, noise: Tensor, i: int) -> Tensor:
        """Combine x_0 and noise to the latent at level i, as `scheduler.add_noise` of diffusers does."""
        signal, spread = self.levels(i)
        return signal * clean + spread * noise

    def noise_of(self, x: Tensor, clean: Tensor, i: int) -> Tensor:
        """The noise in a latent `x` at level i whose x_0 (`clean`) is known."""
        signal, spread = self.levels(i)
        return (x - signal * clean) / spread

    def _half_log_snr(self, i: int) -> Tensor:
        return 0.5 * _log_snr(self.alphas[i])


def _log_snr(alphas: Tensor) -> Tensor:
    return alphas.log() - (1 - alphas).log()


def _karras(alphas: Tensor, steps: int) -> Tensor:
    """Space steps+1 noise levels evenly in sigma^(1/7) (Karras et al. 2022, Eq. 5), the noisiest first.

    With few steps the error is largest near the noise and near the image, where sigma changes fastest; this spacing
    puts more steps there.
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
    raise ValueError(f"beta_schedule: {kind!r} is not supported; Stable Diffusion 1.x and 2.x use scaled_linear")
