"""The second lesson of the VAE: its decoder alone, for sharp outlines without ringing. The latent space stays."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from stereo_jobs.quality.truth import psnr
from stereo_jobs.toyscapes.depth import depth_edges, normalised
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import draw_scene
from stereo_jobs.toyscapes.training import Batch, Lesson, Schedule
from stereo_jobs.toyscapes.vae import encode, new_vae, reconstruct, to_pixels

SCHEDULE = Schedule(steps=10_000, batch=4, learning_rate=1e-3, warmup=50, ema=0.995)
SCENES = 1000
"""Number of scenes to learn from, each rendered and encoded once; two views each are plenty for a decoder."""
NEIGHBOURS_PX = 2
"""Reach of a pixel's neighbourhood, 5 x 5 pixels; the ringing of a decoder reaches 2 to 3 px."""
OUTLINE_PX = 4
"""Distance from object outlines up to which ringing is measured."""
VISIBLE_LEVELS = 8
"""Overshoot in levels of 255 from which it counts as ringing; grain alone reaches it in one pixel of a hundred."""


class DecoderLoss(nn.Module):
    """The root mean squared error of each picture, in which overshoot counts three times."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        self.vae = vae

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a batch: `pixels` B,3,h,w in [-1, 1] and their `latents` B,4,h/4,w/4."""
        pixels = batch["pixels"]
        result = self.vae.decode(batch["latents"]).sample.float()
        squared = (result - pixels) ** 2 + 2 * overshoot(result, pixels) ** 2
        loss: Tensor = squared.mean((1, 2, 3)).sqrt().mean()  # by picture: else those with much grain count most
        return loss


class DecoderLesson:
    """Trains the decoder on whole pictures: group normalisation sees the same surroundings as in a job."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule = schedule
        vae = new_vae()
        vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))  # float16 -> float32
        self.networks = DecoderLoss(vae)
        self._example = lru_cache(SCENES)(self._new_example)

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """One view each of some of the scenes, with the latents that a job would find for it."""
        rng = np.random.default_rng([4, step, rank])
        seeds, views = (rng.integers(end, size=self.schedule.batch) for end in (SCENES, 2))
        examples = [self._example(int(seed)) for seed in seeds]
        chosen = [(images[view], latents[view]) for (images, latents), view in zip(examples, views, strict=True)]
        return {
            "pixels": to_pixels(np.stack([image for image, _ in chosen])).to(device),
            "latents": torch.stack([latents for _, latents in chosen]).to(device),
        }

    def _new_example(self, seed: int) -> tuple[NDArray[np.uint8], Tensor]:
        """Both views of a training scene, 2,128,128,3 uint8, and their latents 2,4,32,32."""
        scene = render(draw_scene(seed))
        images = np.stack([scene.left, scene.right])
        return images, encode(self.networks.vae, images, batch=1).cpu()

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """PSNR and ringing on 32 held-out scenes."""
        return score(networks.vae, [render(draw_scene(seed, "test")) for seed in range(32)])


def lesson(folder: Path) -> Callable[[Schedule], Lesson]:
    """A function that makes the lesson of the VAE in a folder, as `vae.export` writes it."""
    return partial(DecoderLesson, folder=folder)


def export(networks: nn.Module, folder: Path) -> None:
    """Write the VAE in diffusers format and float16. Its encoder is the one that training began with, to the bit."""
    networks.vae.to(torch.float16).save_pretrained(folder)  # type: ignore[union-attr, operator]
    networks.float()


def score(vae: AutoencoderKL, scenes: Sequence[ToyScape]) -> dict[str, float]:
    """How well left views are encoded and decoded: mean and worst PSNR in dB, and ringing."""
    found = reconstruct(vae, np.stack([scene.left for scene in scenes]))
    values = [psnr(picture, scene.left) for picture, scene in zip(found, scenes, strict=True)]
    return {"psnr": float(np.mean(values)), "worst_psnr": float(np.min(values)), "ringing": ringing(found, scenes)}


def overshoot(pixels: Tensor, original: Tensor) -> Tensor:
    """How far pixels lie beyond the range of the original's 5 x 5 neighbourhood; 0 inside it. All B,C,H,W."""
    size = 2 * NEIGHBOURS_PX + 1
    high, low = (sign * functional.max_pool2d(sign * original, size, 1, NEIGHBOURS_PX) for sign in (1, -1))
    return functional.relu(pixels - high) + functional.relu(low - pixels)


def ringing(pictures: NDArray[np.uint8], scenes: Sequence[ToyScape]) -> float:
    """Share of pixels near the outlines of objects whose overshoot, in any channel, is more than 8 levels of 255.

    Args:
        pictures: left views after encoding and decoding, N,H,W,3 uint8.
        scenes: the N rendered scenes.
    """
    originals = np.stack([scene.left for scene in scenes])
    beyond = overshoot(to_pixels(pictures), to_pixels(originals)).amax(1) * 127.5  # [-1,1] -> levels; B,3,H,W -> B,H,W
    return float((beyond > VISIBLE_LEVELS).numpy()[near_outlines(scenes)].mean())


def ringing_of_grain(count: int) -> float:
    """The ringing of held-out scenes whose grain alone is another: no outline rings, so this much is none.

    Args:
        count: number of scenes, of level plain; in others the seed of the texture moves bricks and tiles as well.
    """
    scenes = [draw_scene(seed, "test", "plain") for seed in range(count)]
    others = [render(replace(scene, texture=scene.texture + 1)).left for scene in scenes]
    return ringing(np.stack(others), [render(scene) for scene in scenes])


def near_outlines(scenes: Sequence[ToyScape]) -> NDArray[np.bool_]:
    """Pixels at most 4 px away from the outline of an object, as depth edges show it; N,H,W."""
    edges = np.stack([depth_edges(normalised(scene.disparity)) for scene in scenes])
    reach = torch.from_numpy(edges[:, None].astype(np.float32))
    return functional.max_pool2d(reach, 2 * OUTLINE_PX + 1, 1, OUTLINE_PX)[:, 0].numpy() > 0
