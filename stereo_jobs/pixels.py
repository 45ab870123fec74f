"""Images, maps and masks as arrays, and images as tensors of the method."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]
"""H,W,3 in [0, 255], RGB."""
F32 = NDArray[np.float32]
"""H,W numbers of one kind, such as disparity in pixels or inverse depth."""
Bools = NDArray[np.bool_]
"""H,W, a mask."""


def to_tensor(image: Image) -> Tensor:
    """Convert an image H,W,3 uint8 -> 1,3,H,W float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def to_image(pixels: Tensor) -> Image:
    """Convert 1,3,H,W in [0, 1] -> H,W,3 uint8. Values beyond the range are clipped.

    Rounds to the nearest level, so that equal warps give equal images.
    """
    rounded = (pixels[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(rounded.permute(1, 2, 0).cpu().numpy(), np.uint8)
