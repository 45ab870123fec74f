"""A real S3 server behind a proxy that is away for a while, slow, or asks for patience; workers on a node of Ray's."""

import threading
import time
from collections.abc import Callable

import pytest

from stereo_jobs.errors import InterruptedRunError, StorageUnavailableError
from stereo_jobs.run.driver import run
from stereo_jobs.workers import patience
from tests import standin
from tests.cluster.nodes import cluster
from tests.fault_proxy import FaultProxy
from tests.waiting import wait_until


@pytest.fixture
def proxy(s3_server):
    with FaultProxy(s3_server, seed=1).serving() as made:
        yield made


@pytest.fixture
def job(long_job, proxy):
    """A job whose output and manifest are behind the proxy."""
    return long_job(30, proxy.endpoint, lease_ttl_s=60.0)


def at_work(job) -> bool:
    """Whether a few rows have been generated."""
    return len(job.generated()) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [20, 45])  # 45: longer than the lease is fresh, so dispatching pauses
def test_a_store_that_is_away_for_a_while(job, proxy, monkeypatch, seconds):
    with cluster(1):
        process = job.start()
        wait_until(lambda: at_work(job), what="four rows")
        proxy.away = True
        time.sleep(seconds)
        assert process.poll() is None
        proxy.heal()
        job.end(process)
    assert proxy.refused
    assert job.check(monkeypatch) == 0, "shards waited for the store"


@pytest.mark.slow
def test_a_slow_store(job, proxy, monkeypatch):
    with cluster(1):
        proxy.delay_s = 0.5
        job.end(job.start())
    proxy.heal()
    assert job.check(monkeypatch) == 0


@pytest.mark.slow
def test_a_store_that_asks_for_patience(job, proxy, monkeypatch):
    with cluster(1):
        proxy.slow_down_share = 0.1
        job.end(job.start())
    proxy.heal()
    assert proxy.refused > 5
    assert job.check(monkeypatch) == 0


# --- In one process, whose patience can be shortened ---


def once(true: Callable[[], object], act: Callable[[], None]) -> None:
    """Do something as soon as it is so."""
    threading.Thread(target=lambda: (wait_until(true), act()), daemon=True).start()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_that_stays_away_is_an_interruption(long_job, proxy, monkeypatch):
    job = long_job(30, proxy.endpoint, shard_attempts=1)
    monkeypatch.setattr(patience, "STORE_PATIENCE_S", 5.0)
    once(lambda: at_work(job), lambda: setattr(proxy, "away", True))
    with pytest.raises(InterruptedRunError) as end:
        run(job.spec, local=True, load=standin.load)
    assert end.value.exit_code == 75
    with pytest.raises(StorageUnavailableError) as end_at_once:
        run(job.spec, local=True, load=standin.load)
    assert end_at_once.value.exit_code == 75
    proxy.heal()
    # Its lease could not be given back either, and has to grow stale.
    run(job.spec, local=True, load=standin.load)
    assert job.check(monkeypatch) <= 4
