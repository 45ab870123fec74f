"""The model card's figures: how they are made, and that the weights in the package keep the aims."""

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.toyscapes import decoder, depth, figures, judge
from stereo_jobs.toyscapes.__main__ import app
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def held_out():
    return [render(draw_scene(seed, "test")) for seed in range(8)]


def test_the_embedded_vae_returns_what_it_is_given(held_out, one_thread):
    network = figures.DemoModels(DEMO_FOLDER).stable_diffusion().vae
    found = decoder.score(network, held_out)
    assert found["psnr"] >= 36
    assert found["ringing"] <= 0.015  # with other grain alone: 0.011


def test_the_embedded_depth_estimator_keeps_its_aims(held_out, one_thread):
    found = figures.DemoModels(DEMO_FOLDER).depth().inverse_depth([view.left for view in held_out])
    everywhere, at_edges = depth.errors(np.stack([each.numpy() for each in found]), held_out)
    assert np.mean(everywhere) <= 0.05
    assert np.mean(at_edges) <= 0.12


def test_models_are_those_of_the_work_folder_or_else_the_embedded_ones(tmp_path):
    assert figures.models_of(tmp_path) == DEMO_FOLDER
    (tmp_path / "models").mkdir()
    assert figures.models_of(tmp_path) == tmp_path / "models"


def test_without_a_judge_nothing_is_measured(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--work", str(tmp_path)])
    assert result.exit_code == 2
    assert "no judge in it yet" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [True, False])
def test_the_command_measures_the_models_it_is_given_or_the_embedded_ones(tmp_path, monkeypatch, given):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/checkpoint.pt").touch()
    monkeypatch.setattr(figures, "measure", lambda models, work, scenes: [(str(models.folder), {"scenes": scenes})])
    options = ["--models", str(tmp_path / "others")] if given else []
    result = CliRunner().invoke(app, ["evaluate", "--work", str(tmp_path), "--scenes", "9", *options])
    assert result.exit_code == 0, result.output
    wanted = tmp_path / "others" if given else DEMO_FOLDER
    assert json.loads((tmp_path / "figures.json").read_text()) == {str(wanted): {"scenes": 9}}


class AlwaysOne(judge.Judge):
    """Says that there is one object, whatever it is shown."""

    def forward(self, pixels):
        return {name: torch.eye(head.out_features)[:1].repeat(len(pixels), 1) for name, head in self.heads.items()}


def test_a_judge_that_always_counts_one_object_is_found_out(tmp_path, monkeypatch):
    asked = []

    def renders(lefts, scenes):
        asked.append([len(scene.billboards) for scene in scenes])
        yield from (render(scene).left for scene in scenes)

    trained = types.SimpleNamespace(judge=AlwaysOne())
    monkeypatch.setattr(figures, "averaged", lambda *arguments: (None, trained, 1))
    monkeypatch.setattr(figures, "_from_text", renders)
    monkeypatch.setattr(figures, "_depth_mode_errors", lambda *arguments: [0.0])
    found = dict(figures.measure(figures.DemoModels(DEMO_FOLDER), tmp_path, scenes=9))
    assert asked == [[1] * 9, [2] * 2, [3] * 2]
    for part in ("judge on renders", "text"):
        assert found[part]["count"] == 1
        assert found[f"{part}, two objects"] == found[f"{part}, three objects"] == {"count": 0}
    assert {path.name for path in tmp_path.iterdir()} == {"text.png", "text_two_objects.png", "text_three_objects.png"}


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2), (15, 2), (16, 2)])
def test_a_sheet_takes_any_number_of_pictures(tmp_path, count, rows):
    images = np.full((count, 4, 4, 3), 200, np.uint8)
    figures.save_sheet(images, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * rows, 32, 3)
    assert (sheet > 0).sum() == images.size
