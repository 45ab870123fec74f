"""Monocular depth estimators in transformers format; all of them return inverse depth here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch
from stereo_jobs.models.weights import load_part
from stereo_jobs.spec import DepthSpec


class DepthEstimator:
    """A depth estimator whose polarity is known.

    Args:
        folder: the model in transformers format.
        polarity: what the network returns: `inverse` depth (used as it is) or `metric` depth (inverted).
        dtype: the network's precision.
        device: name of the torch device that computes.

    Raises:
        ModelError: the polarity is neither, or a file is missing or broken.
    """

    def __init__(self, folder: Path, polarity: str, dtype: torch.dtype, device: str) -> None:
        if polarity not in ("inverse", "metric"):
            raise ModelError(
                f"depth model {folder}: polarity must be inverse or metric, got {polarity!r}; set "
                "recipe.models.depth.polarity"
            )
        try:
            # The PIL processor is named: the depth must not depend on whether torchvision is installed.
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
        """Estimate inverse depth of images.

        Args:
            images: H,W,3 uint8 each, of any sizes.

        Returns:
            For each image h,w float32 at the estimator's own size, larger is nearer, in its own unit. Images that are
            one object, as in a padded batch, share their map.
        """
        # No padding: the border that some processors (ZoeDepth's) add would be taken for a part of the picture.
        inputs = [self.processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"] for image in images]
        if not getattr(self.processor, "keep_aspect_ratio", False):
            inputs = [torch.cat(inputs)]
        # Otherwise shapes may differ between pictures, and every picture gets a call of its own: numbers depend on the
        # batch shape, which must not depend on the other pictures.
        results: list[Tensor] = []
        for pixels in inputs:
            predicted = self.network(pixels.to(self.device, self.network.dtype)).predicted_depth.float()
            # Inverted before it is resized: that overshoots at steep edges, and the inverse of a depth near 0 is huge.
            for inverse in predicted if self.polarity == "inverse" else 1.0 / predicted.clamp_min(1e-6):
                image = images[len(results)]
                if results and image is images[len(results) - 1]:
                    results.append(results[-1])
                    continue
                results.append(inverse)
        return results
