"""The composite: the left's own pixels outside the holes, and no seam at their edge."""

import pytest
import torch

from stereo_jobs.stereo.composite import composite as real_composite
from stereo_jobs.stereo.composite import trusted_share
from stereo_jobs.stereo.fill import background_columns

HEIGHT, WIDTH, REACH = 12, 40, 6.0
HOLE = slice(10, 22)


@pytest.fixture
def truth():
    """The right view as it should be, smooth, away from black and white."""
    y, x = torch.meshgrid(torch.linspace(0, 3, HEIGHT), torch.linspace(0, 5, WIDTH), indexing="ij")
    return torch.stack([0.5 + 0.2 * torch.sin(x + c) * torch.cos(y) for c in range(3)])[None]


@pytest.fixture
def filled():
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :, HOLE] = False
    return mask


def composite(continued, filled, diffused, columns, *, returned=None, grain=0.0, plain=None, share=1.0):
    """The composite with defaults: diffused holes without grain, unless a test sets something else."""
    returned = continued if returned is None else returned
    plain = torch.rand(continued.shape) if plain is None else plain
    share = torch.full((len(continued),), share) if isinstance(share, float) else share
    parts = {"returned": returned, "grain": grain, "plain": plain, "share": share}
    return real_composite(continued, filled, diffused, columns, reach_px=REACH, **parts)


def columns_of(filled):
    """The background is to the right of the hole."""
    disparity = torch.linspace(4, 1, WIDTH).expand(filled.shape)
    return background_columns(filled, disparity, torch.ones(1))


def test_outside_of_the_holes_are_exactly_the_warped_pixels(truth, filled):
    diffused = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    out = composite(truth, filled, diffused, columns_of(filled))
    known = filled[:, None].expand_as(truth)
    assert torch.equal(out[known], truth[known])
    assert 0 <= out.min() <= out.max() <= 1


def test_what_the_background_holds_in_a_hole_is_not_read_without_grain(truth, filled):
    diffused = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    outs = [
        composite(torch.where(filled[:, None], truth, value), filled, diffused, columns_of(filled))
        for value in (0.0, 1.0)
    ]
    assert torch.equal(*outs)


def test_identical_images_stay_as_they_are(truth, filled):
    torch.testing.assert_close(composite(truth, filled, truth, columns_of(filled)), truth)


def test_without_holes_the_result_is_the_warped_image(truth):
    whole = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(truth, whole, torch.zeros_like(truth), columns_of(whole)), truth)


def test_without_any_warped_pixel_the_result_is_the_diffused_image(truth):
    empty = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(torch.zeros_like(truth), empty, truth, columns_of(empty)), truth)


def test_a_colour_cast_is_taken_off_beside_the_hole_and_fades(truth, filled):
    cast = torch.tensor([0.1, -0.05, 0.02])[None, :, None, None]
    left = composite(truth, filled, truth + cast, columns_of(filled)) - truth
    distance = HOLE.stop - torch.arange(HOLE.start, HOLE.stop)  # from the background on the right
    expected = cast * (1 - torch.exp(-distance / REACH))
    torch.testing.assert_close(left[..., HOLE], expected.expand_as(left[..., HOLE]), rtol=1e-4, atol=1e-5)
    assert left[..., HOLE.stop - 1].abs().max() < 0.16 * 0.1  # one pixel inside, 15 % of it
    assert (left[..., HOLE.start] / cast[..., 0]).min() > 0.8


@pytest.fixture
def lost():
    """What the VAE lost of the continued background: a checkerboard, the finest possible grain."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return 0.1 * (1 - 2.0 * ((x + y) % 2)).expand(1, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("grain", [0.0, 0.5, 1.0])
def test_a_hole_gets_its_share_of_the_grain_that_was_lost(truth, filled, lost, grain):
    out = composite(truth, filled, truth, columns_of(filled), returned=truth - lost, grain=grain)
    given = (out - truth)[..., 1:-1, HOLE]
    # The mean of 3 x 3 of a checkerboard is a ninth of it.
    torch.testing.assert_close(given, grain * 8 / 9 * lost[..., 1:-1, HOLE], rtol=0, atol=1e-6)
    assert torch.equal(out[..., HOLE.stop :], truth[..., HOLE.stop :])


def test_a_colour_that_the_vae_changes_everywhere_is_no_grain(truth, filled):
    outs = [
        composite(truth, filled, truth, columns_of(filled), returned=truth - 0.05, grain=grain) for grain in (0.0, 1.0)
    ]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-6)


def test_samples_do_not_see_each_other(truth, filled):
    warped = torch.cat([truth, 1 - truth])
    diffused = torch.rand(warped.shape, generator=torch.Generator().manual_seed(1))
    masks = torch.cat([filled, filled.roll(7, -1)])
    columns = torch.cat([columns_of(masks[:1]), columns_of(masks[1:])])
    parts = warped, masks, diffused, columns
    grain = {"returned": diffused.flip(-1), "grain": 0.7}
    both = composite(*parts, **grain)
    for b in range(2):
        one = [part[b : b + 1] for part in parts]
        assert torch.equal(both[b : b + 1], composite(*one, **grain | {"returned": grain["returned"][b : b + 1]}))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_hole_that_is_not_believed_is_left_plain(truth, filled, share):
    drawn = composite(truth, filled, 1 - truth, columns_of(filled))
    plain = torch.full_like(truth, 0.3)
    out = composite(truth, filled, 1 - truth, columns_of(filled), plain=plain, share=share)
    torch.testing.assert_close(out[..., HOLE], (1 - share) * plain[..., HOLE] + share * drawn[..., HOLE])
    assert torch.equal(out[..., HOLE.stop :], truth[..., HOLE.stop :])


@pytest.mark.parametrize(("loss", "share"), [(0.0, 1.0), (4.0, 1.0), (8.0, 1.0), (16.0, 0.25), (80.0, 0.01)])
def test_the_share_falls_with_the_square_of_the_loss(truth, loss, share):
    signs = torch.where(torch.rand(truth.shape, generator=torch.Generator().manual_seed(5)) < 0.5, -1.0, 1.0)
    found = trusted_share(truth + signs * loss / 255, truth, 8.0)
    torch.testing.assert_close(found, torch.tensor([share]), rtol=1e-4, atol=1e-6)


def test_every_picture_has_its_own_share_and_without_a_limit_all_is_believed(truth):
    other = torch.cat([truth, 1 - truth])
    assert trusted_share(other, torch.cat([truth, truth]), 8.0).tolist()[0] == 1.0
    assert trusted_share(other, torch.cat([truth, truth]), 8.0).tolist()[1] < 0.1
    assert trusted_share(other, other.flip(0), None).tolist() == [1.0, 1.0]
