"""Every family of checkpoints makes pairs in each of its modes, with both presets."""

import numpy as np
import pytest

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.models.tiny import FAMILIES, write_checkpoint

HEIGHT, WIDTH = 64, 128
PHOTO = render(draw_scene(3), 100, 50)
MODES = [(family, mode) for family in FAMILIES if family != "sd2_depth" for mode in ("text", "image", "inpaint")]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory):
    """A pipeline of one family in one mode; each checkpoint is written and loaded once."""
    folders, loaded = {}, {}

    def make(family, mode, **method):
        if family not in folders:
            folders[family] = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / family, family)
        models = {"stable_diffusion": {"path": str(folders[family])}, "depth": {"path": "demo"}}
        method = {"steps": 5, "null_text_iterations": 2} | method
        size = {"width": WIDTH, "height": HEIGHT}
        recipe = resolve_recipe(Recipe(mode=mode, models=models, method=method, size=size))
        if family not in loaded:
            loaded[family] = PairGenerator.load(recipe, "cpu", 1)
        return PairGenerator(loaded[family].sd, loaded[family].depth, recipe, 1)

    return make


def row(mode, **inputs):
    mask = np.zeros((50, 100), bool)
    mask[10:30, 20:60] = True
    inputs |= {"image": encode_png(PHOTO.left)} if mode in ("image", "inpaint") else {}
    inputs |= {"mask": encode_png(mask)} if mode == "inpaint" else {}
    return Row(mode, "a red circle", "a cat", 5, 8.0, inputs)


def check(result, size):
    assert isinstance(result, StereoPair), result
    assert result.left.shape == result.right.shape == (*size, 3)
    assert result.disparity.shape == result.mask_hole_right.shape == size
    assert 0 < np.abs(result.disparity).max() <= 0.08 * size[1] + 1e-4
    assert (result.left != result.right).any()
    assert result.model_scores.depth.plain.shape == size  # for quality control


@pytest.mark.parametrize("preset", ["official", "best"])
@pytest.mark.parametrize(("family", "mode"), MODES)
def test_plain_checkpoints_make_pairs_of_prompts_and_photos(pipeline_of, family, mode, preset):
    [result] = pipeline_of(family, mode, preset=preset).generate([row(mode)])
    check(result, (HEIGHT, WIDTH) if mode == "text" else (50, 100))
    assert (result.left_psnr == 100) == (mode != "text" and preset == "best")


@pytest.mark.parametrize("preset", ["official", "best"])
@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("source", ["depth", "image"])
def test_depth_conditioned_checkpoints_make_pairs_of_depth_maps(pipeline_of, preset, two_pass, source):
    inputs = {"depth": encode_disparity(PHOTO.disparity)} if source == "depth" else {"image": encode_png(PHOTO.left)}
    method = {"preset": preset, "two_pass": two_pass}
    [result] = pipeline_of("sd2_depth", "depth", **method).generate([row("depth", **inputs)])
    check(result, (HEIGHT, WIDTH))
