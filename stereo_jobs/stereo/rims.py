"""Soft rims: at an object's outline a pixel is a mixture of the object and of what is behind it.

Lenses, anti-aliasing, resizing and a VAE make outlines soft. A warp that moves such a pixel as a whole leaves a contour
of the object behind on the background, or takes a contour of the background along. Here a narrow band along the edges of
the disparity is taken apart into the object's colour, the background's colour and the object's share in the mixture
(alpha), as in boundary matting (Zitnick et al. 2004; Hasinoff, Kang and Szeliski 2006). The object's part moves with the
object and is laid over what the warp of the rest gives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.stereo.bands import bands, widened

JUMP_PX = 1.0
"""Difference of the disparities of neighbours, in pixels, above which there is an edge between them."""
REACH = 3
"""Pixels of the band on each side of an edge, in steps."""
SIDE = REACH + 1
"""Points of a line on each side of an edge: a rim, and one point with a pure colour."""
COLUMNS_PER_STEP = 1024
"""Width of a picture at which a step is one pixel: rims of larger pictures are wider."""
CONTRAST = 0.08
"""Distance of the colours of object and background, RMS of the channels in [0, 1], below which no mixture is seen."""
NOISE, TEXTURE = 0.02, 0.06
"""Largest distance of a mixture from the line between both colours: a part for noise, and a share of their distance."""
PURE = 0.06
"""Alpha below which a pixel is all background, and above 1 minus which it is all object."""
FIXED_POINT = 2**20
"""Unit of sums of weights. Sums of whole numbers do not depend on their order, so that they are the same on a GPU."""

_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class Rims:
    """The pixels of a picture, or of some of its rows, at the soft outlines of objects; n in all.

    Attributes:
        size: height and width of the picture.
        place: n int64, row * width + column of each pixel, ascending.
        alpha: n in [0, 1], the object's share in each pixel.
        front: n,3 in [0, 1], colour of the object.
        back: n,3 in [0, 1], colour of the background.
        near: n, disparity of the object, pixels.
        beneath: n, disparity in the layer under the rims: that of the background for pixels which are mostly
            background, that of the object for the pixels at which the rim ends; others leave the frame.
    """

    size: tuple[int, int]
    place: Tensor
    alpha: Tensor
    front: Tensor
    back: Tensor
    near: Tensor
    beneath: Tensor

    def of_rows(self, rows: slice) -> "Rims":
        """Return the rims of some rows."""
        width = self.size[1]
        ends = torch.tensor([rows.start * width, rows.stop * width], device=self.place.device)
        first, last = torch.searchsorted(self.place, ends).tolist()
        parts = (getattr(self, name)[first:last] for name in ("alpha", "front", "back", "near", "beneath"))
        return Rims((rows.stop - rows.start, width), self.place[first:last] - rows.start * width, *parts)

    def applied(self, disparity: Tensor) -> Tensor:
        """Disparity 1,H,W by which each pixel counts as moved: the object's where at least half of it is object."""
        return self._put(disparity, torch.where(self.alpha >= 0.5, self.near, self.beneath)[None])

    def under(self, disparity: Tensor) -> Tensor:
        """Disparity 1,H,W of the layer under the rims."""
        return self._put(disparity, self.beneath[None])

    def without(self, pixels: Tensor) -> Tensor:
        """Take the object out of the pixels 1,3,H,W that are mostly background."""
        return self._put(pixels, torch.where(self.alpha[:, None] < 0.5, self.back, self.front).T)

    def _put(self, values: Tensor, at: Tensor) -> Tensor:
        """Replace the values of ...,H,W at the rims by those of channels,n."""
        flat = values.reshape(len(at), -1).clone()
        flat[:, self.place] = at.to(flat)
        return flat.reshape(values.shape)

    def over(self, view: Tensor, under: Tensor, sign: Tensor) -> Tensor:
        """Move the rims with their objects and lay them over a view by their alpha.

        Args:
            view: 1,3,H,W in [0, 1], the warped layer under the rims, its holes filled.
            under: 1,H,W, disparity of each pixel of `view`; infinitely far in holes. Nearer pixels hide a rim.
            sign: 1, the sign of the scale, see `forward_warp`.
        """
        if len(self.place) == 0:
            return view
        width = self.size[1]
        column = self.place % width
        landing = column - self.near
        first = landing.floor()
        layer = torch.zeros(4, under.numel(), dtype=torch.int32, device=view.device)
        colours = torch.cat([self.front, torch.ones_like(self.front[:, :1])], 1).T * self.alpha  # 4,n premultiplied
        for target, weight in ((first, 1 - (landing - first)), (first + 1, landing - first)):
            at = self.place - column + target.clamp(0, width - 1).long()
            shown = (target >= 0) & (target < width) & (nearness(under.flatten()[at] - self.near, sign) <= 0.5)
            layer.index_add_(1, at, (colours * (weight * shown * FIXED_POINT)).round().int())
        spread = layer.to(view.dtype) / FIXED_POINT
        front, alpha = spread[:3].reshape(view.shape), spread[3].reshape(1, 1, *self.size)
        return view * (1 - alpha).clamp_min(0) + front / alpha.clamp_min(1)


def nearness(disparity: Tensor, sign: Tensor) -> Tensor:
    """Disparity with its sign turned so that larger is nearer; `sign` is that of the scale, one for all."""
    return torch.where(sign < 0, -1.0, 1.0).to(disparity) * disparity


def find_rims(image: Tensor, disparity: Tensor, sign: Tensor) -> Rims:
    """Find the soft rims of a picture and take them apart (Zitnick et al. 2004, Sec. 4.3; Hasinoff et al. 2006).

    Each pixel within `REACH` steps of an edge of the disparity looks along the line across the nearest edge. The widest
    stretch of it is taken whose pixels can be mixtures of the two at its ends: their colours lie near the line between
    both, in ascending order. Where there is none, as on textured surfaces or at sharp outlines, there is no rim.

    Args:
        image: 1,3,H,W in [0, 255], uint8 or float.
        disparity: 1,H,W pixels, with steep edges.
        sign: 1, the sign of the scale: where negative, the smaller disparity is the nearer one.

    Returns:
        The rims, found in bands of rows. `alpha` * `front` + (1 - `alpha`) * `back` is the colour of each pixel.
    """
    height, width = disparity.shape[-2:]
    step = max(1, round(width / COLUMNS_PER_STEP))
    parts = []
    for rows in bands(height, width):
        wide, own = widened(rows, (2 * REACH + 1) * step, height)
        found = _rims(image[0, :, wide].float() / 255, nearness(disparity[0, wide], sign), own, step)
        parts.append((found[0] + rows.start * width, *found[1:4], *(nearness(d, sign) for d in found[4:])))
    return Rims((height, width), *(torch.cat(values) for values in zip(*parts, strict=True)))


def _rims(image: Tensor, near: Tensor, own: slice, step: int) -> tuple[Tensor, ...]:
    """Find the rims in the rows `own` of a band: image 3,h,W, nearness h,W. Returns the fields of `Rims`, n each."""
    height, width = near.shape
    band = torch.zeros_like(near, dtype=torch.bool)
    band[own] = _beside_edges(near, REACH * step - 1)[own]
    pixels = band.flatten().nonzero()[:, 0]
    lines, here = _lines_across(near, pixels, step)
    depth = near.flatten()[lines]  # 2*SIDE,n
    colours = image.flatten(1)[:, lines]  # 3,2*SIDE,n
    last, first = _widest_mixture(colours, depth, here, step)
    found = ((first < SIDE - 1) | (last > SIDE)) & (here > first) & (here <= last)
    pixels, here, first, last = (values[found] for values in (pixels, here, first, last))
    colours, depth = colours[..., found], depth[:, found]
    front, back, colour = (_at(colours, index) for index in (last, first, here))
    alpha = _share(colour, front, back)
    alpha = torch.where(alpha < PURE, 0.0, torch.where(alpha > 1 - PURE, 1.0, alpha)).masked_fill(here == last, 1.0)
    # What is left, noise and texture, belongs to both in proportion: the mixture is exactly the pixel's colour.
    rest = (colour - torch.lerp(back, front, alpha)) / (alpha.square() + (1 - alpha).square())
    nearest, farthest = (torch.where(side, depth.gather(0, here[None])[0], depth[edge]) for side, edge in ((here >= SIDE, SIDE), (here < SIDE, SIDE - 1)))
    gone = torch.full_like(farthest, 2.0 * width)
    beneath = torch.where(alpha < 0.5, farthest, torch.where(here == last, nearest, gone))
    return pixels - own.start * width, alpha, (front + alpha * rest).T, (back + (1 - alpha) * rest).T, nearest, beneath


def _beside_edges(near: Tensor, reach: int) -> Tensor:
    """Pixels beside an edge of the nearness h,W, and within `reach` pixels of them: h,W bool."""
    across, down = near.diff(dim=1).abs() > JUMP_PX, near.diff(dim=0).abs() > JUMP_PX
    beside = torch.zeros_like(near)
    for jump, before, after in (
        (across, beside[:, :-1], beside[:, 1:]),
        (down, beside[:-1], beside[1:]),
    ):
        before[jump] = 1
        after[jump] = 1
    for kernel in ((1, 2 * reach + 1), (2 * reach + 1, 1)):
        beside = functional.max_pool2d(beside[None], kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))[0]
    return beside > 0


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
            nearer = ((after - before).abs() > JUMP_PX * step) & (k * (dy * dy + dx * dx) ** 0.5 < distance)
            rising = torch.where(after > before, 1, -1)
            distance = torch.where(nearer, k * (dy * dy + dx * dx) ** 0.5, distance)
            here = torch.where(nearer, torch.where(rising > 0, SIDE - k, SIDE - 1 + k), here)
            rows, columns = torch.where(nearer, dy * rising, rows), torch.where(nearer, dx * rising, columns)
            before = after
    return torch.stack([along(rows, columns, i - here) for i in range(2 * SIDE)]), here


def _widest_mixture(colours: Tensor, depth: Tensor, here: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Find the widest stretch of each line whose pixels can be mixtures of those at its two ends.

    Args:
        colours: 3,2*SIDE,n in [0, 1].
        depth: 2*SIDE,n nearness.
        here: n, place of the pixel that asks; a stretch without it is of no use.
        step: distance of the points on a line.

    Returns:
        n, place of the object's end; n, place of the background's end. Both lie at the edge where there is none.
    """
    one_surface = depth.diff(dim=0).abs() <= JUMP_PX * step
    last = torch.full_like(here, SIDE)
    first = last - 1
    far_runs = one_surface[: SIDE - 1].flip(0).cumprod(0).sum(0)  # points after the first, on the far side
    near_runs = one_surface[SIDE:].cumprod(0).sum(0)
    for span in range(2, 2 * SIDE):
        for start in range(max(0, SIDE - span), min(SIDE, 2 * SIDE - span)):
            end = start + span
            fits = (SIDE - 1 - start <= far_runs) & (end - SIDE <= near_runs) & (start < here) & (here <= end)
            fits &= _are_mixtures(colours[:, start : end + 1])
            first, last = torch.where(fits, start, first), torch.where(fits, end, last)
    return last, first


def _are_mixtures(colours: Tensor) -> Tensor:
    """Whether the points of lines 3,k,n can be mixtures of the first and the last, in ascending order: n bool."""
    back, front = colours[:, :1], colours[:, -1:]
    contrast = (front - back).square().mean(0).sqrt()  # 1,n
    share = _share(colours, front, back, clamped=False)
    rest = colours - torch.lerp(back.expand_as(colours), front.expand_as(colours), share.clamp(0, 1))
    fits = rest.square().mean(0).sqrt() <= NOISE + TEXTURE * contrast
    rising = share.diff(dim=0) >= -PURE
    return (contrast[0] >= CONTRAST) & fits.all(0) & rising.all(0)


def _share(colour: Tensor, front: Tensor, back: Tensor, *, clamped: bool = True) -> Tensor:
    """Place of colours 3,... on the line from `back` (0) to `front` (1)."""
    direction = front - back
    share = ((colour - back) * direction).sum(0) / direction.square().sum(0).clamp_min(1e-9)
    return share.clamp(0, 1) if clamped else share


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Values 3,k,n at one of k for each n: 3,n."""
    return values.gather(1, index[None, None].expand(3, 1, -1))[:, 0]
