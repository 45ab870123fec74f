"""What of an object stays behind beside a hole: its rim, its tip, or its contour, where background should be."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_jobs.pixels import F32, Bools
from stereo_jobs.quality.labelled_pair import Views

FEWEST_PLACES = 5
"""The smallest length of boundary, in pixels, of which a share is told."""
LEAST_SHARE = 0.2
"""The smallest share of the object's colour that is seen as a ghost; less is a shadow or a reflection."""
LEAST_LEVELS = 12.0
"""The smallest difference of colour, in levels of 255, that is seen."""
LEAST_CONTRAST = 24.0
"""The smallest difference between object and background, in levels of 255, between which mixtures can be told."""
LARGEST_RESIDUAL = 0.35
"""The largest distance of a ghost's colour from the mixture that it is taken for, as a share of its distance from the
background."""
BLOCK = 2**13
"""Places that are looked at together, so that memory does not grow with the boundary."""

_SIDES = ((0, 1), (-1, 0), (1, 0))  # row, column: the background lies to the right, above or below of a hole

Numbers = NDArray[np.int64]


def ghost(views: Views) -> float:
    """Share of the boundary of holes, on the background's side, that carries colour of the object in front.

    Near a place of the boundary with the background's colour b (median of the pixels 4 to 9 pixels away) and an object
    of colour f (the pixels of the left view just inside the outline from which the hole opens), a ghost is a pixel of
    colour b + t (f - b), t > `LEAST_SHARE`, that the background itself does not have within 24 pixels. It lies at most
    three pixels outside of the hole or two inside. Places do not count where the same is seen six pixels further away
    (the background's own texture), nor do fewer than three places together. Lengths are in pixels of pictures of up to
    767 columns, and grow in whole steps with larger ones (`_unit`).

    Args:
        views: the pair and its label.

    Returns:
        A share in [0, 1]; NaN with fewer than `FEWEST_PLACES` pixels of boundary between an object's hole and its
        background.
    """
    boundary = _Boundary(views, views.right_disparity, _unit(views.hole.shape[1]))
    places, near, away = (np.zeros_like(views.hole) for _ in range(3))
    for place in boundary.places():
        at = place.row, place.column
        places[at] = True
        near[at] |= boundary.sees_ghost(place, 0)
        away[at] |= boundary.sees_ghost(place, 6 * boundary.unit)
    count = int(places.sum())
    return int(_connected(near & ~away, least=3).sum()) / count if count >= FEWEST_PLACES else np.nan


def _unit(width: int) -> int:
    """Pixels of a picture of this width in which all lengths are measured."""
    return max(1, round(width / 512))


def _connected(mask: Bools, least: int) -> Bools:
    """The pixels that have at least `least` of their kind together; gaps of one row and three columns are bridged."""
    _, group = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), np.ones((3, 5), np.uint8)))
    size = np.bincount(group[mask], minlength=int(group.max()) + 1)
    return np.asarray(mask & (size[group] >= least))


@dataclass(frozen=True)
class _Places:
    """Hole pixels beside background.

    Attributes:
        row: N, rows.
        column: N, columns.
        side: row and column from the hole to the background, 0 or 1 in size.
        disparity: N, disparity of the background there.
        objects: N,J,3, colours of the left view from the object's outline inwards; NaN where there is no object.
    """

    row: Numbers
    column: Numbers
    side: tuple[int, int]
    disparity: F32
    objects: F32


@dataclass(frozen=True)
class _Boundary:
    """The boundary of the holes of a pair, and what lies on its sides.

    Attributes:
        views: the pair and its label.
        disparity: H,W, disparity of the right view's pixels; NaN in holes.
        unit: length of a step in pixels.
    """

    views: Views
    disparity: F32
    unit: int

    def places(self) -> Iterator[_Places]:
        """Yield the places where a hole at least two pixels deep, opened by a nearer object, meets its background."""
        hole = self.views.hole
        for dy, dx in _SIDES:
            outside, inside = _shifted(hole, dy, dx, True), _shifted(hole, -dy, -dx, False)
            rows, columns = np.nonzero(hole & inside & ~outside)
            for y, x in zip(*(np.array_split(c, len(rows) // BLOCK + 1) for c in (rows, columns)), strict=True):
                behind = self.disparity[y + dy, x + dx]
                steps = np.arange(6) * self.unit
                there = np.rint(np.nan_to_num(x + behind)).astype(np.int64)
                at = y[:, None] - steps * dy, there[:, None] - steps * dx
                nearer = _take(self.views.disparity, *at) > behind[:, None] + self._step
                objects = np.where(nearer[..., None], _take(self.views.left, *at), np.nan)
                kept = nearer.any(1)
                if kept.any():
                    yield _Places(y[kept], x[kept], (dy, dx), behind[kept], objects[kept])

    def sees_ghost(self, place: _Places, away: int) -> Bools:
        """Tell for each place whether there is a ghost `away` pixels outside of the hole: N."""
        background = self._background(place, away)
        enough = np.isfinite(background[..., 0]).sum(1) >= 6
        middle = _quantile(background.swapaxes(1, 2), 0.5)[:, None]  # N,1,3
        spread = _quantile(np.linalg.norm(background - middle, axis=-1), 0.8)
        seen = self._rim(place, away)  # N,K,3
        offset = (seen - middle)[:, :, None]  # N,K,1,3
        towards = (place.objects - middle)[:, None]  # N,1,J,3
        length = np.linalg.norm(towards, axis=-1)
        share = (offset * towards).sum(-1) / np.maximum(length, 1) ** 2
        levels = share * length
        residual = np.linalg.norm(offset - share[..., None] * towards, axis=-1)
        limit = np.maximum(LEAST_LEVELS, 2 * spread)[:, None, None]
        mixed = (share > LEAST_SHARE) & (share < 1.3) & (residual < LARGEST_RESIDUAL * levels)
        mixed &= (levels > limit) & (length > LEAST_CONTRAST)
        unlike, far = (
            np.linalg.norm(seen[:, :, None] - colours[:, None], axis=-1)  # N,K,M
            for colours in (background, self._further(place, away))
        )
        known = (_quantile(unlike, 0.1) <= 0.7 * LEAST_LEVELS) | (_quantile(far, 0) <= 0.7 * LEAST_LEVELS)
        return np.asarray((mixed.any(-1) & ~known).any(1) & enough)

    @property
    def _step(self) -> float:
        """The smallest difference of disparity between an object and its background."""
        return max(1.0, float(self.views.hole.shape[1]) / 256)

    def _rim(self, place: _Places, away: int) -> F32:
        """Colours where a ghost may lie: N,K,3; NaN beyond, on other surfaces and within two pixels of the object."""
        dy, dx = place.side
        steps = np.arange(-2 if dx and not away else 1, 3 * self.unit + 1) + away
        at = place.row[:, None] + steps * dy, place.column[:, None] + steps * dx
        deep = _take(self.views.hole, *at)
        for back in (1, 2):
            deep = deep & _take(self.views.hole, at[0] - back * dy, at[1] - back * dx)
        usable = self._is_background(place, *at) | (deep & (steps <= 0))
        return np.where(usable[..., None], self._right(*at), np.nan)

    def _background(self, place: _Places, away: int) -> F32:
        """Colours of the background: 4 to 9 steps away in three lines, and beside a hole above or below: N,M,3."""
        dy, dx = place.side
        far = np.arange(4, 10) * self.unit + away
        along = np.arange(-1, 2)
        rows = place.row[:, None, None] + far[:, None] * dy + along * abs(dx)
        columns = place.column[:, None, None] + far[:, None] * dx + along * abs(dy)
        at = rows.reshape(len(place.row), -1), columns.reshape(len(place.row), -1)
        if dy:  # a line of the background that runs along the upper edge of a hole goes on beside the hole
            hole = self.views.hole
            solid = np.where(hole, hole.shape[1], np.arange(hole.shape[1]))
            end = np.minimum.accumulate(solid[:, ::-1], 1)[:, ::-1][place.row, place.column]
            near = (np.arange(1, 4) * self.unit + away) * dy
            beside = np.repeat(end[:, None] + np.arange(4, 10) * self.unit, 3, 1)
            at = (
                np.concatenate([at[0], place.row[:, None] + np.tile(near, 6)], 1),
                np.concatenate([at[1], beside], 1),
            )
        return np.where(self._is_background(place, *at)[..., None], self._right(*at), np.nan)

    def _further(self, place: _Places, away: int) -> F32:
        """Colours of the background 10 to 24 steps away in one line: N,15,3."""
        far = np.arange(10, 25) * self.unit + away
        at = place.row[:, None] + far * place.side[0], place.column[:, None] + far * place.side[1]
        return np.where(self._is_background(place, *at)[..., None], self._right(*at), np.nan)

    def _right(self, rows: Numbers, columns: Numbers) -> F32:
        return _take(self.views.right, rows, columns)

    def _is_background(self, place: _Places, rows: Numbers, columns: Numbers) -> Bools:
        """Tell which pixels (N,M) of the right view lie on the same background as each place."""
        apart = np.abs(_take(self.disparity, rows, columns) - place.disparity[:, None])
        return np.asarray((apart <= self._step) & ~_take(self.views.hole, rows, columns))


def _quantile(values: F32, share: float) -> F32:
    """The value that `share` of the known ones (not NaN) along the last axis do not exceed; NaN where none is known."""
    last = np.isfinite(values).sum(-1, keepdims=True) - 1
    place = np.maximum(0, (share * last).astype(np.int64))
    return np.asarray(np.take_along_axis(np.sort(values, -1), place, -1)[..., 0], np.float32)


def _take(values: NDArray[Any], rows: Numbers, columns: Numbers) -> NDArray[Any]:
    """Values (H,W or H,W,C) at rows and columns of one shape, as float32; NaN, or False of a mask, beyond the frame."""
    height, width = values.shape[:2]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = values[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    if values.dtype != np.bool_:
        taken = taken.astype(np.float32, copy=False)
    taken[~inside] = False if values.dtype == np.bool_ else np.nan
    return np.asarray(taken)


def _shifted(mask: Bools, dy: int, dx: int, beyond: bool) -> Bools:
    """For each pixel the mask's value one step further on; `beyond` outside of the frame: H,W."""
    height, width = mask.shape
    padded = np.pad(mask, 1, constant_values=beyond)
    return np.asarray(padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])
