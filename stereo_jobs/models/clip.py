"""CLIP scores: how well pictures match their prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch
from stereo_jobs.models.weights import load_part
from stereo_jobs.spec import ClipSpec


class ClipScorer:
    """Scores pictures against prompts with CLIP (Radford et al. 2021).

    Args:
        folder: the model in transformers format, with tokenizer and image processor.
        dtype: the network's precision.
        device: name of the torch device that computes.

    Raises:
        ModelError: a file is missing or broken.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        try:
            # The PIL processor is named: the scores must not depend on whether torchvision is installed.
            self.processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # for a broken file, the tokenizers library raises plain `Exception`
            raise ModelError(f"model {folder}: cannot be loaded ({error})") from error
        self.network = load_part(CLIPModel, folder, dtype, device)
        self.device = device

    @classmethod
    def load(cls, spec: ClipSpec, device: str) -> "ClipScorer":
        """Load the model of a resolved spec."""
        return cls(fetch(spec), getattr(torch, spec.dtype), device)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of a prompt that the model reads, start and end tokens included: 77 for CLIP."""
        return int(min(self.tokenizer.model_max_length, self.network.config.text_config.max_position_embeddings))

    @torch.inference_mode()
    def scores(self, images: Sequence[NDArray[np.uint8]], prompts: list[str]) -> list[float]:
        """CLIPScore (Hessel et al. 2021), scaled by 100 instead of 2.5, without a prefix: max(100 cos(image, text), 0).

        Args:
            images: H,W,3 uint8 each, of any sizes; the model sees the square in the middle.
            prompts: one for each image; tokens after the first `prompt_tokens` are ignored.

        Returns:
            One score in [0, 100] for each image; NaN where the network overflows.
        """
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        # All texts are padded to one length, because numbers depend on the shape and must not depend on the batch.
        # No mask is needed: the padding comes after the end token, where a causal encoder does not look.
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=self.prompt_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        seen = self.network(input_ids=ids.to(self.device), pixel_values=pixels.to(self.device, self.network.dtype))
        cosines = functional.cosine_similarity(seen.image_embeds.float(), seen.text_embeds.float())
        return [float(score) for score in (100 * cosines).clamp_min(0)]
