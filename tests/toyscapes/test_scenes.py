"""Scenes: drawn from a seed alone, kept apart in splits, and described by their captions."""

import dataclasses
import re
import zlib
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from stereo_jobs.toyscapes.scenes import LEVELS, SPLITS, VOCABULARY, Structure, draw_scene, split_of

MANY = range(1000)


@pytest.fixture(scope="module")
def scenes():
    """Scenes of both splits and of all levels, the mix included."""
    mixed = [draw_scene(seed, split) for split in SPLITS for seed in MANY]
    return mixed + [draw_scene(seed, "train", level) for level in LEVELS for seed in range(300)]


def words(caption: str) -> list[str]:
    return caption.replace(",", " ,").split()


def objects(caption: str) -> list[tuple[str, ...]]:
    """Slow reading of a caption: article, colour, pattern, shape and place of each object, in order."""
    scene = caption.rsplit(", ", 2)[0]
    parts = re.split(r", | and | in front of ", scene)
    pattern = r"(an?) (\w+)(?: (striped|dotted))? (\w+)(?: (?:on|in) the (left|middle|right))?"
    return [re.fullmatch(pattern, part).groups() for part in parts]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_a_seed_gives_the_same_scene_always(split, level):
    assert [draw_scene(seed, split, level) for seed in range(20)] == [
        draw_scene(seed, split, level) for seed in range(20)
    ]


def test_the_scenes_of_the_seeds_never_change():
    """The demo models were trained on these; the number is what it was when they were."""
    captions = [draw_scene(seed, split).caption for split in SPLITS for seed in range(100)]
    assert zlib.crc32("\n".join(captions).encode()) == 3478930650
    assert draw_scene(0, "test").caption == (
        "a red striped star on the left, a white triangle in the middle and a purple triangle on the right, "
        "blue floor, blue brick wall"
    )


@pytest.mark.parametrize(
    ("level", "drawn"), [(None, 2842628165), ("plain", 4114011366), ("structured", 2267626213), ("crowded", 3292509512)]
)
def test_older_levels_are_drawn_as_before_the_level_hard(level, drawn):
    scenes = [dataclasses.asdict(draw_scene(seed, split, level)) for split in SPLITS for seed in range(50)]
    assert {scene.pop("structure") for scene in scenes} == {None}
    assert zlib.crc32("\n".join(map(repr, scenes)).encode()) == drawn


def test_seeds_splits_and_levels_are_unrelated():
    drawn = [draw_scene(seed, split, level) for seed in range(50) for split in SPLITS for level in (None, *LEVELS)]
    assert len({scene.texture for scene in drawn}) == len(drawn)


def test_seeds_are_not_negative():
    with pytest.raises(ValueError, match="non-negative"):
        draw_scene(-1)


def test_the_splits_share_no_caption(scenes):
    test = {scene.caption for scene in scenes[len(MANY) : 2 * len(MANY)]}
    train = {scene.caption for scene in scenes[: len(MANY)] + scenes[2 * len(MANY) :]}
    assert len(test) > 800
    assert len(train) > 1500
    assert not train & test
    assert {split_of(caption) for caption in train} == {"train"}
    assert {split_of(caption) for caption in test} == {"test"}


def test_levels_hold_what_they_are_named_for(scenes):
    seen = {level: {} for level in LEVELS}
    for scene in scenes:
        for field in ("floor", "wall"):
            seen[scene.level].setdefault(field, set()).add(getattr(scene, field))
        seen[scene.level].setdefault("count", set()).add(len(scene.billboards))
    rich = {"floor": {"plain", "tiled", "plank"}, "wall": {"brick", "panelled", "tiled", "windows", "pictures"}}
    assert seen["plain"] == {"floor": {"plain"}, "wall": {"plain"}, "count": {1, 2}}
    assert seen["structured"] == {**rich, "count": {1, 2}}
    assert seen["crowded"] == {**rich, "count": {2, 3}}
    assert seen["hard"] == {"floor": {"plain"}, "wall": {"plain"}, "count": {1, 2}}
    assert {scene.structure for scene in scenes if scene.level == "hard"} == set(get_args(Structure))
    assert all(scene.overlapping == (len(scene.billboards) == 2) for scene in scenes if scene.level == "hard")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_asked_for(level):
    assert {draw_scene(seed, "train", level).level for seed in range(50)} == {level}


def test_the_mix_is_the_one_that_is_documented(scenes):
    counts = Counter(scene.level for scene in scenes[: len(MANY)])
    assert [counts[level] / len(MANY) for level in LEVELS] == pytest.approx([0.45, 0.40, 0.15, 0], abs=0.05)
    assert "hard" not in counts


def test_the_vocabulary_is_what_captions_say(scenes):
    assert {word for scene in scenes for word in words(scene.caption)} == set(VOCABULARY)
    assert list(VOCABULARY) == sorted(set(VOCABULARY))


def test_captions_name_the_objects_from_left_to_right_and_where_they_are(scenes):
    for scene in scenes:
        named = objects(scene.caption)
        boards = scene.billboards[::-1] if scene.overlapping else sorted(scene.billboards, key=lambda b: b.x)
        assert [(colour, pattern or "plain", shape) for _, colour, pattern, shape, _ in named] == [
            (board.colour, board.pattern, board.shape) for board in boards
        ]
        for (article, colour, *_, place), board in zip(named, boards, strict=True):
            third = "left" if board.x < 1 / 3 else "middle" if board.x < 2 / 3 else "right"
            assert place == (None if scene.overlapping else third)
            assert article == ("an" if colour == "orange" else "a")


def test_captions_end_with_the_floor_and_the_wall(scenes):
    for scene in scenes:
        floor, wall = scene.caption.rsplit(", ", 2)[1:]
        assert floor == " ".join([scene.floor_colour, scene.floor, "floor"]).replace(" plain", "")
        furnished = scene.wall in ("windows", "pictures")
        expected = (
            f"{scene.wall_colour} wall with {scene.wall}" if furnished else f"{scene.wall_colour} {scene.wall} wall"
        )
        assert wall == expected.replace(" plain", "")


def test_in_front_of_means_nearer_and_overlapping(scenes):
    overlapping = [scene for scene in scenes if " in front of " in scene.caption]
    assert len(overlapping) > 100
    for scene in overlapping:
        far, near = scene.billboards
        assert scene.disparity_at(near.base) > scene.disparity_at(far.base)
        assert abs(near.x - far.x) < near.radius + far.radius
    assert all(not scene.overlapping for scene in scenes if " in front of " not in scene.caption)


def test_objects_differ_in_colour_from_each_other_and_from_the_wall(scenes):
    for scene in scenes:
        colours = [board.colour for board in scene.billboards]
        assert len({*colours, scene.wall_colour}) == len(colours) + 1


def test_disparities_lie_between_the_wall_and_the_bottom_edge(scenes):
    for scene in scenes:
        disparities = [scene.disparity_at(board.base) for board in scene.billboards]
        assert 0 < scene.far < min(disparities) <= max(disparities) < scene.near <= 0.12
        assert disparities == sorted(disparities)  # from far to near
    assert (scene.disparity_at(0), scene.disparity_at(1)) == pytest.approx((scene.far, scene.near))
    assert np.ptp([scene.near for scene in scenes]) > 0.05
