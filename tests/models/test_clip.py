"""CLIP scores follow the published arithmetic and do not depend on the batch; unsuitable models are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from stereo_jobs.errors import ModelError
from stereo_jobs.models.clip import ClipScorer
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.spec import Recipe
from tests.models.pictures import pictures, pixel_values
from tests.models.published import CLIP
from tests.models.tiny import write_clip, write_tokenizer

PROMPTS = ["a red cat", "circle", "a cat a circle", "red"]
HEADS, LAYERS, TOKENS = 2, 2, 77


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the folder that a test may break."""
    return shutil.copytree(checkpoint, tmp_path / "clip")


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return ClipScorer(checkpoint, torch.float32, "cpu")


# --- The slow way: Radford et al. 2021 from the weights' published names, one picture and one text at a time ---


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x, w, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(x, w, name, causal):
    q, k, v = (linear(x, w, f"{name}.{part}_proj") for part in "qkv")
    size = x.shape[1] // HEADS
    out = torch.zeros_like(x)
    for head in range(HEADS):
        span = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = slice(0, i + 1 if causal else len(x))
            weights = (k[seen, span] @ q[i, span] / size**0.5).softmax(0)
            out[i, span] = weights @ v[seen, span]
    return linear(out, w, f"{name}.out_proj")


def transform(x, w, tower, causal):
    for i in range(LAYERS):
        name = f"{tower}.encoder.layers.{i}"
        x = x + attend(layer_norm(x, w, f"{name}.layer_norm1"), w, f"{name}.self_attn", causal)
        hidden = linear(layer_norm(x, w, f"{name}.layer_norm2"), w, f"{name}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), w, f"{name}.mlp.fc2")
    return x


def image_embedding(image, w):
    kernel = w["vision_model.embeddings.patch_embedding.weight"]
    pixels = pixel_values([image])[0].double()
    patches = [pixels[:, y : y + 32, x : x + 32] for y in range(0, 224, 32) for x in range(0, 224, 32)]
    embedded = [(kernel * patch).sum((1, 2, 3)) for patch in patches]
    x = torch.stack([w["vision_model.embeddings.class_embedding"], *embedded])
    x = layer_norm(x + w["vision_model.embeddings.position_embedding.weight"], w, "vision_model.pre_layrnorm")
    x = transform(x, w, "vision_model", causal=False)
    return w["visual_projection.weight"] @ layer_norm(x[0], w, "vision_model.post_layernorm")


def text_embedding(words, w, vocabulary):
    tokens = [vocabulary[f"{word}</w>"] for word in words][: TOKENS - 2]
    tokens = [vocabulary["<|startoftext|>"], *tokens, vocabulary["<|endoftext|>"]]
    x = w["text_model.embeddings.token_embedding.weight"][tokens]
    x = transform(x + w["text_model.embeddings.position_embedding.weight"][: len(x)], w, "text_model", causal=True)
    return w["text_projection.weight"] @ layer_norm(x[-1], w, "text_model.final_layer_norm")


def slow_cosine(image, prompt, folder):
    w = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    vocabulary = json.loads((folder / "vocab.json").read_text())
    a, b = image_embedding(image, w), text_embedding(prompt.split(), w, vocabulary)
    return float(a @ b / (a.norm() * b.norm()))


# --- Scores ---


def test_scores_are_a_hundred_times_the_cosine(scorer, checkpoint):
    images, prompts = pictures(5), [*PROMPTS, "cat red " * 50]
    assert len(prompts[-1].split()) > scorer.prompt_tokens == TOKENS, "which is cut off"
    expected = [100 * slow_cosine(image, prompt, checkpoint) for image, prompt in zip(images, prompts, strict=True)]
    assert max(expected) - min(expected) > 10
    assert min(expected) > 0
    np.testing.assert_allclose(scorer.scores(list(images), prompts), expected, atol=0.02)


def test_scores_below_zero_are_zero(checkpoint):
    turned = ClipScorer(checkpoint, torch.float32, "cpu")
    turned.network.visual_projection.weight.neg_()
    assert turned.scores(list(pictures(4)), PROMPTS) == [0.0] * 4


def test_half_precision_is_near(scorer, checkpoint):
    images = list(pictures(4))
    half = ClipScorer(checkpoint, torch.bfloat16, "cpu").scores(images, PROMPTS)
    np.testing.assert_allclose(half, scorer.scores(images, PROMPTS), atol=1.5)


def test_neighbours_change_no_bit(scorer):
    images = [*pictures(3), *pictures(1, (64, 200))]
    scores = scorer.scores(images, PROMPTS)
    for order in ([3, 2, 1, 0], [0, 0, 0, 0], [2, 3, 3, 1]):
        prompts = [PROMPTS[i] for i in order]
        assert scorer.scores([images[i] for i in order], prompts) == [scores[i] for i in order]
    assert scorer.scores(images, [PROMPTS[0], "cat " * 90, "", "a"])[0] == scores[0]


def test_overflow_is_no_score(checkpoint):
    broken = ClipScorer(checkpoint, torch.float32, "cpu")
    broken.network.visual_projection.weight[0] = torch.inf
    assert np.isnan(broken.scores(list(pictures(1)), ["a cat"])).all()


def test_images_are_prepared_as_clip_wants_them(scorer):
    images = pictures(2)
    prepared = scorer.processor(images=list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, pixel_values(images), rtol=0, atol=1e-3)


def test_the_published_config_is_the_published_network():
    with torch.device("meta"):
        made = CLIPModel(CLIPConfig(**CLIP["config.json"]))
    assert sum(weights.numel() for weights in made.parameters()) == 427_616_513


def test_a_model_that_transformers_saved_gives_the_same_scores(scorer, checkpoint, tmp_path):
    """A user who converts pickles does this."""
    CLIPModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    CLIPProcessor(scorer.processor, scorer.tokenizer).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    spec = resolve(tmp_path).models.clip
    images = list(pictures(4))
    assert ClipScorer.load(spec, "cpu").scores(images, PROMPTS) == scorer.scores(images, PROMPTS)


# --- In a recipe ---


def resolve(path, **fields):
    return resolve_recipe(Recipe(models={"clip": {"path": str(path)} | fields}))


def test_it_is_pinned_by_what_is_loaded(folder):
    recipe = resolve(folder)
    revision = recipe.models.clip.revision
    assert revision.startswith("sha256:")
    assert resolve_recipe(recipe) == recipe
    for name in ("README.md", "open_clip_model.safetensors", "pytorch_model.bin"):
        (folder / name).write_text("for others")
    assert resolve(folder).models.clip.revision == revision
    (folder / "merges.txt").write_text((folder / "merges.txt").read_text() + "\n")
    with pytest.raises(ModelError, match=f"its content is sha256:.*, not revision {revision}"):
        resolve(folder, revision=revision)


def test_without_one_nothing_changes():
    assert Recipe().models.clip is None
    assert resolve_recipe(Recipe()).models.clip is None


@pytest.mark.parametrize("family", ["siglip", "chinese_clip", "dpt", None])
def test_another_family_is_refused(folder, family):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": family}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"is of the family {family!r}; recipe\.models\.clip takes CLIP in .*patch14"):
        resolve(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json is missing or broken .*; it needs a complete model folder"),
        ("model.safetensors", "no .safetensors weights in transformers format; convert it"),
        ("vocab.json", "holds neither tokenizer.json nor vocab.json and merges.txt; it needs a complete"),
        ("merges.txt", "holds neither tokenizer.json nor vocab.json and merges.txt; it needs a complete"),
        ("preprocessor_config.json", "has no preprocessor_config.json; it needs a complete model folder"),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        resolve(folder)


def test_pickles_and_weights_of_other_libraries_are_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match=r"no \.safetensors weights in transformers format; convert it"):
        resolve(folder)
    (folder / "open_clip_model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickles \(pytorch_model.bin\), which are never loaded; convert it"):
        resolve(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "demo"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(ModelError, match=f"model {path}: no such folder"):
        resolve(path)


def test_a_hub_id_without_the_hub_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="owner/name: no folder of this name, and HF_HUB_OFFLINE=1 forbids asking"):
        resolve("owner/name")


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"weights"), ("preprocessor_config.json", b"{"), ("merges.txt", b"\xff")],
)
def test_broken_files_are_a_model_error(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipScorer(folder, torch.float32, "cpu")


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    write_tokenizer(tmp_path)
    for name in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="16 weights are missing, first text_model"):
        ClipScorer(tmp_path, torch.float32, "cpu")
