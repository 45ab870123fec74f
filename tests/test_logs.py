"""Logs for collectors: every line an object, with the ids of what it is about."""

import io
import json
import logging
import unicodedata
from functools import partial

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.logging import RichHandler
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from stereo_jobs import logs
from stereo_jobs.cli import console as consoles
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


HOSTILE = "a\x1b[2J\x07\x7f\x9b\r\u202e\u200b\udcff[red]:smile:\tb\nc"
SHOWN = "a\\x1b[2J\\x07\\x7f\\x9b\\r\\u202e\\u200b\\udcff[red]:smile:\tb\nc"


def test_what_a_terminal_would_obey_is_escaped():
    assert logs.printable(HOSTILE) == SHOWN
    assert logs.printable(SHOWN) == SHOWN
    plain = "Übergrößen 目 שלום 😀 \\x1b"
    assert logs.printable(plain) == plain
    assert logs.names_shown(["plain", "x\ny", "\x1b"]) == "plain, 'x\\ny', '\\x1b'"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = logs.printable(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert logs.json_line(text).isascii() and logs.json_line(text).isprintable()
    assert json.loads(logs.json_line(text)) == text


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("stereo_jobs.x", logging.ERROR, "", 1, message, None, None)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_are_escaped(log_format, capsys):
    logs.configure(log_format)
    try:
        logging.getLogger("stereo_jobs.x").handle(record(HOSTILE))
    finally:
        said = capsys.readouterr().err
        logs.configure("text")
    assert said == SHOWN + "\n" if log_format == "text" else json.loads(said)["message"] == HOSTILE
    assert not {"\x1b", "\x07", "\x7f", "\r"} & set(said)


def test_everything_on_the_consoles_is_escaped(capsys):
    table = Table()
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for console in (consoles.out, consoles.err):
        console.print(HOSTILE)
        console.print(table)
        console.print(Text(HOSTILE))
    RichHandler(console=consoles.err).handle(record(HOSTILE))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert text.startswith(SHOWN.expandtabs())
        assert "[red]" in text.replace("\n", "") and ":smile:" in text.replace("\n", "")
        assert not {"\x1b", "\x07", "\x7f", "\r", "\u202e"} & set(text)


def test_a_live_line_is_escaped():
    console = consoles.SafeConsole()
    console.file, console._force_terminal = io.StringIO(), True
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(HOSTILE.replace("\n", ""))
    said = console.file.getvalue()
    assert "\\x1b[2J" in said and "\x1b[2J" not in said
