"""Pictures of a pair to look at: both views in one image, and its disparity in colours."""

import numpy as np
from numpy.typing import NDArray

# Least-squares matrices for red-cyan glasses (Dubois, ICASSP 2001), on linear-ish display values.
_LEFT = np.array([[0.437, 0.449, 0.164], [-0.062, -0.062, -0.024], [-0.048, -0.050, -0.017]])
_RIGHT = np.array([[-0.011, -0.032, -0.007], [0.377, 0.761, 0.009], [-0.026, -0.093, 1.234]])


def anaglyph(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mix two H,W,3 uint8 images into one for red-cyan glasses (Dubois, ICASSP 2001)."""
    mixed: NDArray[np.float64] = left @ _LEFT.T + right @ _RIGHT.T
    return mixed.clip(0, 255).round().astype(np.uint8)


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8], *, cross_eyed: bool = False) -> NDArray[np.uint8]:
    """Put two H,W,3 uint8 images into one H,2W,3; with `cross_eyed` the right view stands on the left."""
    return np.concatenate([right, left] if cross_eyed else [left, right], axis=1)


def coloured(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour a disparity, H,W -> H,W,3 uint8: dark blue is far, yellow is near."""
    low, high = float(disparity.min()), float(disparity.max())
    near = (disparity - low) / (high - low) if high > low else np.zeros_like(disparity)
    stops = np.array([[30, 20, 90], [30, 120, 160], [80, 190, 110], [250, 230, 60]])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(near, at, stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)
