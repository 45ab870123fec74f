"""The sampler on a tiny U-Net: its evaluations, the effect of each switch, and that runs leave no state behind."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.attention import Keep
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory, ViewShift, denoise, denoise_pair, denoise_within
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import forward_warp

PAIRS, SIZE = 2, 8
SHORT = {"preset": "official", "steps": 7, "shift_step": 1, "recopy_interval": 2, "attention_step": 2}


@pytest.fixture(scope="module")
def unet(one_thread):
    folder = Path(__file__).parent / "golden/tiny_unet"
    return UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def disparity(scale=1.0):
    """Disparity of a near square in front of a background, in fractional latent pixels."""
    maps = torch.full((PAIRS, SIZE, SIZE), 0.6 * scale)
    maps[:, 2:6, 3:6] = 2.3 * scale
    return maps


class Run:
    """One run of the left view and the pair, with its inputs and results."""

    def __init__(self, unet, start=None, scale=1.0, hole_noise=None, keep=None, **switches):
        self.method = MethodConfig(**(SHORT | switches))
        self.solver = Solver.of({"beta_start": 0.0001, "beta_end": 0.02}, self.method.steps, self.method.scheduler)
        half = 0.5 if self.method.shift_both else 1.0
        sign = torch.ones(PAIRS)
        self.to_right = forward_warp(disparity(scale * half), sign)
        self.to_left = forward_warp(-disparity(scale * half), -sign) if self.method.shift_both else None
        model = GuidedUNet(unet, noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2), self.method.guidance_scale)
        with torch.no_grad():
            start = noise(PAIRS, 4, SIZE, SIZE) if start is None else start
            kept = keep and Keep(self.method.attention_start, keep)
            self.first = denoise(model, self.solver, start, keep=kept)
            self.pair = denoise_pair(
                model,
                self.solver,
                self.first,
                method=self.method,
                to_right=ViewShift(self.to_right, self.to_right.filled, noise=hole_noise),
                to_left=self.to_left and ViewShift(self.to_left, self.to_left.filled, noise=hole_noise),
            )
        [self.alone] = set(self.first.evaluations.tolist())
        self.evaluations = self.alone + self.pair.evaluations

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
        ({"attention": "uni", "keep": 2}, 178),
        ({"attention": "uni", "keep": 2, "attention_step": 20}, 178),
        ({"attention": "uni", "keep": 2, "keep_left": False}, 256),
        ({"attention": "uni", "keep": 2, "shift_both": True}, 256),
        ({"attention": "bi", "keep": 2}, 256),
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


@pytest.mark.parametrize("switches", [{}, {"attention_step": 4}, {"scheduler": "dpm++_karras"}, {"guidance_scale": 1}])
def test_what_was_kept_of_the_left_stands_in_for_it(unet, switches):
    whole = Run(unet, **switches)
    kept = Run(unet, keep=whole.alone // 7, **switches)
    assert kept.evaluations < whole.evaluations
    assert torch.equal(kept.left, whole.left)
    torch.testing.assert_close(kept.right, whole.right, rtol=1e-3, atol=1e-3)


def test_the_samples_of_a_trajectory_bring_what_was_kept_of_them(unet):
    run, rows = Run(unet, keep=2), torch.tensor([1, 1, 0])
    taken = run.first.take(rows)
    assert set(taken.kept.steps) == set(range(run.method.attention_start, run.method.steps))
    for layer, inputs in run.first.kept.at(4).items():
        halves = inputs.unflatten(0, (2, PAIRS))
        assert torch.equal(taken.kept.at(4)[layer], halves[:, rows].flatten(0, 1))


def test_a_half_of_guidance_that_is_not_run_cannot_be_kept(unet):
    with pytest.raises(ValueError, match="2 halves of guidance cannot be kept: only 1 is run"):
        Run(unet, keep=2, guidance_scale=1)


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


# --- What a shift puts where ---


def shift_of(*, split=False, clean=True, unit=True):
    warp = forward_warp(disparity(), torch.ones(PAIRS), subpixel=True)
    assert not warp.filled.all()
    given = [noise(PAIRS, 4, SIZE, SIZE, seed=seed) if wanted else None for seed, wanted in ((5, clean), (6, unit))]
    return ViewShift(warp, warp.filled, *given, split=split)


@pytest.mark.parametrize("fill", ["zero", "noise", "background"])
def test_a_shift_begins_with_the_left_and_its_fill(fill):
    shift, solver, i = shift_of(), Solver.of({}, 20, "ddim"), 6
    x, x_0 = noise(PAIRS, 4, SIZE, SIZE), noise(PAIRS, 4, SIZE, SIZE, seed=1)
    holes = {
        "zero": torch.zeros_like(x),
        "noise": shift.noise,
        "background": solver.renoise(shift.clean, shift.noise, i),
    }
    begun = shift.begin(solver, i, x, x_0, fill)
    assert torch.equal(begun, torch.where(shift.filled[:, None], shift.warp(x), holes[fill]))
    later = noise(PAIRS, 4, SIZE, SIZE, seed=7)
    assert torch.equal(shift.copy(solver, i, x, x_0, later), torch.where(shift.filled[:, None], shift.warp(x), later))


@pytest.mark.parametrize("fill", ["zero", "noise", "background"])
def test_a_split_shift_moves_x_0_and_noise_apart(fill):
    shift, solver, i = shift_of(split=True), Solver.of({}, 20, "ddim"), 6
    x_0, inside = noise(PAIRS, 4, SIZE, SIZE, seed=1), noise(PAIRS, 4, SIZE, SIZE, seed=2)
    begun = shift.begin(solver, i, solver.renoise(x_0, inside, i), x_0, fill)
    moved = solver.renoise(shift.clean, shift.warp.nearest(inside, shift.noise), i)
    known = shift.filled[:, None].expand_as(begun)
    torch.testing.assert_close(begun[known], moved[known])
    holes = {"zero": torch.zeros_like(begun), "noise": shift.noise, "background": moved}[fill]
    torch.testing.assert_close(begun[~known], holes[~known])


@pytest.mark.parametrize(
    ("shift", "fill", "message"),
    [
        (shift_of(unit=False), "noise", "needs unit noise"),
        (shift_of(unit=False), "background", "background needs unit noise"),
        (shift_of(clean=False), "background", "background needs a filled x_0"),
        (shift_of(clean=False, split=True), "zero", "sub-pixel warp needs the warped x_0"),
    ],
)
def test_a_shift_says_what_it_lacks(shift, fill, message):
    x = noise(PAIRS, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match=message):
        shift.begin(Solver.of({}, 20, "ddim"), 6, x, x, fill)


def test_the_history_of_the_right_is_that_of_the_left_moved():
    shift, x_0, own = shift_of(), noise(PAIRS, 4, SIZE, SIZE), noise(PAIRS, 4, SIZE, SIZE, seed=1)
    known = shift.filled[:, None]
    assert torch.equal(shift.history(x_0, own), torch.where(known, shift.warp(x_0), own))
    assert torch.equal(shift.history(x_0, None), torch.where(known, shift.warp(x_0), shift.clean))
    assert torch.equal(shift_of(clean=False).history(x_0, None), torch.where(known, shift.warp(x_0), 0.0))


# --- DPM-Solver++ ---


def test_dpm_solver_makes_the_same_pair_as_the_left_where_nothing_moves(unet):
    """Equal in every bit, so the right view starts with the left's history."""
    run = Run(unet, scheduler="dpm++_karras", attention="off", scale=0.0, recopy_interval=0)
    assert torch.equal(run.right, run.left)
    assert apart(run.left, Run(unet, attention="off", scale=0.0).left) > 0.01


@pytest.mark.parametrize("attention", ["off", "uni", "bi"])
def test_dpm_solver_uses_the_history_of_the_left(unet, attention):
    switches = {"scheduler": "dpm++_karras", "attention": attention, "recopy_interval": 0}
    run = Run(unet, **switches)
    assert torch.isfinite(run.right).all()
    forgotten = Trajectory(run.first.latents, torch.zeros_like(run.first.clean), run.first.evaluations)
    model = GuidedUNet(unet, noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2), run.method.guidance_scale)
    shift = ViewShift(run.to_right, run.to_right.filled)
    solver = Solver.of({"beta_start": 0.0001, "beta_end": 0.02}, run.method.steps, "dpm++_karras")
    without = denoise_pair(model, solver, forgotten, method=run.method, to_right=shift)
    assert apart(without.right, run.right) > 0.01


# --- Depth as a condition ---


@pytest.fixture(scope="module")
def depth_unet():
    """A U-Net that takes depth as its fifth channel, with random weights."""
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=5,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
        )
        .eval()
        .requires_grad_(False)
    )


@pytest.mark.parametrize("attention", ["off", "uni", "bi"])
def test_every_view_gets_its_own_condition(depth_unet, attention):
    seen = []
    watch = depth_unet.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 4:]))
    method = MethodConfig(**(SHORT | {"attention": attention}))
    solver = Solver.of({}, method.steps, "ddim")
    model = GuidedUNet(depth_unet, noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2), 7.5)
    left, right = conditions = noise(2, PAIRS, 1, SIZE, SIZE, seed=4)
    warp = forward_warp(disparity(), torch.ones(PAIRS))
    first = denoise(model, solver, noise(PAIRS, 4, SIZE, SIZE), left)
    assert all(torch.equal(channel, torch.cat([left, left])) for channel in seen)
    seen.clear()
    denoise_pair(model, solver, first, method=method, to_right=ViewShift(warp, warp.filled), conditions=conditions)
    alone, together = torch.cat([right] * 2), torch.cat([left, right] * 2)  # halves of guidance
    assert len(seen) == method.steps - method.first_pair_step
    assert all(torch.equal(channel, alone if attention == "off" else together) for channel in seen)
    watch.remove()


# --- Inpainting ---


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++_karras"])
def test_masked_denoise_keeps_the_outside_and_redraws_the_inside(unet, scheduler):
    solver = Solver.of({}, 6, scheduler)
    model = GuidedUNet(unet, noise(PAIRS, 5, 32, seed=1), noise(PAIRS, 5, 32, seed=2), 7.5)
    mask = torch.zeros(PAIRS, SIZE, SIZE, dtype=torch.bool)
    mask[0, 2:5, 3:7] = True
    mask[1, :, :2] = True
    inside = mask[:, None].expand(-1, 4, -1, -1)
    known = denoise(model, solver, noise(PAIRS, 4, SIZE, SIZE))
    start = noise(PAIRS, 4, SIZE, SIZE, seed=3)
    inpainted = denoise_within(model, solver, start, known, mask=mask)
    x_0 = inpainted.x_0
    assert inpainted.evaluations == 2 * solver.steps
    assert torch.equal(x_0[~inside], known.final[~inside])
    assert apart(x_0[inside], known.final[inside]) > 0.1
    assert torch.equal(denoise_within(model, solver, start, known, mask=mask & False).x_0, known.final)
    everywhere = denoise_within(model, solver, start, known, mask=mask | True).x_0
    assert torch.equal(everywhere, denoise(model, solver, start).final)


# --- Nothing is left behind ---


@pytest.mark.parametrize(("attention", "installed"), [("off", 0), ("uni", 1), ("bi", 1)])
def test_attention_is_installed_once_for_all_steps_of_a_pair(monkeypatch, unet, attention, installed):
    sets, original = [], unet.set_attn_processor

    def set_processors(processors):
        sets.append(processors)
        original(processors)

    monkeypatch.setattr(unet, "set_attn_processor", set_processors)
    Run(unet, attention=attention)
    assert len(sets) == 2 * installed  # installed, and restored


@pytest.mark.parametrize("attention", ["uni", "bi"])
def test_the_unet_is_as_before_even_after_a_failure_half_way(unet, attention):
    x, text = noise(PAIRS, 4, SIZE, SIZE), noise(PAIRS, 5, 32, seed=1)
    processors, before = dict(unet.attn_processors), unet(x, 500, encoder_hidden_states=text).sample
    complete = Run(unet, attention=attention)
    assert torch.equal(unet(x, 500, encoder_hidden_states=text).sample, before)

    calls = iter(range(100))

    def fail_late(module, given):
        if next(calls) == 9:  # the pair's third step
            raise MemoryError("half-way")

    failing = unet.register_forward_pre_hook(fail_late)
    with pytest.raises(MemoryError, match="half-way"):
        Run(unet, attention=attention)
    failing.remove()
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(unet(x, 500, encoder_hidden_states=text).sample, before)
    again = Run(unet, attention=attention)
    assert torch.equal(again.left, complete.left)
    assert torch.equal(again.right, complete.right)


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
