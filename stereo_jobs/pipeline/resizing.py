"""Brings an image of any size to the size that diffusion works at: scaled, then padded at the right and below."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True)
class Letterbox:
    """The way of one image into the working size and back. All sizes are (height, width) in pixels.

    Attributes:
        size: size of the image.
        inner: size of its scaled copy, which lies at the top left of the working size.
        working: size that the models see.
    """

    size: Size
    inner: Size
    working: Size

    @classmethod
    def exact(cls, size: Size) -> "Letterbox":
        """Return the letterbox of an image that is made at the working size."""
        return cls(size, size, size)

    @classmethod
    def of_area(cls, size: Size, area: int, multiple: int) -> "Letterbox":
        """Scale an image to about `area` in its own shape, then pad it to whole multiples.

        A strip whose short side would be less than one multiple is squeezed, so that its area stays near `area`.

        Args:
            size: size of the image.
            area: pixels of the scaled image, about.
            multiple: both sides of the working size are multiples of it.
        """
        scale = (area / (size[0] * size[1])) ** 0.5
        inner = [max(multiple, min(round(n * scale), area // multiple)) for n in size]
        # A little less than a multiple is padded, a little more is scaled down to it.
        snapped = [m if n - m < multiple / 4 else n for n in inner for m in [n // multiple * multiple]]
        working = [-(-n // multiple) * multiple for n in snapped]
        return cls(size, (snapped[0], snapped[1]), (working[0], working[1]))

    @property
    def zoom(self) -> float:
        """Working pixels per image pixel, across the width."""
        return self.inner[1] / self.size[1]

    def into(self, image: Tensor) -> Tensor:
        """Bring an image B,C,H,W to the working size; padded by reflection."""
        scaled = _scale(image, self.inner)
        return _pad(scaled, self.working)

    def map_into(self, maps: Tensor) -> Tensor:
        """Bring depth, disparity or masks B,H,W to the working size. No value overshoots; padding repeats the edge."""
        scaled = _scale(maps[:, None], self.inner, smooth=False)
        below, beside = self.working[0] - self.inner[0], self.working[1] - self.inner[1]
        return functional.pad(scaled, (0, beside, 0, below), mode="replicate")[:, 0]

    def back(self, image: Tensor) -> Tensor:
        """Bring an image B,C,h,w of the working size back to its own size."""
        return _scale(image[..., : self.inner[0], : self.inner[1]], self.size)

    def map_back(self, maps: Tensor) -> Tensor:
        """Bring masks or labels B,h,w of the working size back to the image's size, by the nearest pixel."""
        cut = maps[:, None, : self.inner[0], : self.inner[1]]
        if self.inner == self.size:
            return cut[:, 0]
        return functional.interpolate(cut.float(), self.size, mode="nearest-exact")[:, 0].to(maps.dtype)


def _scale(image: Tensor, size: Size, smooth: bool = True) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return functional.interpolate(image, size, mode="bicubic" if smooth else "bilinear", antialias=True).clamp(
        image.amin(), image.amax()
    )


def _pad(image: Tensor, size: Size) -> Tensor:
    """Pad by reflection, more than once where the image is smaller than the padding."""
    while image.shape[-2:] != torch.Size(size):
        below = min(size[0] - image.shape[-2], image.shape[-2] - 1)
        beside = min(size[1] - image.shape[-1], image.shape[-1] - 1)
        mode = "reflect" if max(below, beside) > 0 else "replicate"
        image = functional.pad(image, (0, beside, 0, below) if mode == "reflect" else (0, 1, 0, 1), mode=mode)
        image = image[..., : size[0], : size[1]]
    return image
