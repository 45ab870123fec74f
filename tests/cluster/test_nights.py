"""A week of scheduled nights over a folder that receives new manifest files: each night makes what is new, once."""

import os
import signal
import time
from pathlib import Path

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.output.plan import load_job
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import rows, verdict
from tests.run.processes import finish, start
from tests.waiting import PATIENCE_S

ROWS, LONG = 12, 80
SLACK_S = 10
"""For a process to start and end on a busy machine."""


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder or prefix, and the settings to use it."""
    if request.param == "local":
        return str(tmp_path / "place"), {}
    endpoint = request.getfixturevalue("s3_server")
    return f"s3://jobs/{tmp_path.name}-{os.urandom(4).hex()}", {"storage": {"endpoint_url": endpoint}}


class Week:
    def __init__(self, place, make_spec, make_manifest, folder: Path) -> None:
        self.uri, settings = place
        self.told = folder / "told"
        self.folder, self.make_manifest = folder, make_manifest
        runtime = {"lease_ttl_s": 30.0, "shard_rows": 2, "batch_size": 1, "drain_timeout_s": 2.0} | settings
        self.spec = make_spec(f"{self.uri}/incoming", f"{self.uri}/dataset", **runtime)
        self.whole = make_spec(folder / "manifests", str(folder / "whole"))
        self.days = self.planned = 0

    def a_file_arrives(self, rows: int = ROWS) -> None:
        prompts = [f"slow told:{self.told}"] * rows
        path = self.make_manifest(rows=rows, first=self.planned, name=f"day-{self.days}.parquet", prompt=prompts)
        incoming = open_storage(f"{self.uri}/incoming", self.spec.runtime.storage)
        incoming.create(path.name, path.read_bytes())
        self.days += 1
        self.planned += rows

    def night(self, *options: str):
        return start(self.spec, self.folder, "--extend", *options)

    def wait_for_new_commits(self, count: int) -> None:
        storage = open_storage(self.spec.output, self.spec.runtime.storage)

        def now() -> int:
            return sum(1 for _ in storage.list(layout.RECORDS_PREFIX))

        goal, deadline = now() + count, time.monotonic() + PATIENCE_S
        while now() < goal:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def done(self) -> int:
        """Pairs that are there; nothing may ever be there twice."""
        found = verdict(self.spec)
        assert (found.duplicated, found.corrupt, found.failed) == (0, 0, 0)
        return found.succeeded


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_week_of_nights(place, make_spec, make_manifest, tmp_path, monkeypatch):
    week = Week(place, make_spec, make_manifest, tmp_path)

    week.a_file_arrives()  # Monday: all goes well
    assert finish(week.night())[0] == 0
    assert week.done() == ROWS

    week.a_file_arrives()  # Tuesday: killed halfway
    process = week.night()
    week.wait_for_new_commits(2)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert ROWS < week.done() < 2 * ROWS

    week.a_file_arrives()  # Wednesday: the scheduler misses the night

    week.a_file_arrives()  # Thursday: makes up for both
    assert finish(week.night())[0] == 0
    assert week.done() == 4 * ROWS

    week.a_file_arrives(LONG)  # Friday: two at once
    process = week.night()
    week.wait_for_new_commits(1)
    code, said = finish(week.night())
    assert (code, "another run is at work here" in said) == (5, True), said
    assert finish(process)[0] == 0
    assert week.done() == week.planned

    week.a_file_arrives(LONG)  # Saturday: too little time
    started = time.monotonic()
    code, said = finish(week.night(f"--max-hours={10 / 3600}"))
    assert (code, "run again to go on" in said) == (75, True), said
    assert 8 < time.monotonic() - started < 10 + SLACK_S
    assert week.done() < week.planned

    assert finish(week.night())[0] == 0  # Sunday: nothing new, but Saturday's rest
    assert week.done() == week.planned
    assert finish(week.night())[0] == 0  # and once more, for nothing

    assert verdict(week.spec).ok
    storage = open_storage(week.spec.output, week.spec.runtime.storage)
    plans = load_job(storage).plans
    assert [len(plan.files) for plan in plans] == [1, 1, 2, 1, 1], "one generation a night that found new files"
    generated = week.told.read_text().split()
    assert len(generated) - week.planned <= 2 * 2 + 2 * 2, (
        "only what was in flight in the killed and the interrupted night"
    )
    with monkeypatch.context() as quick:
        quick.setattr(standin.time, "sleep", lambda seconds: None)
        run(week.whole, local=True, load=standin.load)
    assert rows(week.spec) == rows(week.whole)
