"""Protocol `cycle`: a photo is the true right view; what is lost on the way to the left view and back are its holes.

After GRT (arXiv 2607.05354). Needs no stereo pair, only a disparity, and therefore works on any folder of photos.
"""

import numpy as np
import torch

from stereo_jobs.baselines import image_warp, stretch
from stereo_jobs.evaluate.datasets import F32, TruthScene
from stereo_jobs.pixels import Image


def cycle_scene(name: str, photo: Image, disparity: F32) -> TruthScene:
    """A scene whose right view is a photo, and whose left view is warped from it.

    The photo's pixel at x goes to x + d of the left view, which takes its disparity along; holes of the left view are
    stretched from the background beside them, in both. So the left view's own disparity brings each pixel back to its
    place: `x_R = x_L - d`. Photo pixels that something nearer covers in the left view, or that leave its frame, do not
    come back. They are the holes of the way back, and the photo is the truth in them.

    Args:
        name: id of the scene.
        photo: H,W,3 uint8.
        disparity: H,W float32 pixels of the photo, finite; positive is nearer.
    """
    left, _ = stretch(photo, -disparity, scale_sign=-1)
    values = torch.from_numpy(disparity)[None, None]
    carried = image_warp(-disparity, -1, subpixel=True).continued(values)  # 1,1,H,W
    return TruthScene(name, left, photo, np.asarray(carried[0, 0].numpy(), np.float32))
