"""Monocular depth estimators in transformers format, as inverse depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch
from stereo_jobs.models.weights import load_part
from stereo_jobs.spec import DepthSpec


class DepthEstimator:
    """Any depth estimator whose polarity is known.

    Args:
        folder: model in transformers format.
        polarity: `inverse` (used as it is) or `metric` (inverted).
    """

    def __init__(self, folder: Path, polarity: str, dtype: torch.dtype, device: str) -> None:
        if polarity not in ("inverse", "metric"):
            raise ModelError(f"depth model {folder}: polarity must be inverse or metric, got {polarity!r}")
        try:
            # The PIL processor by name: the numbers must not depend on whether torchvision is installed.
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"depth model {folder}: cannot be loaded ({error})") from error
        self.network = load_part(AutoModelForDepthEstimation, folder, dtype, device)
        self.polarity = polarity
        self.device = device

    @classmethod
    def load(cls, spec: DepthSpec, device: str) -> "DepthEstimator":
        """Load the estimator of a resolved spec."""
        return cls(fetch(spec), spec.polarity, getattr(torch, spec.dtype), device)

    def inverse_depth(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Relative inverse depth of H,W,3 uint8 images: H,W float32 each, at the image's own size."""
        # No padding: what some processors (ZoeDepth's) put around a picture would be taken for a part of it.
        inputs = [self.processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"] for image in images]
        if not getattr(self.processor, "keep_aspect_ratio", False):
            inputs = [torch.cat(inputs)]
        # Else shapes may differ, and one picture a call it is always: numbers depend on the batch shape, which must
        # not depend on a picture's neighbours.
        results: list[Tensor] = []
        for pixels in inputs:
            predicted = self.network(pixels.to(self.device, self.network.dtype)).predicted_depth.float()
            # Inverted first: resizing overshoots at steep edges, and a depth near 0 would be nearer than all else.
            for inverse in predicted if self.polarity == "inverse" else 1.0 / predicted.clamp_min(1e-6):
                size = images[len(results)].shape[:2]
                full = functional.interpolate(inverse[None, None], size=size, mode="bicubic", align_corners=False)
                results.append(full[0, 0])
        return results
