"""Types of images, maps and masks as arrays; images as tensors of the method."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]
"""H,W,3 in [0, 255]."""
F32 = NDArray[np.float32]
"""A map of numbers, for example H,W disparity in pixels."""
Bools = NDArray[np.bool_]
"""A mask, usually H,W."""


def to_tensor(image: Image) -> Tensor:
    """H,W,3 uint8 -> 1,3,H,W float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def to_image(pixels: Tensor) -> Image:
    """1,3,H,W in [0, 1], beyond it clipped -> H,W,3 uint8; the nearest level, so that equal warps are equal images."""
    rounded = (pixels[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(rounded.permute(1, 2, 0).cpu().numpy(), np.uint8)
