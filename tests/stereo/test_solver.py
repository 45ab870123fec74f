"""The samplers' arithmetic against diffusers' schedulers, step by step."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler

from stereo_jobs.stereo.solver import Solver
from tests.schedulers import reference_scheduler

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
PREDICTIONS = ["epsilon", "v_prediction"]


def noise(seed=0):
    return torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictor(x, timestep):
    """A stand-in for a U-Net: smooth, not linear, different at every timestep."""
    return torch.tanh(x * (0.5 + timestep.item() / 1000)) + 0.1 * x.roll(1, -1)


def config(prediction, **others):
    return STABLE_DIFFUSION | {"prediction_type": prediction} | others


def assert_same_run(solver, scheduler):
    """Both start from the same noise, get the same predictions and pass through the same latents."""
    assert solver.timesteps.tolist() == scheduler.timesteps.tolist()
    ours = theirs = noise()
    clean = None
    for i, timestep in enumerate(scheduler.timesteps):
        theirs = scheduler.step(predictor(theirs, timestep), timestep, theirs).prev_sample
        ours, clean = solver.step(i, ours, predictor(ours, timestep), clean)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("steps", "others"),
    [(50, {}), (7, {}), (30, {"steps_offset": 0}), (20, {"beta_schedule": "linear", "beta_end": 0.02})],
)
def test_ddim_is_that_of_diffusers(prediction, steps, others):
    settings = config(prediction, **others)
    scheduler = DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    assert_same_run(Solver.of(settings, steps, "ddim"), scheduler)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [2, 14, 15, 20, 25])
def test_dpm_solver_on_karras_levels_is_that_of_diffusers(prediction, steps):
    settings = config(prediction)
    scheduler = reference_scheduler("dpm++_karras", settings)
    scheduler.set_timesteps(steps)
    assert_same_run(Solver.of(settings, steps, "dpm++_karras"), scheduler)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [4, 14, 15, 20])
def test_dpm_solver_is_that_of_diffusers_in_every_spacing(spacing, steps):
    """diffusers ends at zero noise, in steps of first order; the runs are compared up to there."""
    settings = config("epsilon", timestep_spacing=spacing)
    scheduler = DPMSolverMultistepScheduler(**settings, lower_order_final=False)
    scheduler.set_timesteps(steps)
    solver = Solver.of(settings, steps, "dpm++")
    ours = theirs = noise()
    clean = None
    for i, timestep in enumerate(scheduler.timesteps[:-1]):
        theirs = scheduler.step(predictor(theirs, timestep), timestep, theirs).prev_sample
        ours, clean = solver.step(i, ours, predictor(ours, timestep), clean)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_timesteps_of_the_published_code():
    assert Solver.of(STABLE_DIFFUSION, 50, "ddim").timesteps.tolist() == list(range(981, 0, -20))
    assert Solver.of(STABLE_DIFFUSION | {"steps_offset": 0}, 50, "ddim").timesteps.tolist() == list(range(980, -1, -20))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inversion_is_that_of_diffusers(prediction):
    """Eq. 9: the model predicts at the noisier level's timestep, for the latent of the cleaner level."""
    settings = config(prediction)
    solver = Solver.of(settings, 10, "ddim")
    scheduler = DDIMInverseScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    assert solver.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
    ours = theirs = noise()
    for i, timestep in zip(reversed(range(10)), scheduler.timesteps, strict=True):
        theirs = scheduler.step(predictor(theirs, timestep), timestep, theirs).prev_sample
        ours = solver.invert(i, ours, predictor(ours, timestep))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def output_for(solver, clean, inside, i):
    """Output of a perfect U-Net for a latent at level i with known x_0 and noise."""
    signal, spread = solver.levels(i)
    return inside if solver.prediction == "epsilon" else signal * inside - spread * clean


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("i", [0, 7, 19])
def test_a_latent_splits_into_x_0_and_noise_and_back(prediction, i):
    solver = Solver.of(config(prediction), 20, "ddim")
    clean, inside = noise(1), noise(2)
    x = solver.renoise(clean, inside, i)
    for part, expected in zip(solver.split(output_for(solver, clean, inside, i), x, i), (clean, inside), strict=True):
        torch.testing.assert_close(part, expected)
    torch.testing.assert_close(solver.noise_of(x, clean, i), inside)
    torch.testing.assert_close(solver.renoise(clean, solver.noise_of(x, clean, i), i), x)


def test_renoise_is_add_noise_at_the_timestep_reached_after_the_step():
    solver = Solver.of(STABLE_DIFFUSION, 20, "ddim")
    scheduler = DDIMScheduler(**STABLE_DIFFUSION)
    for i in (1, 8, 19):
        expected = scheduler.add_noise(noise(1), noise(2), solver.timesteps[i : i + 1])
        torch.testing.assert_close(solver.renoise(noise(1), noise(2), i), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_invert_undoes_step_where_the_predicted_noise_is_constant(prediction):
    solver = Solver.of(config(prediction), 20, "ddim")
    clean, inside = noise(1), noise(2)
    for i in range(20):
        x = solver.renoise(clean, inside, i)
        following, predicted = solver.step(i, x, output_for(solver, clean, inside, i))
        torch.testing.assert_close(predicted, clean)
        back = solver.invert(i, following, output_for(solver, clean, inside, i + 1))
        torch.testing.assert_close(back, x)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_model_that_knows_x_0_is_led_to_it(sampler):
    """Every step keeps x_0 and the noise; at the end, 3 % of the noise remain (`set_alpha_to_one: false`)."""
    solver = Solver.of(STABLE_DIFFUSION, 20, sampler)
    clean, inside = noise(1), noise(2)
    x, before = solver.renoise(clean, inside, 0), None
    for i in range(20):
        x, before = solver.step(i, x, solver.noise_of(x, clean, i), before)
    torch.testing.assert_close(x, solver.renoise(clean, inside, 20))
    assert solver.levels(20)[1] < 0.03


def test_only_dpm_solver_uses_the_step_before():
    for sampler, uses in (("ddim", False), ("dpm++", True)):
        solver = Solver.of(STABLE_DIFFUSION, 20, sampler)
        alone, _ = solver.step(5, noise(), noise(1))
        together, _ = solver.step(5, noise(), noise(1), noise(2))
        assert torch.equal(alone, together) != uses
        first, _ = solver.step(0, noise(), noise(1))
        assert torch.equal(first, solver.step(0, noise(), noise(1), noise(2))[0])


def test_a_checkpoint_that_says_nothing_is_stable_diffusion():
    assert torch.equal(Solver.of({}, 10, "dpm++").alphas, Solver.of(STABLE_DIFFUSION, 10, "dpm++").alphas)
    assert Solver.of({}, 10, "ddim").prediction == "epsilon"


def test_an_unknown_noise_schedule_is_refused():
    with pytest.raises(ValueError, match=r"beta_schedule: 'squaredcos_cap_v2' is not supported; .* use scaled_linear"):
        Solver.of(STABLE_DIFFUSION | {"beta_schedule": "squaredcos_cap_v2"}, 20, "ddim")
