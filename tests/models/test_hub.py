"""Models from the Hub: the real client against a server on loopback, in a process with its own cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stereo_jobs.models.clip import ClipScorer
from stereo_jobs.models.stable_diffusion import StableDiffusion
from tests.models.hub import COMMIT, serve
from tests.models.tiny import write_checkpoint, write_clip
from tests.waiting import PATIENCE_S

PROGRAM = """
import json, sys
from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import fetch
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.spec import Recipe
try:
    recipe = resolve_recipe(Recipe.model_validate_json(sys.argv[1]))
    assert "torch" not in sys.modules
    model = recipe.models.clip or recipe.models.stable_diffusion
    folder = fetch(model, recipe.mode, recipe.models.safety_checker)
    print(model.revision, folder)
except ModelError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository as published: variants, pickles, a single file and notes beside the files that are needed."""
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "name", "sd1", safety_checker=True)
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = (folder / f"{name}.safetensors").read_bytes()
        for kind in ("fp16.safetensors", "non_ema.safetensors", "bin"):
            (folder / f"{name}.{kind}").write_bytes(weights)
    (folder / "v1-5-pruned.safetensors").write_bytes(b"everything in one file")
    (folder / "README.md").write_text("a model")
    return folder


@pytest.fixture
def ask(repository, tmp_path):
    """Resolve and fetch a model on the Hub in a new process; returns its output and the files it downloaded."""

    def run(sd, listing=True, served=repository, **models):
        with serve(served, listing) as (endpoint, downloaded):
            environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
            recipe = json.dumps({"models": {"stable_diffusion": sd, "depth": {"path": "demo"}} | models})
            command = [sys.executable, "-c", PROGRAM, recipe]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), sorted(downloaded)

    return run


@pytest.mark.parametrize(("variant", "suffix"), [(None, ""), ("fp16", ".fp16")])
def test_only_what_is_loaded_is_downloaded(ask, variant, suffix):
    printed, downloaded = ask({"path": "owner/name", "variant": variant})
    revision, _, folder = printed.partition(" ")
    assert revision == COMMIT, printed
    weights = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    assert [name for name in downloaded if name.endswith(".safetensors")] == [
        f"{w}{suffix}.safetensors" for w in weights
    ]
    assert {"tokenizer/merges.txt", "tokenizer/vocab.json", "scheduler/scheduler_config.json"} < {*downloaded}
    assert not [name for name in downloaded if name.endswith((".bin", ".md")) or name.startswith("safety")]
    assert len(downloaded) == len({*downloaded})
    sd = StableDiffusion(Path(folder), torch.float32, "cpu", variant)
    assert sd.encode_prompts(["a red cat"]).shape == (1, 77, 48)


def test_actors_of_one_machine_download_every_file_once(repository, tmp_path):
    """All start at the same moment: one downloads, the others wait for its lock."""
    recipe = json.dumps({"models": {"stable_diffusion": {"path": "owner/name"}, "depth": {"path": "demo"}}})
    with serve(repository) as (endpoint, downloaded):
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM, recipe]
        actors = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        printed = {actor.communicate(timeout=PATIENCE_S)[0].strip() for actor in actors}
    assert len(printed) == 1, printed
    assert printed.pop().startswith(COMMIT)
    weights = [name for name in downloaded if name.endswith(".safetensors")]
    assert len(weights) == len({*weights}) == 3


def test_the_safety_checker_comes_when_it_is_wanted(ask):
    _, downloaded = ask({"path": "owner/name"}, safety_checker=True)
    assert {"safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"} < {*downloaded}


def test_of_a_clip_model_only_what_is_loaded_is_downloaded(ask, tmp_path):
    served = write_clip(tmp_path / "served")
    needed = sorted(path.name for path in served.iterdir())
    for name in ("pytorch_model.bin", "open_clip_model.safetensors", "README.md", "onnx/model.safetensors"):
        (served / name).parent.mkdir(exist_ok=True)
        (served / name).write_text("for others")
    printed, downloaded = ask({}, served=served, clip={"path": "owner/name"})
    revision, _, folder = printed.partition(" ")
    assert revision == COMMIT, printed
    assert downloaded == needed
    assert ClipScorer(Path(folder), torch.float32, "cpu").prompt_tokens == 77


@pytest.mark.parametrize(
    ("sd", "words"),
    [
        ({"path": "owner/nothing"}, "check the name, or set HF_TOKEN if the model is private"),
        ({"path": "owner/gated"}, "its licence must be accepted; accept it on its page on the Hub and set HF_TOKEN"),
        (
            {"path": "owner/name", "revision": "v9"},
            "has no revision v9; give an existing branch, tag or commit, or null",
        ),
        ({"path": "owner/name", "variant": "bf16"}, "no unet weights of variant 'bf16', only unet/"),
    ],
)
def test_what_the_hub_has_not_is_said_with_the_remedy(ask, sd, words):
    printed, _ = ask(sd)
    assert printed.startswith(f"model {sd['path']}: ")
    assert words in printed


def test_a_missing_config_is_named(ask, repository):
    path = repository / "vae/config.json"
    content = path.read_bytes()
    path.unlink()
    try:
        printed, _ = ask({"path": "owner/name"})
    finally:
        path.write_bytes(content)
    assert "vae/config.json is missing or broken" in printed


def test_a_hub_that_fails_halfway_is_not_taken_for_a_model(ask):
    # The client then returns a folder with only the few files that planning has read.
    printed, downloaded = ask({"path": "owner/name"}, listing=False)
    assert "model_index.json" in downloaded
    assert "cannot be downloaded to this machine (its weights are not in the cache); every machine" in printed


def test_a_hub_out_of_reach_is_said(repository, tmp_path):
    with serve(repository) as (endpoint, _):
        pass
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, json.dumps({"models": {"stable_diffusion": {"path": "owner/name"}}})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "the Hub cannot be reached or refuses access (ConnectError); give the path of a local folder" in done.stdout
