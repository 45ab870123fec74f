"""The sizes at which pairs are scored: their own, or a smaller one, so that the cost of a pair has a bound."""

from dataclasses import dataclass

import cv2
import numpy as np

from stereo_jobs.pixels import F32, Bools, Image

MOST_PIXELS = 1_500_000
"""The largest width times height whose holes are looked at as they are."""
MOST_COMPARED = 2**16
"""The largest width times height at which both views are compared, by a matcher or through the label: 256 x 256."""
MOST_COLUMNS = 2048
"""The largest width that is scored as it is; a matcher's memory grows with its square."""


@dataclass(frozen=True)
class WorkingSize:
    """Brings a pair to the size at which it is scored.

    Attributes:
        height: rows of the pair there.
        width: columns of the pair there.
        zoom: its columns per column of the pair; 1 where the pair is small enough to be scored as it is.
    """

    height: int
    width: int
    zoom: float

    @classmethod
    def of(cls, height: int, width: int) -> "WorkingSize":
        """The working size of a pair: at most `MOST_PIXELS` pixels and `MOST_COLUMNS` columns, in the same shape."""
        return cls._within(height, width, MOST_PIXELS)

    @classmethod
    def compared(cls, height: int, width: int) -> "WorkingSize":
        """The size at which both views are compared: at most `MOST_COMPARED` pixels and `MOST_COLUMNS` columns.

        A matcher's cost grows with the cube of the side, and its disparities have fractions of a pixel at any size.
        """
        return cls._within(height, width, MOST_COMPARED)

    @classmethod
    def _within(cls, height: int, width: int, pixels: int) -> "WorkingSize":
        if height * width <= pixels and width <= MOST_COLUMNS:
            return cls(height, width, 1.0)
        zoom = min((pixels / (height * width)) ** 0.5, MOST_COLUMNS / width)
        columns = max(1, int(width * zoom))
        rows = max(1, min(int(height * zoom), pixels // columns))
        return cls(rows, columns, columns / width)

    def image(self, image: Image) -> Image:
        """Bring an image H,W,3 there: each pixel is the mean of those that it covers."""
        return np.asarray(self._resized(image, cv2.INTER_AREA), np.uint8)

    def values(self, values: F32) -> F32:
        """Bring a map H,W there by its nearest values: a mean across an edge would lie on neither of its sides."""
        return np.asarray(self._resized(values, cv2.INTER_NEAREST_EXACT), np.float32)

    def disparity(self, disparity: F32) -> F32:
        """Bring a disparity H,W there, in pixels of this size."""
        return disparity if self.zoom == 1 else self.values(disparity) * np.float32(self.zoom)

    def mask(self, mask: Bools) -> Bools:
        """Bring a mask H,W there: True where at least half of the pixels that a pixel covers are True."""
        if mask.shape == (self.height, self.width):
            return mask
        return np.asarray(self._resized(mask.astype(np.uint8) * np.uint8(255), cv2.INTER_AREA) >= 128)

    def _resized(self, values: np.ndarray, interpolation: int) -> np.ndarray:
        if values.shape[:2] == (self.height, self.width):
            return values
        return cv2.resize(np.ascontiguousarray(values), (self.width, self.height), interpolation=interpolation)
