"""Brings an image of any size to the size that diffusion works at: scaled, then padded at the right and below."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.bands import bands, widened

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
        return self.into_from_bands([image])

    def image_into(self, image: Image) -> Tensor:
        """Bring an image H,W,3 uint8 to the working size: 1,3,h,w in [0, 1]."""
        return self.into_from_bands(to_tensor(image[rows]) for rows in bands(*self.size))

    def into_from_bands(self, parts: Iterable[Tensor]) -> Tensor:
        """Bring an image to the working size whose bands come one after the other, from the top down: B,C,rows,W each.

        The scaling is separable: every band is scaled along its rows as it comes, and all of them together across.
        """
        # In one tensor made beforehand: small ones that stay between large ones that go would hold their memory.
        narrow: Tensor | None = None
        low = high = torch.empty(0)
        top = 0
        for part in parts:
            if narrow is None:
                narrow = part.new_empty((*part.shape[:-2], self.size[0], self.inner[1]))
                low, high = part.amin(), part.amax()
            below = top + part.shape[-2]
            narrow[..., top:below, :] = _interpolate(part, (part.shape[-2], self.inner[1]))
            low, high, top = torch.minimum(low, part.amin()), torch.maximum(high, part.amax()), below
        if narrow is None:
            raise ValueError("an image without bands cannot be scaled; give at least one band of rows")
        scaled = _interpolate(narrow, self.inner)
        if self.inner != self.size:
            scaled = scaled.clamp(low, high)
        return _pad(scaled, self.working)

    def map_into(self, maps: Tensor) -> Tensor:
        """Bring depth, disparity or masks B,H,W to the working size. No value overshoots; padding repeats the edge."""
        scaled = _scale(maps[:, None], self.inner)
        below, beside = self.working[0] - self.inner[0], self.working[1] - self.inner[1]
        return functional.pad(scaled, (0, beside, 0, below), mode="replicate")[:, 0]

    def back(self, image: Tensor) -> Tensor:
        """Bring an image B,C,h,w of the working size back to its own size."""
        cut = image[..., : self.inner[0], : self.inner[1]]
        if self.inner == self.size:
            return cut
        whole = torch.empty((*cut.shape[:-2], *self.size), dtype=cut.dtype, device=cut.device)
        for columns, part in self._strips(cut):
            whole[..., columns] = part
        return whole

    def image_back(self, image: Tensor) -> Image:
        """Bring an image 1,3,h,w in [0, 1] of the working size back to its own size: H,W,3 uint8."""
        whole = np.empty((*self.size, 3), np.uint8)
        for columns, part in self._strips(image[..., : self.inner[0], : self.inner[1]]):
            whole[:, columns] = to_image(part)
        return whole

    def map_back(self, maps: Tensor) -> Tensor:
        """Bring masks or labels B,h,w of the working size back to the image's size, by the nearest pixel."""
        cut = maps[:, None, : self.inner[0], : self.inner[1]]
        if self.inner == self.size:
            return cut[:, 0]
        return functional.interpolate(cut.float(), self.size, mode="nearest-exact")[:, 0].to(maps.dtype)

    def _strips(self, cut: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Scale the inner part of an image B,C,h,w to its own size, a strip of columns after the other.

        The scaling is separable: all rows are scaled first, then every strip across the rows.
        """
        low, high = cut.amin(), cut.amax()
        wide = _interpolate(cut, (self.inner[0], self.size[1]))
        for columns in bands(self.size[1], self.size[0]):  # a band of the picture turned by 90 degrees
            # One column more on each side: a strip of a single column is scaled wrongly by torch 2.13.
            broad, own = widened(columns, 1, self.size[1])
            part = _interpolate(wide[..., broad], (self.size[0], broad.stop - broad.start))[..., own]
            yield columns, part if self.inner == self.size else part.clamp(low, high)


def _interpolate(image: Tensor, size: Size) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return functional.interpolate(image, size, mode="bicubic", antialias=True)


def _scale(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", antialias=True).clamp(maps.amin(), maps.amax())


def _pad(image: Tensor, size: Size) -> Tensor:
    """Pad by reflection, more than once where the image is smaller than the padding."""
    while image.shape[-2:] != torch.Size(size):
        below = min(size[0] - image.shape[-2], image.shape[-2] - 1)
        beside = min(size[1] - image.shape[-1], image.shape[-1] - 1)
        mode = "reflect" if max(below, beside) > 0 else "replicate"
        image = functional.pad(image, (0, beside, 0, below) if mode == "reflect" else (0, 1, 0, 1), mode=mode)
        image = image[..., : size[0], : size[1]]
    return image
