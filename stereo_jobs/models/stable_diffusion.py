"""Stable Diffusion 1.x / 2.x, as the parts that the method needs: text encoder, U-Net, VAE, noise schedule."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch, part_folder
from stereo_jobs.models.weights import load_part
from stereo_jobs.spec import StableDiffusionSpec

log = logging.getLogger(__name__)


class StableDiffusion:
    """A loaded checkpoint (Rombach et al. 2022). Outside this class, latents are float32, scaled to unit variance.

    Args:
        folder: a checkpoint in diffusers format.
        dtype: the networks' precision. With float16, the VAE stays in float32 if its config says `force_upcast`
            (diffusers' default, also in published checkpoints), because its activations can exceed float16's range.
        device: name of the torch device that computes.
        variant: variant of the weight files, for example `fp16`; None: the files without a variant.

    Raises:
        ModelError: a file is missing or broken.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> None:
        def load(kind: type, name: str, dtype: torch.dtype = dtype) -> Any:
            return load_part(kind, part_folder(folder, name), dtype, device, variant=variant)

        tokenizer = part_folder(folder, "tokenizer")
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        except Exception as error:  # for a broken file, the tokenizers library raises plain `Exception`
            raise ModelError(f"model {tokenizer}: cannot be loaded ({error})") from error
        self.text_encoder = load(CLIPTextModel, "text_encoder")
        self.unet = load(UNet2DConditionModel, "unet")
        self.vae = load(AutoencoderKL, "vae")
        if dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae = load(AutoencoderKL, "vae", torch.float32)
        self.scheduler_config = json.loads((part_folder(folder, "scheduler") / "scheduler_config.json").read_text())
        self.device = device
        self.latent_channels: int = self.vae.config.latent_channels
        self.latent_factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.size_multiple: int = self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @classmethod
    def load(cls, spec: StableDiffusionSpec, device: str, mode: str = "text") -> "StableDiffusion":
        """Load the checkpoint of a resolved spec for a recipe's mode."""
        return cls(fetch(spec, mode), getattr(torch, spec.dtype), device, spec.variant)

    @property
    def depth_conditioned(self) -> bool:
        """Whether the U-Net takes depth as one more channel beside the latent, in [-1, 1], where 1 is nearest."""
        return bool(self.unet.config.in_channels == self.latent_channels + 1)

    # --- Prompts ---

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of a prompt that the encoder reads, start and end tokens included: 77 for CLIP."""
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Encode B prompts to text embeddings, B,n,c. Tokens after the first n are cut off; see `truncated`."""
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=self.prompt_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.text_encoder(ids.to(self.device))[0]
        return embeddings

    def truncated(self, prompt: str) -> bool:
        """Whether the prompt is too long, so that the encoder reads only its beginning."""
        return len(self.tokenizer(prompt, verbose=False).input_ids) > self.prompt_tokens

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the checkpoint was not trained with, each once, in order.

        Only a checkpoint with a closed vocabulary (`closed_vocabulary` in tokenizer_config.json) has unknown words: a
        known word is one token, any other word becomes several. Single letters and signs are always one token. CLIP's
        own vocabulary is open, because its parts of words carry meaning: the result is always empty.
        """
        if not self.tokenizer.init_kwargs.get("closed_vocabulary", False):
            return []
        tokens = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans: dict[int, list[tuple[int, int]]] = {}
        for word, span in zip(tokens.word_ids(), tokens["offset_mapping"], strict=True):
            spans.setdefault(word, []).append(span)
        unknown: dict[str, str] = {}
        for parts in spans.values():
            if len(parts) > 1:
                word = prompt[parts[0][0] : parts[-1][1]]
                unknown.setdefault(word.lower(), word)
        return list(unknown.values())

    # --- Images ---

    def encode(self, images: Tensor) -> Tensor:
        """Encode images B,3,H,W float32 in [0, 1] to latents B,4,h,w, the mean of the VAE's posterior (no sampling).

        Raises:
            ValueError: the size is not a multiple of the latent factor.
        """
        height, width = images.shape[-2:]
        if height % self.latent_factor or width % self.latent_factor:
            raise ValueError(f"images must be multiples of {self.latent_factor} pixels, got {width}x{height}")
        pixels = images.to(self.device, self.vae.dtype) * 2 - 1  # [0,1] -> [-1,1]
        mean: Tensor = self.vae.encode(pixels).latent_dist.mean
        return mean.float() * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents B,4,h,w to images B,3,H,W float32 in [0, 1]; NaN where the VAE's output is not finite."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels: Tensor = self.vae.decode(scaled).sample.float()
        finite = pixels.nan_to_num(torch.nan, torch.nan, torch.nan)  # clamp would hide infinity
        return (finite / 2 + 0.5).clamp(0, 1)  # [-1,1] -> [0,1]
