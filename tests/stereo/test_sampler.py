"""The sampler on a tiny U-Net: how much it runs, what each switch changes, and that runs leave nothing behind."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.sampler import GuidedUNet, ViewShift, denoise, denoise_pair
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import forward_warp

PAIRS, SIZE = 2, 8
SHORT = {"preset": "official", "steps": 7, "shift_step": 1, "recopy_interval": 2, "attention_step": 2}


@pytest.fixture(scope="module")
def unet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    folder = Path(__file__).parent / "golden/tiny_unet"
    yield UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False)
    torch.set_num_threads(threads)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def disparity(scale=1.0):
    """A nearer square on a background, in latent pixels, with fractions."""
    maps = torch.full((PAIRS, SIZE, SIZE), 0.6 * scale)
    maps[:, 2:6, 3:6] = 2.3 * scale
    return maps


class Run:
    """One left and one pair; keeps what went in and came out."""

    def __init__(self, unet, start=None, scale=1.0, hole_noise=None, **switches):
        self.method = MethodConfig(**(SHORT | switches))
        self.solver = Solver.of({"beta_start": 0.0001, "beta_end": 0.02}, self.method.steps, "ddim")
        half = 0.5 if self.method.shift_both else 1.0
        sign = torch.ones(PAIRS)
        self.to_right = forward_warp(disparity(scale * half), sign)
        self.to_left = forward_warp(-disparity(scale * half), -sign) if self.method.shift_both else None
        model = GuidedUNet(unet, noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2), self.method.guidance_scale)
        with torch.no_grad():
            self.first = denoise(model, self.solver, noise(PAIRS, 4, SIZE, SIZE) if start is None else start)
            self.alone = model.evaluations
            self.pair = denoise_pair(
                model,
                self.solver,
                self.first,
                method=self.method,
                to_right=ViewShift(self.to_right, self.to_right.filled, noise=hole_noise),
                to_left=self.to_left and ViewShift(self.to_left, self.to_left.filled, noise=hole_noise),
            )
        self.evaluations = model.evaluations

    @property
    def left(self):
        return self.pair.left

    @property
    def right(self):
        return self.pair.right


def apart(a, b):
    return (a - b).abs().mean().item()


@pytest.mark.parametrize(
    ("switches", "evaluations"),
    [
        ({"attention": "uni"}, 256),
        ({"attention": "off"}, 178),
        ({"attention": "off", "shift_both": True}, 256),
        ({"attention": "uni", "attention_step": 20}, 100 + 9 * 2 + 30 * 4),
        ({"attention": "uni", "guidance_scale": 1}, 128),
    ],
)
def test_evaluations_of_fifty_steps(unet, switches, evaluations):
    run = Run(unet, **{"steps": 50, "shift_step": 10, "recopy_interval": 10, "attention_step": 10} | switches)
    assert run.alone == (50 if switches.get("guidance_scale") == 1 else 100)
    assert run.evaluations == evaluations


def test_guidance_is_the_weighted_difference_of_the_halves(unet):
    with_text, without = noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2)
    x, timestep = noise(2, PAIRS, 4, SIZE, SIZE), torch.tensor(300)
    with torch.no_grad():
        guided = GuidedUNet(unet, with_text, without, 7.5)(x, 0, timestep)
        for view in range(2):
            u = unet(x[view], timestep, encoder_hidden_states=without).sample
            c = unet(x[view], timestep, encoder_hidden_states=with_text).sample
            torch.testing.assert_close(guided[view], u + 7.5 * (c - u), rtol=1e-4, atol=1e-4)
            alone = GuidedUNet(unet, with_text, without, 1)(x[view : view + 1], 0, timestep)[0]
            torch.testing.assert_close(alone, c, rtol=1e-5, atol=1e-5)


def test_the_trajectory_holds_every_latent_that_ddim_passes(unet):
    run = Run(unet)
    assert run.first.latents.shape == (8, PAIRS, 4, SIZE, SIZE)
    assert torch.equal(run.first.latents[0], noise(PAIRS, 4, SIZE, SIZE))
    assert torch.equal(run.first.final, run.first.latents[-1])
    resumed = Run(unet, start=run.first.latents[0])
    assert torch.equal(resumed.first.latents, run.first.latents)


@pytest.mark.parametrize("attention", ["off", "uni"])
def test_the_left_is_the_first_left_itself(unet, attention):
    run = Run(unet, attention=attention)
    assert run.left is run.first.final or torch.equal(run.left, run.first.final)
    assert apart(run.right, run.left) > 0.1
    assert not run.method.changes_left


def test_without_disparity_the_right_is_the_left(unet):
    off = Run(unet, attention="off", scale=0.0)
    assert torch.equal(off.right, off.left)
    for switches in ({"attention": "uni"}, {"attention": "bi"}, {"attention": "off", "shift_both": True}):
        run = Run(unet, scale=0.0, **switches)
        torch.testing.assert_close(run.right, run.left, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(run.left, run.first.final, rtol=1e-3, atol=1e-3)


def test_attention_changes_the_right_view(unet):
    off, uni, bi = (Run(unet, attention=mode) for mode in ("off", "uni", "bi"))
    assert min(apart(off.right, uni.right), apart(uni.right, bi.right), apart(off.right, bi.right)) > 1e-3
    assert torch.equal(off.left, uni.left)
    assert apart(bi.left, uni.left) > 1e-3
    assert torch.equal(bi.first.latents, uni.first.latents)
    assert bi.method.changes_left


def test_attention_that_begins_after_the_end_is_off(unet):
    late = Run(unet, attention="uni", attention_step=7)
    assert torch.equal(late.right, Run(unet, attention="off").right)


def test_a_copy_after_the_last_step_is_the_warped_left(unet):
    run = Run(unet)  # copies after steps 2, 4 and 6, the last
    expected = run.to_right(run.left, into=run.right)
    assert torch.equal(run.right, expected)
    assert apart(run.to_right(run.left), run.right) > 1e-3  # the holes hold something else


def test_recopying_can_be_switched_off_or_ended_early(unet):
    every, never = Run(unet), Run(unet, recopy_interval=0)
    assert torch.equal(never.left, every.left)
    assert apart(never.right, every.right) > 1e-3
    assert torch.equal(Run(unet, recopy_last_step=1).right, never.right)
    assert torch.equal(Run(unet, recopy_last_step=6).right, every.right)
    assert torch.equal(Run(unet, recopy_interval=100).right, never.right)
    early = Run(unet, recopy_last_step=4)
    assert min(apart(early.right, never.right), apart(early.right, every.right)) > 1e-3


def test_deblur_fills_the_holes_with_the_given_noise(unet):
    zero, given = Run(unet, attention="off"), noise(PAIRS, 4, SIZE, SIZE, seed=3)
    deblurred = Run(unet, attention="off", fill="noise", hole_noise=given)
    assert torch.equal(deblurred.left, zero.left)
    assert apart(deblurred.right, zero.right) > 1e-3
    assert torch.equal(Run(unet, attention="off", fill="noise", hole_noise=torch.zeros_like(given)).right, zero.right)
    without_holes = Run(unet, attention="off", fill="noise", hole_noise=given, scale=0.0)
    assert torch.equal(without_holes.right, Run(unet, attention="off", scale=0.0).right)


def test_deblur_without_noise_is_refused(unet):
    with pytest.raises(ValueError, match=r"fill: noise \(Deblur, Eq. 8\) needs unit noise"):
        Run(unet, fill="noise")


def test_noise_that_is_not_asked_for_is_ignored(unet):
    assert torch.equal(Run(unet, hole_noise=torch.ones(PAIRS, 4, SIZE, SIZE)).right, Run(unet).right)


def test_shift_both_moves_each_view_half_of_the_way_from_the_first_left(unet):
    run = Run(unet, attention="off", shift_both=True)
    assert run.method.changes_left
    assert apart(run.left, run.first.final) > 0.1
    # The last step copies again: both views then hold what the first left gave them.
    assert torch.equal(run.right, run.to_right(run.first.final, into=run.right))
    assert torch.equal(run.left, run.to_left(run.first.final, into=run.left))


@pytest.mark.parametrize("switches", [{}, {"attention": "bi"}, {"shift_both": True}, {"guidance_scale": 1}])
def test_no_state_survives_between_runs(unet, switches):
    first = Run(unet, **switches)
    Run(unet, attention="bi", fill="noise", hole_noise=noise(PAIRS, 4, SIZE, SIZE, seed=3), steps=5)
    second = Run(unet, **switches)
    assert torch.equal(first.left, second.left)
    assert torch.equal(first.right, second.right)


@pytest.mark.parametrize("attention", ["off", "uni", "bi"])
def test_pairs_do_not_depend_on_each_other(unet, attention):
    start = noise(PAIRS, 4, SIZE, SIZE)
    other = torch.cat([start[:1], noise(1, 4, SIZE, SIZE, seed=9)])
    one, two = (Run(unet, start=x, attention=attention) for x in (start, other))
    torch.testing.assert_close(one.right[0], two.right[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.left[0], two.left[0], rtol=1e-4, atol=1e-4)
    assert apart(one.right[1], two.right[1]) > 0.1


@pytest.mark.parametrize(
    ("switches", "copies"),
    [
        ({}, [20, 30, 40]),
        ({"recopy_interval": 0}, []),
        ({"recopy_interval": 1}, list(range(11, 50))),
        ({"recopy_interval": 7}, [14, 21, 28, 35, 42, 49]),
        ({"recopy_last_step": 30}, [20, 30]),
        ({"recopy_last_step": 29}, [20]),
        ({"recopy_last_step": 0}, []),
        ({"shift_step": 30}, [40]),
        ({"shift_step": 0}, [10, 20, 30, 40]),
        ({"steps": 21}, [10, 20]),
    ],
)
def test_steps_after_which_the_left_is_copied_again(switches, copies):
    method = MethodConfig(preset="official", **switches)
    assert [i for i in range(method.steps) if method.recopies_after(i)] == copies
