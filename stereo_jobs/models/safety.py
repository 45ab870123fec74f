"""The safety checker of Stable Diffusion 1.x checkpoints; it flags images and does not change them."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import part_folder
from stereo_jobs.models.resolve import PLAIN_EXAMPLE
from stereo_jobs.models.weights import load_part


class SafetyChecker:
    """Compares CLIP's embedding of an image with fixed concepts (described by Rando et al. 2022).

    Args:
        folder: a checkpoint in diffusers format, with `safety_checker/` and `feature_extractor/`.
        dtype: the network's precision.
        device: name of the torch device that computes.
        variant: variant of the weight files, for example `fp16`; None: the files without a variant.

    Raises:
        ModelError: the checkpoint has no safety checker, or a file is broken.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> None:
        from diffusers.pipelines.stable_diffusion import safety_checker
        from transformers import CLIPImageProcessorPil

        # It warns that it blackens images; here only its flags are used, and no image is blackened.
        logging.getLogger(safety_checker.__name__).setLevel(logging.ERROR)
        network, extractor = part_folder(folder, "safety_checker"), part_folder(folder, "feature_extractor")
        for part, file in ((network, "config.json"), (extractor, "preprocessor_config.json")):
            if not (part / file).is_file():
                raise ModelError(
                    f"model {folder}: has no {part.name}/{file}, which recipe.models.safety_checker asks for; set that "
                    f"to false, or use a checkpoint that has one, for example {PLAIN_EXAMPLE}"
                )
        try:
            # The PIL processor is named: the flags must not depend on whether torchvision is installed.
            self.processor = CLIPImageProcessorPil.from_pretrained(extractor, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {extractor}: cannot be loaded ({error})") from error
        kind = safety_checker.StableDiffusionSafetyChecker
        self.network = load_part(kind, network, dtype, device, variant=variant)
        self.device = device

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> "SafetyChecker":
        """Load the safety checker from a checkpoint's folder, as returned by `fetch(..., safety_checker=True)`."""
        return cls(folder, dtype, device, variant)

    @torch.inference_mode()
    def flags(self, images: NDArray[np.uint8]) -> list[bool]:
        """Flag unsafe images among B,H,W,3 uint8 images: one value for each. The images are not changed."""
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        ignored = torch.zeros(len(images), 1)  # the network blackens what it is given here
        _, flagged = self.network(pixels.to(self.device, self.network.dtype), ignored)
        return [bool(flag) for flag in flagged]
