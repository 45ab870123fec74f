"""Which timesteps the denoising steps run at, as a checkpoint was trained or distilled for; equal to diffusers' own."""

from typing import Any, Literal, get_args

import numpy as np

Sampler = Literal["ddim", "dpm++", "dpm++_karras"]
SamplerChoice = Sampler | Literal["auto"]

_FULL_NOISE = 0.9
"""Share of the training steps above which the first step must begin: a latent of pure noise belongs there."""


def training_steps(config: dict[str, Any]) -> int:
    """Return the number of noise levels that a checkpoint was trained with."""
    return int(config.get("num_train_timesteps", 1000))


def sampler_for(config: dict[str, Any], choice: SamplerChoice) -> Sampler:
    """Return the sampler itself where `choice` leaves it to the checkpoint.

    `auto` is DPM-Solver++ on Karras' noise levels, the most exact for 20 to 25 steps. A checkpoint made for few steps
    (`timestep_spacing: trailing`) keeps its own timesteps.

    Raises:
        ValueError: there is no such sampler.
    """
    if choice != "auto":
        if choice not in get_args(Sampler):
            raise ValueError(
                f"sampler: must be auto, {', '.join(get_args(Sampler)[:-1])} or {get_args(Sampler)[-1]}, got {choice!r}"
            )
        return choice
    return "dpm++" if config.get("timestep_spacing") == "trailing" else "dpm++_karras"


def timesteps_of(config: dict[str, Any], steps: int, sampler: SamplerChoice) -> list[int]:
    """Space the timesteps of the denoising steps (Lin et al. 2024, Table 2), the noisiest first.

    Leading: 981, 961, ..., 1 for 50 of 1000 steps and an offset of 1, as in the published code. Karras' noise levels
    are spaced by noise (Karras et al. 2022, Eq. 5); for them only the rules are checked.

    Args:
        config: the content of scheduler_config.json: number of training steps, `timestep_spacing`, `steps_offset`.
        steps: number of denoising steps.
        sampler: `ddim`, `dpm++`, `dpm++_karras` or `auto`.

    Raises:
        ValueError: sampler or spacing are not supported, or this number of steps begins below full noise.
    """
    sampler = sampler_for(config, sampler)
    trained, ddim = training_steps(config), sampler == "ddim"
    spacing = config.get("timestep_spacing", "leading" if ddim else "linspace")
    if spacing not in ("leading", "linspace", "trailing"):
        raise ValueError(f"timestep_spacing: must be leading, linspace or trailing, got {spacing!r}")
    if steps > trained:
        raise ValueError(f"steps: {steps} is more than the {trained} steps that the checkpoint was trained with")
    if sampler == "dpm++_karras":
        if spacing == "trailing":
            raise ValueError(
                "scheduler: dpm++_karras leaves the timesteps that a checkpoint of timestep_spacing trailing was made "
                "for; use dpm++ or ddim"
            )
        spacing = "linspace"
    # DPM-Solver++ spaces one step more and leaves out the last, at which nothing is left to do.
    parts = steps if ddim else steps + 1
    if spacing == "trailing":
        # From the noisy end, as diffusers does: halves are rounded alike.
        return [int(timestep) - 1 for timestep in np.round(np.arange(trained, 0, -trained / steps))]
    if spacing == "linspace":
        spaced = np.linspace(0, trained - 1, parts).round().astype(np.int64)
    else:
        if trained // parts * parts < _FULL_NOISE * trained:
            fitting = next(n for n in range(parts, 0, -1) if trained // n * n >= _FULL_NOISE * trained)
            raise ValueError(
                f"steps: {steps} begin below full noise, because timestep_spacing leading takes every "
                f"{max(1, trained // parts)}. of {trained} timesteps; use {fitting - parts + steps}"
            )
        spaced = np.arange(parts) * (trained // parts) + int(config.get("steps_offset", 0))
    return [min(int(timestep), trained - 1) for timestep in spaced[parts - steps :][::-1]]
