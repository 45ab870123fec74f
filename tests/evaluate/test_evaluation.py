"""`evaluate` from scenes to tables, on few small ToyScapes: figures, resuming, and scenes that cannot be scored."""

import csv
import io
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stereo_jobs.baselines import FILLS
from stereo_jobs.data.images import encode_png
from stereo_jobs.data.manifest import INPUTS
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.datasets import DatasetError, photos, toyscapes
from stereo_jobs.evaluate.evaluation import Options, evaluate
from stereo_jobs.evaluate.experiments import decode
from stereo_jobs.evaluate.model_cache import ModelCache
from stereo_jobs.evaluate.pictures import worst_mean_best
from stereo_jobs.evaluate.protocols import SCALES
from stereo_jobs.evaluate.scenes import write_manifests
from stereo_jobs.evaluate.tables import cost, inpaint
from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.verify import verify
from stereo_jobs.quality.matcher import match
from stereo_jobs.quality.truth import score
from stereo_jobs.report.columns import read_rows, read_scalars
from stereo_jobs.run import driver
from stereo_jobs.spec import Recipe, StorageSpec
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.conftest import REPOSITORY
from tests.evaluate.test_datasets import write_middlebury
from tests.waiting import PATIENCE_S

SIZE = 64
SHORT = {"recipe": {"method": {"steps": 3}}, "runtime": {"batch_size": 2, "lease_ttl_s": 0}}
pytestmark = pytest.mark.usefixtures("one_thread")


KEPT = ModelCache()


def run_here(spec):
    return driver.run(spec, local=True, load=KEPT)


def run(output, run_case=run_here, begin=lambda done, cases, name: None, **options):
    given = {"toyscapes": 3, "size": SIZE, "protocols": ("metric",), "methods": ("leave_blank", "stretch")}
    return evaluate(str(output), SHORT, Options(**given | options), run_case, begin)


def figures(output, table):
    """Means by method and metric, from the CSV."""
    rows = csv.DictReader(io.StringIO((output / f"tables/{table}.csv").read_text()))
    return {(row["method"], row["metric"]): float(row["mean"]) for row in rows}


@pytest.fixture(scope="module")
def output(tmp_path_factory, one_thread):
    """An evaluation of two pixel baselines and one diffusion, on two protocols."""
    folder = tmp_path_factory.mktemp("evaluation")
    run(folder, protocols=("paper", "metric"), methods=("leave_blank", "stretch", "best", "best, estimated disparity"))
    return folder


def test_the_figures_are_those_of_the_pictures(output):
    dataset = toyscapes(3, SIZE)
    for name in ("leave_blank", "stretch"):
        wanted = []
        for scene in dataset.prepared(dataset.ids, SIZE):
            right, _ = FILLS[name](scene.left, scene.disparity, subpixel=False)
            wanted.append(score(right, scene.right, np.zeros(right.shape[:2], bool)))
        found = figures(output, "methods-metric")
        for metric in ("psnr", "ssim", "lpips"):
            assert found[name, metric] == pytest.approx(np.mean([vars(w)[metric] for w in wanted]), rel=1e-6)


def test_every_table_has_its_forms_and_methods(output):
    tables = {path.name for path in (output / "tables").iterdir()}
    for name in ("methods-paper", "methods-metric", "methods-metric-toyscapes-plain"):
        assert {f"{name}.{suffix}" for suffix in ("md", "csv", "tex")} <= tables
    page = (output / "tables/README.md").read_text()
    paper, metric = page.split("### Methods, protocol metric")[0], (output / "tables/methods-metric.md").read_text()
    assert "best, estimated disparity" in paper
    assert "estimated" not in metric  # an estimator knows no pixels
    assert "±" in (output / "tables/methods-metric-toyscapes.md").read_text()


@pytest.mark.slow
def test_cases_are_counted_before_they_begin(tmp_path):
    """Each stands once, also when several tables share it, and the tables without truth count, too."""
    begun = []
    run(
        tmp_path,
        begin=lambda *case: begun.append(case),
        toyscapes=2,
        protocols=("paper", "metric"),
        methods=("leave_blank",),
        tables=("methods", "switches", "cost"),
        sweeps=("refine_edges=false,true",),
        cost_pairs=1,
    )
    assert [(done, cases) for done, cases, _ in begun] == [(i, len(begun)) for i in range(len(begun))]
    names = [name for _, _, name in begun]
    assert names[0] == "toyscapes/paper/leave_blank"
    assert {"toyscapes/metric/leave_blank", "cost/text/leave_blank"} <= {*names}
    assert len(set(names)) == len(names) > 5


def test_pictures_are_drawn(output):
    for protocol in ("paper", "metric"):
        picture = Image.open(output / f"pictures/methods-{protocol}-toyscapes.png")
        assert picture.size[0] > 5 * SIZE
        assert np.asarray(picture).std() > 20


def test_each_case_is_a_whole_job(output):
    for case in ("paper/best", "metric/stretch"):
        storage = open_storage(str(output / "toyscapes" / case))
        assert verify(storage, load_job(storage), StorageSpec()).ok


def test_a_second_call_makes_nothing_again(output):
    before = {path: path.read_bytes() for path in output.glob("toyscapes/metric/*/data/*")}
    scenes = {path: path.stat().st_mtime_ns for path in output.glob("toyscapes/scenes/*/*")}
    page = (output / "tables/methods-metric.md").read_text()
    run(output, methods=("leave_blank", "stretch", "best"))
    assert before == {path: path.read_bytes() for path in output.glob("toyscapes/metric/*/data/*")}
    assert scenes == {path: path.stat().st_mtime_ns for path in output.glob("toyscapes/scenes/*/*")}
    assert (output / "tables/methods-metric.md").read_text() == page


def test_a_killed_evaluation_goes_on_and_ends_with_the_tables_of_a_whole_one(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "tests.evaluate.killed", str(killed)]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=PATIENCE_S, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    first = {path: path.stat().st_mtime_ns for path in killed.glob("toyscapes/*/*/data/*")}
    assert {path.parent.parent.name for path in first} == {"leave_blank"}
    assert not (killed / "tables").exists()
    for folder in (killed, whole):
        run(folder)
    assert {path: path.stat().st_mtime_ns for path in first} == first  # made once
    tables = {path.name: path.read_text() for path in (whole / "tables").glob("methods-metric.*")}
    assert tables == {path.name: path.read_text() for path in (killed / "tables").glob("methods-metric.*")}
    assert len(tables) == 3
    for parts in ("methods-metric-toyscapes", "methods-metric-toyscapes-plain"):
        one, other = (figures(folder, parts) for folder in (killed, whole))
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] for key in one if key[1] != "seconds")


def test_other_scenes_need_another_output(output):
    with pytest.raises(DatasetError, match="begun with other scenes"):
        run(output, toyscapes=4)


def test_switches_come_with_details(tmp_path):
    found = run(tmp_path, toyscapes=2, tables=("switches",), methods=("stretch", "best, no composite"))
    assert not found.problems
    figure = figures(tmp_path, "switches-metric-toyscapes")
    assert figure["stretch", "change"] < 8 < 100 * figure["best, no composite", "change"]
    assert {("stretch", "sharpness"), ("stretch", "bad_1")} <= set(figure)
    assert list((tmp_path / "details/toyscapes/metric").iterdir())


# --- Protocols ---


@pytest.fixture(scope="module")
def end_to_end_output(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("end_to_end")
    run(folder, toyscapes=2, protocols=("end_to_end",), methods=("identity", "stretch", "best, estimated disparity"))
    return folder


def test_end_to_end_takes_the_scale_whose_matched_disparity_is_nearest_to_the_true_pairs(end_to_end_output):
    job = open_storage(str(end_to_end_output / "toyscapes/end_to_end/stretch"))
    rows = read_scalars(job).to_pylist()
    places = [(row["shard"], row["position"]) for row in rows]
    dataset = toyscapes(2, SIZE)
    best = {}
    for scene in dataset.prepared(dataset.ids, SIZE):
        true = match(scene.left, scene.right, 0.2 * SIZE)
        for row, pair in zip(rows, read_rows(job, places, ("left", "right")), strict=True):
            if row["id"].startswith(f"{scene.id}~"):
                left, right = (decode(pair[name]["bytes"]) for name in ("left", "right"))
                np.testing.assert_array_equal(left, scene.left)
                found = match(left, right, 0.2 * SIZE)
                both = true.valid & found.valid
                rmse = np.sqrt(np.mean((true.disparity[both].astype(float) - found.disparity[both]) ** 2))
                best[scene.id] = min(best.get(scene.id, (np.inf, None)), (rmse, row["scale_percent"]))
    found = figures(end_to_end_output, "methods-end_to_end-toyscapes")
    assert {row["scale_percent"] for row in rows} == set(SCALES)
    assert found["stretch", "scale_percent"] == np.mean([scale for _, scale in best.values()])
    chosen_rows = [row for row in rows if row["scale_percent"] == best[row["id"].partition("~")[0]][1]]
    assert found["stretch", "psnr"] == pytest.approx(np.mean([row["true_psnr"] for row in chosen_rows]))
    assert "2 scenes." in (end_to_end_output / "tables/methods-end_to_end.md").read_text()
    assert Image.open(end_to_end_output / "pictures/methods-end_to_end-toyscapes.png").size[0] > 3 * SIZE


def test_end_to_end_gives_no_method_the_true_disparity(end_to_end_output):
    assert {path.name for path in (end_to_end_output / "toyscapes/scenes").iterdir()} == {"estimated"}
    assert not (end_to_end_output / "toyscapes/end_to_end/best-estimated-disparity").exists()  # all methods estimate


def test_end_to_end_chooses_once(end_to_end_output):
    kept = {path: path.stat().st_mtime_ns for path in end_to_end_output.glob("scales/**/*.json")}
    assert len(kept) == 2
    run(end_to_end_output, toyscapes=2, protocols=("end_to_end",), methods=("identity", "stretch"))
    assert {path: path.stat().st_mtime_ns for path in end_to_end_output.glob("scales/**/*.json")} == kept


def write_photos(folder):
    """Two photos of other sizes, and a file that is none."""
    folder.mkdir()
    for name, height, width in (("wide", 80, 160), ("tall", 96, 64)):
        view = render(draw_scene(4, "test", "structured"), width, height)
        (folder / f"{name}.png").write_bytes(encode_png(view.right))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_photos_are_scored_in_the_holes_of_their_way_to_the_left_and_back(tmp_path):
    options = {"toyscapes": 0, "photos": write_photos(tmp_path / "photos"), "protocols": (), "size": 96}
    begun = []
    found = run(tmp_path / "out", begin=lambda *case: begun.append(case), **options)
    assert [name for _, _, name in begun] == [
        "photos/cycle-disparity",
        "photos/cycle/leave_blank",
        "photos/cycle/stretch",
    ]
    assert begun[-1][:2] == (2, 3)
    assert [problem.id for problem in found.problems["photos"]] == ["broken"]
    scores = figures(tmp_path / "out", "methods-cycle-photos")
    assert scores["stretch", "psnr_occ"] > scores["leave_blank", "psnr_occ"] + 3
    assert scores["stretch", "psnr_nonocc"] > 25
    jobs = open_storage(str(tmp_path / "out/photos/cycle/stretch"))
    [tall, wide] = sorted(read_scalars(jobs).to_pylist(), key=lambda row: row["id"])
    assert (tall["id"], tall["width"], tall["height"]) == ("tall", 64, 96)
    assert (wide["width"], wide["height"]) == (96, 48)
    assert Image.open(tmp_path / "out/pictures/methods-cycle-photos.png").size[0] > 4 * 96
    (tmp_path / "photos/wide.png").unlink()  # its scene is written: only what is read again would miss it
    with pytest.raises(DatasetError, match="begun with other scenes"):
        run(tmp_path / "out", **options)


def test_photos_need_the_protocol_cycle(tmp_path):
    with pytest.raises(SpecError, match="no true right view, which these protocols need; add --protocol cycle"):
        run(tmp_path / "out", toyscapes=0, photos=write_photos(tmp_path / "photos"), protocols=("metric",))


def test_inpainting_is_scored_by_the_masked_share(tmp_path, monkeypatch):
    """Also of photos of different shapes; the table needs no protocol."""
    monkeypatch.setattr(inpaint, "SHARES", (0.25, 0.5))
    folder, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    options = {"tables": ("inpaint",), "methods": ("best",), "toyscapes": 0, "photos": folder, "protocols": ()}
    found = run(out, size=64, **options)
    assert found.tables[0].columns[::3] == [("25%", "psnr_occ"), ("50%", "psnr_occ")]
    rows = list(csv.DictReader(io.StringIO((out / "tables/inpaint-photos.csv").read_text())))
    [shown] = [float(row["mean"]) for row in rows if (row["of"], row["metric"]) == ("25%", "psnr_occ")]
    case = open_storage(str(out / "photos/inpaint-25/best"))
    rows = {row["id"]: row for row in read_scalars(case).to_pylist()}
    expected = []
    for scene in photos(folder).prepared(["tall", "wide"], 64, "photo"):
        [pair] = read_rows(case, [(rows[scene.id]["shard"], rows[scene.id]["position"])], ("left",))
        left, start = decode(pair["left"]["bytes"]), round(scene.left.shape[1] * 0.75)
        np.testing.assert_array_equal(left[:, :start], scene.left[:, :start])
        error = np.mean((left[:, start:].astype(float) - scene.left[:, start:]) ** 2)
        expected.append(10 * np.log10(255**2 / error))
    assert shown == pytest.approx(np.mean(expected))
    assert Image.open(out / "pictures/inpaint-photos.png").size[0] > 5 * 64


def test_scenes_of_a_level_can_be_asked_for(tmp_path):
    run(tmp_path, toyscapes=1, levels=("hard",), methods=("stretch",), protocols=("squash",))
    assert figures(tmp_path, "methods-squash-toyscapes-hard")["stretch", "psnr"] > 15
    with pytest.raises(DatasetError, match="begun with other scenes"):
        run(tmp_path, toyscapes=1, methods=("stretch",), protocols=("squash",))


def test_slow_methods_see_fewer_scenes(tmp_path):
    storage, dataset = open_storage(str(tmp_path)), toyscapes(3, SIZE)
    found = write_manifests(storage, dataset, size=SIZE, slow_scenes=2)
    assert (len(found.first), len(found.all)) == (1, 2)
    few = write_manifests(open_storage(str(tmp_path / "few")), dataset, size=SIZE, slow_scenes=32)
    assert few.first == few.all


def test_a_folder_with_gaps_is_scored_where_it_can_be(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    dataset = toyscapes(3, SIZE)
    first, second, _ = dataset.prepared(dataset.ids, SIZE)
    (images / f"{first.id}.png").write_bytes(encode_png(first.right))
    (images / f"{second.id}.png").write_bytes(encode_png(second.right[:32]))
    found = run(tmp_path / "out", methods=("identity",), folders=(f"Other Program={images}",))
    problems = {problem.id: problem.message for problem in found.problems["toyscapes/metric/other-program"]}
    assert set(problems) == {"structured-0000", "plain-0001"}
    assert "given_right: 64x32 pixels, but the image has 64x64" in problems["structured-0000"]
    assert "given_right: this row has none" in problems["plain-0001"]
    assert figures(tmp_path / "out", "methods-metric")["Other Program", "psnr"] == 100
    page = (tmp_path / "out/tables/README.md").read_text()
    assert "### Without a score" in page
    assert "plain-0001: given_right: this row has none" in page


def test_a_folder_without_any_right_view_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no image in it is named by the id of a scene, such as plain-0000\.png"):
        run(tmp_path / "out", folders=(f"other={tmp_path}",))


def test_scenes_without_truth_are_named_and_the_rest_is_scored(tmp_path):
    scene = next(iter(toyscapes(1, 96).prepared(("plain-0000",), 96)))
    write_middlebury(tmp_path / "data/Good", scene, scene.disparity)
    write_middlebury(tmp_path / "data/Invalid", scene, np.full_like(scene.disparity, np.inf))
    write_middlebury(tmp_path / "data/Untrue", scene, scene.disparity)
    (tmp_path / "data/Untrue/im1.png").unlink()
    found = run(tmp_path / "out", data=(tmp_path / "data",), toyscapes=0, methods=("stretch",))
    assert [problem.id for problem in found.problems["middlebury"]] == ["Invalid", "Untrue"]
    assert figures(tmp_path / "out", "methods-metric")["stretch", "psnr"] > 20
    (tmp_path / "data/Good/im0.png").unlink()
    with pytest.raises(DatasetError, match=r"middlebury: no scene can be used; the first: Good: im0\.png is missing"):
        run(tmp_path / "none", data=(tmp_path / "data",), toyscapes=0)


def test_a_sweep_is_a_table_and_a_picture(tmp_path):
    found = run(tmp_path, toyscapes=1, tables=(), methods=(), sweeps=("shift_step=0,1",))
    [table] = found.tables
    assert table.rows == [("best, shift_step 0",), ("best, shift_step 1",)]
    assert (tmp_path / "pictures/sweep-shift_step-best-metric-toyscapes.png").is_file()


def test_the_cost_is_counted_by_mode(tmp_path):
    base = SHORT | {"recipe": {"method": {"steps": 3, "guidance_scale": 1.0}}}
    options = Options(tables=("cost",), methods=("leave_blank", "best"), size=SIZE, cost_pairs=1)
    found = evaluate(str(tmp_path), base, options, run_here)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables/cost.csv").read_text())))
    evaluations = {(r["method"], r["of"]): r for r in rows if r["metric"] == "evaluations"}
    # Text: three steps for the left view, then one for the right one, which attends to what was kept of the left.
    assert float(evaluations["leave_blank", "text"]["mean"]) == 3
    assert float(evaluations["best", "text"]["mean"]) == 3 + 1
    assert float(evaluations["best", "text"]["beyond"]) == 1
    assert float(evaluations["leave_blank", "image"]["mean"]) == 0
    assert float(evaluations["best", "image"]["mean"]) == 3 + 1
    if ("best", "depth") not in evaluations:  # the embedded models may lack a depth-conditioned one
        assert "depth" in found.problems["cost/depth"][0].id


def test_an_even_number_of_costs_has_the_median_between_the_middle_ones():
    rows = {str(i): {"seconds": seconds} for i, seconds in enumerate((1.0, 9.0, 2.0, 3.0, math.nan))}
    assert cost._median(rows, "seconds") == 2.5
    assert cost._median({}, "seconds") is None


@pytest.fixture(scope="module")
def depth_output(tmp_path_factory, one_thread):
    """The table of depth mode, by methods with and without composite, over a base that would hide its figures."""
    folder = tmp_path_factory.mktemp("depth")
    base = {**SHORT, "recipe": {"method": {"steps": 3}, "quality": {"enabled": False, "drop_rejected": True}}}
    options = Options(toyscapes=3, tables=("depth",), methods=("best", "best, two pass", "official"), size=SIZE)
    assert not evaluate(str(folder), base, options, run_here).problems
    return folder


def depth_rows(output, method):
    return read_scalars(open_storage(str(output / "depth" / method))).to_pylist()


def test_depth_mode_has_figures_without_truth(depth_output):
    found = figures(depth_output, "depth")
    for method, column in (("best", "qc_raw_epe"), ("official", "qc_epe")):  # official's right view is the raw one
        errors = [row[column] for row in depth_rows(depth_output, method)]
        assert found[method, "raw_epe"] == pytest.approx(np.mean(errors))
    rows = depth_rows(depth_output, "best")
    assert len(rows) == 3
    assert found["best", "accepted"] == np.mean([row["accepted"] for row in rows])
    assert found["best", "depth_rank"] == pytest.approx(np.mean([row["qc_depth_rank"] for row in rows]))
    # Three steps with both halves of the guidance, an inversion without, then one step of the right view alone.
    assert (found["best", "evaluations"], found["best, two pass", "evaluations"]) == (6 + 1, 6 + 3 + 1)
    page = (depth_output / "tables/depth.md").read_text()
    assert "best, two pass |" in page
    assert "±" in page
    assert page in (depth_output / "tables/README.md").read_text()
    assert {path.suffix for path in (depth_output / "tables").glob("depth.*")} == {".md", ".csv", ".tex"}


def test_depth_mode_sees_plain_and_structured_scenes_in_turn(depth_output):
    rows = depth_rows(depth_output, "official")
    assert sorted(row["src_level"] for row in rows) == ["plain", "plain", "structured"]
    assert {row["prompt"] for row in rows} == {
        draw_scene(seed, "test", level).caption for seed, level in ((0, "plain"), (0, "structured"), (1, "plain"))
    }


def test_depth_mode_goes_on_where_it_stopped(depth_output):
    options = {"tables": ("depth",), "methods": ("best",)}
    before = {path: path.read_bytes() for path in depth_output.glob("depth/best/data/*")}
    run(depth_output, **options)
    assert before == {path: path.read_bytes() for path in depth_output.glob("depth/best/data/*")}
    with pytest.raises(DatasetError, match="begun with other scenes"):
        run(depth_output, toyscapes=4, **options)


def test_depth_mode_takes_the_depth_model(tmp_path):
    text_only = str(DEMO_FOLDER / "sd")
    found = run(tmp_path, toyscapes=1, tables=("depth",), methods=("best",), depth_model=text_only)
    assert "takes a depth-conditioned checkpoint" in found.problems["depth"][0].message


def test_models_are_loaded_again_only_for_another_checkpoint_or_mode():
    image = resolve_recipe(Recipe(mode="image"))
    first = KEPT(image, "cpu", 2)
    other = KEPT(image.model_copy(update={"seed": 5}), "cpu", 1)
    assert other.sd is first.sd
    assert (other.recipe.seed, other.batch_size, other.inputs) == (5, 1, INPUTS["image"])
    text = KEPT(resolve_recipe(Recipe(mode="text")), "cpu", 2)
    assert text.sd is first.sd


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tables": ("nope",)}, "table 'nope': not known; there are: methods"),
        ({"methods": ("nope",)}, "method 'nope': not known"),
        ({"toyscapes": 0}, "nothing to evaluate on"),
        ({"folders": ("Best!=somewhere",)}, "--folder 'Best!': 'best' has the folder best, too; choose another name"),
        ({"folders": ("A B=one", "a-b=two")}, "--folder 'a-b': 'A B' has the folder a-b, too"),
        ({"folders": ("stretch, steps 9=x",), "sweeps": ("steps=9",)}, "has the folder stretch-steps-9, too"),
        ({"folders": ("???=somewhere",)}, "needs a letter or a digit"),
        ({"toyscapes": 0, "data": (Path("any"),), "tables": ("depth",)}, "table 'depth': .* give --toyscapes N"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, complaint):
    with pytest.raises(SpecError, match=complaint):
        run(tmp_path, **options)


def test_worst_mean_and_best_are_told_by_their_scores():
    assert worst_mean_best({"a": 0.1, "b": 0.5, "c": 0.55, "d": 0.9}) == {"worst": "a", "mean": "b", "best": "d"}


@pytest.mark.slow
def test_an_evaluation_on_ray_has_the_figures_of_a_local_one(output, tmp_path):
    options = Options(toyscapes=3, size=SIZE, protocols=("metric",), methods=("stretch", "best"))
    evaluate(str(tmp_path / "ray"), SHORT, options, driver.run)
    here, there = (figures(folder, "methods-metric") for folder in (output, tmp_path / "ray"))
    assert there == {key: here[key] for key in there}
    assert {name for name, _ in there} == {"stretch", "best"}
