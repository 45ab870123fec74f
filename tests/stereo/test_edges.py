"""Depth edges lie where the picture has them, at any size of the picture."""

import cv2
import numpy as np
import pytest
import torch

from stereo_jobs.stereo.disparity import relative_disparity
from stereo_jobs.stereo.edges import refine
from stereo_jobs.stereo.warp import forward_warp

ESTIMATE = 518
"""Side of the estimated maps, in pixels: that of the usual networks."""


def object_at(kind, height, width):
    """H,W bool: an object in front of a wall; `kind` says how its right edge runs."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    return {"upright": x < 0.57, "slanted": x + 0.3 * y < 0.7, "round": (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.09}[kind]


def estimated(kind):
    """The object's depth as a network would blur it: 1,h,w."""
    exact = object_at(kind, ESTIMATE, ESTIMATE).astype(np.float32)
    return torch.from_numpy(cv2.GaussianBlur(exact, (0, 0), 1.2))[None]


def photographed(kind, height, width, contrast=0.4, noise=0.0):
    """A picture of the object: 1,3,H,W uint8."""
    near = object_at(kind, height, width)[..., None]
    grain = np.random.default_rng(0).normal(0, noise, (height, width, 3))
    levels = np.clip(128 + 255 * (contrast * (near - 0.5) + grain), 0, 255).astype(np.uint8)
    return torch.from_numpy(levels).permute(2, 0, 1)[None]


def holes_of(relative):
    """Number of 8-connected pieces of the holes of a shift by 8 % of the width, and their pixels."""
    warp = forward_warp(0.08 * relative.shape[-1] * relative, torch.ones(1), subpixel=True)
    holes = ~warp.filled[0].numpy()
    return cv2.connectedComponents(holes.astype(np.uint8), connectivity=8)[0] - 1, int(holes.sum())


@pytest.mark.parametrize("kind", ["upright", "slanted", "round"])
@pytest.mark.parametrize(
    ("contrast", "noise", "side"),
    [(0.4, 0, 256), (0.4, 0, 518), (0.4, 0.05, 518), (0, 0, 518), (0.4, 0.05, 1024), (0, 0, 1024)],
)
def test_a_soft_edge_opens_one_hole_of_the_exact_width(kind, contrast, noise, side):
    one_hole_of_the_exact_width(kind, refine(estimated(kind), photographed(kind, side, side, contrast, noise)))


@pytest.mark.slow
@pytest.mark.parametrize("side", [256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("kind", ["upright", "slanted", "round"])
@pytest.mark.parametrize(("contrast", "noise"), [(0.4, 0), (0.4, 0.05), (0, 0), (0, 0.05)])
def test_a_soft_edge_opens_one_hole_in_a_picture_of_any_size(kind, contrast, noise, side):
    one_hole_of_the_exact_width(kind, refine(estimated(kind), photographed(kind, side, side, contrast, noise)))


def one_hole_of_the_exact_width(kind, refined):
    side = refined.shape[-1]
    exact = torch.from_numpy(object_at(kind, side, side).astype(np.float32))[None]
    pieces, pixels = holes_of(relative_disparity(refined))
    exact_pieces, exact_pixels = holes_of(exact)
    assert pieces == exact_pieces
    assert pixels == pytest.approx(exact_pixels, rel=0.02)


def test_surfaces_without_edges_are_resized_only():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    maps = torch.stack([torch.full((64, 96), 3.0), x, 5 - y, 0.5 * x + 0.5 * y])
    noise = torch.randint(0, 256, (4, 3, 64, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(refine(maps, noise), maps)


@pytest.mark.parametrize("width", [1, 2])
def test_a_pole_is_kept_whole(width):
    maps = torch.zeros(1, 40, 40)
    maps[..., 20 : 20 + width] = 1
    for zoom in (1, 4):
        picture = (200 * maps).to(torch.uint8).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)[:, None]
        refined = refine(maps, picture.expand(-1, 3, -1, -1))
        assert (refined[0, :, 20 * zoom : (20 + width) * zoom] == 1).all()
        assert (refined == 1).sum() <= (width + 2) * 40 * zoom**2


def test_no_depth_is_invented_and_every_map_is_refined_on_its_own():
    maps = torch.stack([estimated("round")[0], 1e3 * estimated("slanted")[0]])
    pictures = torch.cat([photographed("round", 200, 260), photographed("slanted", 200, 260)])
    together = refine(maps, pictures)
    for i in range(2):
        assert torch.equal(together[i : i + 1], refine(maps[i : i + 1], pictures[i : i + 1]))
        assert maps[i].min() <= together[i].min()
        assert together[i].max() <= maps[i].max()


@pytest.mark.parametrize("zoom", [1, 4])
def test_a_tip_that_the_map_has_lost_goes_with_its_object(zoom):
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    body = (x - 24).abs() < (y - 16) * 0.5
    body = body & (y < 40)
    tip = (x == 24) & (y >= 13) & (y <= 17)
    picture = torch.where(body | tip, 40, 180).to(torch.uint8).expand(1, 3, 48, 48)
    picture = picture.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    refined = refine(body.float()[None], picture)[0]
    shown = tip.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    assert (refined[shown] > 0.9).float().mean() >= 0.9
    around = refined[: 12 * zoom]
    assert (around == 0).all()


def test_a_line_of_the_wall_that_ends_at_an_object_stays_on_the_wall():
    body = torch.zeros(1, 48, 48)
    body[:, 20:44, 12:30] = 1
    picture = torch.where(body.bool(), 40, 180).to(torch.uint8).expand(1, 3, 48, 48).clone()
    picture[..., :20, 20:22] = 60
    refined = refine(body, picture)
    assert (refined[:, :19] == 0).all()
