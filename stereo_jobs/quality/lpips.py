"""Learned Perceptual Image Patch Similarity (LPIPS): version 0.1 on AlexNet, with embedded weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from stereo_jobs.pixels import Image

F32 = NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights" / "alex_lpips_fp16.safetensors"
SMALLEST_SIDE = 31
"""Pixels: of a smaller image the second pooling leaves nothing for the last three layers."""

STRIDE_AND_PADDING = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
POOLED_BEFORE = (1, 2)


@dataclass(frozen=True)
class Distance:
    """LPIPS of two images, or of the B pairs of a batch: 0 for equal images, larger for images further apart.

    Attributes:
        score: the published number, float32 of shape () or B: the mean of every layer's map, summed over the layers.
        map: H,W or B,H,W float32: every layer's map, bilinearly upsampled to the image, summed over the layers. Its
            mean is near `score` but not equal, as upsampling weighs the pixels at the border differently.
    """

    score: F32
    map: F32


class LPIPS:
    """Learned Perceptual Image Patch Similarity (Zhang et al. 2018, Eq. 1): version 0.1 on AlexNet.

    Computes in float32, whatever the device. The same inputs give the same bits on one device with one number of
    threads; batches, other devices and other numbers of threads may differ in the last bits.

    Args:
        device: where it computes, as torch names it.
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
        """Distance of two images (H,W,3 uint8, RGB) or of the pairs of two batches (B,H,W,3 uint8); symmetric.

        Raises:
            ValueError: another type or shape, two different shapes, or a side below `SMALLEST_SIDE` pixels.
        """
        _check(first, second)
        *batch, height, width, _ = first.shape
        images = torch.from_numpy(np.stack([first, second]).reshape(-1, height, width, 3)).to(self.device)
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # 2B,H,W,3 -> 2B,3,H,W, [0,255] -> [-1,1]
        score = x.new_zeros(len(x) // 2)
        upsampled = x.new_zeros(len(x) // 2, 1, height, width)
        with torch.inference_mode(), self._exact():
            for w, y in zip(self.w, self._features(x), strict=True):
                y_hat = y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10)
                y1, y2 = y_hat.chunk(2)  # 2B,C,h,w -> B,C,h,w each
                d = (w * (y1 - y2).square()).sum(1, keepdim=True)  # B,C,h,w -> B,1,h,w
                score += d.mean((1, 2, 3))
                upsampled += F.interpolate(d, (height, width), mode="bilinear", align_corners=False)
        return Distance(
            score.reshape(batch).cpu().numpy(),
            upsampled.reshape(*batch, height, width).cpu().numpy(),
        )

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        """AlexNet's five layers after their ReLU, each N,C,h,w, of N,3,H,W in [-1,1]."""
        x = (x - self.shift) / self.scale
        for i, (weight, bias) in enumerate(self.convolutions):
            if i in POOLED_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            stride, padding = STRIDE_AND_PADDING[i]
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            yield x

    def _exact(self) -> AbstractContextManager[None]:
        """No TF32 and no choice of algorithm by the clock, while a GPU computes; a CPU knows neither."""
        if self.device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@cache
def lpips_model(device: str = "cpu") -> LPIPS:
    """The LPIPS model of a device, loaded once a process."""
    return LPIPS(device)


def _check(first: Image, second: Image) -> None:
    for name, image in (("first", first), ("second", second)):
        if image.ndim not in (3, 4) or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{name} must be H,W,3 or B,H,W,3 uint8, got {image.shape} {image.dtype}")
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {first.shape} and {second.shape}")
    if min(first.shape[-3:-1]) < SMALLEST_SIDE:
        raise ValueError(f"first: LPIPS on AlexNet needs sides of {SMALLEST_SIDE} pixels or more, got {first.shape}")
