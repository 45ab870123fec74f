"""What of a pixel beside an object is the object's: each is compared with colours of the object and the background."""

from dataclasses import dataclass, fields
from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional

RAYS = 12
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
AT_ONCE = 2**16
"""Pixels that are compared with one sample of each ray at once: few calls of the device, and a bound on memory."""
ON_LINE = 0.35
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
    jump = torch.as_tensor(jump, dtype=near.dtype, device=near.device).expand(len(near), 1, 1)
    free = largest_around(near, reach) - near <= jump  # no object within reach
    scene = _Scene(image, near, free, jump.flatten())
    offsets = _offsets(reach // step + BEYOND, step)
    # Most pixels are background, as a few samples show: those just beyond the reach are seen first.
    nearest_first = sorted(offsets, key=lambda offset: abs(max(map(abs, offset)) - reach - 2 * step))
    parts = torch.split(where.flatten().nonzero()[:, 0], AT_ONCE)
    pixel = torch.cat([_unlike_all(scene, part, nearest_first, unlike) for part in parts])
    found = [_background(scene, part, offsets) for part in torch.split(pixel, AT_ONCE)]
    distance, back, spread = (torch.cat(values, -1) for values in zip(*found, strict=True))
    other = distance > SPREADS * spread

    marked = torch.zeros_like(near)
    marked.view(-1)[pixel[other]] = 1
    together = functional.avg_pool2d(marked[:, None], 3, stride=1, padding=1, divisor_override=1).flatten()
    kept = (other & (together[pixel] >= TOGETHER)).nonzero()[:, 0]
    close = [offset for offset in offsets if max(map(abs, offset)) <= reach + 2 * step]
    parts = torch.split(kept, AT_ONCE)
    mixtures = [_objects(scene, pixel[at], back[:, at], ON_LINE * distance[at], close) for at in parts]
    return Mixtures(*(torch.cat([getattr(each, field.name) for each in mixtures]) for field in fields(Mixtures)))


def largest_around(maps: Tensor, radius: int) -> Tensor:
    """Find the largest value within `radius` pixels in each direction, of every pixel: B,h,w -> B,h,w."""
    across = functional.max_pool2d(maps, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return functional.max_pool2d(across, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def share_of(front: Tensor, colour: Tensor, back: Tensor) -> Tensor:
    """Find the place of colours 3,... on the line from `back` (0) to `front` (1)."""
    direction = front - back
    return ((colour - back) * direction).sum(0) / direction.square().sum(0).clamp_min(1e-9)


class _Scene:
    """Colours and nearness around pixels.

    Args:
        image: B,3,h,w.
        near: B,h,w.
        free: B,h,w bool, pixels without anything nearer beside them.
        jump: B, largest difference of nearness within a surface.
    """

    def __init__(self, image: Tensor, near: Tensor, free: Tensor, jump: Tensor) -> None:
        self._size = near.shape[-2:]
        self._jump = jump
        colours = image.movedim(1, -1).flatten(0, -2)
        # One row for each pixel, so that all of its values are read at once: B*h*w,5
        self._rows = torch.cat([colours, near.flatten()[:, None], free.flatten()[:, None].to(near.dtype)], 1)

    def colours(self, pixel: Tensor) -> Tensor:
        """Colours of n pixels: 3,n."""
        return self._rows[pixel, :3].T

    def near(self, pixel: Tensor) -> Tensor:
        """Nearness of n pixels: n."""
        return self._rows[pixel, 3]

    def jump_at(self, pixel: Tensor) -> Tensor:
        """Largest difference of nearness within a surface at each of n pixels: n."""
        return self._jump[pixel // (self._size[0] * self._size[1])]

    def samples(self, pixel: Tensor, offsets: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Look at the places that lie at k offsets from each of n pixels.

        Returns:
            3,n,k colours there; n,k bool, whether it is background of the pixel's surface; n,k, by how much it is
            nearer than the pixel, -inf outside of the picture.
        """
        height, width = self._size
        down, right = torch.tensor(offsets, device=pixel.device).T
        here = pixel[:, None]
        y, x = here // width % height + down, here % width + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        rows = self._rows[torch.where(inside, here + down * width + right, here)].movedim(-1, 0)  # 5,n,k
        rise = (rows[3] - self.near(pixel)[:, None]).masked_fill(~inside, -torch.inf)
        background = (rise.abs() <= self.jump_at(pixel)[:, None]) & (rows[4] > 0)
        return rows[:3], background, rise


def _unlike_all(scene: _Scene, pixel: Tensor, offsets: list[tuple[int, int]], unlike: float) -> Tensor:
    """Keep those of n pixels that differ by more than `unlike` from all of their background; enough of it is seen."""
    count = torch.zeros_like(pixel)
    for some in _in_parts(offsets):
        seen, background, _ = scene.samples(pixel, some)
        like = background & (_apart(seen, scene.colours(pixel)[..., None]) <= unlike)
        rest = ~like.any(1)
        pixel, count = pixel[rest], (count + background.sum(1))[rest]
    return pixel[count >= FEWEST]


def _background(scene: _Scene, pixel: Tensor, offsets: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Find the background's colour most like each of n pixels.

    Returns:
        n, its distance; 3,n, the colour; n, the standard deviation of all of the background's colours.
    """
    colour = scene.colours(pixel)
    distance = torch.full_like(colour[0], torch.inf)
    back, total = colour.clone(), torch.zeros_like(colour)
    squares, count = torch.zeros_like(distance), torch.zeros_like(distance)
    for some in _in_parts(offsets):
        seen, background, _ = scene.samples(pixel, some)
        apart, which = _apart(seen, colour[..., None]).masked_fill(~background, torch.inf).min(1)
        closer = apart < distance
        distance, back = torch.where(closer, apart, distance), torch.where(closer, _taken(seen, which), back)
        count, total = count + background.sum(1), total + (background * seen).sum(2)
        squares = squares + (background * seen.square().sum(0)).sum(1)
    mean = total / count
    return distance, back, (squares / count - mean.square().sum(0)).clamp_min(0).sqrt()


def _objects(scene: _Scene, pixel: Tensor, back: Tensor, limit: Tensor, offsets: list[tuple[int, int]]) -> Mixtures:
    """Find the object's colour that explains each of n pixels best, and leave out those that none explains.

    Args:
        scene: colours and nearness.
        pixel: n.
        back: 3,n, colour of the background.
        limit: n, largest distance from the line between both colours.
        offsets: where to look for objects.
    """
    colour, share = scene.colours(pixel), torch.zeros_like(limit)
    front, nearest = colour.clone(), torch.full_like(limit, -torch.inf)
    for some in _in_parts(offsets):
        seen, _, rise = scene.samples(pixel, some)
        nearer = rise > scene.jump_at(pixel)[:, None]
        here = share_of(seen, colour[..., None], back[..., None]).clamp(0, 1)
        missed = _apart(colour[..., None], back[..., None] + here * (seen - back[..., None]))
        least, which = missed.masked_fill(~nearer, torch.inf).min(1)
        better = least < limit
        limit = torch.where(better, least, limit)
        share = torch.where(better, here.gather(1, which[:, None])[:, 0], share)
        front = torch.where(better, _taken(seen, which), front)
        nearest = torch.maximum(nearest, (scene.near(pixel)[:, None] + rise).masked_fill(~nearer, -torch.inf).amax(1))
    found = share > 0
    return Mixtures(pixel[found], share[found], front[:, found].T, back[:, found].T, nearest[found])


def _in_parts(offsets: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut offsets into parts of one for each ray."""
    return [offsets[start : start + RAYS] for start in range(0, len(offsets), RAYS)]


def _taken(seen: Tensor, which: Tensor) -> Tensor:
    """Take one of k colours for each of n pixels: 3,n,k and n -> 3,n."""
    return seen.gather(2, which.expand(3, -1)[..., None])[..., 0]


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of colours 3,...: ..."""
    return (first - second).square().sum(0).sqrt()


def _offsets(steps: int, step: int) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to the samples around it, each once, the nearest first."""
    rays = [2 * pi * i / RAYS for i in range(RAYS)]
    radii = range(step, steps * step + 1, step)
    return list(dict.fromkeys((round(r * sin(ray)), round(r * cos(ray))) for r in radii for ray in rays))
