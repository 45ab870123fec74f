"""The lessons of the demo models: what they draw, what they measure, and what they export."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio
from transformers import AutoModelForDepthEstimation, CLIPTextModel, CLIPTokenizer

from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.toyscapes import decoder, depth, diffusion, judge, vae
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import COLOURS, LEVELS, POSITIONS, SHAPES, VOCABULARY, draw_scene
from stereo_jobs.toyscapes.tokenizer import LENGTH, new_tokenizer
from stereo_jobs.toyscapes.training import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = Schedule(steps=2, batch=6, learning_rate=1e-3)


@pytest.fixture(scope="module")
def new_vae():
    """An untrained VAE whose latents have neither mean 0 nor variance 1."""
    torch.manual_seed(0)
    network = vae.new_vae().eval()
    with torch.no_grad():
        network.quant_conv.bias.add_(torch.tensor([3.0, -2, 1, 0.5, -4, -5, -6, -7]))
        network.quant_conv.weight.mul_(5)
    return network


@pytest.fixture(scope="module")
def images():
    return vae.held_out(4)


@pytest.fixture(scope="module")
def latents(new_vae, tmp_path_factory):
    """Cached latents: two chunks of a few training scenes, one of held-out ones."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "CHUNK", 4)
        diffusion.cache(new_vae, folder, "train", range(2))
        diffusion.cache(new_vae, folder, "test", range(1))
    return folder


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["vae", "decoder", "diffusion", "depth", "judge"])
def lesson(request):
    """A lesson of each model."""
    if request.param == "diffusion":
        return diffusion.lesson(request.getfixturevalue("latents"))(SHORT)
    if request.param == "decoder":
        request.getfixturevalue("monkeypatch").setattr(decoder, "SCENES", 4)  # fewer to render
        return decoder.lesson(DEMO_FOLDER / "sd/vae")(SHORT)
    return {"vae": vae.VaeLesson, "depth": depth.DepthLesson, "judge": judge.JudgeLesson}[request.param](SHORT)


# --- All of them ---


def test_a_batch_depends_on_the_step_and_the_rank_alone(lesson):
    first = lesson.draw(3, 1, "cpu")
    others = [lesson.draw(step, rank, "cpu") for step, rank in ((4, 1), (3, 0), (1, 3))]
    assert same(lesson.draw(3, 1, "cpu"), first)
    assert not any(same(other, first) for other in others)
    assert {len(part) for part in first.values()} == {SHORT.batch}


def test_every_weight_learns(lesson):
    """A gradient reaches all that is trained, as training in two processes demands."""
    loss = lesson.networks.train()(lesson.draw(0, 0, "cpu"))
    assert (loss.shape, bool(loss > 0)) == ((), True)
    loss.backward()
    for name, weights in lesson.networks.named_parameters():
        assert (weights.grad is not None) == weights.requires_grad, name
        assert weights.grad is None or torch.isfinite(weights.grad).all(), name


# --- VAE ---


def test_standardised_latents_have_mean_0_and_variance_1(new_vae, images):
    network = copy_of(new_vae)
    assert vae.encode(network, images).mean((0, 2, 3)).abs().max() > 1
    vae.standardise(network, images)
    latents = vae.encode(network, images)  # B,4,32,32
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_standardising_does_not_change_the_pictures(new_vae, images):
    network, pixels = copy_of(new_vae), vae.to_pixels(images)
    vae.standardise(network, images)
    before, after = (net.encode(pixels).latent_dist for net in (new_vae, network))
    torch.testing.assert_close(network.decode(after.mean).sample, new_vae.decode(before.mean).sample, atol=2e-4, rtol=0)
    # A latent that is drawn means the same picture, too.
    noise = torch.randn(before.mean.shape, generator=torch.Generator().manual_seed(0))
    drawn = (net.decode(d.mean + d.std * noise).sample for net, d in ((new_vae, before), (network, after)))
    torch.testing.assert_close(*drawn, atol=2e-4, rtol=0)


def copy_of(network):
    copy = AutoencoderKL.from_config(network.config).eval()
    copy.load_state_dict(network.state_dict())
    return copy


def test_the_vae_sees_crops_of_both_views():
    batch = vae.VaeLesson(SHORT).draw(0, 0, "cpu")
    assert batch["pixels"].shape == (6, 3, 64, 64)
    assert batch["noise"].shape == (6, 4, 16, 16)
    assert -1 <= batch["pixels"].min() < batch["pixels"].max() <= 1
    view = render(draw_scene(int(np.random.default_rng([1, 0, 0]).integers(2**40))))
    for crop, image in ((batch["pixels"][0], view.left), (batch["pixels"][2], view.right)):
        whole = vae.to_pixels(image[None])[0].unfold(1, 64, 1).unfold(2, 64, 1)  # 3,65,65,64,64
        assert (whole == crop[:, None, None]).all((0, 3, 4)).any()


def test_pixels_and_psnr_have_the_ranges_they_say(new_vae, images):
    assert vae.to_pixels(np.array([[[[0, 51, 255]]]], np.uint8)).flatten().tolist() == pytest.approx([-1, -0.6, 1])
    with torch.inference_mode():
        decoded = new_vae.decode(vae.encode(new_vae, images[:1])).sample[0].permute(1, 2, 0)
    shown = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    expected = peak_signal_noise_ratio(images[0], shown)
    assert vae.reconstruction_psnr(new_vae, images[:1]) == pytest.approx([expected])


def test_latents_do_not_depend_on_the_batch(new_vae, images):
    torch.testing.assert_close(vae.encode(new_vae, images, batch=3), vae.encode(new_vae, images), atol=1e-5, rtol=1e-5)


def test_the_exported_vae_is_standardised_half_precision(new_vae, images, tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "held_out", lambda count, split: images)  # fewer of them
    trained = vae.export(vae.VaeLoss(copy_of(new_vae)), tmp_path)
    written = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {weights.dtype for weights in written.values()} == {torch.float16}
    loaded = AutoencoderKL.from_pretrained(tmp_path, local_files_only=True).eval()
    assert (loaded.config.scaling_factor, loaded.config.latent_channels) == (1.0, 4)
    torch.testing.assert_close(vae.encode(loaded, images), vae.encode(trained, images))
    assert vae.encode(loaded, images).std() == pytest.approx(1, abs=0.05)


# --- Diffusion ---


def test_cached_latents_are_those_of_the_scenes(new_vae, latents):
    data = diffusion.Latents.load(latents, "train")
    views = [render(draw_scene(seed)) for seed in range(8)]
    expected = vae.encode(new_vae, np.stack([view.left for view in views]))
    np.testing.assert_array_equal(data.latents, expected.numpy().astype(np.float16))
    decoded = new_tokenizer(VOCABULARY).batch_decode(data.ids, skip_special_tokens=True)
    assert [text.replace(" ,", ",").strip() for text in decoded] == [view.caption for view in views]
    assert (data.ids.shape, data.empty.shape) == ((8, LENGTH), (LENGTH,))
    assert len(diffusion.Latents.load(latents, "test").ids) == 4


def test_what_is_cached_is_not_made_again(new_vae, latents, monkeypatch):
    monkeypatch.setattr(diffusion, "CHUNK", 4)
    before = {path: path.stat().st_mtime_ns for path in latents.iterdir()}
    diffusion.cache(new_vae, latents, "train", range(2))
    assert {path: path.stat().st_mtime_ns for path in latents.iterdir()} == before


def test_missing_latents_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no latents of the train split; make them first"):
        diffusion.DiffusionLesson(SHORT, tmp_path)


def test_depth_is_given_as_the_depth_pipeline_gives_it():
    from diffusers import StableDiffusionDepth2ImgPipeline

    view = render(draw_scene(1))
    pipeline = StableDiffusionDepth2ImgPipeline.__new__(StableDiffusionDepth2ImgPipeline)
    pipeline.vae_scale_factor = 4
    map_ = torch.from_numpy(view.disparity)[None]
    expected = pipeline.prepare_depth_map(
        [torch.zeros(3, 128, 128)], map_, 1, do_classifier_free_guidance=False, dtype=torch.float32, device="cpu"
    )
    found = diffusion.depth_condition(view)
    assert found.shape == (1, 32, 32)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)
    assert (found.min(), found.max()) == pytest.approx((-1, 1))


def test_the_share_without_depth_and_without_caption_is_the_documented_one(latents):
    lesson = diffusion.DiffusionLesson(dataclasses.replace(SHORT, batch=2000), latents)
    batch = lesson.draw(0, 0, "cpu")
    absent = (batch["depth"] == 0).all(dim=(1, 2, 3))
    assert float(absent.float().mean()) == pytest.approx(1 - diffusion.DEPTH_SHARE, abs=0.04)
    empty = torch.from_numpy(lesson.train.empty.astype(np.int64))
    dropped = (batch["ids"] == empty).all(1)
    assert float(dropped.float().mean()) == pytest.approx(diffusion.CAPTION_DROPOUT, abs=0.03)
    # Where it is given, it is the depth of the very scene.
    for sample in range(50):
        (scene,) = np.nonzero((lesson.train.latents == batch["latents"][sample].numpy()).all((1, 2, 3)))
        expected = 0 if absent[sample] else lesson.train.depth[scene[0]].astype(np.float32)
        assert (batch["depth"][sample].numpy() == expected).all()
        assert dropped[sample] or (batch["ids"][sample].numpy() == lesson.train.ids[scene[0]]).all()


def test_timesteps_cover_the_whole_range_in_every_batch(latents):
    batch = diffusion.DiffusionLesson(dataclasses.replace(SHORT, batch=10), latents).draw(0, 0, "cpu")
    assert (batch["timesteps"] // 100).tolist() == list(range(10))


def test_timestep_weights_are_those_of_the_documented_rule():
    alpha = diffusion.new_scheduler().alphas_cumprod
    weights = diffusion.timestep_weights(alpha)
    snr = alpha / (1 - alpha)
    slow = [min(5 / s, 1) * (1 + min(1 / s, 10)) / 4 for s in snr.tolist()]
    torch.testing.assert_close(weights, torch.tensor(slow))
    assert weights.shape == alpha.shape
    assert 0 < weights.min() < weights.max() == pytest.approx(11 / 4)
    assert float(weights.mean()) == pytest.approx(1.35, abs=0.01)


def test_a_perfect_prediction_costs_nothing_and_none_costs_the_weights(latents):
    """The loss, with a stand-in for the U-Net's answer."""
    batch = diffusion.DiffusionLesson(SHORT, latents).draw(0, 0, "cpu")
    loss = diffusion.DiffusionLoss(Answer(batch["noise"]), diffusion.new_text_encoder())
    assert float(loss(batch)) == 0
    loss.unet = Answer(torch.zeros_like(batch["noise"]))
    weights = diffusion.timestep_weights(loss.alphas[batch["timesteps"]])
    assert float(loss(batch)) == pytest.approx(float(((batch["noise"] ** 2).mean((1, 2, 3)) * weights).mean()))
    # The picture it was shown is the one noised as the scheduler does.
    noised = diffusion.new_scheduler().add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    torch.testing.assert_close(loss.unet.shown[:, :4], noised)
    assert torch.equal(loss.unet.shown[:, 4:], batch["depth"])


class Answer(torch.nn.Module):
    """Predicts what it was made with."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, shown, timesteps, words):
        self.shown = shown
        return dataclasses.make_dataclass("Output", ["sample"])(self.noise)


@pytest.fixture(scope="module")
def exported(latents, tmp_path_factory):
    """Folder of the exported, untrained diffusion models, and the networks."""
    models = tmp_path_factory.mktemp("models")
    networks = diffusion.DiffusionLesson(SHORT, latents).networks.eval()
    diffusion.export(networks, models)
    return models, networks


@torch.inference_mode()
def test_without_depth_the_plain_unet_is_the_same_network(exported):
    models, _ = exported
    four = UNet2DConditionModel.from_pretrained(models / "sd/unet", local_files_only=True).float().eval()
    five = UNet2DConditionModel.from_pretrained(models / "sd_depth/unet", local_files_only=True).float().eval()
    assert (four.config.in_channels, five.config.in_channels) == (4, 5)
    generator = torch.Generator().manual_seed(0)
    x, words = torch.randn(2, 4, 32, 32, generator=generator), torch.randn(2, LENGTH, 128, generator=generator)
    for step in (1, 500, 981):
        plain = four(x, step, words).sample
        assert torch.equal(five(torch.cat([x, torch.zeros(2, 1, 32, 32)], 1), step, words).sample, plain)
        given = five(torch.cat([x, torch.ones(2, 1, 32, 32)], 1), step, words).sample
        assert not torch.allclose(given, plain, atol=1e-3)


@torch.inference_mode()
def test_exported_text_encoder_tokenizer_and_scheduler_are_those_of_the_training(exported):
    models, networks = exported
    encoder = CLIPTextModel.from_pretrained(models / "sd/text_encoder", local_files_only=True).float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(models / "sd/tokenizer", local_files_only=True)
    captions = [draw_scene(seed).caption for seed in range(5)]
    ids = torch.tensor(tokenizer(captions, padding="max_length", truncation=True)["input_ids"])
    assert torch.equal(ids, torch.from_numpy(diffusion.caption_ids(captions).astype(np.int64)))
    torch.testing.assert_close(encoder(ids)[0], networks.text_encoder(ids)[0])
    scheduler = DDIMScheduler.from_pretrained(models / "sd/scheduler", local_files_only=True)
    torch.testing.assert_close(scheduler.alphas_cumprod, networks.alphas)
    assert scheduler.config.prediction_type == "epsilon"
    assert next(networks.parameters()).dtype == torch.float32


# --- Depth ---


def test_depth_batches_hold_both_views_and_their_normalised_truth():
    batch = depth.DepthLesson(SHORT).draw(0, 0, "cpu")
    assert batch["pixels"].shape == (6, 3, 128, 128)
    assert batch["target"].shape == batch["weight"].shape == (6, 128, 128)
    assert (batch["target"].amin((1, 2)) == 0).all()
    assert (batch["target"].amax((1, 2)) == 1).all()
    assert set(batch["weight"].unique().tolist()) == {1, 2, 4, 5}
    assert not torch.equal(batch["target"][0], batch["target"][1])


def test_depth_errors_are_0_for_the_truth_whatever_its_scale():
    scenes = [render(draw_scene(seed, "test")) for seed in range(3)]
    everywhere, at_edges = depth.errors(np.stack([5 + 0.1 * scene.disparity for scene in scenes]), scenes)
    assert everywhere == pytest.approx([0] * 3, abs=1e-5)
    assert at_edges == pytest.approx([0] * 3, abs=1e-5)
    everywhere, at_edges = depth.errors(np.stack([-scene.disparity for scene in scenes]), scenes)
    assert min(everywhere) > 0.2
    flat, _ = depth.errors(np.zeros((3, 128, 128), np.float32), scenes)
    assert flat == pytest.approx([depth.normalised(scene.disparity).mean() for scene in scenes])


def test_depth_edges_are_both_sides_of_a_jump():
    inverse_depth = np.zeros((4, 6), np.float32)
    inverse_depth[:, 3:] = 1
    assert np.nonzero(depth.depth_edges(inverse_depth).all(0))[0].tolist() == [2, 3]
    assert np.nonzero(depth.depth_edges(inverse_depth.T).all(1))[0].tolist() == [2, 3]
    assert not depth.depth_edges(np.arange(24, dtype=np.float32).reshape(4, 6) * 0.008).any()


def test_disturbed_pictures_show_the_same(images):
    rng = np.random.default_rng(0)
    for image in images:
        disturbed = depth.disturb(image, rng)
        assert (disturbed.dtype, disturbed.shape) == (np.uint8, image.shape)
        assert 0 < np.abs(disturbed.astype(float) - image).mean() < 30


@torch.inference_mode()
def test_the_exported_estimator_is_what_a_job_loads(images, tmp_path):
    torch.manual_seed(0)
    networks = depth.DepthLoss(depth.new_depth().eval())
    for weights in networks.depth.parameters():
        weights.mul_(3)  # so that its answer depends on the picture
    depth.export(networks, tmp_path)
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded) is type(networks.depth)
    estimator = DepthEstimator(tmp_path, "inverse", torch.float32, "cpu")
    expected = networks.depth(depth.normalise_pixels(images)).predicted_depth  # B,128,128
    assert expected.std() > 0.005
    torch.testing.assert_close(torch.stack(estimator.inverse_depth(images)), expected, atol=2e-5, rtol=0)
    (small,) = estimator.inverse_depth([np.ascontiguousarray(images[0, ::2, :96])])
    assert small.shape == (128, 128)


# --- Judge ---


def test_answers_name_the_one_object_and_count_several():
    for level in LEVELS:
        for scene in (draw_scene(seed, "test", level) for seed in range(30)):
            found = judge.answers(scene)
            assert found["count"] + 1 == len(scene.billboards)
            if len(scene.billboards) > 1:
                assert found.keys() == {"count"}
                continue
            colour, shape = list(COLOURS)[found["colour"]], SHAPES[found["shape"]]
            first = scene.caption.split(",")[0].split()
            assert (first[1], first[-4], first[-1]) == (colour, shape, POSITIONS[found["position"]])


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_scenes_with_so_many_objects_are_the_first_of_their_split(objects):
    found = judge.scenes_with(objects, 8)
    expected = [s for s in (draw_scene(seed, "test") for seed in range(200)) if len(s.billboards) == objects]
    assert found == expected[:8]


class Oracle(judge.Judge):
    """Knows the right answers, and gives wrong ones to the last pictures."""

    def __init__(self, scenes, wrong_shapes=0, wrong_positions=0):
        super().__init__()
        self.truth = [judge.answers(scene) for scene in scenes]
        self.wrong = {"shape": wrong_shapes, "position": wrong_positions}

    def forward(self, pixels):
        sizes = {name: head.out_features for name, head in self.heads.items()}
        logits = {name: torch.zeros(len(pixels), size) for name, size in sizes.items()}
        for name, size in sizes.items():
            for i, answers in enumerate(self.truth):
                if name not in answers:
                    continue
                wrong = i >= len(self.truth) - self.wrong.get(name, 0)
                logits[name][i, (answers[name] + wrong) % size] = 1
        return logits


def test_the_score_counts_right_answers(images):
    scenes = judge.scenes_with(1, 20)
    pictures = np.repeat(images[:1], 20, 0)
    perfect = judge.score(Oracle(scenes), pictures, scenes)
    assert [perfect[name] for name in ("shape_and_colour", *judge.QUESTIONS)] == [1.0] * 5
    some = judge.score(Oracle(scenes, wrong_shapes=5, wrong_positions=2), pictures, scenes)
    assert (some["shape"], some["colour"], some["shape_and_colour"]) == (0.75, 1.0, 0.75)
    assert (some["position"], some["count"]) == (0.9, 1.0)
    # The caption of another picture is right by chance alone.
    named = [(scene.billboards[0].shape, scene.billboards[0].colour) for scene in scenes]
    by_chance = np.mean([one == other for one, other in zip(named, [named[-1], *named], strict=False)])
    assert perfect["shuffled"] == pytest.approx(by_chance)


def test_objects_are_counted_whatever_they_are(images):
    scenes = [scene for objects in (1, 2, 3) for scene in judge.scenes_with(objects, 2)]
    pictures = np.repeat(images[:1], 6, 0)
    assert judge.counted(Oracle(scenes), pictures, scenes) == 1
    assert judge.counted(Oracle(scenes[::-1]), pictures, scenes) == pytest.approx(1 / 3)


def test_only_what_a_scene_answers_is_asked():
    lesson = judge.JudgeLesson(dataclasses.replace(SHORT, batch=24))
    batch = lesson.draw(0, 0, "cpu")
    several = batch["count"] > 0
    assert 0 < several.sum() < 24
    for name in ("shape", "colour", "position"):
        assert (batch[name][several] == -100).all()
        assert (batch[name][~several] >= 0).all()
    # Cross entropy of each answer that there is; the mean over a question's answers, the sum over the questions.
    loss = judge.JudgeLoss().eval()
    with torch.inference_mode():
        total = 0.0
        for name, logits in loss.judge(batch["pixels"]).items():
            answered = batch[name] >= 0
            shares = logits[answered].softmax(1)[torch.arange(int(answered.sum())), batch[name][answered]]
            total += float(-shares.log().mean())
        assert float(loss(batch)) == pytest.approx(total, rel=1e-4)
