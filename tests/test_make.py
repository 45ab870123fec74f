"""`stereo-jobs make`: files of single pairs, from photos and prompts as people have them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stereo_jobs.cli import single
from stereo_jobs.notebook import StereoPipeline
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

PHOTO = render(draw_scene(3), 70, 50).left
SHORT = ["recipe.method.steps=3", "recipe.size={width: 64, height: 64}", "runtime.device=cpu"]
ENDINGS = ["left.png", "right.png", "anaglyph.png", "disparity.tif", "disparity.png"]


@pytest.fixture
def make(command_line, capsys, tmp_path, monkeypatch):
    """Runs `make` in a folder with a photo; returns exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("photo.png")
    settings = [word for override in SHORT for word in ("--set", override)]
    return partial(command_line, capsys, "make", *settings)


def test_photos_and_prompts_become_files(make):
    sources = ("photo.png", "photo.png", "A red circle")
    code, out, err = make(*sources, "-o", "pairs", "--seed", "3", "--scale-percent", "10")
    assert code == 0
    assert out.split() == [f"pairs/{name}-{ending}" for name in ("photo", "a-red-circle") for ending in ENDINGS]
    assert err.count("the embedded models know rendered toy rooms only") == 1
    assert len(err.splitlines()) == 1
    np.testing.assert_array_equal(np.asarray(Image.open("pairs/photo-left.png")), PHOTO)
    recipe = {"method": {"steps": 3}, "size": {"width": 64, "height": 64}}
    same = StereoPipeline.from_pretrained(device="cpu", **recipe)("A red circle", seed=3, scale_percent=10)
    np.testing.assert_array_equal(np.asarray(Image.open("pairs/a-red-circle-right.png")), np.asarray(same.right))
    np.testing.assert_array_equal(np.asarray(Image.open("pairs/a-red-circle-disparity.tif")), same.disparity)


def test_json_names_the_files_of_each_pair(make):
    code, out, err = make("a red circle", "--json")
    [facts] = map(json.loads, out.splitlines())
    assert (code, err, facts["source"], facts["seed"]) == (0, "", "a red circle", 0)
    assert [facts[key] for key in ("left", "right", "anaglyph", "disparity", "disparity_image")] == [
        f"a-red-circle-{ending}" for ending in ENDINGS
    ]
    assert all(Path(name).is_file() for name in facts.values() if str(name).startswith("a-red-circle-"))


def test_files_that_exist_are_refused_before_anything_is_loaded(make, monkeypatch):
    Path("photo-right.png").write_bytes(b"mine")
    monkeypatch.setattr(StereoPipeline, "from_pretrained", None)
    code, _, err = make("a red circle", "photo.png")
    assert (code, err) == (2, "error: photo-right.png: exists; give another folder, or --force to replace it\n")
    assert Path("photo-right.png").read_bytes() == b"mine"
    monkeypatch.undo()


def test_force_replaces_files(make):
    Path("photo-right.png").write_bytes(b"mine")
    assert make("photo.png", "--force")[0] == 0
    assert Image.open("photo-right.png").size == (70, 50)


def test_a_broken_photo_costs_no_other(make):
    Path("broken.jpg").write_bytes(b"no image")
    code, out, err = make("broken.jpg", "photo.png")
    assert (code, len(out.split())) == (2, 5)
    assert "error: broken.jpg: image: not a readable image" in err
    assert err.splitlines()[-1] == "error: 1 of 2 inputs could not be made into a pair; they are named above"
    code, out, err = make("broken.jpg")
    assert (code, out, "error: broken.jpg: image: not a readable image" in err) == (2, "", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        ([" "], "a prompt is empty"),
        (["a ball", "--set", "recipe.mode=image"], "--set recipe.mode: `make` takes photos and prompts as they are"),
        (["a ball", "--set", "runtime.batch_size=2"], "takes fields of recipe (recipe.method.steps=20)"),
        (["a ball", "--set", "manifest=x"], "takes fields of recipe"),
        (["a ball", "--set", "recipe.method.step=2"], "method.step: unknown field; did you mean steps?"),
        (["a ball", "--scale-percent", "0.08"], "scale_percent: must be a percentage"),
        (["a ball", "--model", "nowhere/at/all/x"], "nowhere/at/all/x"),
    ],
)
def test_what_cannot_be_made_is_one_line(make, words, said):
    code, out, err = make(*words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_names_of_files_are_safe_and_each_its_own(prompts):
    prompts = [prompt for prompt in prompts if prompt.strip() and "\0" not in prompt]
    names = list(single._names(list(dict.fromkeys(prompts))))
    assert len({*names}) == len(names) == len({*prompts})
    for name in names:
        assert Path(name).name == name
        assert 0 < len(name) <= single._NAME_CHARACTERS + 4
        assert not name.startswith((".", "-"))
