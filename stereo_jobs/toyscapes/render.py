"""Renders both views of a scene, and their truth. Disparity and occlusion are exact.

Every surface is a continuous function of left-view coordinates in pixels. The right view evaluates it at x + d, where d
is the disparity of the surface in that row. So x_R = x_L - d holds to a fraction of a pixel, and nothing is resampled.
Edges are anti-aliased by their distance, patterns by the width of a pixel on the surface. The exception are tiles that
meet without a joint: on a tiled wall, the two views agree to half a pixel.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stereo_jobs.toyscapes.scenes import COLOURS, FLOOR_COLOURS, WALL_COLOURS, Billboard, Pattern, Scene, Shape
from stereo_jobs.toyscapes.structures import F32, INKS, box, coverage, line

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ToyScape:
    """A rendered scene. Images are H,W,3 uint8; disparities are H,W float32 in pixels; masks are H,W bool.

    Attributes:
        left: left view.
        right: right view.
        disparity: disparity of the left view, >= 0.
        right_disparity: disparity of the right view: its pixel x shows the point at x + d in the left view.
        nonocc_left: left pixels that are visible in the right view.
        hole_right: right pixels that are not visible in the left view.
        border_right: the part of the holes that lies outside the frame of the left view.
        caption: description of the scene in words.
    """

    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    disparity: F32
    right_disparity: F32
    nonocc_left: Bools
    hole_right: Bools
    border_right: Bools
    caption: str


def render(scene: Scene, width: int = 128, height: int = 128) -> ToyScape:
    """Both views of a scene and their truth.

    Args:
        scene: the scene to render.
        width: width in pixels, at least 32.
        height: height in pixels, at least 32; any ratio to the width.

    Raises:
        ValueError: the image is smaller than 32 x 32 pixels.
    """
    if min(width, height) < 32:
        raise ValueError(f"a scene needs at least 32 x 32 pixels, got {width} x {height}")
    room = _Room(scene, width, height)
    left, left_disparity = room.view(0.0)
    right, right_disparity = room.view(1.0)
    nonocc, _ = room.visible_in_other(left_disparity, sign=-1)
    seen, inside = room.visible_in_other(right_disparity, sign=1)
    return ToyScape(left, right, left_disparity, right_disparity, nonocc, ~seen, ~inside, scene.caption)


class _Room:
    """A scene at one size, in pixels. `u` is the unit of length: one pixel of a 128 x 128 image."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene = scene
        self.width, self.height = width, height
        self.u = min(width, height) / 128
        self.horizon = scene.horizon * height
        self.x = np.arange(width, dtype=np.float32)[None, :]
        self.y = np.arange(height, dtype=np.float32)[:, None]
        depth = np.clip((self.y - self.horizon) / (height - self.horizon), 0, 1)  # 0 at the wall, 1 at the bottom
        self.ground = np.asarray(scene.disparity_at(depth) * width, np.float32)  # H,1
        self.boards = [_Board(billboard, self) for billboard in scene.billboards]

    @cached_property
    def random(self) -> F32:
        """A 64 x 64 table of random numbers in [-1, 1) for textures."""
        return np.random.default_rng(self.scene.texture).uniform(-1, 1, (64, 64)).astype(np.float32)

    def view(self, eye: float) -> tuple[NDArray[np.uint8], F32]:
        """Image and disparity of one view: eye 0 is the left view, 1 the right view."""
        x = self.x + eye * self.ground  # left-view coordinates of the wall or floor in each pixel
        first = int(np.ceil(self.horizon))
        image = np.concatenate([self._wall(x[:first], self.y[:first]), self._floor(x[first:], self.y[first:])])
        disparity = np.repeat(self.ground, self.width, 1)
        for board in self.boards:
            rows, columns = board.box(eye)
            bx, by = self.x[:, columns] + eye * board.disparity, self.y[rows]
            distance = board.distance(bx, by)
            alpha = np.clip(0.5 - distance, 0, 1)[..., None]
            image[rows, columns] += alpha * (board.paint(bx, by, distance) - image[rows, columns])
            disparity[rows, columns][distance < 0] = board.disparity
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), disparity  # [0,1] -> [0,255]

    def visible_in_other(self, disparity: F32, sign: int) -> tuple[Bools, Bools]:
        """Two masks of a view: pixels that are visible in the other view, and pixels that lie inside its frame.

        Args:
            disparity: disparity of the view, H,W.
            sign: -1 for masks of the left view (its content moves to x - d), 1 for masks of the right view.
        """
        there = self.x + sign * disparity
        inside = (there > -0.5) & (there < self.width - 0.5)
        in_left = there if sign > 0 else self.x  # left-view coordinate of the point in the pixel
        visible = inside.copy()
        for board in self.boards:
            # Left-view coordinate at which a nearer board would cover the point in the other view.
            at = in_left if sign > 0 else there + board.disparity
            visible &= ~((board.distance(at, self.y) < 0) & (board.disparity > disparity))
        return visible, inside

    # --- Surfaces: left-view coordinates in, colours out ---

    def noise(self, x: F32, y: F32, wavelength: float, salt: int) -> F32:
        """Smooth noise of about [-1, 1]; its wavelength is in pixels, `salt` selects an independent pattern."""
        u, v = x / wavelength + salt * 7.3, y / wavelength + salt * 3.9
        i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        s, t = u - i, v - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        i, j, i1, j1 = i & 63, j & 63, (i + 1) & 63, (j + 1) & 63
        table = self.random
        top = table[j, i] + s * (table[j, i1] - table[j, i])
        low = table[j1, i] + s * (table[j1, i1] - table[j1, i])
        return np.asarray(top + t * (low - top), np.float32)

    def grain(self, x: F32, y: F32, salt: int) -> F32:
        """A brightness factor around 1 with fine grain, H,W,1, so that every surface can be matched."""
        coarse = self.noise(x, y, 9 * self.u, salt)
        fine = self.noise(x, y, 3.6 * self.u, salt + 1)
        return np.asarray(1 + 0.04 * coarse + 0.04 * fine, np.float32)[..., None]

    def tone(self, i: NDArray[np.int32], j: NDArray[np.int32], salt: int) -> F32:
        """A random number in [-1, 1) for each cell i, j of a pattern: a brick, panel or plank."""
        return np.asarray(self.random[(j * 13 + salt) & 63, (i * 29 + 5 * salt) & 63])

    def _wall(self, x: F32, y: F32) -> F32:
        scene, u = self.scene, self.u
        colour = _rgb(WALL_COLOURS[scene.wall_colour])
        shade = 1 + 0.10 * (y / self.horizon - 0.5)[..., None]
        wall = colour * shade * self.grain(x, y, 1)
        offset = scene.texture % 97 * u
        if scene.wall == "brick":
            wide, high = 26 * u, 13 * u
            j = np.floor(y / high).astype(np.int32)
            shifted = x + offset + (j & 1) * wide / 2
            i = np.floor(shifted / wide).astype(np.int32)
            wall = wall * (0.86 + 0.16 * self.tone(i, j, 2))[..., None]
            joint = np.maximum(line(shifted, wide, 1.1 * u), line(y, high, 1.1 * u))
            wall = _mix(wall, colour * 0.55 + 0.40, joint)
        elif scene.wall == "panelled":
            wide = 18 * u
            i = np.floor((x + offset) / wide).astype(np.int32)
            wall = wall * (0.90 + 0.14 * self.tone(i, np.zeros_like(i), 3))[..., None]
            wall = _mix(wall, colour * 0.45, line(x + offset, wide, 1.0 * u))
        elif scene.wall == "tiled":
            side = 20 * u
            i, j = np.floor((x + offset) / side).astype(np.int32), np.floor(y / side).astype(np.int32)
            wall = wall * np.where((i + j) & 1, 1.0, 0.72).astype(np.float32)[..., None]
        elif scene.wall == "windows":
            wall = self._frames(wall, x, y, offset, pane=True)
        elif scene.wall == "pictures":
            wall = self._frames(wall, x, y, offset, pane=False)
        if scene.structure:
            ink = _rgb(INKS[scene.texture % len(INKS)]) * self.grain(x, y, 12)
            wall = _mix(wall, ink, coverage(scene.structure, x, y, u, scene.texture))
        skirting = np.clip(y - (self.horizon - 3 * u) + 0.5, 0, 1)
        return _mix(wall, colour * 0.5, np.broadcast_to(skirting, x.shape))

    def _frames(self, wall: F32, x: F32, y: F32, offset: float, pane: bool) -> F32:
        """The wall with a row of windows (`pane`) or of pictures along it."""
        u, period = self.u, (50 if pane else 44) * self.u
        half_wide, half_high = (16 * u, 20 * u) if pane else (15 * u, 15 * u)
        i = np.floor((x + offset) / period).astype(np.int32)
        dx, dy = np.mod(x + offset, period) - period / 2, y - self.horizon * 0.56
        inside = box(dx, dy, half_wide, half_high)
        frame = _rgb((0.95, 0.95, 0.93)) if pane else _rgb((0.30, 0.20, 0.12))
        wall = _mix(wall, frame, np.clip(0.5 - inside, 0, 1))
        glass = np.clip(0.5 - (inside + 2.5 * u), 0, 1)
        if pane:
            sky = _rgb((0.62, 0.82, 0.97)) * (1 - 0.16 * (dy / half_high))[..., None] * self.grain(x, y, 9)
            bars = np.clip(0.5 + 1.0 * u - np.minimum(np.abs(dx), np.abs(dy)), 0, 1)
            return _mix(wall, _mix(sky, frame, bars), glass)
        paints = np.stack([_rgb(c) for c in (*COLOURS.values(),)])
        chosen = np.floor((self.tone(i, np.zeros_like(i), 11) + 1) * 4).astype(np.int32)
        upper, lower = paints[chosen], paints[(chosen + 3) % 8]
        hill = np.clip(0.5 + dy - 4 * u * np.sin(dx / (5 * u)), 0, 1)
        canvas = _mix(0.35 + 0.6 * upper, 0.15 + 0.7 * lower, hill) * self.grain(x, y, 10)
        return _mix(wall, canvas, glass)

    def _floor(self, x: F32, y: F32) -> F32:
        scene, u = self.scene, self.u
        colour = _rgb(FLOOR_COLOURS[scene.floor_colour])
        ground = self.ground[-len(y) :]
        zoom = ground / ground[-1]  # scale of the floor's pattern: 1 at the bottom edge, smaller towards the wall
        floor = colour * (0.82 + 0.22 * zoom)[..., None] * self.grain(x, y, 20)
        along = (x - self.width / 2) / zoom
        if scene.floor == "tiled":
            side = 34 * u
            row = np.floor(2.3 / zoom).astype(np.int32)  # distance from the camera is the inverse of disparity
            column = np.clip(0.5 + (np.abs(np.mod(along / side, 2) - 1) - 0.5) * side * zoom, 0, 1)
            floor = floor * (0.68 + 0.32 * np.where(row & 1, 1 - column, column))[..., None]
        elif scene.floor == "plank":
            side = 26 * u
            i = np.floor(along / side).astype(np.int32)
            floor = floor * (0.90 + 0.16 * self.tone(i, np.zeros_like(i), 21))[..., None]
            gap = line(along, side, 0.9 * u, 1 / zoom)
            floor = _mix(floor, colour * 0.45, gap)
        for board in self.boards:
            far = ((x - board.x) / (0.9 * board.radius)) ** 2 + ((y - board.foot) / (0.22 * board.radius)) ** 2
            floor = floor * (1 - 0.45 * np.exp(-far))[..., None]
        return np.asarray(floor, np.float32)


class _Board:
    """A billboard in pixels."""

    def __init__(self, board: Billboard, room: _Room) -> None:
        self.room = room
        self.shape: Shape = board.shape
        self.pattern: Pattern = board.pattern
        self.colour = _rgb(COLOURS[board.colour])
        self.x = board.x * room.width
        self.radius = board.radius * min(room.width, room.height)
        self.foot = room.horizon + board.base * (room.height - 1 - room.horizon)
        self.y = self.foot - self.radius
        self.disparity = float(np.float32(room.scene.disparity_at(board.base) * room.width))
        self.salt = 30 + 4 * room.scene.billboards.index(board)

    def box(self, eye: float) -> tuple[slice, slice]:
        """The rows and columns of a view that contain it."""
        x, reach = self.x - eye * self.disparity, self.radius + 2
        return (
            slice(max(0, int(self.y - reach)), max(0, int(self.y + reach) + 1)),
            slice(max(0, int(x - reach)), max(0, int(x + reach) + 1)),
        )

    def distance(self, x: F32, y: F32) -> F32:
        """Signed distance to the outline in pixels, negative inside; x and y are broadcast."""
        dx, dy, r = x - self.x, y - self.y, self.radius
        if self.shape == "circle":
            return np.asarray(np.hypot(dx, dy) - r, np.float32)
        if self.shape == "square":
            return box(dx, dy + 0.06 * r, 0.94 * r, 0.94 * r)
        if self.shape == "cross":
            return np.minimum(box(dx, dy, r, 0.38 * r), box(dx, dy, 0.38 * r, r))
        if self.shape == "triangle":
            # Two slanted sides meet at the top; the third side is the bottom.
            slant = (np.abs(dx) * 2 - (dy + r)) / np.sqrt(5.0)
            return np.asarray(np.maximum(slant, dy - r), np.float32)
        return _star(dx, dy, r)

    def paint(self, x: F32, y: F32, distance: F32) -> F32:
        """Its colours, H,W,3, at points in left-view coordinates with their distance to the outline."""
        u = self.room.u
        light = 1 - 0.12 * (y - self.y) / self.radius
        paint = self.colour * light[..., None] * self.room.grain(x, y, self.salt)
        dark = np.where(self.colour.mean() > 0.55, 0.42, 1.55).astype(np.float32)  # stripes and dots stand out
        other = np.clip(self.colour * dark + (0.12 if dark > 1 else 0.0), 0, 1)
        dx, dy = x - self.x, y - self.y
        if self.pattern == "striped":
            period = 11 * u
            stripe = np.abs(np.mod((dx + dy) / period, 1.0) - 0.5) * period / np.sqrt(2) - period / np.sqrt(2) / 4
            paint = _mix(paint, other, np.clip(0.5 + stripe, 0, 1))
        elif self.pattern == "dotted":
            period = 11 * u
            j = np.floor(dy / period).astype(np.int32)
            cx = np.mod(dx + (j & 1) * period / 2, period) - period / 2
            cy = np.mod(dy, period) - period / 2
            paint = _mix(paint, other, np.clip(0.5 + 2.9 * u - np.hypot(cx, cy), 0, 1))
        rim = np.clip(0.5 + distance + 1.2 * u, 0, 1)
        return _mix(paint, self.colour * 0.45, rim)


def _star(dx: F32, dy: F32, r: float) -> F32:
    """Signed distance to a five-pointed star that stands on two of its points."""
    angle = np.pi / 5
    outer, inner = 1.05 * r, 0.48 * r
    dy = dy - 0.06 * r
    length = np.hypot(dx, dy)
    # By symmetry all ten half points are folded onto one: theta in [0, pi/5] goes from a point to the next notch.
    theta = np.abs(np.mod(np.arctan2(dx, -dy) + angle, 2 * angle) - angle)
    px, py = length * np.cos(theta), length * np.sin(theta)
    tip, notch = np.array([outer, 0.0]), np.array([inner * np.cos(angle), inner * np.sin(angle)])
    edge = notch - tip
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    if normal @ -tip > 0:
        normal = -normal
    return np.asarray((px - tip[0]) * normal[0] + (py - tip[1]) * normal[1], np.float32)


def _rgb(colour: tuple[float, float, float]) -> F32:
    return np.array(colour, np.float32)


def _mix(a: F32, b: F32, share: F32) -> F32:
    """Linear interpolation of colours H,W,3: a where share (H,W) is 0, b where it is 1."""
    return np.asarray(a + (b - a) * share[..., None], np.float32)
