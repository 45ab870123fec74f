"""The VAE of the demo models: from 128 x 128 images to 32 x 32 latents of unit variance, and back."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stereo_jobs.pixels import to_image
from stereo_jobs.quality.truth import psnr
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import Split, draw_scene
from stereo_jobs.toyscapes.training import Batch, Schedule

SCHEDULE = Schedule(steps=3400, batch=24, learning_rate=1.5e-3, ema=0.998)
CROP = 64
"""Width and height of the crops to train on; crops suffice, because a VAE works locally."""

_LUMA = (0.299, 0.587, 0.114)


def new_vae() -> AutoencoderKL:
    """The untrained VAE, in Stable Diffusion's format: downsampling by 4, 4 latent channels."""
    blocks = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=blocks,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


class VaeLoss(nn.Module):
    """Reconstruction error of crops: colours at full and quarter size, and edges; plus a small KL term."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch: `pixels` B,3,h,w in [-1, 1], and `noise` of the latent's shape to sample it with."""
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        result = self.vae.decode(latents).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        error = result - pixels
        # With L1 and edges alone, PSNR looks good while the hues of whole surfaces drift.
        chroma = error - _luma(error)
        pooled = functional.avg_pool2d(error, 4)
        edges = _absolute(error[..., 1:] - error[..., :-1]) + _absolute(error[..., 1:, :] - error[..., :-1, :])
        squared = 4 * (error**2).mean()
        loss: Tensor = _absolute(error) + squared + 0.5 * edges + _absolute(chroma) + _absolute(pooled) + 1e-4 * kl
        return loss


class VaeLesson:
    """Trains the VAE on crops of both views of fresh renders."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.networks = VaeLoss(new_vae())

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """Crops of new scenes, different in each step and process."""
        rng = np.random.default_rng([1, step, rank])
        crops: list[NDArray[np.uint8]] = []
        while len(crops) < self.schedule.batch:
            scene = render(draw_scene(int(rng.integers(2**40))))
            for view in (scene.left, scene.right):
                for _ in range(2):
                    y, x = rng.integers(0, 128 - CROP + 1, 2)
                    crops.append(view[y : y + CROP, x : x + CROP])
        noise = torch.from_numpy(rng.standard_normal((self.schedule.batch, 4, CROP // 4, CROP // 4), np.float32))
        return {
            "pixels": to_pixels(np.stack(crops[: self.schedule.batch])).to(device),
            "noise": noise.to(device),
        }

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """Mean PSNR in dB on 32 held-out scenes."""
        return {"psnr": float(np.mean(reconstruction_psnr(networks.vae, held_out(32))))}


def held_out(count: int, split: Split = "test") -> NDArray[np.uint8]:
    """Left views of the first `count` scenes of a split, N,128,128,3 uint8."""
    return np.stack([render(draw_scene(seed, split)).left for seed in range(count)])


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """B,H,W,3 uint8 in [0, 255] -> B,3,H,W float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 8) -> Tensor:
    """Latents B,4,h,w (means of the posterior) of images B,H,W,3 uint8."""
    parts = [vae.encode(to_pixels(images[i : i + batch]).to(vae.device)) for i in range(0, len(images), batch)]
    return torch.cat([part.latent_dist.mean.float() for part in parts])


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images B,H,W,3 uint8 after encoding and decoding, rounded to 8 bits like the output of a job."""
    decoded = (vae.decode(encode(vae, image[None])).sample.float() / 2 + 0.5 for image in images)  # [-1,1] -> [0,1]
    return np.stack([to_image(pixels) for pixels in decoded])


def reconstruction_psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> list[float]:
    """PSNR in dB of each image after encoding and decoding."""
    return [psnr(found, image) for found, image in zip(reconstruct(vae, images), images, strict=True)]


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    """Change the 1x1 convolutions around the latent so that each channel has exactly mean 0 and variance 1.

    Stable Diffusion pipelines have only one scaling factor for all channels, and none for the mean.
    """
    latents = encode(vae, images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:4] /= std[:, None, None, None]
    before.bias[:4] = (before.bias[:4] - mean) / std
    before.bias[4:] -= 2 * std.log()  # the posterior's log variance
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= std[None, :, None, None]


def export(networks: nn.Module, folder: Path) -> AutoencoderKL:
    """Standardise the trained VAE and write it in diffusers format and float16; returns it in float32."""
    vae: AutoencoderKL = networks.vae
    standardise(vae, held_out(256, "train"))
    vae.to(torch.float16).save_pretrained(folder)
    return vae.float()


def _luma(x: Tensor) -> Tensor:
    """Luma of colours, B,3,H,W -> B,1,H,W."""
    return (x * torch.tensor(_LUMA, device=x.device)[:, None, None]).sum(1, keepdim=True)


def _absolute(x: Tensor) -> Tensor:
    return x.abs().mean()
