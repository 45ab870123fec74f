"""Self-attention across the views on a tiny U-Net: which layers change, what they compute, their restoration."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stereo_jobs.stereo.attention import ContextAttention, InputRecorder, Keep, KeptInputs, pair_context, self_attention

PAIRS = 2


@pytest.fixture(scope="module")
def unet():
    folder = Path(__file__).parent / "golden/tiny_unet"
    return UNet2DConditionModel.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture
def batch():
    """Latents halves,views,pairs,4,h,w and text; the halves of guidance differ in the text only."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(1, 2, PAIRS, 4, 8, 8, generator=generator).expand(2, -1, -1, -1, -1, -1)
    text = torch.randn(2, 1, PAIRS, 5, 32, generator=generator).expand(-1, 2, -1, -1, -1)
    return views.clone(), text.clone()


def predict(unet, views, text):
    """Predicted noise, halves,views,pairs,4,h,w."""
    with torch.no_grad():
        out = unet(views.flatten(0, 2), torch.tensor(500), encoder_hidden_states=text.flatten(0, 2)).sample
    return out.reshape(views.shape)


class SlowAttention:
    """Alg. 1 written out: every view of every pair attends to the tokens named for it, head by head."""

    def __init__(self, mode):
        self.mode = mode

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        samples = hidden_states.reshape(2, 2, PAIRS, *hidden_states.shape[1:])
        out = torch.empty_like(samples)
        for half in range(2):
            for view in range(2):
                for pair in range(PAIRS):
                    left, right = samples[half, 0, pair], samples[half, 1, pair]
                    seen = left if self.mode == "uni" else torch.cat([left, right])
                    query, key, value = attn.to_q(samples[half, view, pair]), attn.to_k(seen), attn.to_v(seen)
                    heads = []
                    for q, k, v in zip(*(part.chunk(attn.heads, dim=-1) for part in (query, key, value)), strict=True):
                        weights = (q @ k.T / q.shape[-1] ** 0.5).softmax(dim=-1)
                        heads.append(weights @ v)
                    out[half, view, pair] = attn.to_out[0](torch.cat(heads, dim=-1))
        return out.flatten(0, 2)


def test_only_self_attention_layers_are_modified(unet):
    before = dict(unet.attn_processors)
    with self_attention(unet, pair_context("uni", PAIRS)):
        during = dict(unet.attn_processors)
    modified = {name for name, processor in during.items() if isinstance(processor, ContextAttention)}
    assert modified == {name for name in before if ".attn1." in name}
    assert 0 < len(modified) < len(before)
    assert all(during[name] is before[name] for name in before.keys() - modified)
    after = dict(unet.attn_processors)
    assert all(after[name] is before[name] for name in before)


def test_a_context_of_none_changes_nothing(unet, batch):
    before = predict(unet, *batch)
    with self_attention(unet, lambda layer, hidden_states: None):
        assert torch.equal(predict(unet, *batch), before)


@pytest.mark.parametrize("mode", ["uni", "bi"])
def test_the_attention_is_restored_even_after_an_exception(unet, batch, mode):
    before = predict(unet, *batch)
    with self_attention(unet, pair_context(mode, PAIRS)):
        assert not torch.equal(predict(unet, *batch), before)
    assert torch.equal(predict(unet, *batch), before)
    with pytest.raises(KeyboardInterrupt), self_attention(unet, pair_context(mode, PAIRS)):
        raise KeyboardInterrupt
    assert torch.equal(predict(unet, *batch), before)


@pytest.mark.parametrize("mode", ["uni", "bi"])
def test_the_attention_equals_the_slow_reference(unet, batch, mode):
    before = dict(unet.attn_processors)
    with self_attention(unet, pair_context(mode, PAIRS)):
        fast = predict(unet, *batch)
    try:
        unet.set_attn_processor({n: SlowAttention(mode) if ".attn1." in n else p for n, p in before.items()})
        slow = predict(unet, *batch)
    finally:
        unet.set_attn_processor(before)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_uni_leaves_the_left_and_changes_the_right(unet, batch):
    plain = predict(unet, *batch)
    with self_attention(unet, pair_context("uni", PAIRS)):
        modified = predict(unet, *batch)
    torch.testing.assert_close(modified[:, 0], plain[:, 0], rtol=1e-5, atol=1e-6)
    assert (modified[:, 1] - plain[:, 1]).abs().mean() > 1e-3


def test_bi_changes_both(unet, batch):
    plain = predict(unet, *batch)
    with self_attention(unet, pair_context("bi", PAIRS)):
        modified = predict(unet, *batch)
    assert (modified - plain).abs().mean(dim=(0, 2, 3, 4, 5)).min() > 1e-3


@pytest.mark.parametrize("mode", ["uni", "bi"])
def test_identical_views_are_as_without_modification(unet, batch, mode):
    views, text = batch
    views = views[:, :1].expand(-1, 2, -1, -1, -1, -1)
    plain = predict(unet, views, text)
    with self_attention(unet, pair_context(mode, PAIRS)):
        torch.testing.assert_close(predict(unet, views, text), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["uni", "bi"])
def test_pairs_and_guidance_halves_do_not_see_each_other(unet, batch, mode):
    views, text = batch
    others = views.clone()
    others[:, :, 1] += 1.0
    other_text = text.clone()
    other_text[1] += 1.0
    with self_attention(unet, pair_context(mode, PAIRS)):
        first, second = predict(unet, views, text), predict(unet, others, text)
        third = predict(unet, views, other_text)
    torch.testing.assert_close(first[:, :, 0], second[:, :, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[0], third[0], rtol=1e-5, atol=1e-6)
    assert (first[:, :, 1] - second[:, :, 1]).abs().mean() > 1e-2
    assert (first[1] - third[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("halves", [1, 2])
def test_the_right_view_alone_attends_to_what_was_kept_of_the_left(unet, batch, halves):
    views, text = batch[0][-halves:], batch[1][-halves:]
    with self_attention(unet, pair_context("uni", PAIRS)):
        together = predict(unet, views, text)[:, 1:]
    recorder = InputRecorder(torch.arange(PAIRS), Keep(3, halves))
    with recorder.installed(unet):
        for step in (2, 3):
            recorder.begin(step)
            predict(unet, batch[0][:, :1], batch[1][:, :1])  # always both halves
    kept = recorder.kept
    assert set(kept.steps) == {3}
    with self_attention(unet, lambda layer, _: kept.at(3)[layer]):
        alone = predict(unet, views[:, 1:], text[:, 1:])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_what_was_kept_can_be_selected_in_any_order_and_repeatedly():
    inputs = torch.randn(2, 3, 4, 5)
    kept = KeptInputs({7: {"layer": inputs}}, torch.arange(3)).take(torch.tensor([2, 0, 2])).take(torch.tensor([1, 2]))
    assert torch.equal(kept.at(7)["layer"], inputs[:, [0, 2]].flatten(0, 1))


@pytest.mark.slow
def test_a_compiled_unet_has_few_graphs_for_all_steps_and_pairs(one_thread):
    """One for steps before any is kept, one for those that are, and one for the right view."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()
    unet.requires_grad_(False)
    graphs = []

    def pair(seed):
        x, text = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.ones(1, 5, 16)
        recorder = InputRecorder(torch.arange(1), Keep(1, 1))
        with torch.no_grad():
            with recorder.installed(unet):
                for step in range(4):
                    recorder.begin(step)
                    unet(x[step], torch.tensor(900 - step), encoder_hidden_states=text)
            now = {}
            with self_attention(unet, lambda layer, _: now[layer]):
                for step in (1, 2, 3):
                    now.update(recorder.kept.at(step))
                    out = unet(x[step] + 1, torch.tensor(900 - step), encoder_hidden_states=text).sample
        return out

    plain = [pair(seed) for seed in range(3)]
    unet.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward, dynamic=False)
    compiled = [pair(seed) for seed in range(3)]
    assert len(graphs) == 3
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
