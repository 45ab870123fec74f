"""What `plan --dry-run` says of the rows before any is made, against what a run then records of them."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import SpecError
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.row_errors import failing
from stereo_jobs.records import PromptNotes, find_weight
from stereo_jobs.run.check_rows import check_rows
from stereo_jobs.run.driver import run
from stereo_jobs.run.prepare import refuse_missing_gpu, toy_model_warning
from tests import standin
from tests.datasets import prepared

FINE = "a red star on the left"
CUT = "red star " * 60


def checked(spec):
    _, job, recipe = prepared(spec, publish=False)
    return check_rows(spec, recipe, job)


def test_rows_that_will_fail_are_counted_with_an_example(make_spec, make_manifest):
    prompts = [FINE, "", CUT, " \n", "x" * 2001, "a (red:1.4) star", FINE, None]
    spec = make_spec(make_manifest(prompt=prompts, scale_percent=[8.0] * 6 + [0.1, 8.0]))
    found = checked(spec)
    assert found.as_json() == {
        "checked": 8,
        "will_fail": 5,
        "errors": [
            group("prompt: must not be empty", 3, "row-0001"),
            group("prompt: at most ... characters", 1, "row-0004", "prompt: at most 2000 characters, got 2001"),
            {**found.errors.as_json()["groups"][2], "type": "InvalidRow", "count": 1, "id": "row-0006"},
        ],
        "prompts": {"cut": 1, "cut_example": "row-0002", "weighted": 1, "weighted_example": "row-0005"},
        "prompt_tokens": 40,
    }


def group(kind, count, example, message=None):
    return {"type": "InvalidRow", "kind": kind, "count": count, "id": example, "message": message or kind}


CELLS = {
    "prompt": st.sampled_from([FINE, "", " ", "x" * 2001, None, "ümlaut"]),
    "negative_prompt": st.sampled_from([None, "blurred", "y" * 2001]),
    "seed": st.sampled_from([None, 0, 5, -1]),
    "scale_percent": st.sampled_from([None, 8.0, -3.0, 0.1, 99.0, float("nan")]),
    "depth_kind": st.sampled_from([None, "inverse", "metric", "upside down"]),
}
ROW = st.tuples(*CELLS.values())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(ROW, min_size=1, max_size=12))
def test_what_it_says_is_what_a_run_finds(make_spec, make_manifest, tmp_path_factory, table):
    table.append((FINE, "blurred", 1, 8.0, "inverse"))  # each column has its type
    columns = dict(zip(CELLS, map(list, zip(*table, strict=True)), strict=True))
    output = str(tmp_path_factory.mktemp("output") / "out")
    spec = make_spec(make_manifest(len(table), **columns), output=output, max_failure_ratio=1.0)
    before = checked(spec)
    run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output)
    after = [row.error for row in failing(storage, load_job(storage))]
    assert before.errors.failed == len(after)
    assert [g.message for g in before.errors.groups if g.message not in {e.error_message for e in after}] == []


def test_text_that_is_not_utf8_fails_its_row(make_spec, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer(b"red\xff\xfe"))
    pq.write_table(pa.table({"id": ["a", "b"], "prompt": text}), tmp_path / "bytes.parquet")
    found = checked(make_spec(tmp_path / "bytes.parquet"))
    assert [(g.id, g.message) for g in found.errors.groups] == [("b", "prompt: not valid UTF-8")]


def test_a_row_counts_once_whatever_its_variants_and_images_are_not_opened(make_spec, make_manifest):
    manifest = make_manifest(4, image=[b"no image", None, b"", b"x"], prompt=["", CUT, None, FINE])
    recipe = {"mode": "image", "variants": {"seeds": 3}}
    found = checked(make_spec(manifest, recipe=recipe))
    assert (found.rows, found.errors.failed, found.prompts.cut) == (4, 0, 1)


def test_files_that_are_gone_are_left_out(make_spec, caplog):
    spec = make_spec()
    _, job, recipe = prepared(spec)
    (path,) = spec.manifests
    open_storage(path.rpartition("/")[0]).root.joinpath("prompts.parquet").unlink()
    assert check_rows(spec, recipe, job).rows == 0
    assert "is gone; its rows are not checked" in caplog.text


# --- Attention weights ---


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red:1.4) star",
        "(masterpiece, best quality:1.2), cat",
        "(word: 0.8 )",
        "((nested:1.1) more)",
        "(x:.5)",
        "(a b:2)",
    ],
)
def test_attention_weights_are_found(prompt):
    assert find_weight(None, prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "film (16:9)",
        "(at 10:30)",
        "ratio (1:1.85)",
        "a (red) star",
        "(John 3:16)",
        "red:1.4",
        "(a: b)",
        "(a:)",
        "(at: 1994)",
    ],
)
def test_plain_parentheses_are_not(prompt):
    assert find_weight(prompt) is None


@given(st.text("abc (:).0123456789 ", max_size=60))
def test_what_is_found_is_part_of_the_prompt_and_ends_in_a_number(text):
    found = find_weight(text)
    if found is not None:
        assert found in text
        assert 0 <= float(found.rpartition(":")[2].rstrip(") ")) <= 5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20), st.integers(0, 20))
def test_counts_of_parts_add_up(rows, at):
    cells = [
        {"id": f"row-{i}", "prompt": "(a:1.1)" if weighted else "a", "prompt_cut": cut}
        for i, (cut, weighted) in enumerate(rows)
    ]
    assert PromptNotes.of(cells[:at]).merged(PromptNotes.of(cells[at:])) == PromptNotes.of(cells)


# --- Devices and models ---


def test_a_gpu_that_is_not_here_is_refused_where_the_workers_would_be_here(make_spec, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    spec = make_spec(device="cuda")
    for here in (lambda: refuse_missing_gpu(spec), lambda: run(spec, local=True, load=standin.load)):
        with pytest.raises(SpecError, match=r"runtime\.device: cuda is asked for, and this machine has no GPU"):
            here()
    assert not Path(spec.output).exists(), "nothing is written before"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    refuse_missing_gpu(spec)  # the cluster may have some
    with pytest.raises(SpecError):
        refuse_missing_gpu(spec, local=True)
    refuse_missing_gpu(make_spec(device="auto"), local=True)


@pytest.mark.parametrize(
    ("mode", "columns", "fields"),
    [
        ("text", {}, None),
        ("image", {"image": [b""] * 8}, "set recipe.models.stable_diffusion (for example "),
        ("inpaint", {"image": [b""] * 8, "mask": [b""] * 8}, ") and recipe.models.depth (for example "),
        ("depth", {"depth": [b""] * 8}, None),
        ("depth", {"image": [b""] * 8}, "set recipe.models.stable_diffusion (for example "),
    ],
)
def test_photos_through_the_embedded_models_are_warned_of(make_spec, make_manifest, mode, columns, fields):
    spec = make_spec(make_manifest(**columns), recipe={"mode": mode})
    warning = toy_model_warning(spec)
    assert (warning is None) if fields is None else (fields in warning)


def test_only_the_embedded_models_are_named(make_spec, make_manifest):
    models = {"stable_diffusion": {"path": "owner/name"}, "depth": {"path": "demo"}}
    spec = make_spec(make_manifest(image=[b""] * 8), recipe={"mode": "image", "models": models})
    assert "ToyScapes set recipe.models.depth (for example" in toy_model_warning(spec)


def test_the_command_line_tells(make_manifest, tmp_path, command_line, capsys):
    make_manifest(prompt=["", *["fine"] * 6, "a (red:1.4) star"])
    spec = {"manifest": str(tmp_path / "manifests"), "output": str(tmp_path / "out")}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec))
    code, said, _ = command_line(capsys, "plan", path, "--dry-run")
    assert code == 0
    assert "checked 8 rows without opening images: 1 will fail" in said
    assert "  1 InvalidRow, e.g. row-0000: prompt: must not be empty" in said
    assert "attention weights: 1 row, e.g. row-0007" in said
    code, said, _ = command_line(capsys, "plan", path, "--dry-run", "--json")
    assert json.loads(said)["rows"]["will_fail"] == 1
    assert not (tmp_path / "out").exists()
