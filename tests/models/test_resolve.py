"""Models are found, pinned and refused by their configs alone; what is accepted then loads and runs."""

import json
import shutil
from pathlib import Path

import pytest

from stereo_jobs.errors import ModelError
from stereo_jobs.models.resolve import fetch, local_folder, resolve_recipe
from stereo_jobs.spec import DepthSpec, Recipe, StableDiffusionSpec

DEMO_SD, DEMO_DEPTH = local_folder("demo", "sd"), local_folder("demo", "depth")

SD_CONFIGS = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"in_channels": 4, "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280]},
    "vae/config.json": {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]},
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
    "text_encoder/config.json": {},
    "tokenizer/tokenizer_config.json": {},
}
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def sd(tmp_path):
    """A Stable Diffusion folder without any weights worth the name."""
    folder = tmp_path / "sd"
    write(folder, SD_CONFIGS | {f"{name}.safetensors": b"weights" for name in WEIGHTS})
    return folder


@pytest.fixture
def depth(tmp_path):
    folder = tmp_path / "depth"
    write(folder, {"config.json": {"model_type": "dpt"}, "preprocessor_config.json": {}, "model.safetensors": b"w"})
    return folder


def resolve(sd="demo", depth="demo", **fields):
    sd, depth = ({"path": str(m)} if not isinstance(m, dict) else m for m in (sd, depth))
    return resolve_recipe(Recipe(models={"stable_diffusion": sd, "depth": depth}, **fields))


def test_the_demo_resolves_and_is_pinned():
    recipe = resolve()
    assert (recipe.size.width, recipe.size.height) == (128, 128)
    assert recipe.models.depth.polarity == "inverse"
    for model in (recipe.models.stable_diffusion, recipe.models.depth):
        assert model.revision.startswith("sha256:")
        assert fetch(model).is_dir()
    assert resolve_recipe(recipe) == recipe
    assert recipe.method == Recipe().method


def test_a_folder_resolves_by_its_configs(sd, depth):
    recipe = resolve(sd, depth)
    assert (recipe.size.width, recipe.size.height) == (512, 512)
    assert recipe.models.stable_diffusion.path == str(sd)
    assert fetch(recipe.models.stable_diffusion) == sd
    assert fetch(recipe.models.depth) == depth


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/x.txt"])
def test_one_changed_byte_changes_the_revision(sd, depth, name):
    before = resolve(sd, depth).models.stable_diffusion.revision
    assert resolve(sd, depth).models.stable_diffusion.revision == before
    path = sd / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    after = resolve(sd, depth).models.stable_diffusion.revision
    assert after != before
    with pytest.raises(ModelError, match=f"its content is {after}, not revision {before}"):
        resolve({"path": str(sd), "revision": before}, depth)


def test_the_revision_does_not_depend_on_the_place_or_on_other_files(sd, depth, tmp_path):
    before = resolve(sd, depth).models.stable_diffusion.revision
    (sd / "README.md").write_text("a note")
    moved = Path(shutil.move(sd, tmp_path / "elsewhere"))
    assert resolve(moved, depth).models.stable_diffusion.revision == before


def test_a_changed_depth_model_changes_its_revision_alone(sd, depth):
    before = resolve(sd, depth).models
    (depth / "model.safetensors").write_bytes(b"x")
    after = resolve(sd, depth).models
    assert before.depth.revision != after.depth.revision
    assert before.stable_diffusion == after.stable_diffusion


# --- Refusals of the image model ---


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(ModelError, match=f"model {path}: no such folder"):
        resolve(path)
    with pytest.raises(ModelError, match=f"model {path}: no such folder"):
        resolve(depth=path)


def test_a_hub_id_without_the_hub_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="owner/name: no folder of this name, and HF_HUB_OFFLINE=1 forbids asking"):
        resolve("owner/name")


def test_pickles_alone_are_refused_with_the_way_out(sd, depth):
    for name in WEIGHTS:
        (sd / f"{name}.safetensors").rename(sd / f"{name}.bin")
    with pytest.raises(ModelError, match=r"only pickles \(.*bin\), which are never loaded; convert it with diffusers"):
        resolve(sd, depth)
    (depth / "model.safetensors").rename(depth / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors weights.*convert it"):
        resolve("demo", depth)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("content", [None, b"{broken", b"[1]", b"\xff"])
def test_a_missing_or_broken_config_is_named(sd, depth, name, content):
    (sd / name).unlink()
    if content:
        (sd / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} is missing or broken.*it needs a complete model folder"):
        resolve(sd, depth)


@pytest.mark.parametrize(
    ("name", "field"),
    [("unet/config.json", "sample_size"), ("unet/config.json", "block_out_channels"), ("vae/config.json", "block_out")],
)
def test_a_config_without_a_needed_field_is_named(sd, depth, name, field):
    write(sd, {name: {key: value for key, value in SD_CONFIGS[name].items() if not key.startswith(field)}})
    with pytest.raises(ModelError, match=f"{name} lacks '{field}"):
        resolve(sd, depth)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "is a StableDiffusionXLPipeline; text mode"),
        ("model_index.json", {"_class_name": None}, "text mode takes Stable Diffusion 1.x or 2.x"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels and its VAE makes 4; text mode needs the two equal"),
        ("unet/config.json", {"in_channels": 5}, "inpainting and depth checkpoints are of other modes"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample' is not epsilon or v_prediction"),
    ],
)
def test_another_kind_of_checkpoint_is_refused(sd, depth, name, change, words):
    write(sd, {name: SD_CONFIGS[name] | change})
    with pytest.raises(ModelError, match=words):
        resolve(sd, depth)


def test_v_prediction_is_accepted(sd, depth):
    write(sd, {"scheduler/scheduler_config.json": {"prediction_type": "v_prediction"}})
    assert resolve(sd, depth).size.width == 512


@pytest.mark.parametrize(("width", "nearest"), [(520, 512), (500, 512), (33, 64), (4090, 4096)])
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(sd, depth, width, nearest):
    words = f"recipe.size.width: must be a multiple of 64 for .*, got {width}; the nearest is {nearest}"
    with pytest.raises(ModelError, match=words):
        resolve(sd, depth, size={"width": width, "height": 512})
    with pytest.raises(ModelError, match=r"recipe\.size\.height"):
        resolve(sd, depth, size={"width": 512, "height": width})
    assert resolve(sd, depth, size={"width": 576, "height": 320}).size.height == 320


# --- Refusals of the depth model ---


@pytest.mark.parametrize(
    ("config", "polarity"),
    [
        ({"model_type": "dpt"}, "inverse"),
        ({"model_type": "depth_anything"}, "inverse"),
        ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, "inverse"),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "metric"),
        ({"model_type": "zoedepth"}, "metric"),
        ({"model_type": "glpn"}, "metric"),
    ],
)
def test_known_families_have_their_polarity(depth, config, polarity):
    write(depth, {"config.json": config})
    assert resolve("demo", depth).models.depth.polarity == polarity


@pytest.mark.parametrize("config", [{"model_type": "newcomer"}, {}])
def test_an_unknown_family_must_be_declared(depth, config):
    write(depth, {"config.json": config})
    with pytest.raises(ModelError, match=r"not known whether the family.*declare recipe\.models\.depth\.polarity"):
        resolve("demo", depth)
    declared = resolve("demo", {"path": str(depth), "polarity": "metric"})
    assert declared.models.depth.polarity == "metric"


def test_a_declared_polarity_wins(depth):
    assert resolve("demo", {"path": str(depth), "polarity": "metric"}).models.depth.polarity == "metric"


# --- Loading ---


def test_weights_that_are_none_are_a_model_error(sd, depth):
    from stereo_jobs.models.depth import DepthEstimator
    from stereo_jobs.models.stable_diffusion import StableDiffusion

    with pytest.raises(ModelError, match="cannot be loaded"):
        StableDiffusion.load(StableDiffusionSpec(path=str(sd)), "cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        DepthEstimator.load(DepthSpec(path=str(depth), polarity="inverse"), "cpu")
    with pytest.raises(ModelError, match="polarity must be inverse or metric, got 'auto'"):
        DepthEstimator.load(DepthSpec(), "cpu")


def test_a_metric_estimator_is_inverted():
    import numpy as np
    import torch

    from stereo_jobs.models.depth import DepthEstimator

    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    inverse = DepthEstimator.load(DepthSpec(polarity="inverse"), "cpu").inverse_depth(image)
    metric = DepthEstimator.load(DepthSpec(polarity="metric"), "cpu").inverse_depth(image)
    assert inverse.shape == (1, 48, 64)
    torch.testing.assert_close(metric, 1 / inverse.clamp_min(1e-6))


@pytest.fixture
def v_checkpoint(tmp_path):
    """A tiny random v-prediction checkpoint as diffusers and transformers save it; the demo's tokenizer."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path / "v"
    text = {"vocab_size": 624, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 32}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 622, "eos_token_id": 623}
    blocks = {"block_out_channels": (16, 16), "norm_num_groups": 8, "layers_per_block": 1}
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(
        **blocks,
        sample_size=16,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        **blocks,
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    # Stable Diffusion comes with PNDM settings: the sampler is chosen by the method, not by the checkpoint.
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDIMScheduler(**scheduler, prediction_type="v_prediction", steps_offset=1).save_pretrained(folder / "scheduler")
    name = "scheduler/scheduler_config.json"
    config = json.loads((folder / name).read_text()) | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    write(folder, {name: config})
    shutil.copytree(DEMO_SD / "tokenizer", folder / "tokenizer")
    write(folder, {"model_index.json": {"_class_name": "StableDiffusionPipeline"}})
    return folder


def test_a_v_prediction_checkpoint_loads_and_makes_pairs(v_checkpoint):
    from stereo_jobs.generate import StereoPipeline
    from stereo_jobs.records import Row, StereoPair

    method = {"steps": 4, "shift_step": 1, "recopy_interval": 2, "attention_step": 1}
    recipe = resolve(v_checkpoint, method=method, size={"width": 48, "height": 32})
    pipeline = StereoPipeline.load(recipe, "cpu", 2)
    assert pipeline.sd.latent_factor == 2
    scheduler = pipeline.sd.scheduler(4)
    assert (type(scheduler).__name__, scheduler.config.prediction_type) == ("DDIMScheduler", "v_prediction")
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    rows = [Row(f"row-{i}", "a red circle", "", i, 10.0) for i in range(3)]
    results = pipeline.generate(rows)
    assert [type(result) for result in results] == [StereoPair] * 3
    assert results[0].left.shape == results[0].right.shape == (32, 48, 3)
    assert not (results[0].left == results[1].left).all()


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from stereo_jobs.models.depth import DepthEstimator

    folder = tmp_path / "depth"
    shutil.copytree(DEMO_SD.parent / "depth", folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing"):
        DepthEstimator(folder, "inverse", torch.float32, "cpu")
