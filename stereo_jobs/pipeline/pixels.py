"""Between images as arrays and images as tensors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stereo_jobs.quality.truth import decibels

Image = NDArray[np.uint8]
"""H,W,3 in [0, 255]."""


def to_tensor(image: Image) -> Tensor:
    """H,W,3 uint8 -> 1,3,H,W float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def to_image(pixels: Tensor) -> Image:
    """1,3,H,W in [0, 1] -> H,W,3 uint8."""
    rounded = (pixels[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(rounded.permute(1, 2, 0).cpu().numpy(), np.uint8)


def psnr(image: Image, truth: Image, over: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images, at most 100; `over` some pixels alone, H,W."""
    squared = (image.astype(np.float64) - truth) ** 2
    return decibels(float(np.mean(squared if over is None else squared[over])))


def finite(x: Tensor) -> Tensor:
    """Which samples are finite throughout. B,... -> B bool."""
    return torch.isfinite(x).flatten(1).all(1)
