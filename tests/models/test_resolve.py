"""Models are found, pinned and refused by their configs alone; accepted models load and run."""

import json
import shutil
from pathlib import Path

import pytest

from stereo_jobs.errors import ModelError
from stereo_jobs.models import files as model_files
from stereo_jobs.models.files import fetch, local_folder, part_folder
from stereo_jobs.models.resolve import check_stable_diffusion, resolve_recipe
from stereo_jobs.spec import DepthSpec, Recipe, StableDiffusionSpec
from tests.models.tiny import configs, write_checkpoint

DEMO_SD, DEMO_DEPTH = local_folder("demo", "sd"), local_folder("demo", "depth")

SD_CONFIGS = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"in_channels": 4, "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280]},
    "vae/config.json": {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]},
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
    "text_encoder/config.json": {},
    "tokenizer/tokenizer_config.json": {},
    "tokenizer/vocab.json": {},
    "tokenizer/merges.txt": "",
}
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def sd(tmp_path):
    """A Stable Diffusion folder whose weight files are not real weights."""
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
    assert recipe.method == Recipe().method.model_copy(update={"scheduler": "dpm++_karras"})


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
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type 'sample' is not epsilon or v",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "is not scaled_linear or linear"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero_snr True is not False"),
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [0.1]},
            r"trained_betas \[0.1\] is not absent.*for example",
        ),
        ("text_encoder/config.json", {"hidden_size": 768}, "embeddings of width 1024 and its text encoder makes 768"),
    ],
)
def test_another_kind_of_checkpoint_is_refused(sd, depth, name, change, words):
    write(sd, {"unet/config.json": SD_CONFIGS["unet/config.json"] | {"cross_attention_dim": 1024}})
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


# --- Families and modes ---

OTHER_FAMILIES = (
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionImageVariationPipeline",
    None,
)
PLAIN_MODES = ("text", "image", "inpaint")


def check(family, mode, **changes):
    """Check the published configs of a family, with some of them changed."""
    files = configs(family, full=True)
    for name, change in changes.items():
        files[{"index": "model_index.json"}.get(name, f"{name}/config.json")] |= change
    return check_stable_diffusion("folder", files.__getitem__, mode)


@pytest.mark.parametrize(
    ("family", "modes", "native"),
    [
        ("sd1", PLAIN_MODES, 512),
        ("sd2_base", PLAIN_MODES, 512),
        ("sd2_v", PLAIN_MODES, 768),
        ("sd2_depth", ["depth"], 512),
    ],
)
def test_every_published_family_has_its_modes(family, modes, native):
    for mode in modes:
        assert check(family, mode) == (8, native, 64)
    for mode in {*PLAIN_MODES, "depth"} - {*modes}:
        with pytest.raises(ModelError, match=f"; {mode} mode takes"):
            check(family, mode)


def test_a_plain_checkpoint_for_depth_is_refused_with_the_one_to_take():
    words = "takes 4 channels and its VAE makes 4; depth mode takes a depth-conditioned .*stable-diffusion-2-depth"
    with pytest.raises(ModelError, match=words):
        check("sd1", "depth")


@pytest.mark.parametrize("mode", PLAIN_MODES)
def test_a_depth_conditioned_checkpoint_for_other_modes_is_refused_with_both_ways_out(mode):
    words = f"takes 5 channels and its VAE makes 4; {mode} mode takes .*v1-5; .* set recipe.mode to depth"
    with pytest.raises(ModelError, match=words):
        check("sd2_depth", mode)


@pytest.mark.parametrize("family", OTHER_FAMILIES)
@pytest.mark.parametrize("mode", [*PLAIN_MODES, "depth"])
def test_other_families_are_refused_by_name(family, mode):
    words = "depth-conditioned" if mode == "depth" else "Stable Diffusion 1.x or 2.x"
    with pytest.raises(ModelError, match=f"model folder: is a {family}; {mode} mode takes .*{words}.*for example"):
        check("sd1", mode, index={"_class_name": family})


@pytest.mark.parametrize("channels", [3, 5, 7, 8, 9])
def test_other_channel_counts_are_refused(channels):
    with pytest.raises(ModelError, match=f"takes {channels} channels and its VAE makes 4; inpaint mode takes"):
        check("sd1", "inpaint", unet={"in_channels": channels})
    if channels != 5:
        with pytest.raises(ModelError, match=f"takes {channels} channels and its VAE makes 4; depth mode takes"):
            check("sd2_depth", "depth", unet={"in_channels": channels})


def test_a_flux_folder_is_told_its_family_before_its_missing_files(tmp_path):
    write(tmp_path, {"model_index.json": {"_class_name": "FluxPipeline"}, "transformer/config.json": {}})
    with pytest.raises(ModelError, match="is a FluxPipeline"):
        resolve(tmp_path)


@pytest.mark.parametrize("family", ["sd1", "sd2_base", "sd2_v"])
def test_tiny_checkpoints_resolve_and_load(family, tmp_path):
    from stereo_jobs.models.stable_diffusion import StableDiffusion

    recipe = resolve(write_checkpoint(tmp_path, family))
    assert recipe.size.width == (128 if family == "sd2_v" else 64)
    assert not StableDiffusion.load(recipe.models.stable_diffusion, "cpu").depth_conditioned


# --- The files of a checkpoint ---


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_part_needs_weights_of_its_own(sd, part):
    path = next((sd / part).glob("*.safetensors"))
    path.unlink()
    with pytest.raises(ModelError, match=f"no .safetensors weights in {part}; convert it"):
        resolve(sd)
    path.with_suffix(".bin").touch()
    with pytest.raises(
        ModelError, match=rf"in {part}, only pickles \({part}/{path.stem}.bin\), which are never loaded"
    ):
        resolve(sd)


def test_a_variant_must_be_there_for_every_part(sd):
    with pytest.raises(
        ModelError, match=r"no unet weights of variant 'fp16', only unet/diffusion_pytorch_model.safetensors"
    ):
        resolve({"path": str(sd), "variant": "fp16"})
    for name in WEIGHTS:
        (sd / f"{name}.safetensors").rename(sd / f"{name}.fp16.safetensors")
    assert resolve({"path": str(sd), "variant": "fp16"}).models.stable_diffusion.revision
    words = "no unet weights without a variant, only unet/diffusion_pytorch_model.fp16.safetensors; set .*variant"
    with pytest.raises(ModelError, match=words):
        resolve(sd)


def test_weights_of_another_variant_do_not_count(sd):
    before = resolve(sd).models.stable_diffusion.revision
    for name in WEIGHTS:
        (sd / f"{name}.fp16.safetensors").write_bytes(b"other")
        (sd / f"{name}.non_ema.safetensors").write_bytes(b"other")
    assert resolve(sd).models.stable_diffusion.revision == before
    assert resolve({"path": str(sd), "variant": "fp16"}).models.stable_diffusion.revision != before


def test_sharded_weights_are_weights(sd):
    name = "unet/diffusion_pytorch_model"
    (sd / f"{name}.safetensors").rename(sd / f"{name}-00001-of-00002.safetensors")
    before = resolve(sd).models.stable_diffusion.revision
    (sd / f"{name}-00002-of-00002.safetensors").write_bytes(b"more")
    assert resolve(sd).models.stable_diffusion.revision != before


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_words_is_refused(sd, name):
    (sd / "tokenizer" / name).unlink()
    with pytest.raises(ModelError, match=r"tokenizer holds neither tokenizer.json nor vocab.json and merges.txt"):
        resolve(sd)
    (sd / "tokenizer/tokenizer.json").write_text("{}")
    resolve(sd)


def test_a_single_file_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "v1-5-pruned-emaonly.safetensors"
    path.touch()
    with pytest.raises(ModelError, match=r"is a single file; .*from_single_file\(\.\.\.\)\.save_pretrained"):
        resolve(path)


# --- The embedded model of depth mode ---


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A stand-in for the embedded models: `sd_depth` holds only what differs from `sd`."""
    write_checkpoint(tmp_path / "sd", "sd2_base")
    whole = write_checkpoint(tmp_path / "whole", "sd2_depth", seed=7)
    for name in ("unet", "model_index.json"):
        (tmp_path / "sd_depth").mkdir(exist_ok=True)
        shutil.move(whole / name, tmp_path / "sd_depth" / name)
    shutil.copytree(DEMO_DEPTH, tmp_path / "depth")
    monkeypatch.setattr(model_files, "DEMO_FOLDER", tmp_path)
    return tmp_path


def test_the_depth_demo_shares_what_it_lacks_with_the_plain_one(demo):
    from stereo_jobs.models.stable_diffusion import StableDiffusion

    plain, depth = (resolve(mode=mode).models.stable_diffusion for mode in ("text", "depth"))
    assert resolve(mode="image").models.stable_diffusion == resolve(mode="inpaint").models.stable_diffusion == plain
    assert plain.revision != depth.revision
    assert fetch(depth, "depth") == demo / "sd_depth"
    assert part_folder(demo / "sd_depth", "unet") == demo / "sd_depth/unet"
    assert part_folder(demo / "sd_depth", "vae") == demo / "sd/vae"
    sd = StableDiffusion.load(depth, "cpu", "depth")
    assert sd.depth_conditioned
    assert not StableDiffusion.load(plain, "cpu", "text").depth_conditioned
    # The shared parts belong to its content.
    (demo / "sd/vae/config.json").write_text((demo / "sd/vae/config.json").read_text() + " ")
    assert resolve(mode="depth").models.stable_diffusion.revision != depth.revision


def test_only_the_demo_shares_parts(demo):
    folder = shutil.copytree(demo / "sd_depth", demo / "mine/sd_depth")
    shutil.copytree(demo / "sd", demo / "mine/sd")
    with pytest.raises(ModelError, match=r"vae/config.json is missing"):
        resolve(folder, mode="depth")


# --- What goes together ---


def test_another_stable_diffusion_needs_an_estimator_to_be_named(tmp_path):
    from stereo_jobs.notebook import StereoPipeline

    folder = str(write_checkpoint(tmp_path, "sd1"))
    models = {"stable_diffusion": {"path": folder}}
    words = r"recipe\.models\.depth: must be given for .*, for example {path: depth-anything/.*}; .* {path: demo}"
    with pytest.raises(ModelError, match=words):
        resolve_recipe(Recipe(models=models))
    with pytest.raises(ModelError, match=words):
        StereoPipeline.from_pretrained(folder, device="cpu")
    chosen = resolve_recipe(Recipe(models=models | {"depth": {"path": "demo"}}))
    stored = Recipe.model_validate(chosen.model_dump(mode="json"))
    assert resolve_recipe(stored) == resolve_recipe(chosen) == chosen
    # Known disparities need no estimator, unless quality control uses it on the left views.
    known = {"mode": "image", "method": {"geometry": "metric"}}
    assert resolve_recipe(Recipe(models=models, quality={"enabled": False}, **known)).models.depth.path == "demo"
    with pytest.raises(ModelError, match=words):
        resolve_recipe(Recipe(models=models, **known))


@pytest.mark.parametrize(
    ("scheduler", "method", "said"),
    [
        ({}, {"scheduler": "ddim", "steps": 600}, r"recipe\.method\.steps: 600 begin below full noise.*use 500"),
        (
            {"timestep_spacing": "trailing"},
            {"scheduler": "dpm++_karras"},
            r"method\.scheduler: .* use dpm\+\+ or ddim",
        ),
        ({"timestep_spacing": "odd"}, {}, "timestep_spacing 'odd' is not leading or linspace or trailing"),
    ],
)
def test_a_schedule_that_is_not_right_is_refused_before_anything_is_loaded(sd, depth, scheduler, method, said):
    write(sd, {"scheduler/scheduler_config.json": {"prediction_type": "epsilon"} | scheduler})
    with pytest.raises(ModelError, match=said):
        resolve(sd, depth, method=method)


@pytest.mark.parametrize(
    ("spacing", "method", "sampler"),
    [
        ("leading", {}, "dpm++_karras"),
        ("linspace", {}, "dpm++_karras"),
        ("trailing", {}, "dpm++"),  # as SD-Turbo has it
        ("trailing", {"steps": 4, "guidance_scale": 1.0}, "dpm++"),
        ("trailing", {"scheduler": "ddim"}, "ddim"),
        ("leading", {"preset": "official"}, "ddim"),
    ],
)
def test_the_sampler_suits_the_checkpoint_and_stands_in_the_resolved_recipe(sd, depth, spacing, method, sampler):
    write(sd, {"scheduler/scheduler_config.json": {"prediction_type": "epsilon", "timestep_spacing": spacing}})
    assert resolve(sd, depth, method=method).method.scheduler == sampler


@pytest.mark.parametrize("mode", ["image", "inpaint"])
def test_null_text_inversion_needs_more_than_bfloat16(mode):
    sd, method = {"path": "demo", "dtype": "bfloat16"}, {"preset": "official"}
    words = (
        r"recipe\.method\.inversion: null_text needs finer gradients than .* bfloat16 gives; set the dtype to float16"
    )
    with pytest.raises(ModelError, match=words):
        resolve(sd, mode=mode, method=method)
    resolve(sd, mode="text", method=method)  # inverts nothing
    with pytest.raises(ModelError, match=words):
        resolve(sd, mode="text", method=method | {"two_pass": True})
    for other in ({"inversion": "direct"}, {"right_view": "stretch"}):
        resolve(sd, mode=mode, method=method | other)
    resolve(sd | {"dtype": "float16"}, mode=mode, method=method)


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
        ({"model_type": "depth_pro"}, "inverse"),
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
    from stereo_jobs.models.depth_estimator import DepthEstimator
    from stereo_jobs.models.stable_diffusion import StableDiffusion

    with pytest.raises(ModelError, match="cannot be loaded"):
        StableDiffusion.load(StableDiffusionSpec(path=str(sd)), "cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        DepthEstimator.load(DepthSpec(path=str(depth), polarity="inverse"), "cpu")
    with pytest.raises(ModelError, match="polarity must be inverse or metric, got 'auto'"):
        DepthEstimator.load(DepthSpec(), "cpu")


def test_a_v_prediction_checkpoint_makes_pairs(tmp_path):
    from stereo_jobs.pipeline.generator import PairGenerator
    from stereo_jobs.records import Row, StereoPair

    method = {"steps": 4, "shift_step": 1, "recopy_interval": 2, "attention_step": 1}
    recipe = resolve(write_checkpoint(tmp_path, "sd2_v"), method=method, size={"width": 128, "height": 64})
    pipeline = PairGenerator.load(recipe, "cpu", 2)
    assert (pipeline.sd.latent_factor, pipeline.sd.scheduler_config["prediction_type"]) == (8, "v_prediction")
    rows = [Row(f"row-{i}", "a red circle", "", i, 10.0) for i in range(3)]
    results = pipeline.generate(rows)
    assert [type(result) for result in results] == [StereoPair] * 3
    assert results[0].left.shape == results[0].right.shape == (64, 128, 3)
    assert not (results[0].left == results[1].left).all()


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from stereo_jobs.models.depth_estimator import DepthEstimator

    folder = tmp_path / "depth"
    shutil.copytree(DEMO_SD.parent / "depth", folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing"):
        DepthEstimator(folder, "inverse", torch.float32, "cpu")


@pytest.mark.parametrize("path", ["~nobody-at-all/x", "x" * 5000 + "/y"])
def test_a_path_that_cannot_be_one_is_refused(path):
    with pytest.raises(ModelError, match="not a usable path"):
        local_folder(path, "sd")
