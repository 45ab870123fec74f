"""Pictures and truth against a slow reference, which asks every surface about every pixel."""

import dataclasses
import math
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.baselines import stretch
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import COLOURS, LEVELS, Structure, draw_scene
from stereo_jobs.toyscapes.structures import coverage

often = settings(max_examples=60, deadline=None, derandomize=True, database=None)
seldom = settings(max_examples=30, deadline=None, derandomize=True, database=None)

SIZES = [(128, 128), (64, 64), (200, 96), (96, 160)]

scenes = st.builds(draw_scene, st.integers(0, 10**6), st.sampled_from(["train", "test"]), st.sampled_from(LEVELS))
sides = st.integers(32, 72)


# --- The reference ---


def corners(shape, r):
    """Outline of a figure around its centre, y down; straight from its description."""
    if shape == "square":
        return [(-0.94 * r, -r), (0.94 * r, -r), (0.94 * r, 0.88 * r), (-0.94 * r, 0.88 * r)]
    if shape == "triangle":
        return [(0, -r), (r, r), (-r, r)]
    if shape == "cross":
        a = 0.38 * r
        return [
            (-a, -r),
            (a, -r),
            (a, -a),
            (r, -a),
            (r, a),
            (a, a),
            (a, r),
            (-a, r),
            (-a, a),
            (-r, a),
            (-r, -a),
            (-a, -a),
        ]
    points = [(1.05 * r if k % 2 == 0 else 0.48 * r, math.pi * k / 5) for k in range(10)]
    return [(reach * math.sin(angle), 0.06 * r - reach * math.cos(angle)) for reach, angle in points]


def in_polygon(outline, x, y):
    """Even-odd rule: how many edges does a ray to the right cross?"""
    inside = False
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside


class SlowRoom:
    """The surfaces of a scene as pairs: disparity, and whether it covers a point of the left view."""

    def __init__(self, scene, width, height):
        self.scene, self.width, self.height = scene, width, height
        self.horizon = scene.horizon * height

    def surfaces(self, y):
        down = min(max((y - self.horizon) / (self.height - self.horizon), 0), 1)
        yield self.scene.disparity_at(down) * self.width, lambda x: True  # wall or floor
        for board in self.scene.billboards:
            r, cx = board.radius * min(self.width, self.height), board.x * self.width
            cy = self.horizon + board.base * (self.height - 1 - self.horizon) - r
            if board.shape == "circle":
                covers = lambda x, r=r, cx=cx, cy=cy: math.hypot(x - cx, y - cy) < r  # noqa: E731
            else:
                outline = corners(board.shape, r)
                covers = lambda x, o=outline, cx=cx, cy=cy: in_polygon(o, x - cx, y - cy)  # noqa: E731
            yield self.scene.disparity_at(board.base) * self.width, covers

    def in_frame(self, x):
        return -0.5 < x < self.width - 0.5

    def truth(self):
        """What `render` says about the pixels, pixel by pixel: the nearest surface wins."""
        shape = self.height, self.width
        found = {name: np.zeros(shape, np.float32) for name in ("disparity", "right_disparity")}
        found |= {name: np.zeros(shape, bool) for name in ("nonocc_left", "hole_right", "border_right")}
        for y, x in np.ndindex(shape):
            surfaces = list(self.surfaces(y))
            d = max(d for d, covers in surfaces if covers(x))
            there = x - d
            hidden = any(nearer > d and covers(there + nearer) for nearer, covers in surfaces)
            found["disparity"][y, x] = d
            found["nonocc_left"][y, x] = self.in_frame(there) and not hidden
            d = max(d for d, covers in surfaces if covers(x + d))
            there = x + d
            hidden = any(nearer > d and covers(there) for nearer, covers in surfaces)
            found["right_disparity"][y, x] = d
            found["border_right"][y, x] = not self.in_frame(there)
            found["hole_right"][y, x] = hidden or not self.in_frame(there)
        return found


@seldom
@given(scenes, st.integers(32, 48), st.integers(32, 48))
def test_the_truth_is_that_of_the_slow_reference(scene, width, height):
    compare_with_reference(scene, width, height)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_so_at_every_size_and_shape(size):
    compare_with_reference(draw_scene(5, "test", "crowded"), *size)


def compare_with_reference(scene, width, height):
    view, truth = render(scene, width, height), SlowRoom(scene, width, height).truth()
    for name, expected in truth.items():
        given = getattr(view, name)
        assert (given.dtype, given.shape) == (expected.dtype, expected.shape)
        # One pixel may lie so close to an outline that float32 decides.
        assert np.count_nonzero(~np.isclose(given, expected, rtol=0, atol=1e-3)) <= 1, name


# --- What the truth promises about itself and about the pictures ---


def near_edges(disparity, step, reach):
    """Pixels within some pixels of a jump of disparity."""
    edges = np.zeros(disparity.shape, np.uint8)
    across, down = np.abs(np.diff(disparity, axis=1)) > step, np.abs(np.diff(disparity, axis=0)) > step
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return cv2.dilate(edges, np.ones((2 * reach + 1, 2 * reach + 1))) > 0


def mean_difference(image, other, disparity, shown, off=0.0):
    """Mean difference of grey levels to the other view, read at x - disparity + off where it shows the pixel."""
    height, width = disparity.shape
    at = (np.arange(width, dtype=np.float32) - disparity + np.float32(off)).astype(np.float32)
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, 1)
    read = cv2.remap(other.astype(np.float32), at, rows, cv2.INTER_LINEAR)
    over = shown & ~near_edges(disparity, 1.0, 2) & (at >= 1) & (at <= width - 2)
    assert over.mean() > 0.4
    return np.abs(read - image)[over].mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", SIZES)
def test_each_view_is_the_other_one_moved_by_the_disparity(level, size):
    for seed in range(4):
        scene = draw_scene(seed, "test", level)
        view = render(scene, *size)
        for image, other, disparity, shown in (
            (view.left, view.right, view.disparity, view.nonocc_left),
            (view.right, view.left, -view.right_disparity, ~view.hole_right),
        ):
            error = mean_difference(image, other, disparity, shown)
            beside = min(mean_difference(image, other, disparity, shown, off) for off in (-0.5, 0.5))
            assert error < (8 if level == "hard" else 4)  # at 64 x 64 a letter has strokes of one pixel
            assert 1.2 * error < beside or (scene.wall == "tiled" and error < 1.2 * beside)  # whose joints are hard


@pytest.mark.parametrize("level", LEVELS)
def test_what_remains_is_the_reading_between_pixels(level):
    """Four times as many pixels: a quarter of the error or so, and less than one grey level of 255."""
    view = render(draw_scene(3, "test", level), 512, 512)
    assert mean_difference(view.left, view.right, view.disparity, view.nonocc_left) < 0.5


@often
@given(scenes, sides, sides)
def test_visible_left_pixels_fill_the_right_view_but_for_its_holes(scene, width, height):
    view = render(scene, width, height)
    d, shown = view.disparity, view.nonocc_left
    filled, expected = np.zeros((height, width), bool), np.zeros((height, width), np.float32)
    # Two neighbours of one surface that are both seen: so is what lies between them.
    rows, columns = np.nonzero(shown[:, :-1] & shown[:, 1:] & (d[:, :-1] == d[:, 1:]))
    between = np.ceil(columns - d[rows, columns]).astype(int)
    rows, columns, between = (part[between >= 0] for part in (rows, columns, between))
    filled[rows, between], expected[rows, between] = True, d[rows, columns]
    assert filled.mean() > 0.75
    a_few = 5  # parts of figures that are thinner than a pixel
    assert (filled & view.hole_right).sum() <= a_few
    assert (filled & (expected != view.right_disparity)).sum() <= a_few
    # What nothing fills is a hole, or ends a surface, or stands beside a hole or the frame.
    changes = (np.diff(view.right_disparity, axis=1) != 0) | np.diff(view.hole_right, axis=1)
    ends = np.pad(changes, ((0, 0), (1, 1)), constant_values=True)
    ends = ends[:, 1:] | ends[:, :-1]
    assert (~filled & ~view.hole_right & ~ends).sum() <= a_few


@often
@given(scenes, sides, sides)
def test_border_holes_are_holes_at_the_right_edge(scene, width, height):
    view = render(scene, width, height)
    assert not (view.border_right & ~view.hole_right).any()
    assert view.border_right[:, -1].sum() == (view.right_disparity[:, -1] > 0.5).sum()
    assert not view.border_right[:, : int(width * (1 - scene.near)) - 1].any()


@often
@given(scenes, sides, sides)
def test_disparities_are_those_of_the_scene(scene, width, height):
    view = render(scene, width, height)
    boards = {np.float32(scene.disparity_at(board.base) * width) for board in scene.billboards}
    for disparity in (view.disparity, view.right_disparity):
        assert (disparity.dtype, disparity.shape) == (np.float32, (height, width))
        assert disparity.min() == pytest.approx(scene.far * width, rel=1e-5)
        assert disparity.max() <= np.float32(scene.near * width) <= 0.12 * width
        of_boards = np.isin(disparity, list(boards))
        assert set(disparity[of_boards]) == boards  # none is hidden altogether
        room = np.where(of_boards, np.nan, disparity)
        assert (np.nanmax(room, 1) == np.nanmin(room, 1)).all()  # one disparity a row


def test_the_same_scene_gives_the_same_pixels():
    for level in LEVELS:
        first, second = (render(draw_scene(7, "test", level), 100, 80) for _ in range(2))
        for field in dataclasses.fields(first):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
        assert first.caption == draw_scene(7, "test", level).caption


@often
@given(scenes, sides, sides)
def test_views_are_pictures_of_the_size_asked_for(scene, width, height):
    view = render(scene, width, height)
    for image in (view.left, view.right):
        assert (image.dtype, image.shape) == (np.uint8, (height, width, 3))
        assert np.ptp(image) > 60


@pytest.mark.parametrize("size", [(31, 128), (128, 31), (0, 0), (-64, 64)])
def test_too_small_pictures_are_refused(size):
    with pytest.raises(ValueError, match=f"at least 32 x 32 pixels, got {size[0]} x {size[1]}"):
        render(draw_scene(0), *size)
    assert render(draw_scene(0), 32, 32).left.shape == (32, 32, 3)


# --- Level hard ---


def test_holes_of_level_hard_hide_what_their_row_does_not_show():
    """Each row continued from its background is further from the truth than on the other structured level."""

    def error(level):
        errors = []
        for seed in range(12):
            view = render(draw_scene(seed, "test", level))
            stretched, _ = stretch(view.left, view.disparity)
            hole = view.hole_right & ~view.border_right
            errors.append(np.abs(stretched.astype(float) - view.right)[hole].mean())
        return np.mean(errors)

    assert error("hard") > 1.5 * error("structured")


@pytest.mark.parametrize("structure", get_args(Structure))
def test_structures_cover_a_part_of_the_wall_with_smooth_edges(structure):
    x, y = np.arange(512, dtype=np.float32)[None], np.arange(256, dtype=np.float32)[:, None]
    for texture in range(8):
        share = coverage(structure, np.broadcast_to(x, (256, 512)), y, 4.0, texture)
        assert (share.min(), share.max()) == (0, 1)
        assert 0.1 < share.mean() < 0.6
        moved = coverage(structure, np.broadcast_to(x + 0.1, (256, 512)), y, 4.0, texture)
        assert np.mean(np.abs(moved - share) <= 0.3) > 0.999  # a tenth of a pixel moves an edge by a tenth


# --- Pictures ---


@pytest.mark.parametrize("colour", COLOURS)
def test_figures_have_the_colour_of_their_name_in_both_views(colour):
    scene = draw_scene(0, "test", "plain")
    board = dataclasses.replace(scene.billboards[0], shape="square", pattern="plain", colour=colour, x=0.5)
    view = render(dataclasses.replace(scene, billboards=(board,)))
    for image, disparity in ((view.left, view.disparity), (view.right, view.right_disparity)):
        on_it = (disparity == np.float32(scene.disparity_at(board.base) * 128)).astype(np.uint8)
        body = image[cv2.erode(on_it, np.ones((7, 7))) > 0] / 255
        assert len(body) > 500
        distances = {name: np.abs(body - rgb).max(1) for name, rgb in COLOURS.items()}
        assert min(distances, key=lambda name: distances[name].mean()) == colour
        assert distances[colour].max() < 0.25


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross"])
def test_outlines_are_smooth_a_tenth_of_a_pixel_moves_the_picture_by_a_tenth(shape):
    scene = draw_scene(0, "test", "plain")

    def with_figure_at(x):
        board = dataclasses.replace(scene.billboards[0], shape=shape, pattern="plain", colour="red", x=x)
        return render(dataclasses.replace(scene, billboards=(board,))).left.astype(float)

    empty = with_figure_at(3)  # far outside the frame
    columns = [np.abs(with_figure_at(0.5 + tenths / 1280) - empty).sum((0, 2)) for tenths in range(11)]
    moves = np.diff([np.average(np.arange(128), weights=weights) for weights in columns])
    np.testing.assert_allclose(moves, 0.1, atol=0.03)
    assert moves.sum() == pytest.approx(1, abs=0.05)
