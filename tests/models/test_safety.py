"""The safety checker flags what its own pipeline would blacken, loads the published files, and changes nothing."""

import dataclasses
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.models.safety import SafetyChecker
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row
from stereo_jobs.run.driver import run
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.config import MethodConfig
from tests.datasets import assert_same, rows
from tests.models.pictures import pictures, pixel_values
from tests.models.tiny import configs, network, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "sd1", "sd1", safety_checker=True)


def teach(checker, images):
    """Make the first concept flag half of the images clearly; random weights know no concepts."""
    model = checker.network
    with torch.no_grad():
        pooled = model.vision_model(pixel_values(images))[1]
        mean = pooled.mean(0)
        # With random weights the embeddings of all images are nearly equal: subtract their mean.
        model.visual_projection.weight -= torch.outer(model.visual_projection.weight @ mean, mean) / mean.dot(mean)
        embeddings = torch.nn.functional.normalize(model.visual_projection(pooled))
        cosines = embeddings @ embeddings[0]
        middle = cosines.sort().values[len(images) // 2 - 1 : len(images) // 2 + 1]
        assert middle.diff() > 0.05
        model.concept_embeds_weights.fill_(2.0)  # cosines end at 1
        model.special_care_embeds_weights.fill_(2.0)
        model.concept_embeds[0] = embeddings[0]
        model.concept_embeds_weights[0] = middle.mean()
    return (cosines > middle.mean()).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_tells_which_images_come_near_a_concept(checkpoint, dtype):
    images = pictures()
    checker = SafetyChecker.load(checkpoint, torch.float32, "cpu")
    expected = teach(checker, images)
    assert sum(expected) == 3
    before = images.copy()
    assert checker.flags(images) == expected
    assert (images == before).all()
    assert checker.flags(images[::-1]) == expected[::-1]
    assert checker.flags(images[:1]) == expected[:1]
    checker.network.to(dtype)
    assert checker.flags(images) == expected


def test_images_are_prepared_as_clip_wants_them(checkpoint):
    checker = SafetyChecker.load(checkpoint, torch.float32, "cpu")
    images = pictures(2)
    prepared = checker.processor(images=list(images), return_tensors="pt")["pixel_values"]
    assert prepared.shape == (2, 3, 224, 224)
    torch.testing.assert_close(prepared, pixel_values(images), rtol=0, atol=1e-3)


def test_no_warning_of_black_images(checkpoint, caplog):
    images = pictures()
    checker = SafetyChecker.load(checkpoint, torch.float32, "cpu")
    assert any(teach(checker, images))
    checker.flags(images)
    assert "black image" not in caplog.text


def test_the_published_names_of_the_weights_are_those_of_today(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path, "sd1", safety_checker=True, resaved=True)
    checkers = [SafetyChecker.load(folder, torch.float32, "cpu") for folder in (checkpoint, other)]
    for one, two in zip(*(checker.network.parameters() for checker in checkers), strict=True):
        assert torch.equal(one, two)


def test_the_published_config_is_the_published_network():
    config = configs("sd1", full=True, safety_checker=True)["safety_checker/config.json"]
    with torch.device("meta"):
        made = network("safety_checker", config)
    assert isinstance(made, StableDiffusionSafetyChecker)
    assert sum(weights.numel() for weights in made.parameters()) == 303_981_588


@pytest.mark.parametrize("part", ["safety_checker", "feature_extractor"])
def test_a_checkpoint_without_one_is_refused_with_the_way_out(checkpoint, tmp_path, part):
    folder = shutil.copytree(checkpoint, tmp_path / "sd")
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=f"no {part}/.*recipe.models.safety_checker asks for; set that to false, or"):
        SafetyChecker.load(folder, torch.float32, "cpu")
    with pytest.raises(ModelError, match=r"recipe.models.safety_checker asks for; set that to false, or .*v1-5"):
        resolve_recipe(wanting(folder))


def test_broken_files_are_a_model_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "sd")
    (folder / "feature_extractor/preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="feature_extractor: cannot be loaded"):
        SafetyChecker.load(folder, torch.float32, "cpu")
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps({}))
    (folder / "safety_checker/model.safetensors").write_bytes(b"weights")
    with pytest.raises(ModelError, match="safety_checker: cannot be loaded"):
        SafetyChecker.load(folder, torch.float32, "cpu")


# --- In a recipe ---


def wanting(folder, wanted=True):
    models = {"stable_diffusion": {"path": str(folder)}, "depth": {"path": "demo"}, "safety_checker": wanted}
    return Recipe(models=models)


def test_its_files_are_pinned_only_when_it_is_wanted(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "sd")
    before = [resolve_recipe(wanting(folder, wanted)).models.stable_diffusion.revision for wanted in (False, True)]
    assert before[0] != before[1]
    (folder / "safety_checker/config.json").write_text((folder / "safety_checker/config.json").read_text() + " ")
    after = [resolve_recipe(wanting(folder, wanted)).models.stable_diffusion.revision for wanted in (False, True)]
    assert after[0] == before[0]
    assert after[1] != before[1]
    (folder / "safety_checker/model.safetensors").rename(folder / "safety_checker/pytorch_model.bin")
    resolve_recipe(wanting(folder, False))
    with pytest.raises(ModelError, match=r"weights in safety_checker, only pickles"):
        resolve_recipe(wanting(folder))


SHORT = {"steps": 3, "shift_step": 1, "attention": "off"}


def test_unsafe_is_what_either_view_is(checkpoint):
    """Nothing else in a pair depends on the safety checker."""
    recipe = resolve_recipe(wanting(checkpoint).model_copy(update={"method": MethodConfig(**SHORT)}))
    loaded, row = PairGenerator.load(recipe, "cpu", 1), Row("a", "a red circle", "", 1, 8.0)
    [plain] = PairGenerator(loaded.sd, loaded.depth, recipe, 1).generate([row])
    assert plain.model_scores.unsafe is None
    for verdicts in ([False, False], [True, False], [False, True]):
        loaded.safety = Mock(flags=Mock(return_value=verdicts))
        [pair] = loaded.generate([row])
        assert_same(
            pair, dataclasses.replace(plain, model_scores=dataclasses.replace(plain.model_scores, unsafe=any(verdicts)))
        )
        [views] = loaded.safety.flags.call_args.args
        np.testing.assert_array_equal(views, [plain.left, plain.right])


@pytest.mark.parametrize("unsafe", [True, False])
def test_unsafe_is_a_column_of_the_shards(checkpoint, make_spec, tmp_path, unsafe):
    """Uses the real checker, with thresholds that either every image passes or none."""
    folder = shutil.copytree(checkpoint, tmp_path / "sd")
    path = folder / "safety_checker/model.safetensors"
    weights = load_file(path)
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        weights[name] = torch.full_like(weights[name], -2.0 if unsafe else 2.0)
    save_file(weights, path, {"format": "pt"})
    models = wanting(folder).models.model_dump(mode="json")
    size = {"width": 64, "height": 64}
    spec = make_spec(recipe={"models": models, "method": SHORT, "size": size}, shard_rows=8)
    assert run(spec, local=True).succeeded == 8
    assert {row["unsafe"] for row in rows(spec).values()} == {unsafe}


def test_fetch_gives_the_folder_to_load_it_from(checkpoint):
    recipe = resolve_recipe(wanting(checkpoint))
    folder = fetch(recipe.models.stable_diffusion, recipe.mode, safety_checker=True)
    assert SafetyChecker.load(folder, torch.float32, "cpu").flags(pictures(1)) in ([True], [False])
