"""The calls of a notebook: one input, one result that shows itself."""

import ast
import base64
import inspect
import io
import re
import subprocess
import sys
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

import stereo_jobs
from stereo_jobs.data.manifest import draw_scale
from stereo_jobs.errors import ModelError, SpecError
from stereo_jobs.models import resolve
from stereo_jobs.notebook import InputRefusedError, StereoImage, StereoPipeline, progress
from stereo_jobs.pipeline.threads import sensible_threads
from stereo_jobs.records import Camera, Row, StereoPair
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from stereo_jobs.views import anaglyph, coloured, side_by_side
from tests.conftest import REPOSITORY
from tests.models.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = {"steps": 4, "shift_step": 1, "attention": "off"}
RECIPE = {"method": METHOD, "size": {"width": 64, "height": 64}, "quality": {"enabled": False}}
SCENE = render(draw_scene(3), 70, 50)
PHOTO = SCENE.left


@pytest.fixture(scope="module")
def pipeline():
    return StereoPipeline.from_pretrained(device="cpu", **RECIPE)


@pytest.fixture(scope="module")
def metric():
    return StereoPipeline.from_pretrained(
        device="cpu", **(RECIPE | {"method": METHOD | {"geometry": "metric", "refine_edges": False}})
    )


@pytest.fixture(scope="module")
def made(pipeline):
    return pipeline("a red circle on the left", seed=3, scale_percent=16)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


# --- Importing ---


@pytest.mark.parametrize(
    "module", ["stereo_jobs", "stereo_jobs.spec", "stereo_jobs.pipeline.batching", "stereo_jobs.data.maps"]
)
def test_importing_the_package_imports_no_torch(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'ray', 'diffusers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_offers_the_pipeline_and_nothing_else():
    assert stereo_jobs.StereoPipeline is StereoPipeline
    with pytest.raises(AttributeError, match="module 'stereo_jobs' has no attribute 'StereoPipelines'"):
        stereo_jobs.StereoPipelines  # noqa: B018


# --- Calls ---


def test_a_prompt_becomes_a_pair(pipeline, made):
    assert made.left.size == made.right.size == (64, 64)
    assert made.left.mode == made.right.mode == "RGB"
    assert made.disparity.shape == made.mask_nonocc_left.shape == made.mask_hole_right.shape == (64, 64)
    assert made.disparity.max() <= 0.16 * 64 + 1e-5
    again = pipeline("a red circle on the left", seed=3, scale_percent=16)
    assert again._repr_png_() == made._repr_png_()
    others = [
        pipeline("a red circle on the left", seed=4, scale_percent=16),
        pipeline("a blue box", seed=3, scale_percent=16),
        pipeline("a red circle on the left", seed=np.int64(3), scale_percent=16, negative_prompt="a red circle"),
    ]
    assert len({other.left.tobytes() for other in [made, *others]}) == 4
    nearer = pipeline("a red circle on the left", seed=3, scale_percent=-8)
    assert nearer.left.tobytes() == made.left.tobytes()
    assert nearer.disparity.min() < 0 <= -nearer.disparity.max()


def test_what_a_call_leaves_out_is_the_recipes(pipeline):
    own = {"negative_prompt": "a blue box", "scale_percent": 20.0}
    other = StereoPipeline.from_pretrained(device="cpu", **(RECIPE | own))
    left_out, said = other("a red circle"), pipeline("a red circle", **own)
    assert left_out._repr_png_() == said._repr_png_() != pipeline("a red circle")._repr_png_()
    photo = other.from_image(PHOTO)
    np.testing.assert_array_equal(photo.disparity, pipeline.from_image(PHOTO, scale_percent=20).disparity)
    assert other("a red circle", negative_prompt="", scale_percent=8.0)._repr_png_() == (
        pipeline("a red circle")._repr_png_()
    )


def test_a_range_of_scales_is_drawn_from_by_the_seed_as_in_a_job(pipeline):
    scales = {"min": 4.0, "max": 10.0}
    recipe = RECIPE | {"scale_percent": scales, "method": METHOD | {"refine_edges": False}}  # nearest as it is
    other = StereoPipeline.from_pretrained(device="cpu", **recipe)
    found = [other("a red circle", seed=seed).disparity.max() / 0.64 for seed in (1, 2)]
    np.testing.assert_allclose(found, [draw_scale(other.recipe, seed) for seed in (1, 2)], rtol=1e-5)
    assert found[0] != found[1]


def test_a_call_is_what_a_job_makes_of_the_row(pipeline, made):
    row = Row("any", "a red circle on the left", "", 3, 16.0)
    pair = pipeline.generate([row])[0]
    np.testing.assert_array_equal(pair.left, np.asarray(made.left))
    np.testing.assert_array_equal(pair.right, np.asarray(made.right))


def test_the_result_shows_itself(made):
    left, right = np.asarray(made.left), np.asarray(made.right)
    np.testing.assert_array_equal(np.asarray(made.side_by_side()), side_by_side(left, right))
    np.testing.assert_array_equal(np.asarray(made.side_by_side(cross_eyed=True)), side_by_side(right, left))
    np.testing.assert_array_equal(np.asarray(made.anaglyph()), anaglyph(left, right))
    assert made.side_by_side().size == (128, 64)
    assert made.anaglyph().size == (64, 64)
    png = made._repr_png_()
    assert png.startswith(b"\x89PNG")
    np.testing.assert_array_equal(pixels(png), side_by_side(left, right))


def test_reprs_are_one_short_line(pipeline, made):
    expected = "<StereoPipeline demo, depth demo; mode text, 64x64, cpu>"
    assert repr(pipeline) == expected
    found = repr(made)
    assert re.fullmatch(r"<StereoImage 64x64, disparity -?\d+\.\d to \d+\.\d px, \d+ % holes>", found)
    assert len(repr([made, made])) < 160


def test_its_disparity_shows_itself_in_colours(made):
    np.testing.assert_array_equal(np.asarray(made.disparity_image()), coloured(made.disparity))


def test_a_large_pair_is_shown_smaller():
    left = np.zeros((100, 4000, 3), np.uint8)
    ones, disparity = np.ones((100, 4000), bool), np.ones((100, 4000), np.float32)
    pair = StereoPair("x", left, left, disparity, None, "left", ones, ~ones, ~ones, 0)
    assert pixels(StereoImage(pair)._repr_png_()).shape == (40, 3200, 3)
    assert StereoImage(pair).side_by_side().size == (8000, 100)


def test_tab_completion_names_what_there_is_and_computes_nothing(pipeline, made, monkeypatch):
    assert "StereoPipeline" in dir(stereo_jobs)
    for thing, names in ((pipeline, {"from_image", "from_depth", "recipe"}), (made, {"left", "anaglyph", "save"})):
        assert names <= {*dir(thing)}
        for name in dir(thing):
            getattr(thing, name)
    signature = inspect.signature(StereoPipeline.from_pretrained)
    assert {"method", "scale_percent", "size", "negative_prompt"} <= signature.parameters.keys()
    assert "seed" in inspect.signature(pipeline).parameters


def test_a_list_of_prompts_becomes_a_list_of_pairs(pipeline, made):
    several = pipeline(["a red circle on the left", "a blue box"], seed=3, scale_percent=16)
    assert isinstance(several, list)
    assert len(several) == 2
    assert several[0]._repr_png_() == made._repr_png_() != several[1]._repr_png_()
    shown = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', several._repr_html_())
    assert [base64.b64decode(png) for _, png in shown] == [each._repr_png_() for each in several]
    assert pipeline([]) == []


def test_a_pair_is_saved_as_files_and_replaces_none(made, tmp_path):
    files = made.save(tmp_path / "new", "star")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in files.values())
    for name in ("left", "right", "anaglyph", "disparity_image"):
        wanted = getattr(made, name)
        wanted = wanted() if callable(wanted) else wanted
        np.testing.assert_array_equal(np.asarray(Image.open(files[name])), np.asarray(wanted))
    disparity = cv2.imread(str(files["disparity"]), cv2.IMREAD_UNCHANGED)  # another reader than the one that wrote it
    np.testing.assert_array_equal(disparity, made.disparity)
    with pytest.raises(InputRefusedError, match=r"star-left.png: exists; give another folder, or replace=True"):
        made.save(tmp_path / "new", "star")
    made.save(tmp_path / "new", "star", replace=True)
    with pytest.raises(InputRefusedError, match="cannot be written to"):
        made.save(files["left"])


def test_a_bar_counts_the_steps_of_a_call(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, mininterval=0))
    monkeypatch.setattr(pipeline, "progress", True)
    monkeypatch.setattr(pipeline.for_mode("image"), "progress", True)
    # 4 steps of the left view or of the inversion, and 2 after the shift.
    calls = {6: lambda: pipeline("a red circle"), 12: lambda: pipeline(["a red circle", "a blue circle"])}
    for steps, call in [*calls.items(), (6, lambda: pipeline.from_image(PHOTO))]:
        call()
        said = capsys.readouterr().err
        assert said.count("denoising:   0%") == 1
        assert f"{steps}/{steps}" in said
    monkeypatch.setattr(pipeline, "progress", False)
    pipeline("a red circle")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("threads", [None, 2])
def test_small_models_compute_on_one_thread_and_leave_the_users_number(threads, monkeypatch, pipeline):
    seen = []
    monkeypatch.setattr(pipeline.generator, "generate", lambda rows: seen.append(torch.get_num_threads()) or [])
    monkeypatch.setattr(pipeline, "threads", threads)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pipeline.generate([])
        assert (seen, torch.get_num_threads()) == ([threads or 1], 3)
    finally:
        torch.set_num_threads(before)


def test_large_models_compute_on_torchs_own_number_of_threads(pipeline, monkeypatch):
    assert sensible_threads(pipeline.generator) == 1
    monkeypatch.setattr("stereo_jobs.pipeline.threads._SMALL", 0)
    assert sensible_threads(pipeline.generator) == torch.get_num_threads()


def test_files_are_taken_by_their_paths(pipeline, metric, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned photo.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO))).save(turned, exif=exif.tobytes())
    for path in (turned, str(turned)):
        np.testing.assert_array_equal(np.asarray(pipeline.from_image(path).left), PHOTO)
    mask = np.zeros((50, 70), bool)
    mask[15:40, 20:50] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "disparity.npy", SCENE.disparity)
    filled = pipeline.from_image(PHOTO, "a red ball", mask=tmp_path / "mask.png")
    assert filled._repr_png_() == pipeline.from_image(PHOTO, "a red ball", mask=mask)._repr_png_()
    known = metric.from_image(PHOTO, disparity=tmp_path / "disparity.npy")
    np.testing.assert_array_equal(known.disparity, SCENE.disparity)


def test_a_photo_becomes_a_pair_of_its_own_size(pipeline):
    result = pipeline.from_image(PHOTO)
    assert result.left.size == result.right.size == (70, 50)
    np.testing.assert_array_equal(np.asarray(result.left), PHOTO)
    assert result.pair.left_psnr == 100
    assert result.disparity.shape == (50, 70)


def test_a_photo_takes_all_that_a_row_does(pipeline, metric):
    """Depth of either kind with its camera, a negative prompt; and the result shows all of its masks."""
    depth = np.tile(np.linspace(4, 9, 70, dtype=np.float32), (50, 1))
    away = pipeline.from_image(PHOTO, depth=depth, depth_kind="metric")
    near = pipeline.from_image(PHOTO, depth=1 / depth)
    np.testing.assert_allclose(away.disparity, near.disparity, atol=1e-4)
    assert away.disparity[:, 0].min() > away.disparity[:, -1].max()
    known = metric.from_image(PHOTO, depth=depth, depth_kind="metric", camera=Camera(80.0, 0.5, 1.0))
    np.testing.assert_allclose(known.disparity, 80 * 0.5 / depth - 1, rtol=1e-5)
    np.testing.assert_array_equal(known.mask_border_right, known.pair.mask_border_right)
    assert known.mask_border_right[:, -1].all()
    with pytest.raises(InputRefusedError, match="depth_kind: must be inverse or metric, got 'far'"):
        pipeline.from_image(PHOTO, depth=depth, depth_kind="far")
    mask = np.zeros((50, 70), bool)
    mask[15:40, 20:50] = True
    negatives = (pipeline.from_image(PHOTO, "a ball", mask=mask, negative_prompt=word) for word in ("", "a red box"))
    assert len({result.left.tobytes() for result in negatives}) == 2


def test_another_mode_keeps_the_pinned_revision(tmp_path, monkeypatch):
    """On the Hub the branch may have moved since; what is recorded must be what is loaded."""
    folder = write_checkpoint(tmp_path, "sd1")
    pipeline = StereoPipeline.from_pretrained(str(folder), depth="demo", device="cpu", **RECIPE)
    asked, find = [], resolve.find
    monkeypatch.setattr(resolve, "find", lambda spec, *rest: (asked.append(spec.revision), find(spec, *rest))[1])
    other = pipeline.for_mode("image")
    assert asked == [
        model.revision for model in (pipeline.recipe.models.stable_diffusion, pipeline.recipe.models.depth)
    ]
    assert other.recipe.models == pipeline.recipe.models
    assert other.generator.sd is pipeline.generator.sd


def test_models_of_another_mode_are_loaded_once(pipeline):
    assert pipeline.for_mode("text") is pipeline
    assert pipeline.for_mode("image") is pipeline.for_mode("image")
    assert pipeline.for_mode("image").recipe.mode == "image"
    assert pipeline.for_mode("image").recipe.method == pipeline.recipe.method


def test_pictures_of_any_mode_are_taken_as_they_look(pipeline):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO))).save(buffer, "PNG", exif=exif.tobytes())
    palette = Image.fromarray(PHOTO).quantize(32)
    alpha = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    grey = PHOTO[..., 1]
    given = {
        "turned": (Image.open(io.BytesIO(buffer.getvalue())), PHOTO),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "alpha": (alpha, PHOTO),
        "grey": (grey, np.dstack([grey] * 3)),
        "CMYK": (Image.fromarray(PHOTO).convert("CMYK"), PHOTO),
        "16 bit": (Image.fromarray(grey.astype(np.uint16) * 257), np.dstack([grey] * 3)),
    }
    for name, (image, expected) in given.items():
        np.testing.assert_array_equal(np.asarray(pipeline.from_image(image).left), expected, name)


def test_a_mask_is_filled_first(pipeline):
    mask = np.zeros((50, 70), bool)
    mask[15:40, 20:50] = True
    result = pipeline.from_image(PHOTO, "a red ball", mask=mask)
    left = np.asarray(result.left)
    np.testing.assert_array_equal(left[~mask], PHOTO[~mask])
    assert (left[mask] != PHOTO[mask]).any()
    drawn = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    assert pipeline.from_image(Image.fromarray(PHOTO), "a red ball", mask=drawn)._repr_png_() == result._repr_png_()


def test_a_known_disparity_is_the_label(metric):
    result = metric.from_image(PHOTO, disparity=SCENE.disparity)
    np.testing.assert_array_equal(result.disparity, SCENE.disparity)
    assert metric.from_image(PHOTO, disparity=SCENE.disparity.tolist())._repr_png_() == result._repr_png_()


def test_a_depth_map_becomes_a_pair(tmp_path):
    folder = write_checkpoint(tmp_path / "sd2_depth", "sd2_depth")
    pipeline = StereoPipeline.from_pretrained(str(folder), depth="demo", mode="depth", device="cpu", **RECIPE)
    ramp = np.tile(np.linspace(1, 5, 70, dtype=np.float32), (50, 1))
    inverse = pipeline.from_depth(ramp, "a red ball")
    assert inverse.left.size == (64, 64)
    assert inverse.disparity[:, -1].min() > inverse.disparity[:, 0].max()
    away = pipeline.from_depth(ramp, "a red ball", depth_kind="metric", camera=Camera(50.0, 0.1))
    assert away.disparity[:, -1].max() < away.disparity[:, 0].min()
    with pytest.raises(ModelError, match="its U-Net takes 5 channels"):
        pipeline("a red ball")


# --- Errors ---


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": PHOTO / 255}, r"image: must be a PIL image or H,W,3 uint8 in \[0, 255\]; got shape .* of float64"),
        ({"image": PHOTO[None]}, r"image: must be a PIL image or H,W,3 uint8.*got shape \(1, 50, 70, 3\) of uint8"),
        ({"image": PHOTO[..., :2]}, "image: must be a PIL image"),
        ({"image": PHOTO[:0]}, "image: must be a PIL image"),
        ({"image": PHOTO[:9]}, "image: 70x9 pixels; it needs at least 16 each way"),
        ({"disparity": SCENE.disparity.T}, "disparity: 50x70 pixels, but the image has 70x50"),
        ({"disparity": PHOTO}, r"disparity: must be H,W numbers; got shape \(50, 70, 3\) of uint8"),
        ({"disparity": SCENE.disparity * np.nan}, "disparity: no pixel has a finite value"),
        ({"disparity": [["a", "b"]]}, r"disparity: must be H,W numbers; got shape \(1, 2\) of <U1"),
        ({"mask": np.zeros((50, 70))}, "mask: none of it is set"),
        ({"mask": np.eye(9)}, "mask: 9x9 pixels, but the image has 70x50"),
        ({"mask": PHOTO > 9}, "mask: must be H,W numbers; got shape"),
        ({"scale_percent": 0.08}, "scale_percent: must be a percentage of the image width.*write 8, got 0.08"),
        ({"scale_percent": float("nan")}, "scale_percent: must be a percentage"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(pipeline, given, words):
    with pytest.raises(InputRefusedError, match=f"^{words}") as caught:
        pipeline.from_image(**({"image": PHOTO} | given))
    assert caught.value.exit_code == 2


def test_every_call_checks_its_scale(pipeline):
    with pytest.raises(InputRefusedError, match="scale_percent: must be a percentage"):
        pipeline("a red ball", scale_percent=0)


def test_metric_geometry_is_for_photos_and_depth_maps(metric):
    assert metric.recipe.mode == "image"
    with pytest.raises(SpecError, match=r"method.geometry metric needs known disparities, and mode text has none"):
        metric("a red circle")
    with pytest.raises(SpecError, match=r"method.geometry metric needs known disparities, and mode text has none"):
        StereoPipeline.from_pretrained(mode="text", device="cpu", method={"geometry": "metric"})


def test_metric_geometry_wants_a_measure(metric):
    with pytest.raises(InputRefusedError, match="disparity: geometry metric needs a disparity in pixels"):
        metric.from_image(PHOTO)
    with pytest.raises(InputRefusedError, match="is more than half of the width 70; it must be in pixels of this"):
        metric.from_image(PHOTO, disparity=SCENE.disparity + 40)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": "nowhere.jpg"}, "image: nowhere.jpg: no such file; check the path"),
        ({"image": "/tmp"}, "image: /tmp: is a folder; give the path of one file"),
        ({"image": "https://x.org/a.jpg"}, "image: https://x.org/a.jpg is not a local file; download it first"),
        ({"image": "/dev/zero"}, "image: /dev/zero: no such file"),
        ({"image": None}, "image: must be a PIL image .*the path of a file will do, too"),
        ({"image": PHOTO / 255}, r"image: must be .*from floats in \[0, 1\]: \(255 \* image\)"),
        ({"depth": "nowhere.npy"}, "depth: nowhere.npy: no such file"),
        ({"prompt": None}, "prompt: must be a text, got NoneType"),
        ({"negative_prompt": 3}, "negative_prompt: must be a text, got int"),
        ({"seed": 1.5}, "seed: must be a whole number, got 1.5"),
        ({"seed": "one"}, "seed: must be a whole number, got 'one'"),
        ({"scale_percent": "wide"}, "scale_percent: .*got 'wide'"),
        ({"steps": 5}, r'steps: is fixed when the pipeline is made: from_pretrained\(method=\{"steps": ...\}\)'),
        ({"num_inference_steps": 5}, r'num_inference_steps: is fixed .*method=\{"steps": ...\}'),
        ({"strength": 0.5}, "strength: there is none: a photo becomes the left view as it is"),
        ({"generator": None}, "generator: no such argument; write seed=0"),
        ({"scale_procent": 8}, r"scale_procent: no such argument; did you mean scale_percent\?"),
        ({"depth_map": PHOTO}, "depth_map: no such argument; write depth=..."),
        ({"size": {}}, r"size: is fixed when the pipeline is made: from_pretrained\(size=...\)"),
        ({"xyzzy": 1}, "xyzzy: no such argument; there are: image, prompt, negative_prompt, disparity"),
    ],
)
def test_slips_of_a_call_are_answered_in_its_terms(pipeline, given, words):
    with pytest.raises(InputRefusedError, match=f"^{words}") as caught:
        pipeline.from_image(**({"image": PHOTO} | given))
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 5}, r'steps: no such argument; write method=\{"steps": ...\}'),
        ({"num_inference_steps": 5}, r'num_inference_steps: no such argument; write method=\{"steps": ...\}'),
        ({"guidance_scale": 5}, r'guidance_scale: no such argument; write method=\{"guidance_scale": ...\}'),
        ({"torch_dtype": torch.float16}, 'torch_dtype: no such argument; write dtype="float16"'),
        ({"device_map": "auto"}, 'device_map: no such argument; write device="cuda"'),
        ({"strength": 0.5}, "strength: there is none"),
        ({"seed": 1}, r"seed: belongs to each call: pipeline\(prompt, seed=1\)"),
        ({"preset": "best"}, r'preset: no such argument; write method=\{"preset": ...\}'),
        ({"negativ_prompt": ""}, r"negativ_prompt: no such argument; did you mean negative_prompt\?"),
        ({"xyzzy": 1}, "xyzzy: no such argument; there are: stable_diffusion, depth"),
        ({"device": "cuda:1"}, "device: must be auto, cuda or cpu, got 'cuda:1'"),
        ({"models": {"depth": {"path": "a/b"}}, "depth": "c/d"}, "models: names depth, which another argument names"),
    ],
)
def test_slips_of_loading_are_answered_in_its_terms(given, words):
    with pytest.raises(SpecError, match=f"^{words}"):
        StereoPipeline.from_pretrained(**given)


def test_every_switch_of_the_method_is_a_slip_with_an_answer():
    for name in MethodConfig.model_fields:
        with pytest.raises(SpecError, match=rf'^{name}: no such argument; write method=\{{"{name}": ...\}}$'):
            StereoPipeline.from_pretrained(**{name: 1})


def test_unknown_fields_below_an_argument_are_answered_with_those_of_their_place():
    with pytest.raises(SpecError, match=r"method.step: unknown field; did you mean steps\?"):
        StereoPipeline.from_pretrained(method={"step": 5})
    with pytest.raises(SpecError, match=r"models.clipp: unknown field; did you mean clip\?"):
        StereoPipeline.from_pretrained(models={"clipp": {}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(SpecError, match="device: there is no GPU that torch can use here; write device='cpu'"):
        StereoPipeline.from_pretrained(device="cuda")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """As a notebook runs it: line by line, and what stands alone is shown."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(draw_scene(3), 128, 128).left).save("photo.jpg")
    np.save("depth.npy", np.tile(np.linspace(1, 5, 128, dtype=np.float32), (128, 1)))
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    [block] = [each for each in blocks if "StereoPipeline" in each]
    names, shown = {}, []
    for statement in ast.parse(block).body:
        code = ast.unparse(statement)
        if isinstance(statement, ast.Expr):
            shown.append(eval(code, names))
        else:
            exec(code, names)
    images = [each for each in shown if hasattr(each, "_repr_png_") or hasattr(each, "_repr_html_")]
    assert len(images) >= 4


def test_wrong_recipes_and_models_are_told():
    with pytest.raises(SpecError, match="steps"):
        StereoPipeline.from_pretrained(method={"steps": 0})
    with pytest.raises(ModelError, match="no such folder"):
        StereoPipeline.from_pretrained("/nowhere/at/all")
