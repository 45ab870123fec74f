"""The composite: the left's own pixels outside the holes, and no seam at their edge."""

import pytest
import torch

from stereo_jobs.stereo.composite import QUIET_LEVELS, TRUSTED_LEVELS, composite, hole_depth, trusted_share, usual_share

HEIGHT, WIDTH = 24, 40
HOLE = slice(10, 22)


@pytest.fixture
def truth():
    """The right view as it should be, smooth, away from black and white."""
    y, x = torch.meshgrid(torch.linspace(0, 3, HEIGHT), torch.linspace(0, 5, WIDTH), indexing="ij")
    return torch.stack([0.5 + 0.2 * torch.sin(x + c) * torch.cos(y) for c in range(3)])[None]


@pytest.fixture
def filled():
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 4:20, HOLE] = False
    return mask


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_outside_of_the_holes_are_exactly_the_warped_pixels(truth, filled):
    out = composite(truth, filled, noise(truth.shape), filled)
    known = filled[:, None].expand_as(truth)
    assert torch.equal(out[known], truth[known])
    assert 0 <= out.min() <= out.max() <= 1


def test_warped_pixels_of_holes_are_not_read(truth, filled):
    drawn = noise(truth.shape)
    outs = [composite(torch.where(filled[:, None], truth, value), filled, drawn, filled) for value in (0.0, 1.0)]
    assert torch.equal(*outs)


def test_identical_images_stay_as_they_are(truth, filled):
    torch.testing.assert_close(composite(truth, filled, truth, filled), truth)


def test_without_holes_the_result_is_the_warped_image(truth):
    whole = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(truth, whole, torch.zeros_like(truth), whole), truth)


def test_without_any_warped_pixel_the_result_is_the_drawn_image(truth):
    empty = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(torch.zeros_like(truth), empty, truth, empty), truth)


def test_a_colour_cast_is_taken_off_the_whole_hole(truth, filled):
    cast = torch.tensor([0.1, -0.05, 0.02])[None, :, None, None]
    torch.testing.assert_close(composite(truth, filled, truth + cast, filled), truth, rtol=0, atol=1e-5)


def test_only_the_error_of_the_background_flows_into_a_hole(truth, filled):
    background = filled.clone()
    background[..., : HOLE.stop] = False  # an object stands on the left
    drawn = truth.clone()
    drawn[..., : HOLE.start] = 0
    torch.testing.assert_close(composite(truth, filled, drawn, background), truth)


def test_an_error_that_turns_from_row_to_row_fades_within_a_few_pixels(truth, filled):
    sign = (1 - 2.0 * (torch.arange(HEIGHT) % 2))[None, None, :, None]
    drawn = torch.where(filled[:, None], truth + 0.1 * sign, truth)
    changed = (composite(truth, filled, drawn, filled) - truth)[0, :, 7:17].abs()
    assert changed[..., HOLE.start + 5].max() < 0.03
    assert changed[..., HOLE.start].max() > 0.04


def test_a_sample_does_not_depend_on_its_batch(truth, filled):
    parts = (torch.cat([truth, truth.flip(-1)]), torch.cat([filled, filled.flip(-1)]), noise((2, *truth.shape[1:])))
    both = composite(*parts, parts[1])
    for b in range(2):
        one = [part[b : b + 1] for part in parts]
        assert torch.equal(composite(*one, one[1]), both[b : b + 1])


FACTOR = 8


def shares(levels, seen=None, fine=0.0):
    """Trust in pictures whose whole latents are off by `levels`, and whose pixels by white noise of `fine` levels."""
    shape = (1, 3, 8 * FACTOR, 12 * FACTOR)
    given = torch.full(shape, 0.5)
    white = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(1, *shape[2:], dtype=torch.bool) if seen is None else seen
    return trusted_share(given, given + (levels + fine * white) / 255, seen, FACTOR)


def test_a_real_vae_that_loses_17_levels_of_detail_is_trusted():
    """Stable Diffusion 1.x returns photos of COCO at 23.4 dB."""
    assert (shares(0.0, fine=17.0) == 1).all()


@pytest.mark.parametrize(("times", "share"), [(0.9, 1), (2, 1 / 4), (4, 1 / 16)])
def test_a_vae_that_returns_other_colours_is_trusted_the_less(times, share):
    torch.testing.assert_close(shares(times * TRUSTED_LEVELS), torch.full((1, 1, 64, 96), float(share)))


def test_trust_is_a_matter_of_the_surroundings():
    error = torch.zeros(1, 3, 64, 96)
    error[..., 72:] = 4 * TRUSTED_LEVELS
    share = shares(error)[0, 0]
    assert (share[:, :32] == 1).all()
    assert (share[:, 88:] < 0.1).all()


def test_a_hole_takes_the_trust_around_it_and_what_was_drawn_in_it_counts_nothing():
    seen = torch.ones(1, 64, 96, dtype=torch.bool)
    seen[:, 16:48, 16:48] = False
    error = torch.where(seen, 0.0, 200.0)[:, None]
    assert (shares(error, seen) == 1).all()
    assert (shares(0.0, torch.zeros_like(seen)) == 1).all()  # nothing is seen at all


GREY = 0.5


def wall(levels, seed):
    """A grey wall with a grain of so many levels, RMS: 1,3,64,96."""
    return GREY + levels / 255 * torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def hole_of(share):
    """The shares inside of a hole of 32 times 32 pixels, away from its rim."""
    return share[..., 24:40, 24:40]


def usual(wall_levels, drawn_levels):
    """Shares of a hole in a wall with one grain, drawn with another."""
    seen = torch.ones(1, 64, 96, dtype=torch.bool)
    seen[:, 16:48, 16:48] = False
    given = torch.where(seen[:, None], wall(wall_levels, 1), GREY)
    return hole_of(usual_share(given, wall(drawn_levels, 2), seen, FACTOR))


@pytest.mark.parametrize("drawn", [0.0, 0.9 * QUIET_LEVELS])
def test_a_plain_wall_may_be_drawn_plain(drawn):
    assert (usual(0.0, drawn) == 1).all()


def test_what_is_drawn_on_a_plain_wall_counts_the_less_the_more_it_is():
    for times in (3, 6, 12):
        share = usual(0.0, times * QUIET_LEVELS)
        torch.testing.assert_close(share, torch.full_like(share, 1 / times**2), rtol=0.15, atol=0)


def test_a_wall_with_grain_may_be_drawn_with_as_much():
    assert usual(20.0, 20.0).min() > 0.8
    share = usual(20.0, 40.0)
    torch.testing.assert_close(share, torch.full_like(share, 1 / 4), rtol=0.25, atol=0)


def test_what_is_usual_is_told_place_by_place_and_picture_by_picture():
    seen = torch.ones(1, 64, 96, dtype=torch.bool)
    seen[:, 16:48, 40:56] = False
    left_half = torch.arange(96) < 48
    given = torch.where(left_half, wall(20.0, 1), torch.full((1, 3, 64, 96), GREY))
    drawn = wall(20.0, 2)
    share = usual_share(torch.where(seen[:, None], given, GREY), drawn, seen, 4)
    assert share[..., 24:40, 40].min() > 2 * share[..., 24:40, 55].max()
    both = usual_share(torch.cat([given, given.flip(3)]), drawn.repeat(2, 1, 1, 1), seen.repeat(2, 1, 1), 4)
    assert torch.equal(both[:1], usual_share(given, drawn, seen, 4))


def test_a_picture_of_which_nothing_is_seen_takes_what_is_drawn_only_where_it_is_plain():
    seen = torch.zeros(1, 64, 96, dtype=torch.bool)
    assert hole_of(usual_share(torch.full((1, 3, 64, 96), GREY), wall(0.0, 2), seen, FACTOR)).min() == 1


def test_pixels_count_as_much_as_they_are_far_from_what_is_seen_in_latents():
    seen = torch.ones(1, 12, 30, dtype=torch.bool)
    seen[:, :, 10:22] = False
    depth = hole_depth(seen, 4)[0, 0]
    expected = torch.tensor([0.0] * 10 + [0.25, 0.5, 0.75] + [1.0] * 6 + [0.75, 0.5, 0.25] + [0.0] * 8)
    assert torch.equal(depth, expected.expand(12, 30))


def test_a_hole_at_the_frame_is_deep_there():
    seen = torch.ones(1, 8, 20, dtype=torch.bool)
    seen[:, :, 14:] = False
    assert torch.equal(hole_depth(seen, 8)[0, 0, 0, 14:], torch.arange(1, 7) / 8)
