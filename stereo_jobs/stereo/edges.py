"""Depth edges where the picture has them: an estimator blurs them over pixels of its own, which may be large.

All lengths are in pixels of the estimated map, all differences of depth are shares of the map's range. The size of the
picture is no part of the rules, so that one edge gives one clean step at every size.
"""

from math import ceil, hypot

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import bands, in_bands, widened
from stereo_jobs.stereo.matting import BEYOND, find_mixtures, largest_around

EDGE = 0.12
"""Share of the map's range that counts as an edge; a receding floor spans less within the radius."""
RADIUS = 2
"""Half the width of the window in which an edge is looked for, in pixels of the map."""
PLATEAU = 0.1
"""Share of an edge's height, from its top and from its foot, whose pixels keep their depth."""
COLOUR = 25.0
"""Change of colour (levels of 255, Euclidean in RGB) that makes a path longer by one."""
CLIMB = 0.1
"""Share of the map's range that makes a path longer by one where it leads to the nearer side."""
DESCENT = 0.4
"""The same where it leads to the farther side: that is easier, so that a rim in doubt goes to the object."""
LENGTH = 0.1
"""What a step of one radius adds to a path; it decides where neither colour nor depth changes."""
STEPS = 4
"""Longest path, in radii of the window."""

SAME = 0.8
"""A picture that is smaller than the map, but not by more than this factor, has pixels as large as the map's."""
MIXED = 0.03
"""Share of the map's range by which interpolation changes a pixel where it mixes two surfaces."""

TIP = 4
"""Farthest pixel from an object that may still be its own, in pixels of the map: estimators lose tips and outlines."""
TIP_SHARE = 0.3
"""The object's part of the colour of such a pixel, at least."""
TIP_UNLIKE = 24 / 255
"""Distance (Euclidean in RGB) of such a pixel from all colours of the background, at least."""
MOST = 5
"""Neighbours, of eight, between which a gap is closed."""

AROUND = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0)]
"""Rows and columns to the eight pixels around one."""


def refine(maps: Tensor, picture: Tensor) -> Tensor:
    """Put the edges of an estimated map on those of its picture (geodesic distance, Criminisi et al. 2010).

    Each pixel of an edge takes the depth of the pixel beside the edge to which the shortest path leads. A path is long
    where it crosses an edge of the picture or climbs the ramp of the map; where the picture has no edge, the ramp alone
    decides. This is done at the map's own size, and again at the picture's if that is another, where an edge is a
    pixel of the map wide. What an object has lost, tips and parts of its outline, is told by its colour and given back.
    At last an object takes one more pixel of its row on both sides: its outline cuts through it.

    Args:
        maps: B,h,w finite inverse depth at the size at which it was estimated, in any unit; larger is nearer.
        picture: B,3,H,W uint8, the picture that it was estimated from.

    Returns:
        B,H,W in the unit of `maps`, within its range.
    """
    extent = (maps.flatten(1).amax(1) - maps.flatten(1).amin(1))[:, None, None]
    size = tuple(picture.shape[-2:])
    if all(SAME * of_map <= of_picture <= of_map for of_map, of_picture in zip(maps.shape[-2:], size, strict=True)):
        maps = functional.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
    own = tuple(maps.shape[-2:])
    shrunk = _shrunk(picture, own)
    steep = _with_tips(_snapped(maps, maps, shrunk, extent, RADIUS), shrunk, extent)
    if size != own:
        zoom = ceil(max(size[0] / own[0], size[1] / own[1]))
        mixed = functional.interpolate(steep[:, None], size, mode="bilinear")[:, 0]
        depths = functional.interpolate(steep[:, None], size, mode="nearest-exact")[:, 0]
        depths = torch.where((depths - mixed).abs() > MIXED * extent, depths, mixed)
        # Half a pixel of the map in each direction is averaged: noise between those pixels makes no edge.
        steep = _snapped(mixed, depths, picture, extent, max(RADIUS, zoom), blur=zoom // 2)
    beside = functional.max_pool2d(steep, (1, 3), stride=1, padding=(0, 1))
    return torch.where(beside - steep > EDGE * extent, beside, steep)


def _shrunk(picture: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring a picture B,3,H,W uint8 to the map's size, each pixel the mean of those it covers: B,3,h,w in [0, 255]."""
    narrow = in_bands(lambda part: _interpolated(part.float(), (part.shape[-2], size[1])), picture)
    return _interpolated(narrow, size)


def _interpolated(image: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(image, size, mode="bilinear", antialias=True)


def _snapped(maps: Tensor, depths: Tensor, picture: Tensor, extent: Tensor, radius: int, *, blur: int = 0) -> Tensor:
    """Give every pixel of an edge the depth at the end of its shortest path: B,h,w.

    Args:
        maps: B,h,w, where the edges are ramps.
        depths: B,h,w, the depths that pixels take: `maps` without mixtures of two surfaces.
        picture: B,3,h,w with levels in [0, 255].
        extent: B,1,1, the range of the map.
        radius: half the width of the window in which an edge is looked for, in pixels.
        blur: pixels around each, in each direction, over which the picture is averaged.
    """
    made = depths.clone()
    height, width = maps.shape[-2:]
    for rows in bands(height, width):
        wide, own = widened(rows, (STEPS + 4) * radius + blur, height)
        part = maps[:, wide] / extent.where(extent > 0, 1.0)
        undecided = _edges(part, radius)
        if undecided.any():
            ends = _ends_of_paths(part, _averaged(picture[:, :, wide], blur), undecided, radius)
            made[:, rows] = depths[:, wide].flatten()[ends][:, own]
    return made


def _with_tips(depths: Tensor, picture: Tensor, extent: Tensor) -> Tensor:
    """Give an object the pixels beside it that have more of its colour than of the background's: tips and outlines.

    Args:
        depths: B,h,w with steep edges.
        picture: B,3,h,w in [0, 255].
        extent: B,1,1, the range of the map.
    """
    made = depths.clone()
    height, width = depths.shape[-2:]
    jump = EDGE * extent
    for rows in bands(height, width):
        wide, own = widened(rows, 3 * TIP + BEYOND + 3, height)
        part = depths[:, wide]
        beside = largest_around(part, TIP) - part > jump
        if not beside.any():
            continue
        image = picture[:, :, wide] / 255
        mixed = find_mixtures(image, part, beside, jump=jump, reach=TIP, step=1, unlike=TIP_UNLIKE)
        place = mixed.place[mixed.share >= TIP_SHARE]
        for _ in range(TIP):
            part = _taken_in(part, place, jump, votes=1)
        beside = largest_around(part, 1) - part > jump
        made[:, rows] = _taken_in(part, beside.flatten().nonzero()[:, 0], jump, votes=MOST)[:, own]
    return made


def _taken_in(depths: Tensor, place: Tensor, jump: Tensor, votes: int) -> Tensor:
    """Give each of some places the depth of its nearest neighbour, if at least `votes` of the eight are nearer."""
    around, flat = _around(place, depths.shape), depths.flatten().clone()
    rise = flat[around] - flat[place]  # 8,n
    nearer = (rise > jump.expand(depths.shape).flatten()[place]).sum(0) >= votes
    flat[place] += torch.where(nearer, rise.amax(0), 0.0)
    return flat.view_as(depths)


def _averaged(picture: Tensor, radius: int) -> Tensor:
    """The mean of the pixels within `radius` in each direction: B,3,h,w -> B,3,h,w float."""
    levels = picture.float()
    for reach in ((0, radius), (radius, 0)):
        window = [2 * r + 1 for r in reach]
        levels = functional.avg_pool2d(levels, window, stride=1, padding=reach, count_include_pad=False)
    return levels


def _edges(maps: Tensor, radius: int) -> Tensor:
    """Pixels on and beside the ramps of a map with a range of 1: B,h,w bool.

    Where nothing else is left of the top or the foot of an edge, as of a pole or a slit, it stays outside.
    """
    high, low = largest_around(maps, radius), -largest_around(-maps, radius)
    margin = PLATEAU * (high - low)
    edge = high - low > EDGE
    top, foot = high - maps <= margin, maps - low <= margin
    beside = edge & (largest_around((edge & ~top & ~foot).to(maps.dtype), radius) > 0)
    nearest = largest_around(maps.masked_fill(beside, -torch.inf), 2 * radius)
    farthest = -largest_around((-maps).masked_fill(beside, -torch.inf), 2 * radius)
    return beside & ~(top & (nearest < high - margin)) & ~(foot & (farthest > low + margin))


def _ends_of_paths(maps: Tensor, picture: Tensor, where: Tensor, radius: int) -> Tensor:
    """Find where the shortest path leads from each pixel of `where` (B,h,w bool): B,h,w int64, flat places outside."""
    place = where.flatten().nonzero()[:, 0]  # n
    around = _around(place, maps.shape)
    flat = maps.flatten()
    change = flat[place] - flat[around]  # positive where the path comes from the farther side
    colours = picture.float().movedim(1, 0).flatten(1)  # 3,B*h*w
    unlike = torch.zeros_like(change)
    for channel in colours:
        unlike += (channel[place] - channel[around]).square()
    length = torch.tensor([hypot(*way) for way in AROUND], device=maps.device)[:, None] * (LENGTH / radius)
    cost = unlike.sqrt() / COLOUR + change.clamp_min(0) / CLIMB - change.clamp_max(0) / DESCENT + length

    distance = torch.where(where, torch.inf, 0.0).to(maps.dtype).flatten()
    end = torch.arange(distance.numel(), device=maps.device)
    for _ in range(STEPS * radius):
        shortest, way = (distance[around] + cost).min(0)
        ends = end[around.gather(0, way[None])[0]]
        shorter = shortest < distance[place]
        end[place] = torch.where(shorter, ends, end[place])
        distance[place] = torch.where(shorter, shortest, distance[place])
    return end.view_as(maps)


def _around(place: Tensor, shape: torch.Size) -> Tensor:
    """The eight pixels around each of n places in the flattened B,h,w: 8,n."""
    height, width = shape[-2:]
    row, y, x = place // width, place // width % height, place % width
    return torch.stack(
        [
            (row - y + (y + down).clamp(0, height - 1)) * width + (x + across).clamp(0, width - 1)
            for down, across in AROUND
        ]
    )
