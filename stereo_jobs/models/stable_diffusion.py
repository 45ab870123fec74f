"""Stable Diffusion 1.x / 2.x as the parts the method needs: text encoder, U-Net, VAE, scheduler."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from stereo_jobs.errors import ModelError
from stereo_jobs.models.resolve import fetch
from stereo_jobs.models.weights import load_part
from stereo_jobs.spec import StableDiffusionSpec

log = logging.getLogger(__name__)


class StableDiffusion:
    """A loaded checkpoint. Latents are scaled (unit variance) float32 everywhere outside this class."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> None:
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {folder}/tokenizer: cannot be loaded ({error})") from error
        self.text_encoder = load_part(CLIPTextModel, folder / "text_encoder", dtype, device, variant=variant)
        self.unet = load_part(UNet2DConditionModel, folder / "unet", dtype, device, variant=variant)
        self.vae = load_part(AutoencoderKL, folder / "vae", dtype, device, variant=variant)
        self.scheduler_config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        self.device = device
        self.latent_channels: int = self.vae.config.latent_channels
        self.latent_factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, spec: StableDiffusionSpec, device: str) -> "StableDiffusion":
        """Load the checkpoint of a resolved spec."""
        return cls(fetch(spec), getattr(torch, spec.dtype), device, spec.variant)

    def scheduler(self, steps: int) -> DDIMScheduler:
        """A fresh DDIM scheduler (Eq. 1), so that no state passes from one batch to the next."""
        scheduler = DDIMScheduler.from_config(self.scheduler_config, clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Text embeddings, B,n,c. What does not fit the encoder is cut off, as everywhere."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.text_encoder(ids.to(self.device))[0]
        return embeddings

    def decode(self, latents: Tensor) -> Tensor:
        """Latents B,4,h,w -> images B,3,H,W float32 in [0, 1]; NaN where the VAE's output is not finite."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels: Tensor = self.vae.decode(scaled).sample.float()
        finite = pixels.nan_to_num(torch.nan, torch.nan, torch.nan)  # or else clamp would hide infinity
        return (finite / 2 + 0.5).clamp(0, 1)  # [-1,1] -> [0,1]
