"""The composite: the left's own pixels outside of the holes, and no seam at their rim."""

import pytest
import torch

from stereo_jobs.stereo.composite import composite
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


def columns_of(filled):
    """The background is to the right of the hole."""
    disparity = torch.linspace(4, 1, WIDTH).expand(filled.shape)
    return background_columns(filled, disparity, torch.ones(1))


def test_outside_of_the_holes_are_exactly_the_warped_pixels(truth, filled):
    diffused = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    out = composite(truth, filled, diffused, columns_of(filled), REACH)
    known = filled[:, None].expand_as(truth)
    assert torch.equal(out[known], truth[known])
    assert 0 <= out.min() <= out.max() <= 1


def test_what_the_warp_holds_in_a_hole_is_never_read(truth, filled):
    diffused = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    outs = [
        composite(torch.where(filled[:, None], truth, value), filled, diffused, columns_of(filled), REACH)
        for value in (0.0, 1.0)
    ]
    assert torch.equal(*outs)


def test_identical_images_stay_as_they_are(truth, filled):
    torch.testing.assert_close(composite(truth, filled, truth, columns_of(filled), REACH), truth)


def test_without_holes_the_result_is_the_warped_image(truth):
    whole = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(truth, whole, torch.zeros_like(truth), columns_of(whole), REACH), truth)


def test_without_any_warped_pixel_the_result_is_the_diffused_image(truth):
    empty = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(composite(torch.zeros_like(truth), empty, truth, columns_of(empty), REACH), truth)


def test_a_colour_cast_is_taken_off_beside_the_hole_and_fades(truth, filled):
    cast = torch.tensor([0.1, -0.05, 0.02])[None, :, None, None]
    left = composite(truth, filled, truth + cast, columns_of(filled), REACH) - truth
    distance = HOLE.stop - torch.arange(HOLE.start, HOLE.stop)  # from the background on the right
    expected = cast * (1 - torch.exp(-distance / REACH))
    torch.testing.assert_close(left[..., HOLE], expected.expand_as(left[..., HOLE]), rtol=1e-4, atol=1e-5)
    assert left[..., HOLE.stop - 1].abs().max() < 0.16 * 0.1  # one pixel inside, 15 % of it
    assert (left[..., HOLE.start] / cast[..., 0]).min() > 0.8


def test_samples_do_not_see_each_other(truth, filled):
    warped = torch.cat([truth, 1 - truth])
    diffused = torch.rand(warped.shape, generator=torch.Generator().manual_seed(1))
    masks = torch.cat([filled, filled.roll(7, -1)])
    columns = torch.cat([columns_of(masks[:1]), columns_of(masks[1:])])
    both = composite(warped, masks, diffused, columns, REACH)
    for b in range(2):
        one = slice(b, b + 1)
        assert torch.equal(both[one], composite(warped[one], masks[one], diffused[one], columns[one], REACH))
