"""The same on a GPU: close to the CPU's result in every mode, in half precision too, and through pinned Ray actors."""

import numpy as np
import pytest

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row
from stereo_jobs.run.driver import run
from stereo_jobs.spec import Recipe
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.datasets import rows, verdict
from tests.models.tiny import write_checkpoint

pytestmark = pytest.mark.gpu

SHORT = {"steps": 8, "shift_step": 1, "attention_step": 1, "recopy_interval": 3}
PROMPT = "a red circle on the left, green floor, grey wall"
SCENES = [render(draw_scene(seed, "test", "structured")) for seed in (5, 6)]
MASK = np.zeros(SCENES[0].left.shape[:2], bool)
MASK[30:70, 40:90] = True
PUBLISHED = {"preset": "official", **SHORT}


def texts():
    return [Row(f"r{i}", PROMPT, "", i, 8.0) for i in range(2)]


def photos(prompt="", **inputs):
    """Two photos with their true disparities; `inputs` are further ones, the same for both."""
    return [
        Row(f"r{i}", prompt, "", i, 8.0, {"image": encode_png(scene.left)} | inputs | known(scene))
        for i, scene in enumerate(SCENES)
    ]


def known(scene):
    return {"disparity": encode_disparity(scene.disparity)}


def depths():
    return [Row(f"r{i}", PROMPT, "", i, 8.0, {"depth": encode_disparity(s.disparity)}) for i, s in enumerate(SCENES)]


def pairs(device, dtype, given, mode="text", method=SHORT, **models):
    models |= {"depth": {"path": "demo", "dtype": dtype}}
    models["stable_diffusion"] = {"path": "demo"} | models.get("stable_diffusion", {}) | {"dtype": dtype}
    recipe = Recipe.model_validate({"mode": mode, "method": method, "models": models})
    return PairGenerator.load(resolve_recipe(recipe), device, 2).generate(given)


def both(dtype, *given, **recipe):
    """Pairs of the GPU in a precision, beside those of the CPU in full precision."""
    return zip(pairs("cuda", dtype, *given, **recipe), pairs("cpu", "float32", *given, **recipe), strict=True)


def far(one, other):
    """Mean difference of two images, levels of 255."""
    return np.abs(one.astype(int) - other.astype(int)).mean()


@pytest.mark.parametrize(("dtype", "levels"), [("float32", 3), ("float16", 12), ("bfloat16", 40)])
def test_the_gpu_draws_what_the_cpu_draws(dtype, levels):
    for there, here in both(dtype, texts()):
        assert far(there.left, here.left) < levels / 4
        assert there.unet_evaluations == here.unet_evaluations


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("mode", "given", "method"),
    [
        ("image", photos(), SHORT),
        ("image", photos(PROMPT), SHORT | {"inversion": "ddim", "photo_guidance_scale": 3.0}),
        ("image", photos(), SHORT | {"geometry": "metric"}),
        ("image", photos(), PUBLISHED | {"inversion": "direct", "geometry": "metric"}),
        ("image", photos(), SHORT | {"attention": "bi", "composite": False, "warp": "subpixel"}),
        ("image", photos(), SHORT | {"right_view": "stretch"}),
        ("image", photos(), SHORT | {"right_view": "repaint", "geometry": "metric"}),
        ("inpaint", photos(PROMPT, mask=encode_png(MASK)), SHORT),
        ("depth", depths(), SHORT),
        ("depth", depths(), SHORT | {"two_pass": True}),
        ("depth", depths(), PUBLISHED | {"inversion": "ddim"}),
    ],
)
def test_every_mode_gives_what_the_cpu_gives(dtype, mode, given, method):
    """Holes are drawn, and half precision draws them a little differently; labels of known disparities are the same."""
    for there, here in both(dtype, given, mode=mode, method=method):
        assert there.unet_evaluations == here.unet_evaluations
        assert there.disparity_of == here.disparity_of
        assert far(there.left, here.left) < 6
        assert far(there.right, here.right) < 8
        np.testing.assert_allclose(there.disparity, here.disparity, atol=1e-3)
        for mask in ("mask_nonocc_left", "mask_hole_right", "mask_border_right"):
            assert (getattr(there, mask) != getattr(here, mask)).mean() < 0.01, mask
        assert (there.raw_right is None) == (here.raw_right is None)
        if there.raw_right is not None and here.disparity_of == "left":
            seen = ~(there.mask_hole_right | here.mask_hole_right)
            assert far(there.right[seen], here.right[seen]) < 3  # the left's own pixels, moved


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_null_text_inversion_leads_as_close_to_the_photo(dtype):
    method = PUBLISHED | {"geometry": "metric", "null_text_iterations": 5}
    for there, here in both(dtype, photos(), mode="image", method=method):
        assert there.left_psnr > here.left_psnr - 3
        assert far(there.left, here.left) < 8


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_safety_checker_runs(dtype, tmp_path):
    folder = write_checkpoint(tmp_path, "sd1", safety_checker=True)
    models = {"stable_diffusion": {"path": str(folder)}, "safety_checker": True}
    for there, here in both(dtype, texts(), **models):
        assert there.model_scores.unsafe in (True, False)
        assert here.model_scores.unsafe in (True, False)


def test_quality_control_sees_the_same_depth():
    for there, here in both("float32", photos(), mode="image"):
        np.testing.assert_allclose(there.depth, here.depth, atol=0.02 * np.ptp(here.depth))
        np.testing.assert_allclose(there.mirrored_depth, here.mirrored_depth, atol=0.02 * np.ptp(here.depth))


def test_compiled_networks_draw_the_same():
    recipe = resolve_recipe(
        Recipe.model_validate({"mode": "text", "method": SHORT, "models": {"depth": {"path": "demo"}}})
    )
    plain, compiled = (PairGenerator.load(recipe, "cuda", 2) for _ in range(2))
    compiled.compile()
    for one, other in zip(compiled.generate(texts()), plain.generate(texts()), strict=True):
        assert far(one.left, other.left) < 1
        assert far(one.right, other.right) < 3
    again = [pair.right for pair in compiled.generate(texts())]
    assert all(map(np.array_equal, again, [pair.right for pair in compiled.generate(texts())]))


def test_an_automatic_batch_size_uses_the_gpu(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=20), recipe={"method": SHORT}, batch_size="auto", shard_rows=20, device="cuda")
    run(spec, local=True)
    assert verdict(spec).ok


def test_the_whole_job_on_gpu_actors(make_spec, make_manifest, tmp_path):
    manifest = make_manifest(rows=4)
    ray = make_spec(manifest, str(tmp_path / "ray"), {"method": SHORT}, actors=None, device="auto")
    local = make_spec(manifest, str(tmp_path / "local"), {"method": SHORT}, device="cuda")
    run(ray)
    run(local, local=True)
    assert verdict(ray).ok
    assert rows(ray) == rows(local)
