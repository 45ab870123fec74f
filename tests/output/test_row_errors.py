"""Row errors of a job: which are still open, how they are grouped, and that the memory for them is bounded."""

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout, progress
from stereo_jobs.output.commits import read_records
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.row_errors import MOST_GROUPS, ErrorSummary, failing, kind, summarise
from stereo_jobs.records import RowError
from stereo_jobs.run.driver import run
from stereo_jobs.spec_reading import load_spec
from tests import standin
from tests.datasets import rows

local = {"local": True, "load": standin.load}


def listed(spec) -> dict[str, tuple[str, str]]:
    """Shard and message of each failed row."""
    storage = open_storage(spec.output)
    found = list(failing(storage, load_job(storage)))
    assert len({row.error.id for row in found}) == len(found), "no row is listed twice"
    return {row.error.id: (row.shard, row.error.error_message) for row in found}


def test_failed_rows_are_listed_with_their_shards(make_spec, make_manifest):
    spec = make_spec(make_manifest(prompt=["fine", "", "fine", "boom", "fine", "fine", "nan", "fine"]), **CAREFREE)
    run(spec, **local)
    assert listed(spec) == {
        "row-0001": ("0000-0000000", "prompt: must not be empty"),
        "row-0003": ("0000-0000001", "boom in row-0003"),
        "row-0006": ("0000-0000002", "the model returned NaN or infinite values for this row"),
    }
    storage = open_storage(spec.output)
    summary = summarise(storage, load_job(storage))
    assert {(g.type, g.count, g.id) for g in summary.groups} == {
        ("InvalidRow", 1, "row-0001"),
        ("ValueError", 1, "row-0003"),
        ("NotFinite", 1, "row-0006"),
    }


CAREFREE = {"max_failure_ratio": 1.0}


def test_a_retry_settles_what_it_made_and_lists_once_what_failed_again(make_spec, make_manifest, tmp_path):
    """Against what the dataset and the totals say: an id is either in the data or listed, never both."""
    first = make_manifest(
        prompt=["fine", "boom", f"flaky:{tmp_path}/a", "", "fine", "fine", f"flaky:{tmp_path}/b", "x"]
    )
    spec = make_spec(first, row_attempts=1, batch_size=1, **CAREFREE)
    run(spec, **local)
    assert set(listed(spec)) == {"row-0001", "row-0002", "row-0003", "row-0006"}
    run(spec, retry=True, **local)
    assert listed(spec) == {
        "row-0001": ("0001-0000000", "boom in row-0001"),
        "row-0003": ("0001-0000000", "prompt: must not be empty"),
    }
    # New rows come, and another retry: generations 2 and 3.
    make_manifest(4, name="more.parquet", first=8, prompt=["boom", "fine", "fine", ""])
    more = make_spec(str(first.parent), row_attempts=1, batch_size=1, **CAREFREE)
    run(more, extend=True, **local)
    assert set(listed(more)) == {"row-0001", "row-0003", "row-0008", "row-0011"}
    final = run(more, retry=True, **local)
    found = listed(more)
    assert {shard[:4] for shard, _ in found.values()} == {"0003"}
    assert (final.failed, set(found)) == (4, {"row-0001", "row-0003", "row-0008", "row-0011"})
    assert set(found).isdisjoint(rows(more))


def test_before_a_retry_has_come_to_a_row_its_error_stands(make_spec, make_manifest):
    spec = make_spec(make_manifest(prompt=["boom"] * 8), shard_rows=2, **CAREFREE)
    run(spec, **local)
    run(spec, retry=True, **local)
    storage = open_storage(spec.output)
    for name in (layout.data, layout.record, layout.errors):
        (storage.root / name((1, 2))).unlink()  # as while that shard is still being made
    assert [shard for shard, _ in listed(spec).values()] == ["0000-0000002"] * 2 + [
        f"0001-000000{n}" for n in (0, 0, 1, 1, 3, 3)
    ]


def test_pairs_left_out_by_quality_control_are_no_errors(make_spec, make_manifest, monkeypatch):
    from stereo_jobs.pipeline import scoring

    verdict = {"accepted": False, "reject_reason": "matcher"}
    monkeypatch.setattr(scoring, "quality_cells", lambda pair, config: verdict)
    spec = make_spec(make_manifest(prompt=["fine"] * 7 + [""]), recipe={"quality": {"drop_rejected": True}}, **CAREFREE)
    run(spec, **local)
    assert set(listed(spec)) == {"row-0007"}


def test_of_many_shards_some_are_read_and_it_is_said(make_spec, make_manifest):
    spec = make_spec(make_manifest(prompt=["boom"] * 8), shard_rows=1, **CAREFREE)
    status = run(spec, **local)
    storage = open_storage(spec.output)
    part = summarise(storage, load_job(storage), most_shards=3)
    assert (part.failed, part.shards, part.of_shards, part.complete) == (3, 3, 8, False)
    whole = summarise(storage, load_job(storage), most_shards=8)
    assert (whole.failed, whole.complete) == (status.failed, True)


def test_a_job_without_errors_or_shards_has_none(make_spec):
    spec = make_spec()
    run(spec, **local)
    storage = open_storage(spec.output)
    assert summarise(storage, load_job(storage)).as_json() == {"failed": 0, "complete": True, "groups": []}


# --- On the command line ---


@pytest.fixture
def failed_job(make_manifest, tmp_path, monkeypatch):
    """A job of which four rows failed, of two types: path of its spec, and its output."""
    monkeypatch.setattr("stereo_jobs.run.driver.load_generator", standin.load)
    made = make_manifest(prompt=["", "boom", " ", "fine", "fine", "", "fine", "a (red:1.4) star"])
    runtime = {"shard_rows": 3, "row_attempts": 1, "batch_size": 1, "max_failure_ratio": 0.6}
    recipe = {"quality": {"enabled": False}}
    spec = {"manifest": str(made), "output": str(tmp_path / "out"), "recipe": recipe, "runtime": runtime}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec))
    run(load_spec(path), **local)
    return path, tmp_path / "out"


def test_errors_are_listed_on_the_command_line(failed_job, command_line, capsys):
    path, output = failed_job
    code, said, _ = command_line(capsys, "errors", output)
    assert (code, said.splitlines()) == (
        0,
        [
            "4 rows failed",
            "  3 InvalidRow, e.g. row-0000: prompt: must not be empty",
            "  1 ValueError, e.g. row-0001: boom in row-0001",
            "row-0000  InvalidRow  0000-0000000  prompt: must not be empty",
            "row-0001  ValueError  0000-0000000  boom in row-0001",
            "row-0002  InvalidRow  0000-0000000  prompt: must not be empty",
            "row-0005  InvalidRow  0000-0000001  prompt: must not be empty",
        ],
    )
    code, said, _ = command_line(capsys, "errors", path, "--type", "InvalidRow", "--limit", 2)
    assert said.splitlines()[3:] == [
        "row-0000  InvalidRow  0000-0000000  prompt: must not be empty",
        "row-0002  InvalidRow  0000-0000000  prompt: must not be empty",
        "1 more; --limit 3 lists them, too",
    ]
    code, said, _ = command_line(capsys, "errors", path, "--json", "--limit", 1)
    facts = json.loads(said)
    assert (facts["failed"], [group["count"] for group in facts["groups"]], len(facts["errors"])) == (4, [3, 1], 1)
    shown = {"id": "row-0000", "type": "InvalidRow", "message": "prompt: must not be empty"}
    assert facts["errors"][0] == shown | {"attempts": 1, "shard": "0000-0000000"}
    code, said, _ = command_line(capsys, "errors", path, "--type", "TimedOut")
    assert (code, said.splitlines()[3:]) == (0, ["none of type TimedOut"])


def test_status_run_and_report_tell_them_by_type(failed_job, command_line, capsys):
    path, output = failed_job
    wanted = [
        "attention weights: 1 pair, e.g. row-0007; weights such as (red:1.4) are not honoured, and are read as text",
        "4 rows failed:",
        "  3 InvalidRow, e.g. row-0000: prompt: must not be empty",
        "  1 ValueError, e.g. row-0001: boom in row-0001",
        f"List them: stereo-jobs errors {path}",
        f"Retry them: stereo-jobs retry-failed {path}",
    ]
    for command in (["status", path], ["run", path, "--local"]):
        code, said, _ = command_line(capsys, *command)
        assert (code, said.splitlines()[1:7]) == (0, wanted), command
    code, said, _ = command_line(capsys, "status", output, "--json")
    assert json.loads(said)["errors"]["groups"][0]["count"] == 3
    code, _, problem = command_line(capsys, "run", path, "--local", "--set", "runtime.max_failure_ratio=0.1")
    assert code == 3
    assert "  3 InvalidRow, e.g. row-0000: prompt: must not be empty" in problem
    command_line(capsys, "report", output)
    facts = json.loads((output / layout.REPORT_DATA).read_text())
    assert [(group["type"], group["count"]) for group in facts["errors"]["groups"]] == [
        ("InvalidRow", 3),
        ("ValueError", 1),
    ]
    page = (output / layout.REPORT).read_text()
    assert "Failed rows" in page and "row-0000: prompt: must not be empty" in page
    assert facts["status"]["prompts"]["weighted_example"] == "row-0007"


# --- Groups ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("prompt: at most 2000 characters, got 2001", "prompt: at most 2000 characters, got 99999"),
        ("image: s3://bucket/a.png: no such object", "image: s3://bucket/b/c.png: no such object"),
        ("image: 15x900 pixels; it needs at least 16 each way", "image: 3x3 pixels; it needs at least 16 each way"),
        ("depth_kind: must be inverse or metric, got 'a'", 'depth_kind: must be inverse or metric, got "b\'s"'),
        ("disparity: 4x4 pixels, but the image has 8x8; mend", "disparity: 5x4 pixels, but the image has 9x8; mend"),
        ("boom in row-0001", "boom in row-0002"),
    ],
)
def test_messages_of_one_kind_are_one_group(one, other):
    assert kind(one) == kind(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("prompt: must not be empty", "prompt: at most 2000 characters, got 2001"),
        ("image: s3://bucket/a.png: no such object", "mask: s3://bucket/a.png: no such object"),
        ("seed: must be from 0 to 2**63 - 1, got -1", "scale_percent: must be a percentage, got 99"),
    ],
)
def test_messages_of_other_columns_or_rules_are_others(one, other):
    assert kind(one) != kind(other)


@given(st.lists(st.tuples(st.sampled_from(["InvalidRow", "ValueError", "TimedOut"]), st.text(max_size=40))))
def test_counts_are_exact_whatever_the_messages(errors):
    summary = ErrorSummary()
    for number, (error_type, message) in enumerate(errors):
        summary.add(RowError(f"row-{number}", error_type, message))
    by_type = Counter[str]()
    for group in summary.groups:
        by_type[group.type] += group.count
    assert by_type == Counter(error_type for error_type, _ in errors)
    assert summary.failed == len(errors)
    assert all((group.type, group.message) in errors for group in summary.groups)


def test_a_million_kinds_take_no_more_memory_than_a_few():
    summary = ErrorSummary()
    letters = "abcdefghij"
    for number in range(20_000):
        word = "".join(letters[int(digit)] for digit in str(number))
        summary.add(RowError(f"row-{number}", "InvalidRow", f"{word}: is wrong"))
    assert summary.failed == 20_000
    assert len(summary.groups) == MOST_GROUPS + 1
    assert summary.groups[0].kind == "other messages"


# --- Prompts in the totals ---


class Cutting(standin.StandIn):
    """Says of prompts with the word `long` that they were cut."""

    def _one(self, row):
        made = super()._one(row)
        return dataclasses.replace(made, prompt_cut=True) if "long" in row.prompt.split() else made


def test_cut_and_weighted_prompts_are_counted_in_records_and_totals(make_spec, make_manifest):
    prompts = ["fine", "long", "a (red:1.4) star", "long (red:.5)", "fine", "long", "fine", ""]
    spec = make_spec(make_manifest(prompt=prompts), **CAREFREE)
    notes = run(spec, local=True, load=lambda recipe, device, batch_size: Cutting(batch_size)).prompts
    assert (notes.cut, notes.weighted, notes.weighted_example in ("row-0002", "row-0003")) == (3, 2, True)
    storage = open_storage(spec.output)
    job = load_job(storage)
    records = list(read_records(storage, job.shard_keys()))
    assert [(r.prompts.cut, r.prompts.cut_example, r.prompts.weighted) for r in records] == [
        (1, "row-0001", 1),
        (2, "row-0003", 1),
        (0, "", 0),
    ]
    assert progress.status(job, progress.totals(storage, job)).prompts == notes


def test_totals_of_an_older_version_know_of_no_prompts(make_spec):
    spec = make_spec()
    run(spec, **local)
    storage = open_storage(spec.output)
    path = storage.root / layout.PROGRESS
    path.write_text(path.read_text().replace('"prompts"', '"of_another_version"'))
    job = load_job(storage)
    assert progress.status(job, progress.totals(storage, job)).prompts.cut == 0
