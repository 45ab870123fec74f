"""The decoder's own lesson: it leaves the latent space as it is, and ringing is measured where it is."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.toyscapes import decoder, vae
from stereo_jobs.toyscapes.__main__ import app
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from stereo_jobs.toyscapes.training import Machine, Schedule, averaged, train
from tests.toyscapes.lessons import EVERY_STEP

pytestmark = pytest.mark.usefixtures("one_thread")

EMBEDDED = DEMO_FOLDER / "sd/vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHORT = Schedule(steps=3, batch=2, learning_rate=3e-4, warmup=1, ema=0.5)


@pytest.fixture(scope="module")
def scenes():
    return [render(draw_scene(seed, "test", "plain")) for seed in range(3)]


def lefts(scenes):
    return np.stack([scene.left for scene in scenes])


# --- The lesson ---


class Hasty(decoder.DecoderLesson):
    """Sees a corner of the same two views in every step and measures nothing."""

    def draw(self, step, rank, device):
        batch = super().draw(0, rank, device)
        return {"pixels": batch["pixels"][..., 64:, 64:], "latents": batch["latents"][..., 16:, 16:]}

    def evaluate(self, networks):
        return {}


def hasty(schedule):
    return Hasty(schedule, EMBEDDED)


def loss_of(networks):
    with torch.no_grad():
        return float(networks(hasty(SHORT).draw(0, 0, "cpu")))


def test_training_lowers_the_loss_and_changes_the_decoder_alone(tmp_path):
    schedule = replace(SHORT, steps=12)
    train(hasty, schedule, tmp_path)
    lesson, networks, _ = averaged(hasty, schedule, tmp_path)
    assert loss_of(networks) < 0.98 * loss_of(lesson.networks)
    decoder.export(networks, tmp_path / "vae")
    before, after = load_file(EMBEDDED / WEIGHTS), load_file(tmp_path / "vae" / WEIGHTS)
    assert before.keys() == after.keys()
    assert {weights.dtype for weights in after.values()} == {torch.float16}
    for name, weights in before.items():
        learned = name.startswith(("decoder.", "post_quant_conv."))
        assert learned or torch.equal(weights, after[name]), name
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert str(tmp_path) not in (tmp_path / "vae/config.json").read_text()


def test_latents_stay_the_same_to_the_bit_after_export(tmp_path, scenes):
    decoder.export(hasty(SHORT).networks, tmp_path)
    images = lefts(scenes[:1])
    before, after = (
        vae.encode(AutoencoderKL.from_pretrained(folder, local_files_only=True).eval(), images)
        for folder in (EMBEDDED, tmp_path)
    )
    assert torch.equal(before, after)


def test_a_stopped_training_of_the_decoder_ends_where_an_undisturbed_one_does(tmp_path):
    class Stopped(Hasty):
        def draw(self, step, rank, device):
            if step == 2:
                raise KeyboardInterrupt
            return super().draw(step, rank, device)

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        train(lambda schedule: Stopped(schedule, EMBEDDED), SHORT, stopped, Machine(checkpoint_s=EVERY_STEP))
    train(hasty, SHORT, stopped)
    train(hasty, SHORT, whole)
    one, other = (averaged(hasty, SHORT, folder)[1].state_dict() for folder in (stopped, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_sees_both_views_with_the_latents_of_a_job():
    lesson = decoder.DecoderLesson(replace(SHORT, batch=6), EMBEDDED)
    batch = lesson.draw(0, 0, "cpu")
    assert batch["pixels"].shape == (6, 3, 128, 128)
    seeds, views = (np.random.default_rng([4, 0, 0]).integers(end, size=6) for end in (decoder.SCENES, 2))
    scene = render(draw_scene(int(seeds[0])))
    image = (scene.left, scene.right)[views[0]]
    assert torch.equal(batch["pixels"][:1], vae.to_pixels(image[None]))
    found = vae.encode(AutoencoderKL.from_pretrained(EMBEDDED, local_files_only=True).eval(), image[None])
    torch.testing.assert_close(batch["latents"][:1], found, atol=1e-5, rtol=0)


# --- Ringing ---


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_overshoot_is_what_a_slow_loop_finds(seed):
    rng = np.random.default_rng(seed)
    pixels, original = rng.normal(size=(2, 1, 1, 7, 9)).astype(np.float32)
    found = decoder.overshoot(torch.from_numpy(pixels), torch.from_numpy(original)).numpy()[0, 0]
    for y, x in np.ndindex(7, 9):
        near = original[0, 0, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        assert found[y, x] == pytest.approx(max(0, pixels[0, 0, y, x] - near.max(), near.min() - pixels[0, 0, y, x]))


def test_a_picture_does_not_ring_beside_itself_nor_when_it_is_blurred(scenes):
    assert decoder.ringing(lefts(scenes), scenes) == 0
    assert decoder.ringing(np.stack([cv2.blur(scene.left, (3, 3)) for scene in scenes]), scenes) == 0


def test_planted_halos_are_found_and_other_grain_is_not(scenes):
    """A halo as a sharpening filter draws it, 2 px around edges."""
    sharpened = [cv2.addWeighted(s.left, 1.5, cv2.GaussianBlur(s.left, (0, 0), 2), -0.5, 0) for s in scenes]
    assert decoder.ringing(np.stack(sharpened), scenes) > 0.1
    assert decoder.ringing_of_grain(3) < 0.03


def test_ringing_is_measured_near_outlines_alone(scenes):
    near = decoder.near_outlines(scenes)
    assert near.shape == (3, 128, 128)
    assert 0.02 < near.mean() < 0.3
    spoiled = np.where(near[..., None], lefts(scenes), 0)
    assert decoder.ringing(spoiled, scenes) == 0
    spoiled = np.where(near[..., None], 255, lefts(scenes))
    assert 0.5 < decoder.ringing(spoiled, scenes) <= 1


# --- The command ---


def test_without_models_the_command_trains_a_copy_of_the_embedded_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "lesson", lambda folder: hasty)
    monkeypatch.setattr(decoder, "SCHEDULE", SHORT)
    result = CliRunner().invoke(app, ["decoder", "--work", str(tmp_path), "--processes", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "decoder/progress.jsonl").read_text())["step"] == SHORT.steps
    weights = load_file(tmp_path / "models/sd/vae" / WEIGHTS)
    trained = averaged(hasty, SHORT, tmp_path / "decoder")[1].state_dict()
    assert all(torch.equal(weights[name], trained[f"vae.{name}"].half()) for name in weights)
    assert (tmp_path / "models/depth/model.safetensors").is_file()


def test_the_decoder_of_a_vae_that_is_not_there_is_not_trained(tmp_path):
    (tmp_path / "models/depth").mkdir(parents=True)
    result = CliRunner().invoke(app, ["decoder", "--work", str(tmp_path)])
    assert result.exit_code == 2
    assert "no VAE in it yet" in result.output
