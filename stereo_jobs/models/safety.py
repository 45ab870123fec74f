"""The safety checker of Stable Diffusion 1.x checkpoints: it tells, and leaves the images alone."""

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
    """Compares CLIP's embedding of an image with fixed concepts (Rando et al. 2022 describe how).

    Args:
        folder: checkpoint in diffusers format, with `safety_checker/` and `feature_extractor/`.
        dtype: of the network.
        device: where it goes.
        variant: of the weight files.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> None:
        from diffusers.pipelines.stable_diffusion import safety_checker
        from transformers import CLIPImageProcessorPil

        # It warns of black images, which there are none of here.
        logging.getLogger(safety_checker.__name__).setLevel(logging.ERROR)
        network, extractor = part_folder(folder, "safety_checker"), part_folder(folder, "feature_extractor")
        for part, file in ((network, "config.json"), (extractor, "preprocessor_config.json")):
            if not (part / file).is_file():
                raise ModelError(
                    f"model {folder}: has no {part.name}/{file}, which recipe.models.safety_checker asks for; set that "
                    f"to false, or use a checkpoint that has it, for example {PLAIN_EXAMPLE}"
                )
        try:
            # The PIL processor by name: the answer must not depend on whether torchvision is installed.
            self.processor = CLIPImageProcessorPil.from_pretrained(extractor, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {extractor}: cannot be loaded ({error})") from error
        kind = safety_checker.StableDiffusionSafetyChecker
        self.network = load_part(kind, network, dtype, device, variant=variant)
        self.device = device

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str, variant: str | None = None) -> "SafetyChecker":
        """Load it from a checkpoint's folder, which `fetch(..., safety_checker=True)` gives."""
        return cls(folder, dtype, device, variant)

    @torch.inference_mode()
    def flags(self, images: NDArray[np.uint8]) -> list[bool]:
        """Which of the B,H,W,3 images it takes for unsafe. The images are not changed."""
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        ignored = torch.zeros(len(images), 1)  # the network blackens what it is given
        _, flagged = self.network(pixels.to(self.device, self.network.dtype), ignored)
        return [bool(flag) for flag in flagged]
