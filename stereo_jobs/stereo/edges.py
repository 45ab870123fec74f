"""Depth edges where the picture has them: an estimator blurs them over pixels of its own, which may be large.

All lengths are in pixels of the estimated map, all differences of depth are shares of the map's range. The size of the
picture is no part of the rules, so that one edge gives one clean step at every size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import bands, in_bands, widened
from stereo_jobs.stereo.disparity import resize

EDGE = 0.12
"""Share of the map's range that counts as an edge; a receding floor spans less within the radius."""
RADIUS = 2
"""Width of a blurred edge, in pixels of the map."""
NEAR = 0.25
"""Position on a ramp, from 0 (far) to 1 (near), above which a pixel goes to the near side."""
COLOUR = 0.06
"""Distance of two colours (RGB in [0, 1]) at which one has 0.6 of a vote about the depth of the other."""
REACH = 4
"""Pixels of the map in each direction whose depths are candidates for a pixel of an edge."""
POSITION = 2.0
"""Weight of a pixel's place on a ramp, against that of its colour, as the logarithm of a ratio of likelihoods."""
TOGETHER = 2**14
"""Pixels of edges that are decided together."""

Places = tuple[Tensor, Tensor, Tensor]
"""Sample, row and column of some pixels: n int64 each."""


def refine(maps: Tensor, picture: Tensor) -> Tensor:
    """Put the edges of an estimated map on those of its picture (after joint bilateral upsampling, Kopf et al. 2007).

    First, at the map's own size, the pixels of a ramp go to one of its sides (toggle mapping), and each pixel of an
    edge takes the median of the depths around it, weighted by how similar their colours are (Ma et al. 2013). Then
    each pixel of a larger picture beside an edge goes to the side whose colours are more like its own; where colours
    do not tell, the middle between two pixels of the map decides. What lies away from edges is resized as usual.

    Args:
        maps: B,h,w finite inverse depth at the size at which it was estimated, in any unit; larger is nearer.
        picture: B,3,H,W uint8, the picture that it was estimated from.

    Returns:
        B,H,W in the unit of `maps`, within its range.
    """
    low, high = (bound[:, None, None] for bound in (maps.flatten(1).amin(1), maps.flatten(1).amax(1)))
    step = EDGE * (high - low)
    size = (picture.shape[-2], picture.shape[-1])
    guide = _shrunk(picture, (maps.shape[-2], maps.shape[-1]))
    steep = _weighted_medians(_Votes(_toggled(maps, step), guide), step)
    plain = in_bands(lambda part: part.clamp(low, high), resize(steep, size))
    if size == tuple(maps.shape[-2:]):
        return plain
    placed = torch.empty_like(plain)
    for rows in bands(*size):
        placed[:, rows] = _placed(rows, plain, _Votes(steep, guide), picture, step)
    return placed


def _shrunk(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a picture B,3,H,W uint8 to the map's size, each pixel the mean of those it covers: B,3,h,w in [0, 1]."""
    narrow = in_bands(lambda part: _interpolated(part.float() / 255, (part.shape[-2], size[1])), picture)
    return _interpolated(narrow, size)


def _interpolated(image: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(image, size, mode="bilinear", antialias=True)


# --- At the map's own size ---


def _toggled(maps: Tensor, step: Tensor) -> Tensor:
    """Give every pixel of a ramp the smallest or largest depth around it (toggle mapping, Kramer and Bruckner 1975).

    The smallest is taken from the pixel's own row if the edge shows there: the floor beside an object is as far away as
    its own row, not as the rows above. Most of a ramp, and one more pixel, goes to the near side: a piece of an
    object's outline that stays behind on the background is visible, a rim of background that moves with it is not.
    """
    high, low = _largest_around(maps, RADIUS), -_largest_around(-maps, RADIUS)
    row_high, row_low = _largest_around(maps, RADIUS, rows=0), -_largest_around(-maps, RADIUS, rows=0)
    low = torch.where(row_high - row_low > step, row_low, low)
    edge = high - low > step
    upper = edge & (maps - low > NEAR * (high - low))
    sharp = torch.where(edge, torch.where(upper, high, low), maps)
    high = _largest_around(sharp, RADIUS)  # the foot of a wide ramp has met only a part of its height
    sharp = torch.where(upper & (high - sharp < 2 * step), high, sharp)
    beside = _largest_around(torch.where(upper, sharp, -torch.inf), 1)
    return torch.where(~upper & (beside - sharp > step), beside, sharp)


def _weighted_medians(votes: "_Votes", step: Tensor) -> Tensor:
    """Give every pixel near a step the median of the depths around it, weighted by likeness of colour and distance."""
    maps, colours = votes.maps, votes.guide
    made = maps.clone()
    for at in _chunks(_largest_around(maps, RADIUS) + _largest_around(-maps, RADIUS) > step):
        sample, row, column = at
        depth, weight = votes.around(at, colours[sample, :, row, column])
        depth, order = depth.sort(-1)
        share = (weight * votes.closeness).gather(-1, order).cumsum(-1)
        middle = (share < share[:, -1:] / 2).sum(-1, keepdim=True)
        made[at] = depth.gather(-1, middle)[:, 0]
    return made


# --- At the picture's size ---


def _placed(rows: slice, plain: Tensor, votes: "_Votes", picture: Tensor, step: Tensor) -> Tensor:
    """Decide the pixels beside steps in some rows of the picture: B,rows,W.

    Args:
        rows: which rows.
        plain: B,H,W, the map at the picture's size.
        votes: the map at its own size, with sharp steps.
        picture: B,3,H,W uint8.
        step: B,1,1, the difference that counts as a step.
    """
    height, width = picture.shape[-2:]
    steep = votes.maps
    zoom = height / steep.shape[-2], width / steep.shape[-1]
    radii = [round(z / 2) for z in zoom]  # one pixel of the map: a side is decided by all that lie in it
    wide, own = widened(rows, radii[0], height)
    high, low = _largest_around(steep, 1), -_largest_around(-steep, 1)
    beside = high - low > step
    part = plain[:, wide]
    y = ((torch.arange(wide.start, wide.stop, device=part.device) + 0.5) / zoom[0]).long()
    x = ((torch.arange(width, device=part.device) + 0.5) / zoom[1]).long()
    edge = beside[:, y][..., x]
    evidence = torch.zeros_like(part)
    for sample, row, column in _chunks(edge):
        at = sample, y[row], x[column]
        colour = picture[sample, :, wide.start + row, column].float() / 255
        depth, likeness = votes.around(at, colour)
        middle = (high[at] + low[at])[:, None] / 2
        near = _mean(likeness, depth > middle).log() - _mean(likeness, depth <= middle).log()
        place = (part[sample, row, column] - low[at]) / (high[at] - low[at])
        evidence[sample, row, column] = near + POSITION * (2 * place - 1)
    total = functional.avg_pool2d(
        evidence[:, None], [2 * r + 1 for r in radii], stride=1, padding=radii, count_include_pad=False
    )[:, 0]
    sided = torch.where(total > 0, high[:, y][..., x], low[:, y][..., x])
    return torch.where(edge, sided, part)[:, own]


def _mean(likeness: Tensor, side: Tensor) -> Tensor:
    """Mean likeness (n,k) of the pixels on one side (n,k bool), never quite 0: no colour is proof."""
    return (likeness * side).sum(-1) / side.sum(-1).clamp_min(1) + 0.05


# --- Around single pixels ---


@dataclass(frozen=True)
class _Votes:
    """What the pixels of a map around a place say about its depth.

    Attributes:
        maps: B,h,w depths.
        guide: B,3,h,w in [0, 1], their colours.
    """

    maps: Tensor
    guide: Tensor

    @cached_property
    def offsets(self) -> tuple[Tensor, Tensor]:
        """Rows and columns between a place and the k pixels around it: k int64 each."""
        around = torch.arange(-REACH, REACH + 1, device=self.maps.device)
        down, across = torch.meshgrid(around, around, indexing="ij")
        return down.flatten(), across.flatten()

    @cached_property
    def closeness(self) -> Tensor:
        """Weights of the k pixels by their distance, in (0, 1]."""
        down, across = self.offsets
        return torch.exp(-(down**2 + across**2) / (2 * (0.75 * REACH) ** 2))

    def around(self, at: Places, colour: Tensor) -> tuple[Tensor, Tensor]:
        """Depths of the k pixels around n places, and how much their colours are like `colour` (n,3): n,k each."""
        sample, row, column = (index[:, None] for index in at)
        y = (row + self.offsets[0]).clamp(0, self.maps.shape[-2] - 1)
        x = (column + self.offsets[1]).clamp(0, self.maps.shape[-1] - 1)
        unlike = torch.zeros(y.shape, device=y.device)
        for channel in range(self.guide.shape[1]):
            unlike += (self.guide[sample, channel, y, x] - colour[:, channel, None]).square()
        return self.maps[sample, y, x], torch.exp(-unlike / (2 * COLOUR**2))


def _chunks(where: Tensor) -> Iterator[Places]:
    """The places of a B,h,w mask, some at a time."""
    for part in torch.split(where.nonzero(), TOGETHER):
        sample, row, column = part.unbind(1)
        yield sample, row, column


def _largest_around(maps: Tensor, radius: int, *, rows: int | None = None) -> Tensor:
    """The largest value within `radius` pixels in each direction, vertically within `rows`: B,h,w -> B,h,w."""
    reach = (radius if rows is None else rows, radius)
    return functional.max_pool2d(maps[:, None], [2 * r + 1 for r in reach], stride=1, padding=reach)[:, 0]
