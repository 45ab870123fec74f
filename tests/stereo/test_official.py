"""Preset `official` against a slow, plain re-implementation of the published arithmetic.

The reference below runs both views from the first step in one loop, with its own DDIM, warp and attention, and calls
nothing of the package. All runs use the published 50 steps; only the latents are small.
"""

from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity, resize, scaled_disparity
from stereo_jobs.stereo.sampler import GuidedUNet, ViewShift, denoise, denoise_pair
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import forward_warp

SIZE = (8, 12)  # latent pixels
SCALE_PERCENT = 25
GUIDANCE = 7.5
FLOAT_NOISE = 2e-4


@pytest.fixture(scope="module")
def unet(one_thread):
    folder = Path(__file__).parent / "golden/tiny_unet"
    return UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False)


def draw(seed, *shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def depth_map(seed, size=SIZE):
    """Raw inverse depth of any range: a slanted ground and a nearer block."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    depth = 3 + 2 * y / height + np.random.default_rng(seed).normal(0, 0.2, size)
    depth[(y > height // 4) & (abs(x - width * 0.6) < width / 5)] += 4
    return depth.astype(np.float32)


# --- The published arithmetic, as simply as possible ---


def published_shift(latent, relative, scale_percent):
    """Eq. 3 as published: every latent pixel moves left by its truncated disparity; the nearer one stays."""
    latent, width = latent[0].numpy(), latent.shape[-1]
    moved, mask = np.zeros_like(latent), np.zeros(latent.shape, bool)
    shifts = (relative * np.float32(scale_percent / 100 * width)).astype(np.int64)  # towards zero
    for y in range(latent.shape[1]):
        for x in np.argsort(relative[y]):  # far to near: the nearer ones overwrite
            target = x - shifts[y, x]
            if 0 <= target < width:
                moved[:, y, target] = latent[:, y, x]
                mask[:, y, target] = True
    return torch.from_numpy(moved)[None], torch.from_numpy(mask)[None]


class PublishedAttention:
    """Alg. 1 for a batch of [left, right] without text, [left, right] with it: one view after the other."""

    def __init__(self, mode):
        self.mode, self.acts = mode, False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        if encoder_hidden_states is not None:
            seen = encoder_hidden_states  # cross-attention to the text
        elif not self.acts:
            seen = hidden_states
        else:
            left, right = hidden_states[0::2], hidden_states[1::2]
            both = left if self.mode == "uni" else torch.cat([left, right], 1)
            seen = both.repeat_interleave(2, 0)
        out = []
        for tokens, others in zip(hidden_states, seen, strict=True):
            q, k, v = attn.to_q(tokens), attn.to_k(others), attn.to_v(others)
            heads = zip(*(part.chunk(attn.heads, -1) for part in (q, k, v)), strict=True)
            out.append(torch.cat([(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in heads], -1))
        return attn.to_out[0](torch.stack(out))


def published_run(
    unet,
    x_T,
    with_text,
    without,
    depth,
    *,
    scale_percent=SCALE_PERCENT,
    attention="uni",
    recopy_interval=10,
    deblur=None,
    shift_both=False,
    steps_offset=0,
):
    """Both views from the same noise, 50 DDIM steps, shift after step 10, copies after steps 20, 30 and 40."""
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    on_grid = torch.nn.functional.interpolate(torch.from_numpy(depth)[None, None], SIZE, mode="bicubic")[0, 0].numpy()
    relative = (on_grid - on_grid.min()) / (on_grid.max() - on_grid.min())
    text = torch.cat([without, without, with_text, with_text])
    processor = PublishedAttention(attention)
    before = dict(unet.attn_processors)

    def step(i, left, right):
        t = (49 - i) * 20 + steps_offset
        processor.acts = attention != "off" and i >= 10
        halves = unet(torch.cat([left, right] * 2), torch.tensor(t), encoder_hidden_states=text).sample.chunk(2)
        noise = halves[0] + GUIDANCE * (halves[1] - halves[0])
        x = torch.cat([left, right])
        here, there = alphas[t], alphas[t - 20] if t >= 20 else alphas[0]
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        return (there**0.5 * clean + (1 - there) ** 0.5 * noise).split(1)

    unet.set_attn_processor(dict.fromkeys(before, processor))
    left = right = alone = x_T
    with torch.no_grad():
        for i in range(50):
            left, right = step(i, left, right)
            if shift_both and recopy_interval:  # copying from a left that is already shifted would shift it twice
                alone, _ = step(i, alone, alone)  # attention across two equal views is plain self-attention
            if i == 10:
                source, half = left, 0.5 if shift_both else 1
                right, mask = published_shift(source, relative, scale_percent * half)
                if deblur is not None:
                    right = torch.where(mask, right, deblur)
                if shift_both:
                    left, left_mask = published_shift(source, relative, -scale_percent / 2)
            elif recopy_interval and i > 10 and i % recopy_interval == 0:
                source = alone if shift_both else left
                right = torch.where(mask, published_shift(source, relative, scale_percent * half)[0], right)
                if shift_both:
                    left = torch.where(left_mask, published_shift(source, relative, -scale_percent / 2)[0], left)
    unet.set_attn_processor(before)
    return left, right


# --- The package ---


@cache
def left_alone(unet, x_T, with_text, without, steps_offset):
    """The left view's trajectory; it is the same for every switch of the pair."""
    solver = Solver.of({"steps_offset": steps_offset}, 50, "ddim")
    with torch.no_grad():
        return solver, denoise(GuidedUNet(unet, with_text, without, GUIDANCE), solver, x_T)


def package_run(
    unet, x_T, with_text, without, depth, *, scale_percent=SCALE_PERCENT, deblur=None, steps_offset=0, **switches
):
    """The same with `denoise` and `denoise_pair`. x_T: B,4,h,w; depth: list of B maps."""
    method = MethodConfig(preset="official", fill="zero" if deblur is None else "noise", **switches)
    solver, first = left_alone(unet, x_T, with_text, without, steps_offset)
    relative = relative_disparity(torch.cat([resize(torch.from_numpy(one)[None], SIZE) for one in depth]))

    def shift(share):
        scale = torch.full((len(depth),), scale_percent * share, dtype=torch.float64)
        warp = forward_warp(scaled_disparity(relative, scale), scale)
        return ViewShift(warp, warp.filled, noise=deblur)

    model = GuidedUNet(unet, with_text, without, GUIDANCE)
    with torch.no_grad():
        return denoise_pair(
            model,
            solver,
            first,
            method=method,
            to_right=shift(0.5 if method.shift_both else 1),
            to_left=shift(-0.5) if method.shift_both else None,
        )


def apart(a, b):
    return (a - b).abs().mean().item()


START, TEXTS = draw(0, 4, *SIZE), (draw(1, 7, 32), draw(2, 7, 32))
CASES = {
    "uni": {},
    "bi": {"attention": "bi"},
    "no_recopy": {"recopy_interval": 0},
    "deblur": {"deblur": draw(4, 4, *SIZE), "attention": "off"},
    "negative_scale": {"scale_percent": -SCALE_PERCENT},
    "shift_both": {"shift_both": True, "scale_percent": 40},
    "shift_both_bi_no_recopy": {"shift_both": True, "attention": "bi", "recopy_interval": 0, "scale_percent": -40},
    "steps_offset": {"steps_offset": 1},
}
DEPTH = depth_map(5, (40, 54))  # its size differs from the latent's: it is resized first


@pytest.fixture(scope="module")
def pairs(unet):
    """The package's pair of each case."""
    return {name: package_run(unet, START, *TEXTS, [DEPTH], **case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_pair_is_that_of_the_published_arithmetic(unet, pairs, name):
    left, right = published_run(unet, START, *TEXTS, DEPTH, **CASES[name])
    assert apart(pairs[name].left, left) < FLOAT_NOISE
    assert apart(pairs[name].right, right) < FLOAT_NOISE


def test_the_cases_can_be_told_apart(pairs):
    """Without this, the test above would not show that every switch has an effect."""
    for one, other in combinations(CASES, 2):
        assert apart(pairs[one].right, pairs[other].right) > 50 * FLOAT_NOISE, (one, other)


def test_the_left_changes_only_where_the_method_says_so(pairs):
    for name in ("no_recopy", "deblur", "negative_scale"):
        assert torch.equal(pairs[name].left, pairs["uni"].left)
    for name in ("bi", "shift_both", "shift_both_bi_no_recopy"):
        assert apart(pairs[name].left, pairs["uni"].left) > 50 * FLOAT_NOISE


def test_samples_of_one_batch_are_not_coupled(unet, pairs):
    """The published code normalises disparity over the whole batch: a bug that this package does not repeat."""
    other, other_depth = draw(3, 4, *SIZE), 10 * depth_map(6)
    starts, texts = torch.cat([START, other]), [text.expand(2, -1, -1) for text in TEXTS]
    batch = package_run(unet, starts, *texts, [DEPTH, other_depth], attention="bi")
    left, right = published_run(unet, other, *TEXTS, other_depth, attention="bi")
    assert apart(batch.left, torch.cat([pairs["bi"].left, left])) < FLOAT_NOISE
    assert apart(batch.right, torch.cat([pairs["bi"].right, right])) < FLOAT_NOISE
