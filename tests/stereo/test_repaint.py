"""RePaint: its path through the noise levels, and its result for models whose answer is known."""

from itertools import count, pairwise

import pytest
import torch

from stereo_jobs.stereo.repaint import levels, repaint
from stereo_jobs.stereo.solver import Solver


def published_schedule(steps, jump_length, resamples):
    """The loop of the authors' code, which counts the steps that remain, minus one."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)
    t, visited = steps, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                visited.append(t)
    return [*visited, -1]


@pytest.mark.parametrize(("steps", "jump", "times"), [(50, 10, 10), (250, 10, 10), (7, 2, 3), (5, 10, 10), (4, 1, 2)])
def test_the_walk_is_the_published_one(steps, jump, times):
    assert [steps - 1 - level for level in levels(steps, jump, times)] == published_schedule(steps, jump, times)


@pytest.mark.parametrize(("steps", "evaluations"), [(50, 410), (250, 2410)])
def test_the_walk_takes_as_many_evaluations_as_the_docs_say(steps, evaluations):
    walk = list(levels(steps, 10, 10))
    assert sum(1 for here, there in pairwise(walk) if there > here) == evaluations
    assert all(abs(there - here) == 1 for here, there in pairwise(walk))


class Sure:
    """A noise predictor for a distribution with a single image."""

    evaluations_per_view = 1

    def __init__(self, solver, image):
        self.solver, self.image, self.evaluations = solver, image, 0

    def __call__(self, x, i, timestep, condition=None):
        self.evaluations += 1
        return self.solver.noise_of(x, self.image, i)


@pytest.fixture
def setting():
    solver = Solver.of({}, 12, "ddim")
    generator = torch.Generator().manual_seed(0)
    known, image = torch.randn(2, 2, 4, 6, 5, generator=generator)
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[0, 2:4, 1:3] = mask[1, :, 4] = True
    calls = count()

    def noise():
        return torch.randn(known.shape, generator=torch.Generator().manual_seed(next(calls)))

    return solver, known, image, mask, noise


def test_the_outside_is_the_known_image_and_the_inside_the_models(setting):
    solver, known, image, mask, noise = setting
    model = Sure(solver, image)
    found = repaint(model, solver, known, mask, noise, jump_length=4, resamples=3)
    inside = mask[:, None].expand_as(known)
    torch.testing.assert_close(found.x_0[~inside], known[~inside], rtol=0, atol=0)
    # The last step returns the least noisy latent there is, not a noiseless one.
    signal, spread = solver.levels(solver.steps)
    assert (found.x_0 - signal * image)[inside].abs().max() < 6 * spread
    assert found.evaluations == model.evaluations == sum(1 for a, b in pairwise(levels(12, 4, 3)) if b > a)


def test_nothing_to_fill_changes_nothing(setting):
    solver, known, image, mask, noise = setting
    found = repaint(Sure(solver, image), solver, known, torch.zeros_like(mask), noise)
    assert torch.equal(found.x_0, known)


def test_white_noise_stays_white(setting):
    """For data of unit variance the best predictor is linear, and every level has unit variance.

    DDPM's own posterior variance leaves out what is unknown of x_0, which small steps make good.
    """
    solver = Solver.of({}, 250, "ddim")
    streams = torch.Generator().manual_seed(3)

    def noise():
        return torch.randn(1, 4, 48, 48, generator=streams)

    class Linear:
        evaluations_per_view = 1

        def __call__(self, x, i, timestep, condition=None):
            return solver.levels(i)[1] * x

    full = torch.ones(1, 48, 48, dtype=torch.bool)
    drawn = repaint(Linear(), solver, torch.zeros(1, 4, 48, 48), full, noise, jump_length=10, resamples=2).x_0
    assert abs(float(drawn.std()) - 1) < 0.04
    assert abs(float((drawn[..., 1:] * drawn[..., :-1]).mean())) < 0.05
