"""Soft rims: planted outlines, of which object, background, alpha and the true right view are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stereo_jobs.stereo import bands as band_sizes
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.stereo.rims import find_rims

FINE = 4
"""Points per pixel at which planted pictures are drawn."""
HEIGHT, WIDTH, MARGIN = 48, 96, 24
NEAR, FAR = 9.0, 2.0
OBJECT = torch.tensor([0.85, 0.2, 0.1])[:, None, None]
WALL = torch.tensor([0.6, 0.62, 0.6])[:, None, None]
few = settings(max_examples=4, deadline=None, derandomize=True, database=None)


def outline(shape):
    """The object as 0 and 1 on the fine grid, wider than the picture by MARGIN on both sides."""
    y = torch.arange(HEIGHT * FINE)[:, None] / FINE
    x = torch.arange((WIDTH + 2 * MARGIN) * FINE)[None] / FINE - MARGIN - WIDTH / 2
    shapes = {
        "disc": (x.square() + (y - HEIGHT / 2).square()).sqrt() < 13,
        "triangle": (x.abs() < (y - 7) * 0.35) & (y < 41),
        "pole": (x.abs() < 1.5) & (y > -1),
        "thin pole": (x.abs() < 0.75) & (y > -1),
    }
    return shapes[shape].float()


def blurred(values, sigma):
    """A Gaussian blur by `sigma` pixels of a fine picture."""
    reach = int(3 * sigma * FINE)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * (sigma * FINE) ** 2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(values[None, None], (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def planted(shape, sigma, near=NEAR):
    """Left view, true right view, both alphas and the disparity of an object before a wall: 1,C,H,W; 1,H,W."""
    alpha = blurred(outline(shape), sigma)

    def view(shift):
        seen = alpha.roll(-round(shift * FINE), 1)[:, MARGIN * FINE : (MARGIN + WIDTH) * FINE]
        seen = functional.avg_pool2d(seen[None, None], FINE)
        return WALL + (OBJECT - WALL) * seen, seen

    (left, here), (right, there) = view(0), view(near)
    return (left * 255).round(), right, there, torch.where(here[0] >= 0.5, near, FAR)


def right_view(left, disparity, sign=1.0, rims=True):
    """The right view of a left one in [0, 255], its holes stretched, and its warp."""
    signs = torch.tensor([sign])
    warp = ImageWarp(disparity, signs, rims=find_rims(left, disparity, signs, traces=True) if rims else None)
    made = []
    for rows in warp.bands():
        pixels = left[..., rows, :] / 255
        made.append(warp.rows(rows).with_rims(warp.rows(rows).continued(pixels), pixels))
    return torch.cat(made, -2), warp


def left_behind(view, alpha):
    """How many pixels without any object in truth have moved towards its colour by more than an eighth of the way."""
    share = ((view - WALL) * (OBJECT - WALL)).sum(1) / (OBJECT - WALL).square().sum()
    return int(((alpha[0] < 0.02) & (share > 0.125)).sum())


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", ["disc", "triangle"])
@pytest.mark.parametrize("near", [NEAR, NEAR + 0.5])
def test_no_part_of_a_soft_outline_stays_behind_on_the_wall(shape, sigma, near):
    left, right, alpha, disparity = planted(shape, sigma, near)
    whole, _ = right_view(left, disparity, rims=False)
    apart, _ = right_view(left, disparity)
    assert left_behind(whole, alpha) > 100
    assert left_behind(apart, alpha) <= (0.05 if sigma < 2 else 0.15) * left_behind(whole, alpha)
    assert (apart - right).abs().mean() < 0.35 * (whole - right).abs().mean()


@pytest.mark.parametrize(("shape", "sigma"), [("pole", 0.5), ("pole", 1.0), ("thin pole", 0.3)])
def test_a_thin_pole_stays_whole_and_leaves_nothing_behind(shape, sigma):
    left, right, alpha, disparity = planted(shape, sigma)
    apart, _ = right_view(left, disparity)
    assert left_behind(apart, alpha) == 0
    assert (apart - right).abs().amax() < 0.12


def test_a_negative_scale_gives_the_mirror_image_of_a_positive_one():
    left, _, _, disparity = planted("triangle", 1.0)
    right, _ = right_view(left, disparity)
    mirrored, _ = right_view(left.flip(-1), -disparity.flip(-1), sign=-1.0)
    assert (right - mirrored.flip(-1)).abs().mean() < 1e-3  # ties between directions are not mirrored


def test_labels_and_masks_are_those_of_the_disparity_alone():
    left, _, _, disparity = planted("disc", 1.5)
    _, whole = right_view(left, disparity, rims=False)
    _, apart = right_view(left, disparity)
    assert torch.equal(apart.disparity, disparity)
    for name in ("visible", "filled", "border"):
        assert torch.equal(getattr(apart.masks, name), getattr(whole.masks, name))


def test_each_mixture_is_exactly_the_colour_of_its_pixel():
    left, *_, disparity = planted("disc", 1.0)
    rims = find_rims(left, disparity, torch.ones(1), traces=True)
    colours = rims.alpha[:, None] * rims.front + (1 - rims.alpha[:, None]) * rims.back
    assert len(rims.place) > 100
    torch.testing.assert_close(colours, left[0].flatten(1).T[rims.place] / 255, atol=1e-5, rtol=0)
    assert (disparity.flatten()[rims.place] == FAR).all()  # what is mostly object moves with it as it is
    assert rims.alpha.max() < 0.55


@pytest.mark.parametrize("sharp", ["sharp outline", "textures", "slanted plane", "contour"])
def test_nothing_is_taken_apart_where_nothing_is_mixed(sharp):
    disparity = torch.where(outline("disc")[::FINE, MARGIN * FINE : (MARGIN + WIDTH) * FINE : FINE] > 0, NEAR, FAR)[
        None
    ]
    inside = disparity[:, None] == NEAR
    left = torch.where(inside, OBJECT[None], WALL[None]) * 255
    if sharp == "textures":
        left = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 255
    if sharp == "slanted plane":
        disparity = 0.8 * torch.arange(float(WIDTH)).expand(1, HEIGHT, WIDTH)
    if sharp == "contour":  # two pixels, grey between white and black
        core = functional.max_pool2d((~inside).float(), 5, stride=1, padding=2) == 0
        left = torch.where(core, 255.0, torch.where(inside, 110.0, 20.0)).expand(1, 3, HEIGHT, WIDTH)
    found = find_rims(left, disparity, torch.ones(1), traces=True)
    share = {"textures": 0.02}.get(sharp, 0.0)
    assert len(found.place) <= share * disparity.numel()


@few
@given(st.integers(300, 4000), st.sampled_from(["disc", "triangle"]), st.sampled_from([-1.0, 1.0]))
def test_rims_are_the_same_in_bands(pixels, shape, sign):
    left, *_, disparity = planted(shape, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        whole, _ = right_view(left, sign * disparity, sign)
        patch.setattr(band_sizes, "BAND_PIXELS", pixels)
        banded, _ = right_view(left, sign * disparity, sign)
    assert torch.equal(whole, banded)
