"""Logs for collectors: every line an object, with the ids of what it is about."""

import json
import logging
from functools import partial

import pytest
import yaml

from stereo_jobs import logs
from stereo_jobs.run import driver
from tests import standin


@pytest.fixture
def stereo_jobs(command_line, monkeypatch, capsys):
    """Runs the command line with the stand-in; returns exit code, output, errors."""
    real = driver.run
    monkeypatch.setattr(driver, "run", lambda spec, **options: real(spec, **options | {"load": standin.load}))
    yield partial(command_line, capsys)
    logs.configure("text")


@pytest.fixture
def spec_file(tmp_path, make_manifest):
    spec = {
        "manifest": str(make_manifest(rows=5, prompt=["fine", "boom", "fine", "fine", "nan"])),
        "output": str(tmp_path / "out"),
        "recipe": {"quality": {"enabled": False}},
        "runtime": {"shard_rows": 3, "max_failure_ratio": 0.5, "lease_ttl_s": 0},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_every_line_is_an_object_that_says_what_it_is_about(stereo_jobs, spec_file, tmp_path):
    code, out, err = stereo_jobs("run", spec_file, "--local", "--log-format", "json")
    assert (code, json.loads(out)["succeeded"]) == (0, 3)
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["job"] for line in lines} == {str(tmp_path / "out")}
    [failed] = [line for line in lines if line["message"] == "row row-0001 failed: boom in row-0001"]
    assert (failed["level"], failed["shard"], failed["row"]) == ("warning", "0000-0000000", "row-0001")
    done = {line["shard"]: line for line in lines if line["message"].startswith("shard done")}
    assert {name: (line["pairs"], line["failed"]) for name, line in done.items()} == {
        "0000-0000000": (2, 1),
        "0000-0000001": (1, 1),
    }
    assert all(line["bytes"] > 0 for line in done.values())


def test_the_error_that_ends_a_run_is_a_line_too(stereo_jobs, spec_file, monkeypatch):
    monkeypatch.setenv("STEREO_JOBS_LOG_FORMAT", "json")
    code, out, err = stereo_jobs("run", spec_file, "--local", "--set", "runtime.max_failure_ratio=0")
    last = json.loads(err.splitlines()[-1])
    assert (code, out, last["exit_code"], last["level"]) == (3, "", 3, "error")
    assert "max_failure_ratio" in last["message"]


def test_another_format_is_refused(stereo_jobs, spec_file):
    code, _, err = stereo_jobs("run", spec_file, "--local", "--log-format", "xml")
    assert code == 2
    said = " ".join(err.replace("│", " ").split())  # typer puts a usage error into a box, and wraps it
    assert "Invalid value for '--log-format'" in said
    assert "'xml' is not one of 'text', 'json'." in said


def test_an_exception_stays_on_its_line():
    line = {"name": "x", "level": logging.ERROR, "pathname": "", "lineno": 1, "msg": "%s\nfell", "args": ("it",)}
    try:
        raise ValueError("over\nthere")
    except ValueError as error:
        record = logging.LogRecord(**line, exc_info=(type(error), error, error.__traceback__))
    with logs.about(shard="0000-0000001"):
        text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    said = json.loads(text)
    assert (said["message"], said["shard"]) == ("it\nfell", "0000-0000001")
    assert said["exception"].endswith("ValueError: over\nthere")
