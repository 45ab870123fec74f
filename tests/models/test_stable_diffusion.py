"""Every family of Stable Diffusion checkpoints, as published and as saved today, equals its reference."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionPipeline,
)
from torch.nn import functional

from stereo_jobs.errors import ModelError
from stereo_jobs.models import stable_diffusion
from stereo_jobs.models.files import local_folder
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import VOCABULARY, draw_scene
from stereo_jobs.toyscapes.tokenizer import new_tokenizer
from tests.models.tiny import FAMILIES, configs, network, write_checkpoint
from tests.schedulers import reference_scheduler

PREDICTION = dict.fromkeys(FAMILIES, "epsilon") | {"sd2_v": "v_prediction"}
PROMPTS = ["a red circle, a cat", "two"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def loaded(folders):
    """Family -> loaded checkpoint."""
    return {family: StableDiffusion(folder, torch.float32, "cpu") for family, folder in folders.items()}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def solver_of(sd, steps=20, sampler="ddim"):
    return Solver.of(sd.scheduler_config, steps, sampler)


# --- Parts ---


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_every_family_loads_and_runs(loaded, family):
    sd = loaded[family]
    assert sd.depth_conditioned == (family == "sd2_depth")
    assert solver_of(sd).prediction == PREDICTION[family]
    assert (sd.latent_channels, sd.latent_factor, sd.size_multiple, sd.prompt_tokens) == (4, 8, 64, 77)
    text = sd.encode_prompts(PROMPTS)
    assert text.shape == (2, 77, sd.unet.config.cross_attention_dim)
    latents = sd.encode(images(2, 3, 64, 128))
    assert (latents.shape, latents.dtype) == ((2, 4, 8, 16), torch.float32)
    decoded = sd.decode(latents)
    assert (decoded.shape, decoded.dtype) == ((2, 3, 64, 128), torch.float32)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    sample = torch.cat([latents, noise(2, 1, 8, 16)], 1) if sd.depth_conditioned else latents
    predicted = sd.unet(sample, 500, text).sample
    assert predicted.shape == latents.shape
    assert torch.isfinite(predicted).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_published_weights_are_those_the_libraries_save_today(loaded, family, tmp_path):
    # The published files name their weights as older libraries did.
    other = StableDiffusion(write_checkpoint(tmp_path, family, resaved=True), torch.float32, "cpu")
    sd = loaded[family]
    torch.testing.assert_close(sd.encode_prompts(PROMPTS), other.encode_prompts(PROMPTS), rtol=0, atol=0)
    torch.testing.assert_close(sd.encode(images(1, 3, 64, 64)), other.encode(images(1, 3, 64, 64)), rtol=0, atol=0)
    torch.testing.assert_close(sd.decode(noise(1, 4, 8, 8)), other.decode(noise(1, 4, 8, 8)), rtol=0, atol=0)
    for one, two in zip(sd.unet.parameters(), other.unet.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("family", "text", "unet"),
    [
        ("sd1", 123_060_480, 859_520_964),
        ("sd2_base", 340_387_840, 865_910_724),
        ("sd2_depth", 340_387_840, 865_913_604),
    ],
)
def test_the_configs_have_the_published_numbers_of_parameters(family, text, unet):
    files = configs(family, full=True)
    for part, count in (("text_encoder", text), ("unet", unet), ("vae", 83_653_863)):
        with torch.device("meta"):
            made = network(part, files[f"{part}/config.json"])
        assert sum(weights.numel() for weights in made.parameters()) == count, part


def test_a_variant_of_the_weights_is_read_by_its_name(tmp_path):
    folder = write_checkpoint(tmp_path, "sd1", variant="fp16", dtype=torch.float16)
    assert StableDiffusion(folder, torch.float32, "cpu", "fp16").unet.dtype == torch.float32
    with pytest.raises(ModelError, match="text_encoder: cannot be loaded"):
        StableDiffusion(folder, torch.float32, "cpu")


def test_loading_says_nothing(folders, caplog, monkeypatch):
    """Otherwise diffusers recommends a library that is not needed, in four lines for each network."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    StableDiffusion(folders["sd1"], torch.float32, "cpu")
    assert caplog.text == ""


def test_a_part_without_weights_or_tokenizer_is_named(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="sd/vae: cannot be loaded"):
        StableDiffusion(folder, torch.float32, "cpu")
    (folder / "tokenizer/merges.txt").write_text("not merges")
    with pytest.raises(ModelError, match="sd/tokenizer: cannot be loaded"):
        StableDiffusion(folder, torch.float32, "cpu")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelError, match="sd/tokenizer: cannot be loaded"):
        StableDiffusion(folder, torch.float32, "cpu")


# --- Prompts ---


def test_prompts_are_padded_as_the_checkpoint_was_trained(loaded):
    # SD 1 pads with the end token, SD 2 with "!", token 0.
    for family, pad in (("sd1", loaded["sd1"].tokenizer.eos_token_id), ("sd2_base", 0)):
        sd = loaded[family]
        seen = []
        sd.text_encoder.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        sd.encode_prompts(["a red cat"])
        sd.text_encoder._forward_pre_hooks.clear()
        assert seen[0].shape == (1, 77)
        assert seen[0][0, 5:].tolist() == [pad] * 72


@pytest.mark.parametrize("family", FAMILIES)
def test_long_prompts_are_cut_off_and_told(loaded, family):
    sd = loaded[family]
    fits, cut = " ".join(["red"] * 75), " ".join(["red"] * 76)
    assert not sd.truncated("")
    assert not sd.truncated(fits)
    assert sd.truncated(cut)
    assert sd.truncated("red " * 5000)
    with torch.inference_mode():
        embeddings = sd.encode_prompts([fits, cut, "red " * 5000])
    assert embeddings.shape[:2] == (3, 77)
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=0, atol=1e-5)


def test_a_tokenizer_that_states_no_length_takes_the_encoders(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    path = folder / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    assert StableDiffusion(folder, torch.float32, "cpu").encode_prompts(["a red cat"]).shape[1] == 77


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("", []),
        ("a red dotted circle on the left, green floor, grey wall", []),
        ("A RED circle", []),
        ("a red unicorn in front of a blue square", ["unicorn"]),
        ("Dragons, a red circle, Zebra, dragons and zebra", ["Dragons", "Zebra"]),
        ("un café près d'un circle 🙂🙂", ["un", "café", "près", "d", "🙂🙂"]),
        (" ".join(["circle"] * 100 + ["unicorn"]), ["unicorn"]),
    ],
)
def test_words_outside_a_closed_vocabulary_are_told(folders, tmp_path, prompt, unknown):
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    shutil.rmtree(folder / "tokenizer")
    new_tokenizer(VOCABULARY).save_pretrained(folder / "tokenizer")
    sd = StableDiffusion(folder, torch.float32, "cpu")
    # A single letter is always a token.
    assert sd.unknown_words(prompt) == [word for word in unknown if word != "d"]


def test_an_open_vocabulary_has_no_unknown_words(loaded):
    assert loaded["sd1"].unknown_words("a red unicorn") == []


# --- Images ---


def test_encode_is_the_mean_of_the_posterior(loaded):
    sd = loaded["sd1"]
    pixels = images(2, 3, 64, 64)
    with torch.inference_mode():
        posterior = sd.vae.encode(pixels * 2 - 1).latent_dist
        torch.testing.assert_close(sd.encode(pixels), posterior.mean * 0.18215)
        assert torch.equal(sd.encode(pixels), sd.encode(pixels))


def test_the_scaling_factor_is_the_checkpoints(folders, loaded, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5}))
    other, sd = StableDiffusion(folder, torch.float32, "cpu"), loaded["sd1"]
    with torch.inference_mode():
        torch.testing.assert_close(other.encode(images(1, 3, 64, 64)) / 0.5, sd.encode(images(1, 3, 64, 64)) / 0.18215)
        torch.testing.assert_close(other.decode(noise(1, 4, 8, 8) * 0.5), sd.decode(noise(1, 4, 8, 8) * 0.18215))


def test_decode_undoes_encode_on_what_the_vae_was_trained_for():
    sd = StableDiffusion(local_folder("demo", "sd"), torch.float32, "cpu")
    scenes = np.stack([render(draw_scene(seed, "test")).left for seed in range(4)])
    pixels = torch.from_numpy(scenes).permute(0, 3, 1, 2) / 255  # B,H,W,3 [0,255] -> B,3,H,W [0,1]
    with torch.inference_mode():
        error = (sd.decode(sd.encode(pixels)) - pixels).square().mean()
    assert -10 * error.log10() > 22  # dB; a wrong range or scale gives less than 12


@pytest.mark.parametrize("size", [(64, 60), (63, 64)])
def test_images_that_do_not_fit_the_latent_grid_are_refused(loaded, size):
    with pytest.raises(ValueError, match=f"multiples of 8 pixels, got {size[1]}x{size[0]}"):
        loaded["sd1"].encode(images(1, 3, *size))


@pytest.mark.parametrize(
    ("dtype", "config", "vae"),
    [
        (torch.float16, {}, torch.float16),
        (torch.float16, {"force_upcast": True}, torch.float16),
        (torch.float16, {"force_upcast": False}, torch.float16),
        (torch.bfloat16, {}, torch.bfloat16),
    ],
)
@torch.inference_mode()
def test_half_precision(folders, loaded, tmp_path, dtype, config, vae):
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    sd = StableDiffusion(folder, dtype, "cpu")
    assert (sd.unet.dtype, sd.text_encoder.dtype, sd.vae.dtype) == (dtype, dtype, vae)
    assert sd.encode_prompts(PROMPTS).dtype == dtype
    latents, pixels = noise(1, 4, 8, 8), images(1, 3, 64, 64)
    tolerance = {"rtol": 0, "atol": 0.05}
    torch.testing.assert_close(sd.decode(latents), loaded["sd1"].decode(latents), **tolerance)
    torch.testing.assert_close(sd.encode(pixels), loaded["sd1"].encode(pixels), **tolerance)


@torch.inference_mode()
def test_upcasting_saves_images_that_overflow_float16(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.weight"] *= 1e6  # the normalisations that follow undo it
    save_file(weights, path, {"format": "pt"})
    sd, latents = StableDiffusion(folder, torch.float16, "cpu"), noise(2, 4, 8, 8)
    latents[1] = torch.nan
    decoded = sd.decode(latents)
    assert decoded[0].isfinite().all()
    assert torch.equal(decoded[0], StableDiffusion(folder, torch.float32, "cpu").decode(latents[:1])[0])
    assert not decoded[1].isfinite().any()
    config = folder / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    assert not StableDiffusion(folder, torch.float16, "cpu").decode(noise(1, 4, 8, 8)).isfinite().any()


@pytest.mark.parametrize("fitting", [1, 2, 3])
@torch.inference_mode()
def test_the_vae_takes_a_large_batch_in_parts(loaded, monkeypatch, fitting):
    sd, latents = loaded["sd1"], noise(3, 4, 8, 8)
    seen = []
    work = sd.vae.decode
    monkeypatch.setattr(sd.vae, "decode", lambda part: (seen.append(len(part)), work(part))[1])
    whole = sd.decode(latents)
    monkeypatch.setattr(stable_diffusion, "VAE_PIXELS", fitting * 64 * 64 + 1)
    parts = sd.decode(latents)
    assert seen == [3, *{1: [1, 1, 1], 2: [2, 1], 3: [3]}[fitting]]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


# --- Samplers ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["ddim", "dpm++_karras"])
def test_samplers_follow_the_checkpoints_noise_and_the_methods_timesteps(loaded, family, name):
    solver = solver_of(loaded[family], 20, name)
    assert solver.prediction == PREDICTION[family]
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    alphas = DDIMScheduler(**betas).alphas_cumprod.double()
    levels = torch.cat([alphas[solver.timesteps], alphas[:1]])
    if name == "ddim":
        assert solver.timesteps.tolist() == list(range(951, 0, -50))
        torch.testing.assert_close(solver.alphas, levels, rtol=1e-5, atol=0)
    else:
        assert solver.timesteps.tolist()[0] == 999
        torch.testing.assert_close(solver.alphas[[0, -1]], levels[[0, -1]], rtol=1e-5, atol=0)
        noise_to_signal = ((1 - solver.alphas) / solver.alphas).sqrt() ** (1 / 7)  # evenly spaced
        torch.testing.assert_close(noise_to_signal.diff(), noise_to_signal.diff().mean().expand(20))


@pytest.mark.parametrize("name", ["ddim", "dpm++", "dpm++_karras"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_how_the_checkpoint_was_saved_does_not_choose_the_sampler(loaded, folders, tmp_path, name, kind):
    """It chooses the spacing of the timesteps alone."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "sd")
    config = loaded["sd1"].scheduler_config
    options = {"timestep_spacing": "linspace" if name == "dpm++_karras" else "trailing"}
    plain = Solver.of(config | options, 20, name)
    if kind is DPMSolverMultistepScheduler:
        options |= {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
    else:
        options |= {"clip_sample": True, "set_alpha_to_one": True}
    kind.from_config(config, **options).save_pretrained(folder / "scheduler")
    saved = solver_of(StableDiffusion(folder, torch.float32, "cpu"), 20, name)
    assert torch.equal(saved.timesteps, plain.timesteps)
    assert torch.equal(saved.timesteps, solver_of(loaded["sd1"], 20, name).timesteps) == (name == "dpm++_karras")
    x, e = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    for i in range(17, 20):
        assert torch.equal(saved.step(i, x, e)[0], plain.step(i, x, e)[0])


def test_another_sampler_is_refused(loaded):
    with pytest.raises(ValueError, match=r"must be auto, ddim, dpm\+\+ or dpm\+\+_karras, got 'euler'"):
        solver_of(loaded["sd1"], 20, "euler")


MEAN, SPREAD = 0.7, 1.0


def gaussian_error(solver, prediction):
    """Largest error of sampling a Gaussian, whose probability flow is known, against that flow.

    With x_t = sqrt(a) x_0 + sqrt(1-a) e the marginal has mean sqrt(a) MEAN and variance a SPREAD^2 + 1 - a, and the
    flow keeps (x - mean) / deviation.
    """
    x = start = torch.linspace(-3, 3, 31, dtype=torch.float64)
    predicted = None

    def mean_and_deviation(alpha):
        return alpha.sqrt() * MEAN, (alpha * SPREAD**2 + 1 - alpha).sqrt()

    for i, alpha in enumerate(solver.alphas[:-1]):
        mean, deviation = mean_and_deviation(alpha)
        e = (1 - alpha).sqrt() * (x - mean) / deviation**2
        clean = (x - (1 - alpha).sqrt() * e) / alpha.sqrt()
        output = e if prediction == "epsilon" else alpha.sqrt() * e - (1 - alpha).sqrt() * clean
        x, predicted = solver.step(i, x, output, predicted)
    mean, deviation = mean_and_deviation(solver.alphas[0])
    end_mean, end_deviation = mean_and_deviation(solver.alphas[-1])
    return float((x - (end_mean + end_deviation * (start - mean) / deviation)).abs().max())


@pytest.mark.parametrize("family", ["sd1", "sd2_v"])
def test_a_gaussian_is_sampled_as_the_exact_flow_says(loaded, family):
    errors = {
        (name, steps): gaussian_error(solver_of(loaded[family], steps, name), PREDICTION[family])
        for name in ("ddim", "dpm++_karras")
        for steps in (20, 50, 100, 200)
    }
    assert errors["ddim", 200] < 0.025
    assert errors["dpm++_karras", 20] < errors["ddim", 100]
    assert errors["dpm++_karras", 50] < errors["ddim", 200] / 2
    # Twice the steps halve the error of a method of first order; one of second order comes near a quarter.
    assert 1.8 < errors["ddim", 50] / errors["ddim", 100] < 2.1
    assert errors["dpm++_karras", 100] / errors["dpm++_karras", 200] > 2.8


# --- The reference: diffusers' own pipelines ---


def sample(sd, name, x, prompts, guidance, steps, depth=None):
    """Plain guided sampling with the parts of `StableDiffusion`."""
    solver, predicted = solver_of(sd, steps, name), None
    text = torch.cat([sd.encode_prompts([""] * len(prompts)), sd.encode_prompts(prompts)])
    for i, timestep in enumerate(solver.timesteps):
        both = torch.cat([x, x])
        if depth is not None:
            both = torch.cat([both, torch.cat([depth, depth])], 1)
        without, given = sd.unet(both, timestep, text).sample.chunk(2)
        x, predicted = solver.step(i, x, without + guidance * (given - without), predicted)
    return sd.decode(x)


@pytest.mark.parametrize("family", ["sd1", "sd2_base", "sd2_v"])
@pytest.mark.parametrize(("name", "steps"), [("ddim", 4), ("dpm++_karras", 4), ("dpm++_karras", 16)])
@torch.inference_mode()
def test_images_are_those_of_the_diffusers_pipeline(loaded, folders, family, name, steps):
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline.from_pretrained(folders[family], **parts)
    pipeline.scheduler = reference_scheduler(name, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    x = noise(2, 4, 8, 16)
    there = pipeline(
        PROMPTS, height=64, width=128, latents=x, num_inference_steps=steps, guidance_scale=7.5, output_type="pt"
    ).images
    here = sample(loaded[family], name, x, PROMPTS, 7.5, steps)
    assert here.std() > 0.02
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_depth_conditioned_images_are_those_of_the_diffusers_pipeline(loaded, folders):
    sd = loaded["sd2_depth"]
    parts = {"depth_estimator": None, "feature_extractor": None}
    pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(folders["sd2_depth"], **parts)
    pipeline.scheduler = reference_scheduler("ddim", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    image, inverse_depth = images(1, 3, 64, 128), images(1, 64, 128, seed=1)
    there = pipeline(
        PROMPTS[0],
        image=image,
        depth_map=inverse_depth,
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    # At strength 1 it begins with the image's latent, drawn from the posterior, under nearly all of the noise.
    generator = torch.Generator().manual_seed(5)
    start = sd.vae.encode(image * 2 - 1).latent_dist.sample(generator) * sd.vae.config.scaling_factor
    x = solver_of(sd, 4).renoise(start, torch.randn(start.shape, generator=generator), 0)
    depth = functional.interpolate(inverse_depth[:, None], size=(8, 16), mode="bicubic", align_corners=False)
    depth = 2 * (depth - depth.amin()) / (depth.amax() - depth.amin()) - 1  # [-1,1], 1 the nearest
    here = sample(sd, "ddim", x, PROMPTS[:1], 7.5, 4, depth)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
    assert (sample(sd, "ddim", x, PROMPTS[:1], 7.5, 4, -depth) - there).abs().max() > 1e-2
