import numpy as np
import torch

from stereo_jobs.pixels import to_image, to_tensor


def test_every_level_comes_back() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    pixels = to_tensor(image)
    assert pixels.shape == (1, 3, 8, 32)
    assert (pixels.min(), pixels.max()) == (0, 1)
    np.testing.assert_array_equal(to_image(pixels), image)


def test_rounded_to_the_nearest_level_and_clipped() -> None:
    levels = torch.tensor([-3.0, 0.49, 0.51, 254.51, 300.0]) / 255
    found = to_image(levels.expand(1, 3, 1, 5))
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 255, 255])
