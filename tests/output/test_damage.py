"""Damaged objects below `_job/` and in `data/`: every command ends with one line, and mends what can be made again."""

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import DamagedError
from stereo_jobs.output import layout, watch
from stereo_jobs.output.commits import read_footer_at
from stereo_jobs.output.plan import load_job
from stereo_jobs.run import driver
from stereo_jobs.run.driver import run
from stereo_jobs.spec_reading import parse_spec
from tests import standin
from tests.datasets import rows, verdict

SHARD = (0, 1)
OBJECTS = {
    "record": layout.record(SHARD),
    "roll-up": layout.PROGRESS,
    "lease": layout.LEASE,
    "ids": layout.ids(0),
    "plan": layout.plan(1),
    "shard": layout.data(SHARD),
    "errors": layout.errors(SHARD),
}
CACHES = {"record", "roll-up", "lease", "ids", "errors"}


def wrong_types(data: bytes) -> bytes:
    return json.dumps({key: [{}] for key in _fields(data)}).encode()


def huge(data: bytes) -> bytes:
    return json.dumps({key: 10**400 if isinstance(v, int | float) else v for key, v in _fields(data).items()}).encode()


def infinite(data: bytes) -> bytes:
    fields = {key: float("inf") if isinstance(v, int | float) else v for key, v in _fields(data).items()}
    return json.dumps(fields).encode()


def negative(data: bytes) -> bytes:
    return json.dumps({key: -7 if isinstance(v, int | float) else v for key, v in _fields(data).items()}).encode()


def _fields(data: bytes) -> dict:
    try:
        return dict(json.loads(data))
    except ValueError:  # Parquet
        return {"value": 1}


def foot_lost(data: bytes) -> bytes:
    return data[:-64] + bytes(64)


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "a number": lambda data: b"7",
    "a text": lambda data: b'"text"',
    "a list": lambda data: b"[1, 2]",
    "null": lambda data: b"null",
    "an empty object": lambda data: b"{}",
    "deep": lambda data: b"[" * 100_000,
    "not UTF-8": lambda data: b"\xff\xfe\x80" + data,
    "zeros": lambda data: bytes(len(data)),
    "wrong types": wrong_types,
    "huge numbers": huge,
    "infinite numbers": infinite,
    "negative numbers": negative,
    "its end lost": foot_lost,
    "folder": None,
}


QUICK = {"empty", "wrong types", "folder"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An output of two generations with a failed row in each shard."""
    folder = tmp_path_factory.mktemp("finished")
    names = [f"row-{i}" for i in range(6)]
    pq.write_table(pa.table({"id": names, "prompt": ["fine", "boom", "fine"] * 2}), folder / "rows.parquet")
    runtime = {"shard_rows": 3, "lease_ttl_s": 0.2, "max_failure_ratio": 1.0}
    spec = parse_spec(
        {
            "manifest": str(folder / "rows.parquet"),
            "output": str(folder / "out"),
            "recipe": {"quality": {"enabled": False}},
            "runtime": runtime,
        }
    )
    run(spec, local=True, load=standin.load)
    run(spec, local=True, load=standin.load, retry=True)
    return spec


@pytest.fixture
def job(finished, tmp_path):
    """A copy of that output, and the spec file of its job."""
    shutil.copytree(finished.output, tmp_path / "out")
    spec = finished.model_copy(update={"output": str(tmp_path / "out")})
    (tmp_path / "job.json").write_text(spec.model_dump_json())
    return spec, tmp_path / "job.json"


@pytest.fixture
def stereo_jobs(command_line, monkeypatch, capsys):
    real = driver.run
    monkeypatch.setattr(driver, "run", lambda spec, **options: real(spec, **options | {"load": standin.load}))
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    monkeypatch.setattr(watch, "EVERY_S", 0.0)
    return partial(command_line, capsys)


def damage(output: str, name: str, how: str) -> None:
    path = Path(output, name)
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
        (path / "file").touch()
    else:
        path.write_bytes(DAMAGES[how](data))


def commands(spec_file: Path, output: str) -> dict[str, list]:
    return {
        "status": ["status", output],
        "watch": ["status", output, "--watch"],
        "report": ["report", output],
        "verify": ["verify", output],
        "run": ["run", spec_file, "--local"],
        "retry-failed": ["retry-failed", spec_file, "--local"],
    }


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize(
    "how", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in DAMAGES]
)
def test_every_command_ends_with_one_line(job, stereo_jobs, kind, how):
    spec, file = job
    damage(spec.output, OBJECTS[kind], how)
    seen = {}
    for verb, words in commands(file, spec.output).items():
        code, said, errors = stereo_jobs(*words)
        seen[verb] = code
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert "Traceback" not in said + errors
        assert code in ({0, 4} if verb == "verify" else {0, 2, 75} if verb == "watch" else {0, 2}), (verb, errors)
        assert len(lines) == (code == 2), errors
        if code == 2:
            assert Path(OBJECTS[kind]).name in lines[0]
            assert lines[0].count(": ") >= 1
    whole = kind in CACHES and how != "folder"
    if whole:
        assert {seen["status"], seen["report"], seen["run"], seen["retry-failed"]} == {0}
        assert verdict(spec).ok, "a run makes caches again"
    elif kind in ("plan", "shard"):
        assert seen["run"] == 2 or (how == "folder" and kind == "plan")
        assert seen["verify"] == 4 or (how == "folder" and kind == "plan")


@pytest.mark.parametrize("how", ["empty", "cut off", "zeros", "its end lost"])
def test_a_damaged_shard_that_is_moved_away_is_made_again(job, how):
    spec, _ = job
    expected = rows(spec)
    damage(spec.output, layout.data(SHARD), how)
    with pytest.raises(DamagedError, match=r"0000-0000001.*move it away and run again"):
        run(spec, local=True, load=standin.load)
    Path(spec.output, layout.data(SHARD)).unlink()
    assert run(spec, local=True, load=standin.load).complete
    assert verdict(spec).ok
    assert rows(spec) == expected


def test_status_counts_a_shard_whose_record_is_damaged(job, stereo_jobs):
    spec, _ = job
    before = json.loads(stereo_jobs("status", spec.output, "--json")[1])
    damage(spec.output, layout.record(SHARD), "empty")
    Path(spec.output, layout.PROGRESS).unlink()
    after = json.loads(stereo_jobs("status", spec.output, "--json")[1])
    names = ("planned", "succeeded", "failed", "bytes", "shards_done", "complete")
    assert [after[name] for name in names] == [before[name] for name in names]


def test_totals_that_contradict_the_plans_are_summed_up_again(job):
    spec, _ = job
    storage = open_storage(spec.output)
    before = run(spec, local=True, load=standin.load)
    totals = json.loads(storage.read(layout.PROGRESS))
    storage.replace(layout.PROGRESS, json.dumps(totals | {"succeeded": totals["succeeded"] + 1}).encode())
    assert run(spec, local=True, load=standin.load).succeeded == before.succeeded


def test_a_missing_output_is_not_done(job, stereo_jobs):
    spec, _ = job
    storage = open_storage(spec.output)
    shutil.rmtree(spec.output)
    assert load_job(storage).plans == ()
    with pytest.raises(Exception, match="no job is planned here"):
        watch.look(storage)


def test_a_footer_that_a_store_alters_on_the_way_is_read_from_the_whole_object(make_spec, tmp_path, monkeypatch):
    """Bytes given by range have no checksum; a run must not end for one that was altered on the way."""
    spec = make_spec()
    run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output)
    expected = read_footer_at(storage, SHARD)
    altered = tmp_path / "altered.parquet"
    altered.write_bytes(foot_lost(storage.read(layout.data(SHARD))))
    filesystem, _ = storage.for_pyarrow(layout.data(SHARD))
    monkeypatch.setattr(type(storage), "for_pyarrow", lambda self, key: (filesystem, str(altered)))
    assert read_footer_at(storage, SHARD) == expected
    altered.unlink()
    storage.replace(layout.data(SHARD), b"PAR1")
    with pytest.raises(DamagedError, match=r"train-0000-0000001\.parquet: damaged"):
        read_footer_at(storage, SHARD)
