"""The display of a run, on a terminal and in a pipe."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from stereo_jobs import logs
from stereo_jobs.cli.console import SafeConsole
from stereo_jobs.output.progress import Status, Throughput
from stereo_jobs.output.watch import OutputSnapshot
from stereo_jobs.records import QualitySummary
from stereo_jobs.report import terminal as terminal_module
from stereo_jobs.report.terminal import (
    evaluation_display,
    progress_display,
    snapshot_lines,
    status_lines,
    watch_display,
)
from stereo_jobs.run.driver import RunProgress, run
from tests import standin
from tests.screen import screen

PROGRESS = RunProgress(planned=1000, done=250, failed=3, made=100, left=747, seconds=50.0, workers=2)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_shows_how_far_it_is(terminal):
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=120, highlight=False)
    with progress_display(console) as watch:
        watch(PROGRESS)
    assert "250/1,000 pairs" in said.getvalue()
    assert "2.00 pairs/s  ETA 6:14  3 failed  2 workers" in said.getvalue()
    assert ("\x1b[" in said.getvalue()) == terminal


def test_a_quiet_run_says_nothing():
    said = io.StringIO()
    with progress_display(Console(file=said), quiet=True) as watch:
        watch(PROGRESS)
    assert said.getvalue() == ""


def test_before_the_first_pair_there_is_no_estimate():
    said = io.StringIO()
    with progress_display(Console(file=said, width=120)) as watch:
        watch(RunProgress(planned=10, done=0, failed=0, made=0, left=10, seconds=0.0, workers=1))
    assert "ETA --  0 failed  1 worker" in said.getvalue()


@pytest.mark.parametrize("wasted", [0.0, 12.4])
def test_a_status_tells_what_was_wasted_if_anything_was(wasted):
    counts = {"planned": 8, "succeeded": 8, "failed": 0, "rejected": 0, "shards_planned": 2, "shards_done": 2}
    rest = {"generations": 1, "bytes": 10, "complete": True, "quality": QualitySummary()}
    lines = status_lines(Status(**counts, **rest, seconds=70.0, wasted_seconds=wasted))
    told = "wasted: 12 worker seconds on shards that were lost or abandoned, besides 70 s on finished ones"
    assert lines[1:] == ([told] if wasted else [])


# --- What a person sees ---


class Terminal(SafeConsole):
    """The console of the command line, on a terminal of some width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._environ = {"TERM": "xterm-256color"}  # else, what pytest was started in
        self._force_terminal, self.is_interactive, self.file = True, True, io.StringIO()
        self.size = (width, 40)

    def seen(self) -> list[str]:
        """All lines but empty ones at the end. Without colours, a bar of which nothing is done is empty, too."""
        return "\n".join(screen(self.file.getvalue(), self.width)).rstrip().split("\n")


def snapshot(done: int, planned: int, note: str = "", throughput: Throughput | None = None) -> OutputSnapshot:
    counts = {"planned": 4 * planned, "succeeded": 4 * done, "failed": 0, "rejected": 0, "generations": 1}
    shards = {"shards_planned": planned, "shards_done": done, "bytes": 10**9, "complete": done == planned}
    status = Status(**counts, **shards, quality=QualitySummary(), seconds=70.0, wasted_seconds=12.4)
    return OutputSnapshot("quiet", status, throughput, note)


def test_a_watch_at_80_columns_has_its_bar_on_a_line_of_its_own():
    terminal = Terminal(80)
    with watch_display(terminal) as show:
        for done in (0, 6, 12):
            pace = Throughput("2026-11-01T10:00:00Z", 1.5, 3000.0, 4)
            show(snapshot(done, 20, "one look cannot show whether its run is alive; --watch can", pace))
    bar, *lines = terminal.seen()
    assert set(bar) <= set("━╸╺")
    assert lines == [
        "not done: 48 of 80 pairs, 0 failed, 12 of 20 shards, 1000.0 MB",
        "wasted: 12 worker seconds on shards that were lost or abandoned, besides 70 s on",
        "finished ones",
        "1.50 pairs/s, 4 workers, ETA 50:00, as its run said at 2026-11-01T10:00:00Z",
        "quiet: one look cannot show whether its run is alive; --watch can",
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(12, 200),
    st.lists(st.tuples(st.integers(0, 9), st.text("abc é日", max_size=90)), min_size=1, max_size=4),
)
def test_a_watch_shows_its_last_snapshot_once_whole_and_nothing_else(width, looks):
    terminal = Terminal(width)
    with watch_display(terminal) as show:
        for done, note in looks:
            show(snapshot(done, 9, note.replace("日", "x")))
    bar, *lines = terminal.seen()
    assert set(bar) <= set("━╸╺")
    assert all(len(line) <= width for line in lines)
    whole = "".join(snapshot_lines(snapshot(looks[-1][0], 9, looks[-1][1].replace("日", "x"))))
    assert "".join(lines).replace(" ", "") == whole.replace(" ", "")


def test_a_watch_follows_a_new_width():
    terminal = Terminal(100)
    with watch_display(terminal) as show:
        terminal.size = (60, 40)
        show(snapshot(3, 9))
    assert max(map(len, terminal.seen())) <= 60


def test_a_watch_on_a_real_terminal_of_80_columns(make_spec):
    spec = make_spec()
    run(spec, local=True, load=standin.load)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "stereo_jobs", "status", spec.output, "--watch"]
    with subprocess.Popen(command, stdout=theirs, stdin=theirs, env=environment | {"TERM": "xterm"}) as process:
        os.close(theirs)
        sent = b""
        while part := _read(ours):
            sent += part
    os.close(ours)
    assert process.returncode == 0
    bar, line = [line for line in screen(sent.decode(), 80) if line]
    assert (set(bar), line[:45]) == ({"━"}, "done: 8 of 8 pairs, 0 failed, 3 of 3 shards, ")


def _read(terminal: int) -> bytes:
    """What comes from a terminal; nothing once all of its programs have ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("width", [24, 40, 80, 160])
def test_a_run_takes_more_lines_on_a_narrow_terminal(width):
    terminal = Terminal(width)
    with progress_display(terminal) as watch:
        watch(PROGRESS)
    words = "".join("".join(terminal.seen()).split())
    assert all(len(line) <= width for line in terminal.seen())
    assert len(terminal.seen()) == 1 or width < 100
    assert {"3", "failed"} <= set(" ".join(terminal.seen()).split()) or "3failed" in words


# --- Workers that start ---

STARTING = RunProgress(
    planned=10, done=0, failed=0, made=0, left=10, seconds=75.0, workers=0, starting="1 of 3 workers ready, 2 loading"
)


def test_workers_that_start_are_told_in_all_forms(monkeypatch):
    terminal, pipe = Terminal(80), io.StringIO()
    with progress_display(terminal) as watch:
        watch(STARTING)
    assert "1 of 3 workers ready, 2 loading" in terminal.seen()[0]
    assert "pairs/s" not in terminal.seen()[0]
    with progress_display(Console(file=pipe, width=120)) as watch:
        watch(STARTING)
        watch(STARTING)
        watch(PROGRESS)  # which is told at once
        watch(PROGRESS)
    starting, working = pipe.getvalue().splitlines()
    assert (starting, "250/1,000 pairs" in working) == ("1 of 3 workers ready, 2 loading  1:15", True)
    logged = []
    monkeypatch.setattr(logs, "is_json", lambda: True)
    monkeypatch.setattr(terminal_module.log, "info", lambda line, extra: logged.append(extra))
    with progress_display(Console(file=io.StringIO())) as watch:
        watch(STARTING)
    [facts] = map(json.loads, map(json.dumps, logged))
    assert (facts["starting"], facts["workers"], facts["seconds"]) == ("1 of 3 workers ready, 2 loading", 0, 75.0)


def test_a_local_run_names_the_models_that_it_loads(make_spec):
    seen = []
    run(make_spec(), local=True, load=standin.load, watch=seen.append)
    assert (seen[0].starting, seen[0].planned, seen[0].workers) == ("loading models: demo, depth demo", 8, 0)
    assert [state.starting for state in seen[1:]] == [""] * (len(seen) - 1)
    assert len(seen) > 1


# --- An evaluation ---


def test_an_evaluation_has_one_bar_for_all_cases():
    terminal = Terminal(160)
    with evaluation_display(terminal) as (begin, watch):
        begin(3, 40, "middlebury/paper/best")
        watch(PROGRESS)
        terminal.print("a message")
        begin(4, 40, "middlebury/paper/stretch")
        watch(PROGRESS)
        during = terminal.seen()
    assert during[0] == "a message"
    assert "3 of 40 cases" in terminal.file.getvalue()
    assert "middlebury/paper/best  250/1,000 pairs" in terminal.file.getvalue()
    message, bar = terminal.seen()
    assert (message, bar.endswith("all cases done")) == ("a message", True)


def test_an_evaluation_in_a_pipe_has_a_line_for_each_case():
    pipe = io.StringIO()
    with evaluation_display(Console(file=pipe, width=120)) as (begin, watch):
        begin(0, 2, "toyscapes/paper/best")
        watch(PROGRESS)
        begin(1, 2, "toyscapes/paper/stretch")
    lines = pipe.getvalue().splitlines()
    assert [lines[0], lines[2]] == ["case 1 of 2: toyscapes/paper/best", "case 2 of 2: toyscapes/paper/stretch"]
    with evaluation_display(Console(file=pipe), quiet=True) as (begin, watch):
        begin(0, 1, "x")
        watch(PROGRESS)
    assert len(pipe.getvalue().splitlines()) == 3
