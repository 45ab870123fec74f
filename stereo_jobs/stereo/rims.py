"""Soft rims: at an object's outline a pixel is a mixture of the object and of what is behind it.

Lenses, anti-aliasing, resizing and a VAE make outlines soft. A warp moves each pixel as a whole, so that the outer part
of an outline, the pixels that are mostly background, stays behind as a pale or dark contour. Here these pixels are
taken apart into the object's colour, the background's colour and the object's share (alpha), as in boundary matting
(Zitnick et al. 2004; Hasinoff, Kang and Szeliski 2006). The background keeps its own colour; the object's part moves
with the object and is laid over the new view. Which pixel is mostly object is said by the disparity, and rims do not
change that: labels and masks are those of the disparity alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import bands, widened
from stereo_jobs.stereo.disparity import nearness
from stereo_jobs.stereo.matting import BEYOND, find_mixtures, share_of
from stereo_jobs.stereo.warp import ForwardWarp

JUMP_PX = 1.0
"""Difference of the disparities of neighbours, in pixels, above which there is an edge between them."""
REACH = 3
"""Points outside of an edge that may be mixtures."""
TRACE_REACH = 4
"""The same for traces of the object's colour, which follow no step."""
TRACE_JUMP_PX = 1.5
"""The same as `JUMP_PX` for traces: a trace beside a smaller hole is not seen."""
TRACE_UNLIKE = 8 / 255
"""Distance (Euclidean in RGB) of a trace from all colours of the background, at least."""
SIDE = REACH + 1
"""Points of a line on each side of an edge: the last one outside is all background."""
COLUMNS_PER_STEP = 1024
"""Width of a picture at which a step is one pixel: rims of larger pictures are wider."""
CONTRAST = 0.15
"""Distance of the colours of object and background, RMS of the channels in [0, 1], below which no mixture is seen."""
NOISE, TEXTURE = 0.01, 0.03
"""Largest distance of a mixture from the line between both colours: a part for noise, and a share of their distance."""
PURE = 0.04
"""Alpha below which a pixel is all background, and above 1 minus which it is all object."""
STEEP = 0.15
"""Part of the whole step that lies between the two pixels at the edge, at least."""
MIDDLE, THIN_MIDDLE = 0.03, 0.25
"""How much less than half of a pixel on the object's side may be object, and the reverse. The second is for objects of
at most three points: blurred, they are nowhere pure, so that all shares seem larger than they are."""

_HALO = 2 * TRACE_REACH + BEYOND + 2
"""Rows, in steps, that are looked at above and below a band."""
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class Rims:
    """The outer pixels of soft outlines in a picture, or in some of its rows; n in all.

    Attributes:
        size: height and width of the picture.
        place: n int64, row * width + column of each pixel, ascending.
        alpha: n in [0, 1], the object's share in each pixel; 0 where only a trace of the object is taken away.
        front: n,3 in [0, 1], colour of the object.
        back: n,3 in [0, 1], colour of the background.
        near: n, disparity of the object, pixels.
    """

    size: tuple[int, int]
    place: Tensor
    alpha: Tensor
    front: Tensor
    back: Tensor
    near: Tensor

    def of_rows(self, rows: slice) -> "Rims":
        """Return the rims of some rows."""
        width = self.size[1]
        ends = torch.tensor([rows.start * width, rows.stop * width], device=self.place.device)
        first, last = torch.searchsorted(self.place, ends).tolist()
        parts = (getattr(self, name)[first:last] for name in ("alpha", "front", "back", "near"))
        return Rims((rows.stop - rows.start, width), self.place[first:last] - rows.start * width, *parts)

    def with_objects(self, disparity: Tensor) -> Tensor:
        """Give the rims the disparity of their objects: 1,H,W."""
        return self._put(disparity, self.near[None])

    def without_objects(self, pixels: Tensor) -> Tensor:
        """Leave only the background's colour in the rims: 1,3,H,W."""
        return self._put(pixels, self.back.T)

    def _put(self, values: Tensor, at: Tensor) -> Tensor:
        """Replace the values of ...,H,W at the rims by those of channels,n."""
        flat = values.reshape(len(at), -1).clone()
        flat[:, self.place] = at.to(flat)
        return flat.reshape(values.shape)

    def over(self, view: Tensor, pixels: Tensor, warp: ForwardWarp) -> Tensor:
        """Lay the objects' parts of the rims over a view by their alpha.

        Args:
            view: 1,3,H,W in [0, 1], the new view without rims, its holes filled.
            pixels: 1,3,H,W in [0, 1], the picture itself.
            warp: warp of the disparity `with_objects`, in which the rims are the ends of their objects.
        """
        if len(self.place) == 0:
            return view
        alpha = self._put(torch.ones_like(pixels[:, :1]), self.alpha[None])
        moved = warp(torch.cat([self._put(pixels, self.front.T) * alpha, alpha], 1))  # 1,4,H,W premultiplied
        rim = warp.filled[:, None] & (moved[:, 3:] < 1)
        return torch.where(rim, moved[:, :3] + (1 - moved[:, 3:]) * view, view)


def find_rims(image: Tensor, disparity: Tensor, sign: Tensor, *, traces: bool = False) -> Rims:
    """Find the soft rims of a picture and take them apart (Zitnick et al. 2004, Sec. 4.3; Hasinoff et al. 2006).

    Each pixel outside of an edge of the disparity looks along the line across the nearest edge. The widest stretch of
    it is taken that can be a blurred step between the colours at its ends. Where there is none, as on textured surfaces
    or at sharp outlines, there is no rim.

    Args:
        image: 1,3,H,W in [0, 255], uint8 or float.
        disparity: 1,H,W pixels, with steep edges.
        sign: 1, the sign of the scale: where negative, the smaller disparity is the nearer one.
        traces: find traces of the object's colour on the background beside holes, too, by comparing each pixel with the
            colours of both; the background alone remains of them. Only for a disparity whose edges are put on those
            of the picture: beside any other edge, what differs is the picture itself.

    Returns:
        The rims, found in bands of rows. `alpha` * `front` + (1 - `alpha`) * `back` is the colour of each pixel, but
        of traces.
    """
    height, width = disparity.shape[-2:]
    step = max(1, round(width / COLUMNS_PER_STEP))
    parts = []
    for rows in bands(height, width):
        wide, own = widened(rows, _HALO * step, height)
        pixels, near = image[0, :, wide].float() / 255, nearness(disparity[0, wide], sign)
        found = _steps(pixels, near, own, step)
        if traces:
            both = zip(found, _traces(pixels, near, own, step, sign, known=found[0]), strict=True)
            found = tuple(torch.cat(values) for values in both)
            order = found[0].argsort()
            found = tuple(values[order] for values in found)
        parts.append((found[0] + wide.start * width, *found[1:4], nearness(found[4], sign)))
    return Rims((height, width), *(torch.cat(values) for values in zip(*parts, strict=True)))


def _steps(image: Tensor, near: Tensor, own: slice, step: int) -> tuple[Tensor, ...]:
    """Find blurred steps in the rows `own` of a band: image 3,h,W, nearness h,W -> the fields of `Rims`, n each."""
    band = torch.zeros_like(near, dtype=torch.bool)
    reach = REACH * step
    band[own] = _outside_edges(near, JUMP_PX * step, reach, reach, reach)[own]
    pixels = band.flatten().nonzero()[:, 0]
    lines, here = _lines_across(near, pixels, step)
    flat = image.flatten(1)
    across = (flat[:, lines[SIDE]] - flat[:, lines[SIDE - 1]]).square().mean(0)
    seen = (here > 0) & (across > (STEEP * CONTRAST) ** 2)
    pixels, lines, here = (values[..., seen] for values in (pixels, lines, here))
    depth = near.flatten()[lines]  # 2*SIDE,n
    colours = flat[:, lines]  # 3,2*SIDE,n
    first, last = _widest_step(colours, depth, step)
    found = (here > first) & (last > first)
    pixels, here, first, last = (values[found] for values in (pixels, here, first, last))
    colours, depth = colours[..., found], depth[:, found]
    front, back, colour = (_at(colours, index) for index in (last, first, here))
    alpha = share_of(front, colour, back).clamp(0, 1)
    # What is left, noise and texture, belongs to both in proportion: the mixture is exactly the pixel's colour.
    rest = (colour - torch.lerp(back, front, alpha)) / (alpha.square() + (1 - alpha).square())
    return pixels, alpha, (front + alpha * rest).T, (back + (1 - alpha) * rest).T, depth[SIDE]


def _traces(image: Tensor, near: Tensor, own: slice, step: int, sign: Tensor, *, known: Tensor) -> tuple[Tensor, ...]:
    """Find pixels with a trace of an object's colour, of which nothing but the background stays; as `_steps`.

    What of them is the object's is told too roughly to be shown again, so alpha is 0. Those of `known` are left out.
    """
    reach, jump = TRACE_REACH * step, TRACE_JUMP_PX * step
    where = torch.zeros_like(near, dtype=torch.bool)
    before, after = (reach, 0) if sign >= 0 else (0, reach)  # an object uncovers what it moves away from
    where[own] = _outside_edges(near, jump, before, after, reach)[own]
    where.view(-1)[known] = False
    parts = image[None], near[None], where[None]
    mixed = find_mixtures(*parts, jump=jump, reach=reach, step=step, unlike=TRACE_UNLIKE)
    return mixed.place, torch.zeros_like(mixed.share), mixed.front, mixed.back, mixed.near


def _outside_edges(near: Tensor, jump: float, before: int, after: int, beside: int) -> Tensor:
    """Pixels of the nearness h,W outside of an edge: h,W bool.

    Args:
        near: h,W nearness.
        jump: smallest step of the nearness at an edge.
        before: columns on the left of a pixel within which the edge lies.
        after: columns on its right.
        beside: rows above and below it.
    """
    inside = torch.full_like(near, -torch.inf)
    for dim in (0, 1):
        size = near.shape[dim] - 1
        rise = near.diff(dim=dim)
        for side, start in ((rise > jump, 1), (rise < -jump, 0)):  # the near pixel of an edge
            part = near.narrow(dim, start, size)
            inside.narrow(dim, start, size)[side] = part[side]
    around = functional.pad(inside[None], (before, after, beside, beside), value=-torch.inf)
    for kernel in ((1, before + after + 1), (2 * beside + 1, 1)):
        around = functional.max_pool2d(around, kernel, stride=1)
    return around[0] > near + jump


def _lines_across(near: Tensor, pixels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Find, for each of n pixels, the line through it and across the nearest edge, from the far to the near side.

    Args:
        near: h,W nearness.
        pixels: n, row * W + column.
        step: distance of the points on a line, pixels; in diagonals, in each direction.

    Returns:
        Pixels 2*SIDE,n on each line, of which the edge is in the middle; n, place of the pixel itself on its line, 0
        where no edge is within reach.
    """
    height, width = near.shape
    flat, row, column = near.flatten(), pixels // width, pixels % width

    def along(rows: Tensor | int, columns: Tensor | int, steps: Tensor | int) -> Tensor:
        y = (row + rows * steps * step).clamp(0, height - 1)
        return y * width + (column + columns * steps * step).clamp(0, width - 1)

    distance = torch.full_like(flat[pixels], torch.inf)
    here, rows, columns = (torch.zeros_like(pixels) for _ in range(3))
    for dy, dx in _DIRECTIONS:
        before = flat[pixels]
        for k in range(1, REACH + 1):
            after = flat[along(dy, dx, k)]
            length = k * (dy * dy + dx * dx) ** 0.5
            nearer = (after - before > JUMP_PX * step) & (length < distance)
            distance = distance.masked_fill(nearer, length)
            here = here.masked_fill(nearer, SIDE - k)
            rows, columns = rows.masked_fill(nearer, dy), columns.masked_fill(nearer, dx)
            before = after
    return torch.stack([along(rows, columns, i - here) for i in range(2 * SIDE)]), here


def _widest_step(colours: Tensor, depth: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Find the widest stretch of each line that can be a blurred step from its one end to the other.

    Args:
        colours: 3,2*SIDE,n in [0, 1].
        depth: 2*SIDE,n nearness.
        step: distance of the points on a line.

    Returns:
        n, place of the background's end; n, place of the object's end; both 0 where there is no such stretch.
    """
    one_surface = depth.diff(dim=0).abs() <= JUMP_PX * step
    far_run = one_surface[: SIDE - 1].flip(0).cumprod(0).sum(0)  # points on the far side after the first one
    near_run = one_surface[SIDE:].cumprod(0).sum(0)
    middle = torch.where(near_run <= 2, THIN_MIDDLE, MIDDLE)
    first, last = (torch.zeros_like(far_run) for _ in range(2))
    pairs = [(start, end) for start in range(SIDE - 1) for end in range(SIDE, 2 * SIDE)]
    for start, end in sorted(pairs, key=lambda pair: pair[0] - pair[1]):
        contrast = (colours[:, end] - colours[:, start]).square().mean(0)
        open_ones = (last == 0) & (SIDE - 1 - start <= far_run) & (end - SIDE <= near_run)
        asked = (open_ones & (contrast >= CONTRAST**2)).nonzero()[:, 0]
        fits = asked[_is_step(colours[:, start : end + 1, asked], SIDE - start, middle[asked])]
        first[fits], last[fits] = start, end
    return first, last


def _is_step(colours: Tensor, edge: int, middle: Tensor) -> Tensor:
    """Whether the points of lines 3,k,n can be a blurred step from the first to the last: n bool.

    All are mixtures of both ends, in ascending order, at least one of them an obvious one. The middle of the step lies
    before place `edge`, the first on the near side, to within a share of `middle` (n); the ascent is steepest in one
    place. A contour that is painted on an object ascends twice, or beside the edge.
    """
    back, front = colours[:, :1].expand_as(colours), colours[:, -1:].expand_as(colours)
    contrast = (front[:, 0] - back[:, 0]).square().mean(0).sqrt()  # n
    share = share_of(front, colours, back)  # k,n
    rest = (colours - torch.lerp(back, front, share.clamp(0, 1))).square().mean(0).sqrt()
    ascent = share.diff(dim=0)
    steepest = torch.minimum(ascent.cummax(0).values, ascent.flip(0).cummax(0).values.flip(0))
    one_step = (ascent >= -PURE) & (steepest - ascent <= PURE)
    mixed = ((share > PURE) & (share < 1 - PURE)).any(0)
    on_edge = (share[:edge] < 0.5 + middle).all(0) & (share[edge:] > 0.5 - middle).all(0)
    return (rest <= NOISE + TEXTURE * contrast).all(0) & one_step.all(0) & mixed & on_edge


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Values ...,k,n at one of k for each n: ...,n."""
    return values.gather(-2, index.expand(*values.shape[:-2], 1, -1))[..., 0, :]
