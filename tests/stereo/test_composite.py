"""The composite: the left's own pixels outside of the holes, the background and diffusion's change of it inside."""

import pytest
import torch

from stereo_jobs.stereo.composite import composite, trusted_share

HEIGHT, WIDTH = 12, 40
HOLE = slice(10, 22)
ONE = torch.ones(1)


def noise(seed, low=0.0, high=1.0):
    return low + (high - low) * torch.rand((1, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def continued():
    """Away from black and white, so that nothing is cut."""
    return noise(0, 0.4, 0.6)


@pytest.fixture
def filled():
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :, HOLE] = False
    return mask


def test_outside_of_the_holes_are_exactly_the_warped_pixels(continued, filled):
    out = composite(continued, filled, noise(1), noise(2), ONE)
    known = filled[:, None].expand_as(continued)
    assert torch.equal(out[known], continued[known])
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_hole_is_the_background_and_its_share_of_the_change(continued, filled, share):
    change = noise(3, -0.2, 0.2)
    returned = noise(1)
    out = composite(continued, filled, returned + change, returned, torch.tensor([share]))
    for c in range(3):
        for y in range(HEIGHT):
            for x in range(HOLE.start, HOLE.stop):
                wanted = continued[0, c, y, x] + share * change[0, c, y, x]
                assert out[0, c, y, x] == pytest.approx(float(wanted), abs=1e-6)


def test_what_the_vae_loses_of_everything_is_in_no_hole(continued, filled):
    """Its blur and its colour cast are in both pictures that went through it."""
    cast = torch.tensor([0.1, -0.05, 0.02])[None, :, None, None]
    through = noise(4, 0.3, 0.7) + cast
    torch.testing.assert_close(composite(continued, filled, through, through, ONE), continued)


def test_the_ends_of_the_range_are_kept(continued, filled):
    ones, zeros = torch.ones_like(continued), torch.zeros_like(continued)
    assert composite(continued, filled, ones, zeros, ONE).max() == 1
    assert composite(continued, filled, zeros, ones, ONE).min() == 0


def test_samples_do_not_see_each_other(filled):
    parts = [torch.cat([noise(i), noise(i + 10)]) for i in range(3)]
    masks = torch.cat([filled, filled.roll(7, -1)])
    shares = trusted_share(parts[0], parts[2], 20.0)
    both = composite(parts[0], masks, parts[1], parts[2], shares)
    for b in range(2):
        one = [part[b : b + 1] for part in parts]
        share = trusted_share(one[0], one[2], 20.0)
        assert torch.equal(both[b : b + 1], composite(one[0], masks[b : b + 1], one[1], one[2], share))


@pytest.mark.parametrize(("loss", "share"), [(0.0, 1.0), (4.0, 1.0), (8.0, 1.0), (16.0, 0.25), (80.0, 0.01)])
def test_the_share_falls_with_the_square_of_the_loss(continued, loss, share):
    signs = torch.where(noise(5) < 0.5, -1.0, 1.0)
    given = continued + signs * loss / 255
    torch.testing.assert_close(trusted_share(given, continued, 8.0), torch.tensor([share]), rtol=1e-4, atol=1e-6)


def test_without_a_limit_all_of_the_change_is_taken(continued):
    assert trusted_share(continued, noise(6), None).tolist() == [1.0]
