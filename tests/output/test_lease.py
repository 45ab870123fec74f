"""Two runs on one output: the lease refuses the second; without it still one object a shard."""

import json
import os
import signal
import threading
import time

import pytest

from stereo_jobs.data.storage import LocalStorage, open_storage
from stereo_jobs.errors import OutputHeldError, StorageUnavailableError
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.output import commits, layout
from stereo_jobs.output.commits import committed
from stereo_jobs.output.lease import Lease
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.run.driver import run
from stereo_jobs.spec import StorageSpec
from stereo_jobs.workers.task import ShardTask
from stereo_jobs.workers.worker import ShardWorker
from tests import standin
from tests.datasets import rows, verdict
from tests.run.processes import finish, start
from tests.waiting import wait_until

TTL = 6.0  # a holder must renew within half of it, also on a machine that stalls


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalStorage(tmp_path / "held")
    endpoint = request.getfixturevalue("s3_server")
    return open_storage(f"s3://jobs/lease-{os.urandom(6).hex()}", StorageSpec(endpoint_url=endpoint))


def test_a_second_holder_is_refused_while_the_first_is_alive(storage):
    with Lease(storage, TTL) as first:
        started = time.monotonic()
        with pytest.raises(OutputHeldError, match="another run is at work"), Lease(storage, TTL):
            pass
        assert time.monotonic() - started < TTL
        assert first.fresh()


def test_a_lease_that_was_given_back_is_free_at_once(storage):
    with Lease(storage, TTL):
        pass
    started = time.monotonic()
    with Lease(storage, TTL) as second:
        assert second.fresh()
    assert time.monotonic() - started < TTL


def test_a_silent_holder_is_taken_over_and_notices(storage, monkeypatch):
    first = Lease(storage, TTL)
    # It behaves like a suspended process: it holds the lease, and its thread never renews it.
    monkeypatch.setattr(first, "_keep", lambda: None)
    first._thread = threading.Thread(target=first._keep)
    with first, Lease(storage, TTL) as second:
        assert second.fresh()
        assert not first.fresh()
        # Leaving the block does not release a lease that is no longer its own.


def test_only_one_of_many_takes_a_stale_lease(storage):
    storage.create(layout.LEASE, b'{"holder": "dead", "renewal": 1}')
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def contend() -> None:
        barrier.wait()
        try:
            with Lease(storage, TTL):
                outcomes.append("held")
                time.sleep(TTL)
        except OutputHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_lease_taken_away_is_noticed(storage):
    with Lease(storage, TTL) as lease:
        storage.replace(layout.LEASE, b'{"holder": "thief", "renewal": 1}')
        deadline = time.monotonic() + TTL
        while lease.lost() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.lost() == "another run has taken over"


@pytest.fixture
def away(monkeypatch):
    """While it is set, no lease can be renewed."""
    unreachable = threading.Event()
    real = LocalStorage.swap

    def swap(self, key, data, tag):
        if unreachable.is_set():
            raise StorageUnavailableError(f"{key}: the endpoint cannot be reached")
        return real(self, key, data, tag)

    monkeypatch.setattr(LocalStorage, "swap", swap)
    return unreachable


def test_a_holder_whose_store_was_away_goes_on(tmp_path, away, caplog):
    with Lease(LocalStorage(tmp_path), 2.0) as lease:
        away.set()
        wait_until(lambda: not lease.fresh())
        time.sleep(2.0)
        assert lease.lost() is None
        away.clear()
        wait_until(lease.fresh)
    assert caplog.text.count("could not be renewed, trying again") == 1
    assert "renewed again" in caplog.text


def test_but_not_if_another_run_has_taken_over_meanwhile(tmp_path, away):
    with Lease(LocalStorage(tmp_path), 2.0) as first:
        away.set()
        LocalStorage(tmp_path).replace(layout.LEASE, b'{"holder": "thief", "renewal": 1}')
        wait_until(lambda: not first.fresh())
        away.clear()
        wait_until(first.lost)
        assert (first.taken, first.fresh()) == (True, False)


def test_nor_for_ever(tmp_path, away):
    with Lease(LocalStorage(tmp_path), 2.0, patience_s=3.0) as lease:
        away.set()
        wait_until(lease.lost)
        assert "could not be renewed for" in lease.lost()
        assert not lease.taken


def test_while_the_lease_cannot_be_renewed_nothing_is_dispatched(make_spec, make_manifest, tmp_path, away):
    told, ticks = tmp_path / "told", []
    spec = make_spec(make_manifest(rows=12, prompt=[f"told:{told} slow"] * 12), lease_ttl_s=2.0, shard_rows=1)

    def watch(tick):
        ticks.append(tick)
        if tick.made == 2:
            away.set()
        if away.is_set() and len(ticks) > 2 and not tick.running:  # what was under way is done
            time.sleep(2.0)
            away.clear()

    status = run(spec, local=True, load=standin.load, watch=watch)
    assert (status.complete, status.wasted_seconds) == (True, 0)
    assert any(tick.queued and not tick.running for tick in ticks), "a shard was dispatched without a lease"
    assert len(told.read_text().split()) == 12


def test_a_run_that_was_taken_over_lets_its_shards_end(make_spec, make_manifest, tmp_path):
    spec = make_spec(make_manifest(rows=12, prompt=["slow"] * 12), lease_ttl_s=2.0)

    def take(tick):
        if tick.running == 2:  # not before both are under way
            open_storage(spec.output).replace(layout.LEASE, b'{"holder": "thief", "renewal": 1}')

    with pytest.raises(OutputHeldError, match="another run has taken over"):
        run(spec, local=True, load=standin.load, watch=take)
    assert len(committed(open_storage(spec.output))[0]) >= 2
    assert json.loads(open_storage(spec.output).read(layout.LEASE))["holder"] == "thief"


def test_a_second_run_is_refused(make_spec, make_manifest, tmp_path):
    spec = make_spec(make_manifest(prompt=["slow"] * 8), lease_ttl_s=TTL)
    process = start(spec, tmp_path)
    try:
        wait_for(tmp_path / "out" / layout.LEASE)
        with pytest.raises(OutputHeldError):
            run(spec, local=True, load=standin.load)
    finally:
        assert finish(process)[0] == 0
    assert verdict(spec).ok


def test_without_the_lease_two_runs_make_each_shard_once(make_spec, make_manifest, tmp_path):
    manifest = make_manifest(rows=12, prompt=["fine", "boom", "slow"] * 4)
    options = {"lease_ttl_s": 0, "max_failure_ratio": 1.0, "shard_rows": 2}
    spec = make_spec(manifest, **options)
    whole = make_spec(manifest, str(tmp_path / "whole"), **options)
    run(whole, local=True, load=standin.load)
    both = [start(spec, tmp_path) for _ in range(2)]
    ends = [finish(process) for process in both]
    assert [code for code, _ in ends] == [0, 0], ends
    found = verdict(spec)
    assert found.ok, found.problems
    assert rows(spec) == rows(whole)


def test_a_frozen_run_that_was_taken_over_stops_by_itself(make_spec, make_manifest, tmp_path):
    spec = make_spec(make_manifest(prompt=["slow"] * 8), lease_ttl_s=TTL, shard_rows=2)
    process = start(spec, tmp_path)
    wait_for(tmp_path / "out" / layout.record((0, 0)))
    # It must not freeze while it holds the lock of a renewal: then nobody can take over.
    with LocalStorage(tmp_path / "out")._locked(layout.LEASE, 60):
        process.send_signal(signal.SIGSTOP)
    try:
        assert run(spec, local=True, load=standin.load).complete
        before = contents(spec.output)
    finally:
        process.send_signal(signal.SIGCONT)
    code, said = finish(process)
    assert code == OutputHeldError.exit_code, said
    assert verdict(spec).ok
    assert contents(spec.output) == before


def test_a_zombie_changes_nothing(make_spec, monkeypatch):
    spec = make_spec(lease_ttl_s=0)
    run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output)
    before = contents(spec.output)
    zombie = ShardWorker(spec, resolve_recipe(spec.recipe), standin.load)
    # It looked before the others were done, so it saw nothing; now it wakes and commits.
    monkeypatch.setattr(zombie.storage, "exists", lambda key: False)
    record = zombie.run(ShardTask(load_job(storage).plans[0], 1))
    assert contents(spec.output) == before
    assert record == next(commits.read_records(storage, [(0, 1)]))


def test_an_object_of_another_plan_is_never_taken_for_ours(make_spec, make_manifest, tmp_path):
    from stereo_jobs.errors import DriftError

    spec = make_spec()
    other = make_spec(make_manifest(rows=9, name="other.parquet"), str(tmp_path / "other"))
    run(other, local=True, load=standin.load)
    name = layout.data((0, 0))
    open_storage(spec.output).create(name, open_storage(other.output).read(name))
    with pytest.raises(DriftError, match="belongs to another plan"):
        run(spec, local=True, load=standin.load)
    assert committed(open_storage(spec.output))[0] == ShardSet([(0, 0)])


def contents(output: str) -> dict[str, bytes]:
    storage = open_storage(output)
    prefixes = (layout.DATA_PREFIX, layout.RECORDS_PREFIX, layout.PLANS_PREFIX)
    return {info.key: storage.read(info.key) for prefix in prefixes for info in storage.list(prefix)}


def wait_for(path) -> None:
    wait_until(path.exists)
