"""What of a pixel beside an object is the object's: each is compared with colours of the object and the background."""

from dataclasses import dataclass
from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional

RAYS = 16
"""Directions in which colours are looked for."""
BEYOND = 7
"""Steps that a ray goes on behind the pixels in question."""
FEWEST = 4
"""Fewest pixels of the background that tell its colours."""
SPREADS = 0.4
"""Distance from all of the background's colours from which a pixel is not background, in their standard deviations: in
a texture every pixel differs a little from all others."""
TOGETHER = 2
"""Fewest such pixels among the nine around one, itself included: noise strikes single pixels."""
ON_LINE = 0.5
"""Largest distance of a mixture from the line between both colours, as a share of its distance from the background."""


@dataclass(frozen=True)
class Mixtures:
    """Pixels that are not background alone, n in all. `back` + `share` * (`front` - `back`) is nearly their colour.

    Attributes:
        place: n int64, ascending places in the flattened B,h,w.
        share: n in [0, 1], the object's share.
        front: n,3 in [0, 1], colour of the object.
        back: n,3 in [0, 1], colour of the background.
        near: n, nearness of the object.
    """

    place: Tensor
    share: Tensor
    front: Tensor
    back: Tensor
    near: Tensor


def find_mixtures(
    image: Tensor,
    near: Tensor,
    where: Tensor,
    *,
    jump: Tensor | float,
    reach: int,
    step: int,
    unlike: float,
) -> Mixtures:
    """Find mixtures by samples of both colours (Gastal and Oliveira 2010, "Shared sampling", Sec. 3.1).

    The background's colours are those of its surface, farther than `reach` from anything nearer. The one most like the
    pixel is taken, and the object's colour with which it explains the pixel best.

    Args:
        image: B,3,h,w in [0, 1].
        near: B,h,w nearness, in any unit.
        where: B,h,w bool, pixels outside of edges that may be mixtures.
        jump: largest difference of nearness within a surface: a number, or B,1,1.
        reach: farthest pixel in question from the edge, pixels.
        step: distance between samples, pixels.
        unlike: smallest distance (Euclidean in RGB) from all of the background's colours that is seen, see `SPREADS`.
    """
    height, width = near.shape[-2:]
    flat, colours = near.flatten(), image.movedim(1, 0).flatten(1)
    jump = torch.as_tensor(jump, dtype=near.dtype, device=near.device).expand(len(near), 1, 1).flatten()
    around = functional.max_pool2d(near, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    around = functional.max_pool2d(around, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    free = (around - near <= jump[:, None, None]).flatten()  # no object within reach

    sample, row, column = where.nonzero().unbind(1)
    pixel = (sample * height + row) * width + column
    colour, jump = colours[:, pixel], jump[sample]
    distance = torch.full_like(flat[pixel], torch.inf)  # from the background's colour most like the pixel
    back, total, squares = colour.clone(), torch.zeros_like(colour), torch.zeros_like(distance)
    count = torch.zeros_like(distance)
    on_objects = []
    for down, across in _offsets(reach // step + BEYOND, step):
        y, x = row + down, column + across
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        there = (sample * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
        rise = flat[there] - flat[pixel]
        background = inside & (rise.abs() <= jump) & free[there]
        seen = colours[:, there]
        apart = (seen - colour).square().sum(0).sqrt()
        closer = background & (apart < distance)
        distance, back = torch.where(closer, apart, distance), torch.where(closer, seen, back)
        count, total = count + background, total + background * seen
        squares = squares + background * seen.square().sum(0)
        if max(abs(down), abs(across)) <= reach + 2 * step:
            on_objects.append((there, inside & (rise > jump)))
    mean = total / count.clamp_min(1)
    spread = (squares / count.clamp_min(1) - mean.square().sum(0)).clamp_min(0).sqrt()
    other = (count >= FEWEST) & (distance > (SPREADS * spread).clamp_min(unlike))

    marked = torch.zeros_like(near)
    marked.view(-1)[pixel[other]] = 1
    together = functional.avg_pool2d(marked[:, None], 3, stride=1, padding=1, divisor_override=1).flatten()
    kept = (other & (together[pixel] >= TOGETHER)).nonzero()[:, 0]
    pixel, colour, back, distance = (values[..., kept] for values in (pixel, colour, back, distance))
    rest, share = ON_LINE * distance, torch.zeros_like(distance)
    front, nearest = colour.clone(), torch.full_like(distance, -torch.inf)
    for there, nearer in ((place[kept], on_object[kept]) for place, on_object in on_objects):
        towards = colours[:, there] - back
        part = (((colour - back) * towards).sum(0) / towards.square().sum(0).clamp_min(1e-9)).clamp(0, 1)
        left = (colour - back - part * towards).square().sum(0).sqrt()
        better = nearer & (left < rest)
        rest, share = torch.where(better, left, rest), torch.where(better, part, share)
        front = torch.where(better, colours[:, there], front)
        nearest = torch.where(nearer, torch.maximum(nearest, flat[there]), nearest)
    found = share > 0
    return Mixtures(pixel[found], share[found], front[:, found].T, back[:, found].T, nearest[found])


def _offsets(steps: int, step: int) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to the samples around it, each once, the nearest first."""
    rays = [2 * pi * i / RAYS for i in range(RAYS)]
    radii = range(step, steps * step + 1, step)
    return list(dict.fromkeys((round(r * sin(ray)), round(r * cos(ray))) for r in radii for ray in rays))
