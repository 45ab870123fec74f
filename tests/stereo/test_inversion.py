"""Inversion of a given x_0 on a tiny U-Net: sampling leads back to it, with guidance after null-text inversion."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.inversion import ddim_inversion, null_text, renoised
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory, denoise
from stereo_jobs.stereo.solver import Solver

SIZE = 8


@pytest.fixture(scope="module")
def unet(one_thread):
    """A U-Net whose outputs are a tenth of the random ones, which change too fast with the latent for 50 steps.

    The weights require gradients, as diffusers loads them: nothing may depend on the caller to switch that off.
    """
    folder = Path(__file__).parent / "golden/tiny_unet"
    network = UNet2DConditionModel.from_pretrained(folder).eval()
    with torch.no_grad():
        network.conv_out.weight *= 0.1
        network.conv_out.bias *= 0.1
    return network


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def solver_of(steps):
    return Solver.of({}, steps, "ddim")


def guided(unet, samples=2, scale=7.5):
    text, without = (draw(samples, 5, 32, seed=seed).to(unet.dtype) for seed in (1, 2))
    return GuidedUNet(unet, text, without, scale)


def invert(unet, solver, x_0):
    model = guided(unet, len(x_0), scale=1)
    with torch.no_grad():
        return ddim_inversion(model, solver, x_0)


def error(a, b):
    """Root mean square of each sample."""
    return (a - b).square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++_karras"])
def test_renoised_latents_hold_one_noise_at_every_level_and_end_in_x_0(sampler):
    x_0, noise, solver = draw(2, 4, SIZE, SIZE), draw(2, 4, SIZE, SIZE, seed=3), Solver.of({}, 20, sampler)
    left = renoised(solver, x_0, noise)
    assert left.latents.shape == (21, 2, 4, SIZE, SIZE)
    for i in range(20):
        torch.testing.assert_close(solver.noise_of(left.latents[i], x_0, i), noise, rtol=1e-2, atol=1e-3)
    assert torch.equal(left.final, x_0)
    assert torch.equal(left.clean, x_0.expand(20, -1, -1, -1, -1))
    assert left.evaluations.tolist() == [0, 0]


def test_denoising_at_guidance_1_leads_back_to_x_0(unet):
    x_0, solver = draw(2, 4, SIZE, SIZE), solver_of(50)
    model = guided(unet, scale=1)
    with torch.no_grad():
        pivot = ddim_inversion(model, solver, x_0)
        assert pivot.evaluations.tolist() == [50, 50]
        back = denoise(model, solver, pivot.latents[0]).final
    assert error(back, x_0).max() < 0.05  # x_0 has unit variance


def test_latents_run_from_noise_to_x_0(unet):
    x_0, solver = draw(2, 4, SIZE, SIZE), solver_of(10)
    pivot = invert(unet, solver, x_0)
    assert pivot.latents.shape == (11, 2, 4, SIZE, SIZE)
    assert torch.equal(pivot.final, x_0)
    assert torch.equal(pivot.clean, x_0.expand(10, -1, -1, -1, -1))
    for i in range(10):  # one step of Eq. 9 each, predicted at the noisier level's timestep
        with torch.no_grad():
            output = guided(unet, scale=1)(pivot.latents[i + 1][None], i, solver.timesteps[i])[0]
        torch.testing.assert_close(pivot.latents[i], solver.invert(i, pivot.latents[i + 1], output))


@pytest.fixture(scope="module")
def optimised(unet):
    """Null-text inversion at guidance 7.5, in four steps: x_0, solver, model, pivot, result, weights before."""
    x_0, solver = draw(2, 4, SIZE, SIZE), solver_of(4)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    model, pivot = guided(unet), invert(unet, solver, x_0)
    found = null_text(model, solver, pivot, iterations=20)
    return x_0, solver, model, pivot, found, before


def test_null_text_brings_guidance_back_to_the_photo(unet, optimised):
    x_0, solver, model, pivot, found, _ = optimised
    with torch.no_grad():
        plain = denoise(model, solver, pivot.latents[0])
    assert (error(found.left.final, x_0) < 0.8 * error(plain.final, x_0)).all()
    assert found.left.evaluations.tolist() == [4 * (20 + 2)] * 2  # 20 each to optimise, one with text, one to go on
    assert torch.equal(model.unconditional, draw(2, 5, 32, seed=2))  # the embeddings to start from are unchanged


def test_sampling_with_the_found_embeddings_is_the_left_that_null_text_returns(unet, optimised):
    _, solver, model, pivot, found, _ = optimised
    assert found.embeddings.shape == (4, 2, 5, 32)
    with torch.no_grad():
        again = denoise(GuidedUNet(unet, model.conditional, found.embeddings, 7.5), solver, pivot.latents[0])
    torch.testing.assert_close(again.latents, found.left.latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.clean, found.left.clean, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.left.latents[0], pivot.latents[0])


def first_move(unet, solver, pivot, k):
    """Change of the embeddings by Adam's first iteration in the solver's step k: 2,n*c."""
    one = Solver("ddim", solver.timesteps[k : k + 1], solver.alphas[k : k + 2], "epsilon")
    model = guided(unet)
    part = Trajectory(pivot.latents[k : k + 2], pivot.clean[k : k + 1], pivot.evaluations)
    found = null_text(model, one, part, iterations=1)
    return (found.embeddings[0] - model.unconditional.float()).flatten(1)


@pytest.mark.parametrize("k", [0, 20, 45])
def test_half_precision_goes_where_full_precision_goes(unet, k):
    """Without loss scaling, half of the gradients vanish in float16 and the cosines are 0.2 to 0.6."""
    solver = solver_of(50)
    pivot = invert(unet, solver, draw(2, 4, SIZE, SIZE))
    half = first_move(copy.deepcopy(unet).half(), solver, pivot, k)
    cosines = torch.cosine_similarity(half, first_move(unet, solver, pivot, k))
    print(cosines.tolist())
    assert cosines.min() > 0.95


def test_more_than_100_steps_have_rates_of_their_own(unet):
    """The published rate 1e-2 (1 - i/100) is zero or negative from i = 100 on."""
    solver = solver_of(102)
    pivot = invert(unet, solver, draw(1, 4, SIZE, SIZE))
    found = null_text(guided(unet, 1), solver, pivot, iterations=1)
    moves = found.embeddings.diff(dim=0).flatten(1).abs().amax(1)[:-1]  # the last step changes no level
    torch.testing.assert_close(moves, 1e-2 * (1 - torch.arange(1.0, 101) / 102), rtol=0.05, atol=0)


def test_gradients_do_not_leak(unet, optimised):
    *_, found, before = optimised
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert all(weight.grad is None for weight in unet.parameters())
    assert not any(t.requires_grad for t in (found.embeddings, found.left.latents, found.left.clean))


def test_null_text_works_where_gradients_are_off(unet, optimised):
    """The generator calls it under `no_grad`."""
    _, solver, _, pivot, *_ = optimised
    one = pivot.take(torch.tensor([0]))
    with torch.no_grad():
        found = null_text(guided(unet, 1), solver, one, iterations=1)
    assert not torch.equal(found.embeddings[0], draw(1, 5, 32, seed=2))


def test_a_sample_stops_on_its_own_and_does_not_depend_on_its_neighbours(unet):
    """Needs double precision: Adam takes equally long steps for gradients that are only rounding noise."""
    solver, unet = solver_of(3), copy.deepcopy(unet).double()
    x_0 = torch.cat([draw(1, 4, SIZE, SIZE), draw(1, 4, SIZE, SIZE, seed=3)])
    pivot, model = invert(unet, solver, x_0), guided(unet)
    assert model.conditional.dtype == torch.float64
    # The target of the second sample is where it goes without optimisation: its loss is tiny from the beginning.
    with torch.no_grad():
        anyway = denoise(model, solver, pivot.latents[0]).latents
    pivot = Trajectory(torch.stack([pivot.latents[:, 0], anyway[:, 1]], 1), pivot.clean, pivot.evaluations)
    together = null_text(model, solver, pivot, iterations=5)
    for b in range(2):
        one = slice(b, b + 1)
        single = GuidedUNet(unet, model.conditional[one], model.unconditional[one], 7.5)
        alone = null_text(single, solver, pivot.take(torch.tensor([b])), iterations=5)
        assert together.left.evaluations[b] == alone.left.evaluations[0]
        torch.testing.assert_close(together.embeddings[:, one], alone.embeddings, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.left.final[one], alone.left.final, rtol=1e-4, atol=1e-5)
    assert together.left.evaluations.tolist()[0] == 3 * (5 + 2)
    first_step = null_text(model, solver_of(3), pivot, iterations=1)
    assert torch.equal(first_step.embeddings[0, 1], together.embeddings[0, 1])  # one iteration, then it stopped


def test_another_neighbour_changes_no_bit(unet):
    """At the same batch size, a sample's numbers do not depend on whether its neighbour stops early."""
    solver, model = solver_of(2), guided(unet)
    model.conditional[1], model.unconditional[1] = model.conditional[0], model.unconditional[0]
    pivots = [invert(unet, solver, torch.cat([draw(1, 4, SIZE, SIZE), draw(1, 4, SIZE, SIZE, seed=s)])) for s in (3, 4)]
    with torch.no_grad():
        reached = denoise(model, solver, pivots[0].latents[0]).latents
    pivots[0].latents[:, 1] = reached[:, 1]
    one, two = (null_text(model, solver, pivot, iterations=4) for pivot in pivots)
    assert torch.equal(one.embeddings[:, 0], two.embeddings[:, 0])
    assert torch.equal(one.left.latents[:, 0], two.left.latents[:, 0])
    first, second = one.left.evaluations, two.left.evaluations
    assert first[0] == second[0] == second[1] > first[1]
