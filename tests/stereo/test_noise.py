"""What a shift does to the noise in a latent: after a sub-pixel shift of x_0 it is white and has unit variance."""

import pytest
import torch

from stereo_jobs.stereo.fill import background_columns, extend_background
from stereo_jobs.stereo.sampler import ViewShift
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import forward_warp

BATCH, HEIGHT, WIDTH, LEVEL = 3, 96, 160, 11
SOLVER = Solver.of({}, 50, "ddim")


def unit_noise(seed):
    return torch.randn(BATCH, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def scene(name):
    """Disparities in latent pixels, BATCH,HEIGHT,WIDTH."""
    x = torch.arange(float(WIDTH))
    row = {
        "flat, half a pixel": torch.full((WIDTH,), 2.5),
        "flat, whole pixels": torch.full((WIDTH,), 3.0),
        "an object": torch.where((x > 60) & (x < 90), 7.3, 1.6),
        "approaching": 0.3 * (x - 80),
        "receding, full of cracks": -0.4 * (x - 80),
    }[name]
    return row.expand(BATCH, HEIGHT, WIDTH).contiguous()


def variance_and_correlation(x):
    """Variance, and correlation with the pixel to the right."""
    x = x - x.mean()
    variance = x.square().mean()
    return variance.item(), (x[..., 1:] * x[..., :-1]).mean().item() / variance.item()


def parts(name, sign=1.0):
    """The shift of a scene into one view, and what goes into it: x, x_0 and its noise."""
    disparity, signs = sign * scene(name), torch.full((BATCH,), sign)
    warp = forward_warp(disparity, signs, subpixel=True)
    columns = background_columns(warp.filled, warp(disparity[:, None])[:, 0], signs)
    x_0, noise = unit_noise(0).cumsum(-1) / 10, unit_noise(1)
    clean = extend_background(warp(x_0), columns)
    shift = ViewShift(warp, warp.filled, clean, unit_noise(2), split=True)
    return shift, SOLVER.renoise(x_0, noise, LEVEL), x_0, noise


SCENES = ["flat, half a pixel", "flat, whole pixels", "an object", "approaching", "receding, full of cracks"]


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_noise_of_a_shifted_latent_stays_white(name, sign):
    shift, x, x_0, noise = parts(name, sign)
    before, _ = variance_and_correlation(noise)
    moved = shift.begin(SOLVER, LEVEL, x, x_0, "background")
    after, correlation = variance_and_correlation(SOLVER.noise_of(moved, shift.clean, LEVEL))
    assert after == pytest.approx(before, rel=0.02)
    assert abs(correlation) < 0.05
    copied = shift.copy(SOLVER, LEVEL, x, x_0, moved)
    assert torch.equal(copied, moved)


@pytest.mark.parametrize(
    ("name", "variance", "correlation"), [("flat, half a pixel", 0.5, 0.5), ("receding, full of cracks", 0.67, 0.5)]
)
def test_the_same_shift_of_the_noise_itself_would_blur_it(name, variance, correlation):
    """Shows why x_0 and noise are shifted separately: interpolation averages and repeats neighbours."""
    shift, _, _, noise = parts(name)
    blurred = shift.warp(noise)[..., 20:-20]
    assert shift.filled[..., 20:-20].all()
    found = variance_and_correlation(blurred)
    assert found == pytest.approx((variance, correlation), abs=0.05)


def test_noise_that_moves_is_the_left_views_own():
    shift, x, x_0, noise = parts("an object")
    moved = SOLVER.noise_of(shift.begin(SOLVER, LEVEL, x, x_0, "background"), shift.clean, LEVEL)
    own = shift.warp.nearest(noise, shift.noise)
    torch.testing.assert_close(moved, own, rtol=1e-3, atol=1e-3)
    holes = ~shift.filled[:, None].expand_as(moved)
    torch.testing.assert_close(moved[holes], shift.noise[holes], rtol=1e-3, atol=1e-3)
