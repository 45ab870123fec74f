"""The text encoder and the U-Net of the demo models: one training, two checkpoints.

The U-Net has five input channels, four of the latent and one of depth. The depth is zero for most samples; where it is
zero, the weights of its channel have no effect. Without them the same network is exactly a text-to-image U-Net.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextConfig, CLIPTextModel

from stereo_jobs.stereo.disparity import relative_disparity, resize
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import VOCABULARY, Split, draw_scene
from stereo_jobs.toyscapes.tokenizer import LENGTH, new_tokenizer
from stereo_jobs.toyscapes.training import Batch, Lesson, Machine, Schedule
from stereo_jobs.toyscapes.vae import encode

SCHEDULE = Schedule(steps=7400, batch=32, learning_rate=1e-3, warmup=500, ema=0.9995)
CHUNK = 500
"""Number of scenes in one file of cached latents."""
CAPTION_DROPOUT = 0.1
"""Share of samples with an empty caption, for classifier-free guidance."""
DEPTH_SHARE = 0.3
"""Share of samples with depth."""


def new_unet() -> UNet2DConditionModel:
    """The untrained U-Net, in the format of Stable Diffusion 2's depth-conditioned one."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=5,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def new_text_encoder() -> CLIPTextModel:
    """The untrained text encoder. Its word embeddings start far apart: a small model then learns much faster."""
    tokenizer = new_tokenizer(VOCABULARY)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, for a model that predicts the noise (epsilon)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class DiffusionLoss(nn.Module):
    """Squared error of the predicted noise, weighted by timestep."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.register_buffer("alphas", new_scheduler().alphas_cumprod, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a batch: `latents`, `noise`, `timesteps`, `ids` and `depth` (zero for samples without)."""
        alpha = self.alphas[batch["timesteps"]][:, None, None, None]  # type: ignore[index]
        noisy = alpha.sqrt() * batch["latents"] + (1 - alpha).sqrt() * batch["noise"]
        words = self.text_encoder(batch["ids"])[0]
        predicted = self.unet(torch.cat([noisy, batch["depth"]], 1), batch["timesteps"], words).sample
        error = (predicted.float() - batch["noise"]) ** 2
        weights = timestep_weights(alpha[:, 0, 0, 0])
        loss: Tensor = (error.mean((1, 2, 3)) * weights).mean()
        return loss


def timestep_weights(alpha: Tensor) -> Tensor:
    """Weight of the squared noise error at signal share alpha, 1.35 on average.

    In less noisy steps: min-SNR with gamma 5 (Hang et al. 2023). In noisier steps: the weight of v-prediction, capped.
    The noisiest steps decide the layout of the image; there, small errors of the noise are large errors of the image.
    """
    snr = alpha / (1 - alpha)
    return (5 / snr).clamp(max=1) * (1 + (1 / snr).clamp(max=10)) / 4


class DiffusionLesson:
    """Trains the text encoder and the U-Net on cached latents."""

    def __init__(self, schedule: Schedule, latents: Path) -> None:
        self.schedule = schedule
        self.networks = DiffusionLoss(new_unet(), new_text_encoder())
        self.train = Latents.load(latents, "train")
        self.test = Latents.load(latents, "test")

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """Latents, captions, depth, noise and timesteps of one step."""
        return self._draw(self.train, np.random.default_rng([2, step, rank]), self.schedule.batch, device)

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """The mean loss on held-out scenes, with the same noise every time."""
        rng = np.random.default_rng([3])
        device = next(networks.parameters()).device.type
        with torch.inference_mode():
            losses = [float(networks(self._draw(self.test, rng, 32, device))) for _ in range(8)]
        return {"test_loss": float(np.mean(losses))}

    def _draw(self, data: "Latents", rng: np.random.Generator, count: int, device: str) -> Batch:
        chosen = rng.integers(len(data.ids), size=count)
        ids = data.ids[chosen]
        ids[rng.random(count) < CAPTION_DROPOUT] = data.empty
        given = (rng.random(count) < DEPTH_SHARE).astype(np.float32)[:, None, None, None]
        timesteps = ((np.arange(count) + rng.random(count)) * (1000 / count)).astype(np.int64)  # stratified
        latents = data.latents[chosen].astype(np.float32)
        batch = {
            "latents": latents,
            "noise": rng.standard_normal(latents.shape, np.float32),
            "timesteps": timesteps,
            "ids": ids.astype(np.int64),
            "depth": data.depth[chosen].astype(np.float32) * given,
        }
        return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


# --- Cached latents: the VAE does not change any more ---


class Latents:
    """Training data of a split: latents N,4,32,32, depth N,1,32,32 in [-1, 1], and token ids N,n of N captions."""

    def __init__(self, latents: NDArray[np.float16], depth: NDArray[np.float16], captions: list[str]) -> None:
        self.latents, self.depth = latents, depth
        self.ids = caption_ids(captions)
        self.empty = caption_ids([""])[0]

    @classmethod
    def load(cls, folder: Path, split: Split) -> "Latents":
        """Load all chunks of a split that `cache` wrote."""
        chunks = [dict(np.load(path)) for path in sorted(folder.glob(f"{split}-*.npz"))]
        if not chunks:
            raise FileNotFoundError(
                f"{folder}: no latents of the {split} split; make them first: python -m stereo_jobs.toyscapes latents"
            )
        latents, depth = (np.concatenate([chunk[name] for chunk in chunks]) for name in ("latents", "depth"))
        return cls(latents, depth, [str(caption) for chunk in chunks for caption in chunk["captions"]])


def caption_ids(captions: list[str]) -> NDArray[np.int16]:
    """Token ids N,n of N captions."""
    tokens = new_tokenizer(VOCABULARY)(captions, padding="max_length", truncation=True)
    return np.array(tokens["input_ids"], np.int16)


def cache(vae: AutoencoderKL, folder: Path, split: Split, chunks: range) -> None:
    """Render and encode the chunks of a split that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk in chunks:
        path = folder / f"{split}-{chunk:04d}.npz"
        if path.exists():
            continue
        seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
        scenes = [render(draw_scene(seed, split)) for seed in seeds]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                latents=encode(vae, np.stack([scene.left for scene in scenes])).cpu().numpy().astype(np.float16),
                depth=np.stack([depth_condition(scene) for scene in scenes]).astype(np.float16),
                captions=np.array([scene.caption for scene in scenes]),
            )
        partial.replace(path)


def cache_all(vae_folder: Path, folder: Path, scenes: int, machine: Machine) -> None:
    """Cache `scenes` training scenes and a fiftieth as many held-out scenes, in parallel processes."""
    arguments = (vae_folder, folder, scenes, machine)
    if machine.processes == 1:
        _cache_share(0, *arguments)
    else:
        spawn(_cache_share, arguments, machine.processes)  # type: ignore[no-untyped-call]


def _cache_share(rank: int, vae_folder: Path, folder: Path, scenes: int, machine: Machine) -> None:
    if machine.processes > 1:
        torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).to(machine.device).eval()
    for split, count in (("test", scenes // 50), ("train", scenes)):
        cache(vae, folder, split, range(rank, max(1, count // CHUNK), machine.processes))  # type: ignore[arg-type]


def depth_condition(scene: ToyScape) -> NDArray[np.float32]:
    """True depth as StableDiffusionDepth2ImgPipeline gives it to a U-Net: 1,h,w (size of the latent), in [-1, 1]."""
    height, width = scene.disparity.shape
    on_grid = resize(torch.from_numpy(scene.disparity)[None], (height // 4, width // 4))
    return np.asarray(2 * relative_disparity(on_grid).numpy() - 1, np.float32)


# --- Export ---


def export(networks: nn.Module, models: Path) -> None:
    """Write the checkpoints `sd` and `sd_depth`: their U-Nets have four and five input channels, all else is the same.

    A VAE that was exported to `sd` before is copied, too.
    """
    unet: UNet2DConditionModel = networks.unet
    unet.half().save_pretrained(models / "sd_depth/unet")
    plain = UNet2DConditionModel.from_config(unet.config, in_channels=4).half()
    weights = unet.state_dict()
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :4].contiguous()
    plain.load_state_dict(weights)
    plain.save_pretrained(models / "sd/unet")
    networks.text_encoder.half().save_pretrained(models / "sd/text_encoder")  # type: ignore[union-attr, operator]
    new_tokenizer(VOCABULARY).save_pretrained(models / "sd/tokenizer")
    new_scheduler().save_pretrained(models / "sd/scheduler")
    for folder, pipeline in (("sd", "StableDiffusionPipeline"), ("sd_depth", "StableDiffusionDepth2ImgPipeline")):
        (models / folder / "model_index.json").write_text(json.dumps(_index(pipeline), indent=2) + "\n")
    for part in (models / "sd").iterdir():
        if part.is_dir() and part.name != "unet":
            shutil.copytree(part, models / "sd_depth" / part.name, dirs_exist_ok=True)
    networks.float()


def _index(pipeline: str) -> dict[str, Any]:
    """The content of model_index.json, from which diffusers loads a pipeline."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **(
            {"safety_checker": [None, None], "feature_extractor": [None, None]}
            if pipeline.endswith("nPipeline")
            else {}
        ),
    }


def lesson(latents: Path) -> Callable[[Schedule], Lesson]:
    """A function that makes the lesson on cached latents, as `train` needs it."""
    return partial(DiffusionLesson, latents=latents)
