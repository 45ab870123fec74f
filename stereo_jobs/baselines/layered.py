"""3D photography without a network: the hidden parts of a layered depth image are inpainted, then rendered."""

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_jobs.baselines.fills import Result, columns_of, warp_of
from stereo_jobs.pixels import F32, Image, to_image, to_tensor
from stereo_jobs.stereo.warp import ForwardWarp

_RADIUS_PX = 3
"""Radius within which the inpainting looks for colours and slopes."""
_SAME_SURFACE_PX = 0.5
"""Largest difference of disparity within one surface."""


def layered(left: Image, disparity: F32, *, scale_sign: int = 1, subpixel: bool = True) -> Result:
    """Layered depth image, inpainted and rendered: the steps of 3D Photography (Shih et al. 2020) without a network.

    Behind every edge that opens a hole, the background is continued as a second layer. Its disparity and colour are
    inpainted (Telea 2004) from the background's side of the edge, never from the object in front. Both layers are
    warped, the first one in front. What lies outside the left view's frame is inpainted in the rendered view.
    """
    front = warp_of(left, disparity, scale_sign, subpixel)
    # Pixels beside the edge are hidden, too: they mix the colours of object and background.
    hidden = cv2.dilate(_hidden(front, disparity, scale_sign), np.ones((3, 3), np.uint8))
    color = cv2.inpaint(left, hidden, _RADIUS_PX, cv2.INPAINT_TELEA)
    behind = cv2.inpaint(disparity, hidden, _RADIUS_PX, cv2.INPAINT_TELEA)
    back = warp_of(left, np.asarray(behind if subpixel else np.round(behind), np.float32), scale_sign, subpixel)
    pixels = front(to_tensor(left), back(to_tensor(np.asarray(color, np.uint8))))
    beyond = ~(front.filled | back.filled)[0].numpy()
    right = cv2.inpaint(to_image(pixels), beyond.astype(np.uint8), _RADIUS_PX, cv2.INPAINT_TELEA)
    return np.asarray(right, np.uint8), ~front.filled[0].numpy()


def _hidden(front: ForwardWarp, disparity: F32, scale_sign: int) -> NDArray[np.uint8]:
    """Left pixels (H,W uint8, 1 where set) that the background layer must inpaint: objects in front of the holes.

    A hole of k pixels shows k pixels of background behind the object's edge. More than twice as many pixels are
    inpainted: the inpainting starts from all sides, and the object's colours must not reach the pixels that will be
    seen.
    """
    beside = columns_of(front, disparity, scale_sign)
    rows, holes = np.nonzero(~front.filled[0].numpy())
    background = beside[0].numpy()[rows, holes]
    source = front.source[0].numpy()[rows, background]
    reach = background - holes  # signed: the background may stand on either side
    nearness = disparity * scale_sign
    height, width = disparity.shape
    hidden = np.zeros((height, width), np.uint8)
    beyond = (2 * reach + np.sign(reach) * margin for margin in range(-1, 2 * _RADIUS_PX + 1))
    for far in (reach, *beyond):
        column = source - far
        inside = (column >= 0) & (column < width) & (far != 0)
        y, x = rows[inside], column[inside]
        in_front = nearness[y, x] > nearness[y, source[inside]] + _SAME_SURFACE_PX
        hidden[y[in_front], x[in_front]] = 1
    return hidden
