"""At which timesteps the denoising steps run, against diffusers' schedulers."""

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import assume, given
from hypothesis import strategies as st

from stereo_jobs.stereo.timesteps import timesteps_of

SCHEDULERS = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}
SPACINGS = ["leading", "linspace", "trailing"]


@given(
    sampler=st.sampled_from(sorted(SCHEDULERS)),
    spacing=st.sampled_from([*SPACINGS, None]),
    offset=st.sampled_from([0, 1]),
    steps=st.integers(1, 1000),
)
def test_timesteps_are_those_of_diffusers(sampler, spacing, offset, steps):
    config = {"num_train_timesteps": 1000, "steps_offset": offset}
    config |= {"timestep_spacing": spacing} if spacing else {}
    try:
        found = timesteps_of(config, steps, sampler)
    except ValueError as error:
        assert "begin below full noise" in str(error)
        fitting = int(str(error).rpartition("use ")[2])
        assert 1 <= fitting < steps
        assert timesteps_of(config, fitting, sampler)[0] >= 890
        return
    scheduler = SCHEDULERS[sampler](**config)
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()
    assume(max(theirs) < 1000)  # diffusers may name a timestep beyond the last one, which no U-Net was trained with
    assert found == theirs


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "said"),
    [
        ("ddim", {}, 600, r"600 begin below full noise, .* every 1\. of 1000 timesteps; use 500$"),
        ("ddim", {"timestep_spacing": "leading"}, 334, "use 333$"),
        ("dpm++", {"timestep_spacing": "leading"}, 250, "use 249$"),
        ("dpm++", {"num_train_timesteps": 50}, 60, "60 is more than the 50 steps"),
        ("ddim", {"timestep_spacing": "karras"}, 20, "must be leading, linspace or trailing, got 'karras'"),
        ("dpm++_karras", {"timestep_spacing": "trailing"}, 20, r"use dpm\+\+ or ddim$"),
    ],
)
def test_what_has_no_right_schedule_is_refused(sampler, config, steps, said):
    with pytest.raises(ValueError, match=said):
        timesteps_of(config, steps, sampler)


def test_a_checkpoint_made_for_few_steps_runs_at_its_own_timesteps():
    turbo = {"timestep_spacing": "trailing", "steps_offset": 1}
    assert [timesteps_of(turbo, 4, sampler) for sampler in ("ddim", "dpm++", "auto")] == [[999, 749, 499, 249]] * 3
