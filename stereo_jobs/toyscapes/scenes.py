"""Draws scenes from seeds: a room with standing billboards, and its caption.

A scene is described in fractions of the image, so it can be rendered at any size. The floor's disparity grows linearly
from `far` at the wall to `near` at the bottom edge; a billboard has the floor's disparity where it stands.
"""

import zlib
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Level = Literal["plain", "structured", "crowded", "hard"]
Split = Literal["train", "test"]
Shape = Literal["circle", "square", "triangle", "star", "cross"]
Pattern = Literal["plain", "striped", "dotted"]
Floor = Literal["plain", "tiled", "plank"]
Wall = Literal["plain", "brick", "panelled", "tiled", "windows", "pictures"]
Structure = Literal["beams", "arcs", "checks", "letters"]
Position = Literal["left", "middle", "right"]

LEVELS: tuple[Level, ...] = get_args(Level)
SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES: tuple[Shape, ...] = get_args(Shape)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
POSITIONS: tuple[Position, ...] = get_args(Position)

RGB = tuple[float, float, float]
T = TypeVar("T")
Base = TypeVar("Base", float, NDArray[np.float32])

COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.13, 0.12),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.96, 0.88, 0.20),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.14, 0.28, 0.85),
    "purple": (0.52, 0.18, 0.68),
    "pink": (0.98, 0.50, 0.74),
    "white": (0.96, 0.96, 0.96),
}
FLOOR_COLOURS: dict[str, RGB] = {
    "green": (0.34, 0.52, 0.28),
    "brown": (0.48, 0.34, 0.22),
    "grey": (0.42, 0.42, 0.44),
    "blue": (0.30, 0.40, 0.58),
    "sand": (0.76, 0.66, 0.44),
}
WALL_COLOURS: dict[str, RGB] = {
    "grey": (0.58, 0.58, 0.60),
    "blue": (0.54, 0.66, 0.80),
    "pink": (0.82, 0.66, 0.68),
    "green": (0.60, 0.74, 0.60),
    "beige": (0.82, 0.76, 0.62),
}
_CENTRES: dict[Position, float] = {"left": 0.25, "middle": 0.5, "right": 0.75}


@dataclass(frozen=True)
class Billboard:
    """A flat upright figure.

    Attributes:
        shape: its outline.
        colour: name in `COLOURS`.
        pattern: what is painted on it.
        x: its centre in the left view, as a fraction of the width.
        base: its place on the floor: 0 at the wall, 1 at the bottom edge of the image.
        radius: half its height, as a fraction of the shorter side of the image.
    """

    shape: Shape
    colour: str
    pattern: Pattern
    x: float
    base: float
    radius: float

    @property
    def words(self) -> str:
        """Its name in captions: `a red striped circle`."""
        words = [self.colour, self.shape] if self.pattern == "plain" else [self.colour, self.pattern, self.shape]
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {' '.join(words)}"

    @property
    def position(self) -> Position:
        """The third of the image that its centre is in."""
        return POSITIONS[min(int(self.x * 3), 2)]


@dataclass(frozen=True)
class Scene:
    """The description of one scene, from which it is rendered.

    Attributes:
        level: level that it was drawn for.
        floor: pattern of the floor.
        floor_colour: name in `FLOOR_COLOURS`.
        wall: pattern of the wall.
        wall_colour: name in `WALL_COLOURS`.
        horizon: lower edge of the wall, as a fraction of the height from the top.
        far: disparity of the floor at the wall, as a fraction of the width.
        near: disparity of the floor at the bottom edge, as a fraction of the width.
        billboards: its objects, from far to near.
        overlapping: whether the nearer of two objects covers the other; the caption then says `in front of`.
        texture: seed of all details that the caption does not name.
        structure: what is painted on the wall that no single row can continue (level `hard`); the caption does not
            name it.
    """

    level: Level
    floor: Floor
    floor_colour: str
    wall: Wall
    wall_colour: str
    horizon: float
    far: float
    near: float
    billboards: tuple[Billboard, ...]
    overlapping: bool
    texture: int
    structure: Structure | None = None

    @property
    def caption(self) -> str:
        """Its objects, floor and wall: `a red circle on the left, green tiled floor, grey wall with windows`."""
        return f"{self._objects()}, {self._floor()}, {self._wall()}"

    def disparity_at(self, base: Base) -> Base:
        """Disparity at `base` on the floor (a number or an array), as a fraction of the width."""
        return self.far + (self.near - self.far) * base

    def _objects(self) -> str:
        if self.overlapping:
            far, near = self.billboards
            return f"{near.words} in front of {far.words}"
        placed = [_placed(b) for b in sorted(self.billboards, key=lambda b: b.x)]
        return placed[0] if len(placed) == 1 else f"{', '.join(placed[:-1])} and {placed[-1]}"

    def _floor(self) -> str:
        return f"{self.floor_colour} floor" if self.floor == "plain" else f"{self.floor_colour} {self.floor} floor"

    def _wall(self) -> str:
        if self.wall in ("windows", "pictures"):
            return f"{self.wall_colour} wall with {self.wall}"
        return f"{self.wall_colour} wall" if self.wall == "plain" else f"{self.wall_colour} {self.wall} wall"


VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "floor", "front", "in", "of", "on", "the", "wall", "with", ","}
        | {*COLOURS, *FLOOR_COLOURS, *WALL_COLOURS, *SHAPES, *PATTERNS, *POSITIONS, *get_args(Floor), *get_args(Wall)}
        - {"plain"}  # never mentioned in a caption
    )
)
"""All words that captions can have."""


def draw_scene(seed: int, split: Split = "train", level: Level | None = None) -> Scene:
    """The scene of a seed. A tenth of all captions, chosen by a checksum, occurs only in the test split.

    Args:
        seed: seed of the scene, >= 0; the same seed in another split or level gives an unrelated scene.
        split: `test` for measuring, `train` for everything else.
        level: level of the scene; None draws one: 45 % plain, 40 % structured, 15 % crowded, never hard.
    """
    kind = LEVELS.index(level) + 1 if level else 0
    rng = np.random.default_rng([SPLITS.index(split), kind, seed])
    while True:
        scene = _draw(rng, level or LEVELS[rng.choice(3, p=[0.45, 0.4, 0.15])])
        if split_of(scene.caption) == split:
            return scene


def split_of(caption: str) -> Split:
    """The split that a caption belongs to."""
    return "test" if zlib.crc32(caption.encode()) % 10 == 0 else "train"


def _placed(billboard: Billboard) -> str:
    return f"{billboard.words} {'in' if billboard.position == 'middle' else 'on'} the {billboard.position}"


def _draw(rng: np.random.Generator, level: Level) -> Scene:
    wall_colour = _pick(rng, tuple(WALL_COLOURS))
    walls: tuple[Wall, ...] = ("plain",) if level in ("plain", "hard") else get_args(Wall)[1:]
    floors: tuple[Floor, ...] = ("plain",) if level in ("plain", "hard") else get_args(Floor)
    overlapping, billboards = _draw_billboards(rng, level, wall_colour)
    nearest = {"plain": (0.06, 0.09), "hard": (0.105, 0.12)}.get(level, (0.08, 0.12))
    near = rng.uniform(*nearest)
    return Scene(
        level=level,
        floor=_pick(rng, floors),
        floor_colour=_pick(rng, tuple(FLOOR_COLOURS)),
        wall=_pick(rng, walls),
        wall_colour=wall_colour,
        horizon=rng.uniform(*((0.66, 0.74) if level == "hard" else (0.52, 0.62))),
        far=near * rng.uniform(*((0.08, 0.15) if level == "hard" else (0.15, 0.3))),
        near=near,
        billboards=billboards,
        overlapping=overlapping,
        texture=int(rng.integers(2**32)),
        structure=_pick(rng, get_args(Structure)) if level == "hard" else None,
    )


def _draw_billboards(rng: np.random.Generator, level: Level, wall_colour: str) -> tuple[bool, tuple[Billboard, ...]]:
    one, two = (0.5, 0.5) if level == "hard" else (0.75, 0.25)
    count = int(rng.integers(2, 4)) if level == "crowded" else int(rng.choice([1, 2], p=[one, two]))
    overlapping = count == 2 and (level == "hard" or rng.random() < 0.5)
    # Objects of the same colour, or of the wall's colour, would be hard to tell apart.
    colours = [name for name in COLOURS if name != wall_colour]
    chosen = [str(name) for name in rng.choice(colours, count, replace=False)]
    if overlapping:
        side = rng.choice([-1.0, 1.0])
        centre = rng.uniform(0.4, 0.6)
        far = (0.3, 0.45) if level == "hard" else (0.1, 0.35)
        places = [(centre + side * 0.11, rng.uniform(*far)), (centre - side * 0.11, rng.uniform(0.65, 0.95))]
        sizes = [rng.uniform(0.19, 0.22), rng.uniform(0.17, 0.21)]
    else:
        slots = [str(name) for name in rng.choice(POSITIONS, count, replace=False)]
        jitter = 0.05 if count < 3 else 0.02
        bases = (0.5, 0.95) if level == "hard" else (0.25, 0.95)
        places = [(_CENTRES[slot] + rng.uniform(-jitter, jitter), rng.uniform(*bases)) for slot in slots]  # type: ignore[index]
        sizes = [rng.uniform(*((0.18, 0.23) if count == 1 else (0.15, 0.19) if count == 2 else (0.125, 0.145)))] * count
    billboards = [
        Billboard(_pick(rng, SHAPES), colour, PATTERNS[rng.choice(3, p=[0.5, 0.25, 0.25])], float(x), float(base), size)
        for colour, (x, base), size in zip(chosen, places, sizes, strict=True)
    ]
    return overlapping, tuple(sorted(billboards, key=lambda b: b.base))


def _pick(rng: np.random.Generator, choices: tuple[T, ...]) -> T:
    return choices[int(rng.integers(len(choices)))]
