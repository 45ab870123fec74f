"""A job watched from outside: alive, silent, stopped, done; and what the command line makes of it."""

import json
from functools import partial

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import StorageUnavailableError, TooManyFailuresError
from stereo_jobs.output import layout, progress, watch
from stereo_jobs.output.lease import Lease
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import prepared


@pytest.fixture
def stereo_jobs(command_line, capsys):
    return partial(command_line, capsys)


@pytest.fixture
def storage(make_spec):
    """Of a planned job on which nobody works yet."""
    return prepared(make_spec()).storage


def snapshots(storage, between=(), patience_s=60.0):
    """All looks; 5 s pass between two of them, and one of `between` happens."""
    now = [0.0]
    events = iter(between)

    def sleep(seconds):
        now[0] += seconds
        next(events, lambda: None)()

    return list(watch.watch(storage, every_s=5.0, patience_s=patience_s, sleep=sleep, clock=lambda: now[0]))


def states(seen):
    return [snapshot.state for snapshot in seen]


def test_a_job_that_ends_well(make_spec, storage):
    spec = make_spec()
    seen = snapshots(storage, [lambda: run(spec, local=True, load=standin.load)])
    assert states(seen) == ["quiet", "done"]
    assert (seen[-1].exit_code, seen[-1].status.succeeded) == (0, 8)


def test_nobody_comes(storage):
    seen = snapshots(storage, patience_s=12)
    assert states(seen) == ["quiet"] * 3 + ["stopped"]
    assert seen[0].note == "no run is at work; waiting for one"
    assert (seen[-1].exit_code, seen[-1].note) == (75, "no run is at work; 3 shards are missing: run again to go on")


def test_a_run_that_lives_and_stops(storage):
    lease = Lease(storage, 60.0)
    beat = lambda: setattr(lease, "_tag", storage.swap(layout.LEASE, lease._content(), lease._tag))  # noqa: E731
    slow = progress.Throughput.now(0.5, 16.0, 2)
    events = [
        lease.__enter__,
        beat,
        lambda: progress.save(storage, progress.Totals(), slow),
        lambda: None,
        lambda: lease.__exit__(None, None, None),
    ]
    seen = snapshots(storage, events)
    assert states(seen) == ["quiet", "running", "running", "running", "running", "stopped"]
    assert [snapshot.throughput for snapshot in seen] == [None, None, None, slow, slow, None]
    assert seen[-1].exit_code == 75


def test_a_run_that_falls_silent(storage):
    with Lease(storage, 60.0):
        seen = snapshots(
            storage, [lambda: progress.save(storage, progress.Totals(), progress.Throughput.now(1, 2, 3))], 12
        )
    assert states(seen) == ["quiet", "running", "running", "running", "stopped"]
    assert [snapshot.note for snapshot in seen[:2]] == ["waiting for a sign of life of its run", ""]
    assert "its run has shown no sign of life for 15 s; 3 shards are missing" in seen[-1].note


def test_without_a_lease_progress_shows_life(storage):
    beats = [
        lambda n=n: progress.save(storage, progress.Totals(), progress.Throughput("then", n, None, 1)) for n in range(4)
    ]
    seen = snapshots(storage, beats, patience_s=8)
    assert states(seen) == ["quiet", *["running"] * 5, "stopped"]


def test_all_shards_without_the_mark(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=3, prompt=["boom"] * 3), max_failure_ratio=0.5, lease_ttl_s=0)  # one shard
    with pytest.raises(TooManyFailuresError):
        run(spec, local=True, load=standin.load)
    seen = snapshots(open_storage(spec.output), patience_s=4)
    assert (seen[-1].state, seen[-1].exit_code) == ("stopped", 75)
    assert "too many rows failed" in seen[-1].note


def test_a_store_that_goes_away_for_a_while(storage, monkeypatch):
    real = watch.load_job

    def refuse(storage):
        raise StorageUnavailableError("S3 says SlowDown")

    def go():
        monkeypatch.setattr(watch, "load_job", refuse)

    def come():
        monkeypatch.setattr(watch, "load_job", real)

    seen = snapshots(storage, [go, lambda: None, come], patience_s=12)
    assert states(seen)[:4] == ["quiet", "unreachable", "unreachable", "quiet"]
    assert seen[1].note == "trying again: S3 says SlowDown"
    assert seen[-1].state == "stopped"


# --- The command line ---


def test_status_says_what_one_look_can(stereo_jobs, storage):
    code, out, _ = stereo_jobs("status", storage.uri)
    assert code == 0
    assert out.splitlines()[0].startswith("not done: 0 of 8 pairs")
    assert out.splitlines()[-1] == "stopped: no run is at work; 3 shards are missing: run again to go on"
    with Lease(storage, 60.0):
        progress.save(storage, progress.Totals(), progress.Throughput("2030-01-01T00:00:00+00:00", 2.5, 3.2, 4))
        _, out, _ = stereo_jobs("status", storage.uri)
        facts = json.loads(stereo_jobs("status", storage.uri, "--json")[1])
    assert "2.50 pairs/s, 4 workers, ETA 0:03, as its run said at 2030-01-01T00:00:00+00:00" in out
    assert (facts["state"], facts["pace"]["workers"], facts["planned"]) == ("quiet", 4, 8)


def test_watching_ends_with_the_job(stereo_jobs, storage, make_spec, monkeypatch):
    monkeypatch.setattr(watch, "EVERY_S", 0.0)
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    code, out, _ = stereo_jobs("status", storage.uri, "--watch")
    assert (code, out.count("not done"), "run again to go on" in out) == (75, 1, True)
    run(make_spec(), local=True, load=standin.load)
    code, out, _ = stereo_jobs("status", storage.uri, "--watch", "--json")
    assert (code, json.loads(out)["state"]) == (0, "done")


def test_watching_on_s3(stereo_jobs, s3_server, make_spec):
    spec = make_spec(output="s3://jobs/watched", storage={"endpoint_url": s3_server})
    run(spec, local=True, load=standin.load)
    code, out, _ = stereo_jobs("status", spec.output, "--watch", "--endpoint-url", s3_server)
    assert (code, out.startswith("done: 8 of 8 pairs")) == (0, True)
