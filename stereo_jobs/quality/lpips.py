"""Learned Perceptual Image Patch Similarity (LPIPS), version 0.1 on AlexNet, with embedded weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stereo_jobs.pixels import F32, Image

WEIGHTS = Path(__file__).parent / "weights" / "alex_lpips_fp16.safetensors"
SMALLEST_SIDE = 31
"""Smallest side of an image in pixels; the poolings leave nothing of smaller ones for the last three layers."""

STRIDE_AND_PADDING = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
"""Stride and padding of AlexNet's five convolutions."""
POOLED_BEFORE = (1, 2)
"""Indices of the convolutions that have a max pooling before them."""


@dataclass(frozen=True)
class Distance:
    """LPIPS of two images, or of the B pairs of a batch: 0 for equal images, larger the more they differ.

    Attributes:
        score: float32 of shape () or B, the published number: the mean of each layer's map, summed over the layers.
        map: H,W or B,H,W float32: each layer's map, bilinearly upsampled to the image, summed over the layers. Its
            mean is close to `score` but not equal, because upsampling weighs the pixels at the border differently.
    """

    score: F32
    map: F32


class LPIPS:
    """Learned Perceptual Image Patch Similarity (Zhang et al. 2018, Eq. 1): version 0.1 on AlexNet.

    It computes in float32 on every device. The same inputs give the same bits on the same device with the same number
    of threads; another batch size, device or number of threads may change the last bits.

    Args:
        device: name of the torch device that computes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        weights = {name: weight.to(self.device, torch.float32) for name, weight in load_file(WEIGHTS).items()}
        layers = range(len(STRIDE_AND_PADDING))
        self.convolutions = [(weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]) for i in layers]
        self.w = [weights[f"lin{i}.weight"][:, None, None] for i in layers]  # C -> C,1,1
        self.shift = torch.tensor([-0.030, -0.088, -0.188], device=self.device)[:, None, None]
        self.scale = torch.tensor([0.458, 0.448, 0.450], device=self.device)[:, None, None]

    def __call__(self, first: Image, second: Image) -> Distance:
        """Distance of two images (H,W,3 uint8, RGB), or of the pairs of two batches (B,H,W,3 uint8); symmetric.

        A first batch of one image is compared with each of the second batch; its features are found once.

        Raises:
            ValueError: an input has another type or shape, the shapes differ, or a side is below `SMALLEST_SIDE`
                pixels.
        """
        _check(first, second)
        *batch, height, width, _ = second.shape
        both = [np.reshape(image, (-1, height, width, 3)) for image in (first, second)]
        x = torch.from_numpy(np.concatenate(both)).to(self.device)
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1  # A+B,H,W,3 -> A+B,3,H,W, [0,255] -> [-1,1]; A is B or 1
        score = x.new_zeros(len(both[1]))
        upsampled = x.new_zeros(len(both[1]), 1, height, width)
        with torch.inference_mode(), self._exact():
            for w, y in zip(self.w, self._features(x), strict=True):
                y_hat = y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10)
                y1, y2 = y_hat[: len(both[0])], y_hat[len(both[0]) :]  # A+B,C,h,w -> A,C,h,w and B,C,h,w
                d = (w * (y1 - y2).square()).sum(1, keepdim=True)  # B,C,h,w -> B,1,h,w
                score += d.mean((1, 2, 3))
                upsampled += F.interpolate(d, (height, width), mode="bilinear", align_corners=False)
        return Distance(
            score.reshape(batch).cpu().numpy(),
            upsampled.reshape(*batch, height, width).cpu().numpy(),
        )

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        """Outputs of AlexNet's five convolutions after their ReLU: N,3,H,W in [-1,1] -> N,C,h,w each."""
        x = (x - self.shift) / self.scale
        for i, (weight, bias) in enumerate(self.convolutions):
            if i in POOLED_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            stride, padding = STRIDE_AND_PADDING[i]
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            yield x

    def _exact(self) -> AbstractContextManager[None]:
        """Switch off TF32 and the choice of algorithms by their speed while a GPU computes; a CPU has neither."""
        if self.device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@cache
def lpips_model(device: str = "cpu") -> LPIPS:
    """The LPIPS model on a device, loaded once per process."""
    return LPIPS(device)


def _check(first: Image, second: Image) -> None:
    for name, image in (("first", first), ("second", second)):
        if image.ndim not in (3, 4) or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{name} must be H,W,3 or B,H,W,3 uint8, got {image.shape} {image.dtype}")
    if first.shape not in (second.shape, (1, *second.shape[1:])):
        raise ValueError(f"first and second must have one shape, got {first.shape} and {second.shape}")
    if min(first.shape[-3:-1]) < SMALLEST_SIDE:
        raise ValueError(f"first: LPIPS on AlexNet needs sides of {SMALLEST_SIDE} pixels or more, got {first.shape}")
