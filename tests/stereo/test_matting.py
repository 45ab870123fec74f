"""Mixtures beside an edge, told by samples of both colours: planted traces, textures and noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.stereo.matting import find_mixtures

SIDE, EDGE = 48, 20
WALL, OBJECT = torch.tensor([0.6, 0.62, 0.6]), torch.tensor([0.85, 0.2, 0.1])


def scene():
    """An object left of column EDGE before a wall: image 1,3,h,w; nearness 1,h,w; the four columns beside it."""
    column = torch.arange(SIDE).expand(1, SIDE, SIDE)
    inside = column < EDGE
    image = torch.where(inside[:, None], OBJECT[:, None, None], WALL[:, None, None])
    return image, inside.float() * 9, ~inside & (column < EDGE + 4)


def found(image, near, where, step=1):
    return find_mixtures(image, near, where, jump=1.0, reach=4 * step, step=step, unlike=8 / 255)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.floats(0.1, 1.0), st.integers(1, 3))
def test_a_planted_trace_is_taken_apart_into_its_two_colours(share, columns):
    image, near, where = scene()
    image[..., EDGE : EDGE + columns] += share * (OBJECT - WALL)[:, None, None]
    mixed = found(image, near, where)
    row, column = mixed.place // SIDE, mixed.place % SIDE
    assert len(mixed.place) == SIDE * columns
    assert set(column.tolist()) == set(range(EDGE, EDGE + columns))
    assert set(row.tolist()) == set(range(SIDE))
    torch.testing.assert_close(mixed.share, torch.full_like(mixed.share, share), atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed.back, WALL.expand_as(mixed.back))
    torch.testing.assert_close(mixed.front, OBJECT.expand_as(mixed.front))
    assert (mixed.near == 9).all()


def test_what_the_background_shows_elsewhere_is_background():
    image, near, where = scene()
    image[..., 10:12, EDGE:] = 0.9 * OBJECT[:, None, None]  # a line of the wall that ends at the object
    assert len(found(image, near, where).place) == 0


def test_a_colour_that_is_not_between_both_is_no_mixture():
    image, near, where = scene()
    image[..., EDGE : EDGE + 2] = torch.tensor([0.1, 0.1, 0.9])[:, None, None]
    assert len(found(image, near, where).place) == 0


def test_noise_strikes_single_pixels_and_is_no_mixture():
    image, near, where = scene()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert len(found((image + 0.05 * noise).clamp(0, 1), near, where).place) <= 0.03 * where.sum()
    image[..., 20, EDGE + 1] += 0.5 * (OBJECT - WALL)
    assert len(found(image, near, where).place) == 0


def test_another_surface_beside_the_edge_tells_nothing_of_the_background():
    image, near, where = scene()
    near[..., EDGE + 8 :] = 20.0  # the wall is seen through a slit, too narrow for samples of it alone
    image[..., EDGE : EDGE + 2] += 0.5 * (OBJECT - WALL)[:, None, None]
    assert len(found(image, near, where).place) == 0


@pytest.mark.parametrize("sample", [0, 1])
def test_samples_of_a_batch_do_not_see_each_other(sample):
    image, near, where = scene()
    traced = image.clone()
    traced[..., EDGE : EDGE + 2] += 0.5 * (OBJECT - WALL)[:, None, None]
    pair = torch.cat([traced, image] if sample == 0 else [image, traced])
    alone, both = found(traced, near, where), found(pair, near.repeat(2, 1, 1), where.repeat(2, 1, 1))
    assert torch.equal(both.place, alone.place + sample * SIDE * SIDE)
    assert torch.equal(both.share, alone.share)


def test_a_larger_picture_is_looked_at_in_larger_steps():
    image, near, where = (values.repeat_interleave(3, -1).repeat_interleave(3, -2) for values in scene())
    image[..., 3 * EDGE : 3 * EDGE + 6] += 0.5 * (OBJECT - WALL)[:, None, None]
    assert len(found(image, near, where, step=3).place) == 6 * 3 * SIDE


def test_nothing_asked_is_nothing_found():
    image, near, where = scene()
    assert len(found(image, near, where & False).place) == 0
