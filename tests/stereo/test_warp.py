"""Stereo Pixel Shift against a slow and obvious reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stereo_jobs.stereo.warp import ForwardWarp, border_holes, forward_warp, upsample

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def slow_warp(disparity, sign):
    """Every pixel in turn moves left by its truncated disparity; where two meet, the nearer one stays."""
    batch, height, width = disparity.shape
    source = np.zeros(disparity.shape, np.int64)
    filled, visible = np.zeros((2, *disparity.shape), bool)
    for b in range(batch):
        for y in range(height):
            nearness = {}
            for x in range(width):
                shift = int(disparity[b, y, x])  # towards zero
                target, near = x - shift, shift if sign[b] > 0 else -shift
                if 0 <= target < width and near > nearness.get(target, -np.inf):
                    if filled[b, y, target]:
                        visible[b, y, source[b, y, target]] = False
                    nearness[target] = near
                    source[b, y, target] = x
                    filled[b, y, target] = visible[b, y, x] = True
    return source, filled, visible


@st.composite
def cases(draw):
    """Disparities of a few shapes and magnitudes, with the scale's sign of each sample."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12)))
    numbers = st.floats(-6, 6, width=32) | st.integers(-14, 14).map(float)
    sign = draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=shape[0], max_size=shape[0]))
    return draw(arrays(np.float32, shape, elements=numbers)), np.array(sign)


@often
@given(cases())
def test_the_warp_equals_the_slow_reference(case):
    disparity, sign = case
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign))
    source, filled, visible = slow_warp(disparity, sign)
    np.testing.assert_array_equal(warp.filled.numpy(), filled)
    np.testing.assert_array_equal(warp.visible.numpy(), visible)
    np.testing.assert_array_equal(warp.source.numpy(), source)


@often
@given(cases(), st.integers(1, 3))
def test_no_value_is_invented(case, channels):
    disparity, sign = case
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign))
    batch, height, width = disparity.shape
    x = torch.arange(batch * channels * height * width, dtype=torch.float32).reshape(batch, channels, height, width)
    out = warp(x + 1, into=-1.0)
    for b in range(batch):
        for c in range(channels):
            for y in range(height):
                assert set(out[b, c, y].tolist()) <= {*(x[b, c, y] + 1).tolist(), -1.0}
    np.testing.assert_array_equal((out > 0).numpy(), warp.filled[:, None].expand_as(out).numpy())
    assert warp.filled.sum() == warp.visible.sum()


@often
@given(cases())
def test_every_sample_is_warped_on_its_own(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    together = forward_warp(disparity, sign)
    for b in range(len(disparity)):
        alone = forward_warp(disparity[b : b + 1], sign[b : b + 1])
        for field in ("source", "filled", "visible"):
            assert torch.equal(getattr(together, field)[b : b + 1], getattr(alone, field))


@often
@given(cases())
def test_mirroring_the_scene_and_the_direction_mirrors_the_warp(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    warp = forward_warp(disparity, sign)
    mirrored = forward_warp(-disparity.flip(-1), -sign)
    assert torch.equal(mirrored.filled.flip(-1), warp.filled)
    assert torch.equal(mirrored.visible.flip(-1), warp.visible)


def test_no_disparity_moves_nothing():
    x = torch.randn(2, 4, 3, 5)
    warp = forward_warp(torch.zeros(2, 3, 5), torch.ones(2))
    assert torch.equal(warp(x), x)
    assert warp.filled.all()
    assert warp.visible.all()


def test_holes_take_the_values_given():
    warp = forward_warp(torch.full((1, 1, 4), 1.0), torch.ones(1))
    x, into = torch.arange(4.0).reshape(1, 1, 1, 4), torch.full((1, 1, 1, 4), 9.0)
    assert warp(x).flatten().tolist() == [1, 2, 3, 0]
    assert warp(x, into).flatten().tolist() == [1, 2, 3, 9]
    assert warp(x, 7.0).flatten().tolist() == [1, 2, 3, 7]
    assert warp.visible.flatten().tolist() == [False, True, True, True]


@often
@given(arrays(bool, st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 10))))
def test_border_holes_are_those_reachable_from_the_edge(filled):
    expected = np.zeros_like(filled)
    for row, out in zip(filled.reshape(-1, filled.shape[-1]), expected.reshape(-1, filled.shape[-1]), strict=True):
        for order in (range(len(row)), range(len(row))[::-1]):
            for x in order:
                if row[x]:
                    break
                out[x] = True
    found = border_holes(torch.from_numpy(filled))
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_upsample_repeats_every_pixel(dtype):
    grid = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)
    expected = [[0, 0, 0, 1, 1, 1]] * 3 + [[1, 1, 1, 0, 0, 0]] * 3
    big = upsample(grid, 3)
    assert big.dtype == dtype
    assert big.tolist() == [expected]


# --- Sub-pixel shifts ---


def slow_subpixel(disparity, sign, values):
    """Warp one row slowly: its values (NaN in holes), filled, visible, and the place that each target shows.

    Every surface is a line from place to place, half a pixel longer at both ends. The nearest one is drawn.
    """
    if sign < 0:
        warped, filled, visible, shown = slow_subpixel(-disparity[::-1], 1, values[::-1])
        return (
            warped[::-1],
            filled[::-1],
            visible[::-1],
            {len(filled) - 1 - t: len(filled) - 1 - x for t, x in shown.items()},
        )
    width = len(disparity)
    landing = [x - disparity[x] for x in range(width)]
    surface = [0]
    for x in range(1, width):
        surface.append(surface[-1] + (abs(disparity[x] - disparity[x - 1]) > 1))

    def on_one_surface(a, b):
        return min(a, b) >= 0 and max(a, b) < width and surface[a] == surface[b]

    shown = {}
    for t in range(width):
        for x in range(width):
            first, last = not on_one_surface(x, x - 1), not on_one_surface(x, x + 1)
            if not last and landing[x] < t <= landing[x + 1]:
                shown[t] = x + (t - landing[x]) / (landing[x + 1] - landing[x])
            elif (first and -0.5 < t - landing[x] <= 0) or (last and 0 < t - landing[x] <= 0.5):
                shown[t] = x
    own = [int(np.floor(place + 0.5)) for place in landing]
    visible = [0 <= t < width and surface[int(shown[t])] == surface[x] for x, t in enumerate(own)]
    warped = np.array([np.interp(shown[t], range(width), values) if t in shown else np.nan for t in range(width)])
    return warped, [t in shown for t in range(width)], visible, shown


@st.composite
def surfaces(draw):
    """Rows of slanted, flat and broken surfaces, in odd sixteenths of a pixel, so that nothing lands half-way."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 16)))
    steps = draw(
        arrays(np.float32, shape, elements=st.sampled_from([0, 1, -1, 2, -2, 4, -4, 6, -6, 7, -7, 9, -9, 16, -24]))
    )
    start = draw(arrays(np.float32, (*shape[:2], 1), elements=st.integers(-20, 20).map(float)))
    sign = draw(arrays(np.float64, shape[:1], elements=st.sampled_from([-1.0, 1.0])))
    return (1 + 2 * (start + steps.cumsum(-1))) / 16, sign


@often
@given(surfaces())
def test_the_subpixel_warp_equals_the_slow_reference(case):
    disparity, sign = case
    x = torch.rand(*disparity.shape, generator=torch.Generator().manual_seed(0))[:, None]
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign), subpixel=True)
    out = warp(x, into=torch.full_like(x, torch.nan))
    for b, y in np.ndindex(*disparity.shape[:2]):
        values, filled, visible, shown = slow_subpixel(disparity[b, y], sign[b], x[b, 0, y].numpy())
        assert warp.filled[b, y].tolist() == list(filled)
        assert warp.visible[b, y].tolist() == list(visible)
        np.testing.assert_allclose(out[b, 0, y].numpy(), values, atol=1e-5)
        assert all(abs(warp.source[b, y, t].item() - place) <= 0.5 + 1e-5 for t, place in shown.items())


@often
@given(cases(), st.integers(1, 3))
def test_the_subpixel_warp_invents_no_value(case, channels):
    """Every pixel lies between the values of the two columns that the warp gives; holes hold the given value."""
    disparity, sign = case
    warp = forward_warp(torch.from_numpy(disparity), torch.from_numpy(sign), subpixel=True)
    assert ((warp.share >= 0) & (warp.share <= 1)).all()
    assert (warp.source - warp.beside).abs()[warp.filled].le(1).all()
    batch, height, width = disparity.shape
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))
    out = warp(x, into=-99.0)
    for b, c, y, t in np.ndindex(*out.shape):
        if warp.filled[b, y, t]:
            taps = x[b, c, y, [warp.source[b, y, t], warp.beside[b, y, t]]]
            assert taps.min() - 1e-6 <= out[b, c, y, t] <= taps.max() + 1e-6
        else:
            assert out[b, c, y, t] == -99


@often
@given(cases())
def test_what_is_visible_lands_on_a_pixel_that_shows_its_surface(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    warp = forward_warp(disparity, sign, subpixel=True)
    landing = torch.arange(disparity.shape[-1]) - disparity
    up, down = (landing + 0.5).floor().long(), (landing - 0.5).ceil().long()
    target = torch.where(sign[:, None, None] > 0, up, down)  # exactly half-way: to the side that the mirror image gives
    inside = (target >= 0) & (target < disparity.shape[-1])
    assert inside[warp.visible].all()
    assert warp.filled.gather(-1, target.clamp(0, disparity.shape[-1] - 1))[inside].all()
    alone = (landing.gather(-1, warp.source) - torch.arange(disparity.shape[-1])).abs() < 0.5
    assert warp.visible.gather(-1, warp.source)[warp.filled & alone].all()


@often
@given(cases())
def test_every_sample_is_warped_on_its_own_with_subpixel_shifts_too(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    together = forward_warp(disparity, sign, subpixel=True)
    for b in range(len(disparity)):
        alone = forward_warp(disparity[b : b + 1], sign[b : b + 1], subpixel=True)
        for field in ("source", "filled", "visible", "beside", "share"):
            assert torch.equal(getattr(together, field)[b : b + 1], getattr(alone, field))


@often
@given(surfaces())
def test_a_negative_scale_is_the_mirror_image(case):
    disparity, sign = (torch.from_numpy(part) for part in case)
    x = torch.rand(disparity.shape, generator=torch.Generator().manual_seed(0))[:, None]
    warp = forward_warp(disparity, sign, subpixel=True)
    mirrored = forward_warp(-disparity.flip(-1), -sign, subpixel=True)
    assert torch.equal(mirrored.filled.flip(-1), warp.filled)
    assert torch.equal(mirrored.visible.flip(-1), warp.visible)
    torch.testing.assert_close(mirrored(x.flip(-1)).flip(-1), warp(x))


SLOPES = [-1.0, -0.8, -0.4, -0.1, -0.01, 0.0, 0.01, 0.1, 0.4, 0.8]
"""Change of the disparity from column to column; at -1 a surface is drawn twice as wide."""


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("offset", [0.0, 0.3, 5.55])
def test_slanted_surfaces_move_by_their_fractions(slope, sign, offset):
    """Warping the column numbers shows where each pixel comes from: x with x - d(x) = target."""
    column = torch.arange(80.0)
    disparity = sign * offset + slope * column
    warp = forward_warp(disparity[None, None], torch.tensor([sign]), subpixel=True)
    came_from = warp(column[None, None, None])[0, 0, 0]
    exact = (column + sign * offset) / (1 - slope)
    inside = (exact >= 0) & (exact <= 79)
    assert inside.sum() > 10
    assert warp.filled[0, 0][inside].all()
    assert (came_from - exact)[inside & warp.filled[0, 0]].abs().max() < 0.05


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_one_surface_does_not_hide_itself(slope, sign):
    """Where a slanted surface gets narrower, two columns share a pixel, and both count as visible."""
    column = torch.arange(80.0)
    disparity = sign * 0.35 + slope * column  # nothing lands half-way between two pixels
    warp = forward_warp(disparity[None, None], torch.tensor([sign]), subpixel=True)
    landing = column - disparity
    assert torch.equal(warp.visible[0, 0], (landing >= -0.5) & (landing < 79.5))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_surface_seen_from_its_side_is_a_line(sign):
    """Where the disparity grows by a pixel a column, all columns land on one place; one of its ends is shown."""
    column = torch.arange(80.0)
    warp = forward_warp((column - 40.2)[None, None], torch.tensor([sign]), subpixel=True)
    assert warp.filled[0, 0].nonzero().flatten().tolist() == [40]
    assert warp.visible.all()
    assert warp(column[None, None, None])[0, 0, 0, 40] in (0, 79)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_sphere_has_no_hole_inside(sign):
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    height = (1600 - (x - 48).square() - (y - 48).square()).clamp(min=0).sqrt()
    ball = height > 24  # where it is steeper, it is an edge
    disparity = sign * torch.where(ball, 0.7 * height, 0.0)
    warp = forward_warp(disparity[None], torch.tensor([sign]), subpixel=True)
    assert ((disparity[:, 1:] - disparity[:, :-1]).abs()[ball[:, 1:] & ball[:, :-1]]).max() > 0.8
    landing = torch.where(ball, x - disparity, torch.nan)
    for row in range(96):
        if ball[row].any():
            low, high = (bound.item() for bound in (np.nanmin(landing[row]), np.nanmax(landing[row])))
            assert warp.filled[0, row, max(0, int(np.ceil(low))) : int(high) + 1].all()
            assert warp.visible[0, row][ball[row] & (landing[row] >= 0) & (landing[row] < 95)].all()


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 2.75, -1.3, -0.5])
def test_a_constant_shift_is_linear_interpolation(shift):
    x = torch.randn(1, 2, 3, 20, generator=torch.Generator().manual_seed(0))
    warp = forward_warp(torch.full((1, 3, 20), shift), torch.ones(1), subpixel=True)
    out = warp(x)
    for t in range(20):
        position = t + shift
        if 0 <= position <= 19:
            low = int(position)
            high, share = min(low + 1, 19), position - low
            torch.testing.assert_close(out[..., t], (1 - share) * x[..., low] + share * x[..., high])


def test_nothing_shows_through_the_crack_of_a_receding_surface():
    """The edge of an object is a pixel nearer than its middle; the wall must not show between the two."""
    disparity = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 5, 5, 4, 4, 4, 0, 0])
    x = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 0, 0])
    for sign in (1.0, -1.0):
        places = (disparity, x) if sign > 0 else (-disparity.flip(-1), x.flip(-1))
        warp = forward_warp(places[0][None, None], torch.tensor([sign]), subpixel=True)
        out = warp(places[1][None, None, None], into=-1.0).flatten()
        out, seen = (out, warp.visible.flatten()) if sign > 0 else (out.flip(-1), warp.visible.flatten().flip(-1))
        assert out.tolist() == [0, 0, 9, 9, 9, 9, 9, 9, -1, -1, -1, -1, 0, 0]
        assert seen.tolist() == [x < 2 or x >= 7 for x in range(14)]


def test_what_is_behind_a_gap_of_its_own_is_seen():
    """The wall between two bars is not a crack."""
    disparity = torch.tensor([0.0, 0, 0, 0, 0, 0, 5, 5, 0, 5, 5, 0])
    warp = forward_warp(disparity[None, None], torch.ones(1), subpixel=True)
    assert warp.source.flatten()[3].item() == 3


def test_the_nearer_surface_wins_and_does_not_mix_with_the_other():
    disparity = torch.tensor([0.25, 0.25, 0.25, 0.25, 2.25, 2.25, 0.25, 0.25, 0.25, 0.25])
    x = torch.tensor([0, 0, 0, 0, 9, 9, 0, 0, 0, 0.0])
    warp = forward_warp(disparity[None, None], torch.ones(1), subpixel=True)
    # The object lands on 1.75 and 2.75, its two pixels are 2 and 3; behind it 4 and 5 are open.
    assert warp(x[None, None, None], into=-1.0).flatten().tolist() == [0, 0, 9, 9, -1, -1, 0, 0, 0, 0]
    assert warp.visible.flatten().tolist() == [True, True, False, False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("disparity", "filled"),
    [
        ([2, 2, 2, 1, 1, 1], [1, 1, 1, 1, 1, 0]),  # one column between two neighbours of one surface
        ([2.2, 2.2, 2.2, 1.8, 1.4, 1.0], [1, 1, 1, 1, 1, 0]),
        ([2, 2, 2, 0, 0, 0], [1, 0, 0, 1, 1, 1]),  # two columns
        ([0, 0, 9, 9, 9, 2, 2, 2], [1, 1, 0, 1, 1, 1, 0, 0]),  # one column between two surfaces
        ([-1, -1, -1, -1], [0, 1, 1, 1]),  # the border is not a crack
        ([1, 1, 1, 1], [1, 1, 1, 0]),
    ],
)
def test_a_surface_is_one_piece_where_it_changes_by_a_pixel_at_most(disparity, filled):
    warp = forward_warp(torch.tensor(disparity, dtype=torch.float32)[None, None], torch.ones(1), subpixel=True)
    assert warp.filled.flatten().int().tolist() == filled


@often
@given(cases())
def test_whole_pixels_repeat_no_value(case):
    """`nearest` leaves pixels open that would repeat a value, even where a crack was closed."""
    disparity, sign = (torch.from_numpy(part) for part in case)
    warp = forward_warp(disparity, sign, subpixel=True)
    x = torch.arange(1.0, disparity.numel() + 1).reshape(disparity.shape)[:, None]
    out = warp.nearest(x, into=torch.zeros_like(x))
    moved = out[out > 0].tolist()
    assert len(set(moved)) == len(moved)
    target = (torch.arange(disparity.shape[-1]) - disparity + 0.5).floor()
    for b, y, t in (out[:, 0] > 0).nonzero().tolist():
        source = warp.source[b, y, t]
        assert abs(target[b, y, source] - t) <= 1
        assert out[b, 0, y, t] == x[b, 0, y, source]


def test_the_integer_warp_has_no_second_column():
    disparity = torch.tensor([[[0.9, 0.9, 1.9, 1.9, -0.9]]])
    warp = forward_warp(disparity, torch.ones(1))
    assert warp.beside is None
    assert warp.share is None
    assert warp.source.flatten().tolist() == [0, 2, 3, 0, 4]  # towards zero
    x = torch.rand(1, 2, 1, 5)
    assert torch.equal(warp(x), warp.nearest(x))


# --- Warps as values ---


def fields(warp):
    return [warp.source, warp.filled, warp.visible, warp.beside, warp.share]


@pytest.mark.parametrize("subpixel", [False, True])
def test_padding_adds_columns_that_are_neither_source_nor_target(subpixel):
    disparity = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * 2
    warp = forward_warp(disparity, torch.ones(2), subpixel=subpixel)
    padded = warp.pad(3)
    for before, after in zip(fields(warp), fields(padded), strict=True):
        if before is None:
            assert after is None
            continue
        assert after.dtype == before.dtype
        assert torch.equal(after[..., :7], before)
        assert not after[..., 7:].any()
    x = torch.rand(2, 4, 3, 10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(padded(x)[..., :7], warp(x[..., :7]))
    assert not padded(x)[..., 7:].any()


@pytest.mark.parametrize("subpixel", [False, True])
def test_warps_of_single_pictures_form_the_warp_of_the_batch(subpixel):
    disparity, sign = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2, torch.tensor([1.0, -1, 1])
    together = forward_warp(disparity, sign, subpixel=subpixel)
    parts = [forward_warp(disparity[i : i + 1], sign[i : i + 1], subpixel=subpixel) for i in range(3)]
    for one, other in zip(fields(together), fields(ForwardWarp.cat(parts)), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_whole_pixel_and_subpixel_warps_cannot_form_one_batch():
    parts = [forward_warp(torch.zeros(1, 2, 3), torch.ones(1), subpixel=subpixel) for subpixel in (False, True)]
    with pytest.raises(ValueError, match="whole-pixel and sub-pixel warps cannot form one batch; make all of them"):
        ForwardWarp.cat(parts)
