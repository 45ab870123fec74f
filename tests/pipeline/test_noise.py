"""The default shift, of x_0 in the picture, must leave the noise of a latent white and of unit variance, too."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from stereo_jobs.pipeline import right_view as rights
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import DiffusedLeftViews, Stream, noise_generator
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.sampler import Trajectory
from stereo_jobs.stereo.solver import Solver
from tests.stereo.test_noise import BATCH, HEIGHT, LEVEL, SCENES, WIDTH, scene, unit_noise, variance_and_correlation

pytestmark = pytest.mark.usefixtures("one_thread")
FACTOR = 4
SOLVER = Solver.of({}, 50, "ddim")


class Captured(Exception):
    """Carries what the sampler would have got."""


def stub_sd():
    """Of Stable Diffusion, what a shift needs."""

    def encode(images):
        pooled = functional.avg_pool2d(images, FACTOR)
        return torch.cat([pooled, pooled[:, :1]], 1)

    return SimpleNamespace(
        latent_factor=FACTOR, latent_channels=4, device="cpu", scheduler_config={}, unet=None, encode=encode
    )


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_noise_of_the_default_shift_stays_white(monkeypatch, name, sign):
    size = (HEIGHT * FACTOR, WIDTH * FACTOR)
    # The scene of the latents, seen at the picture's resolution.
    maps = functional.interpolate(scene(name)[:, None] * FACTOR * sign, size, mode="bilinear")[:, 0]
    if name == "an object":
        maps = maps.round()
    rows = [Row(f"r{i}", "", "", 10 * i, 8.0) for i in range(BATCH)]
    x_0, noise = unit_noise(0).cumsum(-1) / 10, unit_noise(1)
    text = torch.zeros(BATCH, 5, 8)
    pictures = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(BATCH)]
    lefts = DiffusedLeftViews(
        decoded=[DecodedRow(row, Letterbox.exact(size)) for row in rows],
        trajectory=Trajectory(
            x_0.expand(51, *x_0.shape), x_0.expand(50, *x_0.shape), torch.zeros(BATCH, dtype=torch.int64)
        ),
        images=pictures,
        maps=list(maps),
        refined=list(maps),
        depths=[None] * BATCH,
        conditional=text,
        unconditional=text,
        condition=None,
        usable=torch.ones(BATCH, dtype=torch.bool),
        evaluations=torch.zeros(BATCH, dtype=torch.int64),
    )

    def capture(*_, to_right, **__):
        raise Captured(to_right)

    monkeypatch.setattr(rights, "denoise_pair", capture)
    recipe = Recipe(mode="image", method={"geometry": "metric", "refine_edges": False})
    assert recipe.method.warp == "pixel"
    with pytest.raises(Captured) as caught:
        rights.RightViewMaker(stub_sd(), recipe).make(rows, lefts, 1.0)
    [shift] = caught.value.args

    assert shift.split
    assert shift.filled.float().mean() > 0.3
    x = SOLVER.renoise(x_0, noise, LEVEL)
    moved = shift.begin(SOLVER, LEVEL, x, x_0, recipe.method.fill)
    before, _ = variance_and_correlation(noise)
    found = SOLVER.noise_of(moved, shift.clean, LEVEL)
    after, correlation = variance_and_correlation(found)
    assert after == pytest.approx(before, rel=0.02)
    assert abs(correlation) < 0.05
    assert torch.equal(shift.copy(SOLVER, LEVEL, x, x_0, moved), moved)
    # Where a latent moved it is the left view's own noise, by whole latents.
    own = shift.filled[:, None] & (shift.warp.nearest(noise) != 0)
    torch.testing.assert_close(found[own], shift.warp.nearest(noise)[own], rtol=1e-3, atol=1e-3)
    assert own.float().mean() > 0.3


def test_the_left_view_starts_from_the_noise_of_torch():
    expected = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.randn(3, 5, generator=noise_generator(7, Stream.START)), expected)


def test_no_stream_of_a_seed_is_a_stream_of_another():
    """Rows often have neighbouring seeds: what one draws for its holes must not be what the next starts from."""
    seeds = [*range(50), 2**63 - 1]
    drawn = {tuple(torch.randn(4, generator=noise_generator(seed, s)).tolist()) for seed in seeds for s in Stream}
    assert len(drawn) == len(seeds) * len(Stream)
