"""The same on a GPU: close to the CPU's result, in half precision too, and through pinned Ray actors."""

import numpy as np
import pytest

from stereo_jobs.generate import StereoPipeline
from stereo_jobs.job.driver import run
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from tests.datasets import rows, verdict

pytestmark = pytest.mark.gpu

SHORT = {"method": {"steps": 8, "shift_step": 1, "attention_step": 1, "recopy_interval": 3}}
ROWS = [Row(f"r{i}", "a red circle on the left, green floor, grey wall", "", i, 8.0) for i in range(2)]


def pairs(device: str, dtype: str):
    recipe = Recipe.model_validate(
        SHORT | {"models": {"stable_diffusion": {"dtype": dtype}, "depth": {"dtype": dtype}}}
    )
    return StereoPipeline.load(resolve_recipe(recipe), device, 2).generate(ROWS)


@pytest.mark.parametrize(("dtype", "levels"), [("float32", 3), ("float16", 12), ("bfloat16", 40)])
def test_the_gpu_draws_what_the_cpu_draws(dtype, levels):
    for there, here in zip(pairs("cuda", dtype), pairs("cpu", "float32"), strict=True):
        difference = np.abs(there.left.astype(int) - here.left.astype(int))
        assert difference.mean() < levels / 4
        assert there.unet_evaluations == here.unet_evaluations


def test_the_whole_job_on_gpu_actors(make_spec, make_manifest, tmp_path):
    manifest = make_manifest(rows=4)
    ray = make_spec(manifest, str(tmp_path / "ray"), SHORT, actors=None, device="auto")
    local = make_spec(manifest, str(tmp_path / "local"), SHORT, device="cuda")
    run(ray)
    run(local, local=True)
    assert verdict(ray).ok
    assert rows(ray) == rows(local)
