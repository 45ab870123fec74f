"""Stable Diffusion 1.x / 2.x, as the parts that the method needs: text encoder, U-Net, VAE, noise schedule."""

import json
import logging
from collections.abc import Callable
from functools import cached_property
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

VAE_PIXELS = 512 * 512
"""Pixels that the VAE takes in one call: its activations take a gigabyte for them in half precision, more than those of
the U-Net, and a GPU has enough to do with them. A batch of more pixels goes in parts."""


class StableDiffusion:
    """A loaded checkpoint (Rombach et al. 2022). Outside this class, latents are float32, scaled to unit variance.

    Args:
        folder: a checkpoint in diffusers format.
        dtype: the networks' precision. Activations of the VAE can exceed float16's range; where its config says
            `force_upcast` (diffusers' default, also in published checkpoints), an image of which it returns NaN or
            infinite values is computed again in float32.
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
        self._upcasts = dtype == torch.float16 and bool(self.vae.config.force_upcast)
        self._load_vae: Callable[[], Any] = lambda: load(AutoencoderKL, "vae", torch.float32)
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

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile U-Net and VAE, in place: each graph at its first call, which takes a minute or more.

        Every call of a batch size has one shape, so that there are few graphs. No CUDA graphs are recorded: they would
        write over the inputs of self-attention that are kept from step to step.

        Args:
            backend: a backend of `torch.compile`.
        """
        for network in (self.unet, self.vae.encoder, self.vae.decoder):
            if self.device.startswith("cuda"):
                network.to(memory_format=torch.channels_last)  # as tensor cores read; slower on a CPU
            network.compile(backend=backend, dynamic=False)

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

        def encode(vae: Any, part: Tensor) -> Tensor:
            pixels = part.to(self.device, vae.dtype) * 2 - 1  # [0,1] -> [-1,1]
            mean: Tensor = vae.encode(pixels).latent_dist.mean
            return mean.float()

        return self._through_vae(encode, images, height * width) * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents B,4,h,w to images B,3,H,W float32 in [0, 1]; NaN where the VAE's output is not finite."""

        def decode(vae: Any, part: Tensor) -> Tensor:
            pixels: Tensor = vae.decode(part.to(vae.dtype) / vae.config.scaling_factor).sample
            return pixels.float()

        pixels = self._through_vae(decode, latents, latents.shape[-2] * latents.shape[-1] * self.latent_factor**2)
        finite = pixels.nan_to_num(torch.nan, torch.nan, torch.nan)  # clamp would hide infinity
        return (finite / 2 + 0.5).clamp(0, 1)  # [-1,1] -> [0,1]

    def _through_vae(self, work: Callable[[Any, Tensor], Tensor], inputs: Tensor, pixels: int) -> Tensor:
        """Have the VAE do its work on a batch, in parts of at most `VAE_PIXELS`, and check what float16 gives.

        Args:
            work: encodes or decodes a part of the batch with the VAE that it is given.
            inputs: the batch.
            pixels: pixels of one image.
        """
        done = torch.cat([work(self.vae, part) for part in torch.split(inputs, max(1, VAE_PIXELS // pixels))])
        if self._upcasts:
            overflowed = inputs.isfinite().flatten(1).all(1).to(done.device) & ~done.isfinite().flatten(1).all(1)
            for i in range(len(done)):
                if overflowed[i]:  # each alone, whatever its neighbours are
                    done[i : i + 1] = work(self._float32_vae, inputs[i : i + 1])
        return done

    @cached_property
    def _float32_vae(self) -> Any:
        """The VAE in float32, loaded when it is needed first."""
        log.warning("the VAE exceeds float16 for some images; those are computed again in float32, which takes longer")
        return self._load_vae()
