"""The display of a run, on a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from stereo_jobs.output.progress import Status
from stereo_jobs.records import QualitySummary
from stereo_jobs.report.terminal import progress_display, status_lines
from stereo_jobs.run.driver import RunProgress

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
