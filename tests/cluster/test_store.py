"""A real S3 server behind a proxy that is away for a while, slow, or asks for patience."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import InterruptedRunError, StorageUnavailableError
from stereo_jobs.job import layout, worker
from stereo_jobs.job.driver import run
from stereo_jobs.spec import StorageSpec
from tests import standin
from tests.datasets import rows, verdict
from tests.fault_proxy import FaultProxy


@pytest.fixture
def proxy(s3_server):
    with FaultProxy(s3_server, seed=1).serving() as made:
        yield made


@pytest.fixture
def job(proxy, s3_server, make_spec, make_manifest, tmp_path):
    """A job whose output and manifest are behind the proxy; every generation of a row is told."""
    told = tmp_path / "told"
    columns = make_manifest(rows=30, prompt=[f"slow told:{told}"] * 30)
    place = f"s3://jobs/{tmp_path.name}-{os.urandom(4).hex()}"
    settings = StorageSpec(endpoint_url=proxy.endpoint)
    open_storage(f"{place}/manifests", settings).create("prompts.parquet", columns.read_bytes())
    manifest, storage = f"{place}/manifests/prompts.parquet", {"storage": settings.model_dump()}
    spec = make_spec(manifest, f"{place}/out", lease_ttl_s=60.0, shard_rows=2, **storage)
    return spec, told


def commits(spec) -> int:
    storage = open_storage(spec.output, spec.runtime.storage)
    return sum(1 for _ in storage.list(layout.RECORDS_PREFIX))


def check(spec, told, make_spec, make_manifest, tmp_path, monkeypatch) -> int:
    """All is there once and as an undisturbed run makes it; returns how many rows were generated in vain."""
    found = verdict(spec)
    assert (found.ok, found.succeeded) == (True, 30), found.problems
    generated = Counter(told.read_text().split())
    monkeypatch.setattr(standin.time, "sleep", lambda seconds: None)
    whole = make_spec(tmp_path / "manifests", str(tmp_path / "whole"))
    run(whole, local=True, load=standin.load)
    assert rows(spec) == rows(whole)
    return generated.total() - 30


def once_at_work(told: Path, act: Callable[[], None]) -> threading.Thread:
    """Do something when the first rows have been generated."""

    def wait_and_act() -> None:
        while not told.exists() or len(told.read_text().split()) < 4:
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_store_that_is_away_for_45_seconds(job, proxy, make_spec, make_manifest, tmp_path, monkeypatch):
    spec, told = job

    def outage() -> None:
        proxy.away = True
        time.sleep(45)  # more than half of the lease's time: nothing may be dealt meanwhile
        proxy.heal()

    striking = once_at_work(told, outage)
    run(spec, local=True, load=standin.load)
    striking.join()
    assert proxy.refused
    assert check(spec, told, make_spec, make_manifest, tmp_path, monkeypatch) == 0, "shards waited for the store"


@pytest.mark.slow
def test_a_slow_store(job, proxy, make_spec, make_manifest, tmp_path, monkeypatch):
    spec, told = job
    proxy.delay_s = 0.5
    run(spec, local=True, load=standin.load)
    assert check(spec, told, make_spec, make_manifest, tmp_path, monkeypatch) == 0


@pytest.mark.slow
def test_a_store_that_asks_for_patience(job, proxy, make_spec, make_manifest, tmp_path, monkeypatch):
    spec, told = job
    proxy.slow_down_share = 0.1
    run(spec, local=True, load=standin.load)
    proxy.heal()
    assert proxy.refused > 5
    assert check(spec, told, make_spec, make_manifest, tmp_path, monkeypatch) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_that_stays_away_is_an_interruption(job, proxy, make_spec, make_manifest, tmp_path, monkeypatch):
    spec, told = job
    spec = spec.model_copy(
        update={"runtime": spec.runtime.model_copy(update={"shard_attempts": 1, "lease_ttl_s": 30.0})}
    )
    monkeypatch.setattr(worker, "STORE_PATIENCE_S", 5.0)
    once_at_work(told, lambda: setattr(proxy, "away", True))
    with pytest.raises(InterruptedRunError) as end:
        run(spec, local=True, load=standin.load)
    assert end.value.exit_code == 75
    with pytest.raises(StorageUnavailableError) as end_at_once:
        run(spec, local=True, load=standin.load)
    assert end_at_once.value.exit_code == 75
    proxy.heal()
    # Its lease could not be given back either, and has to grow stale.
    run(spec, local=True, load=standin.load)
    assert check(spec, told, make_spec, make_manifest, tmp_path, monkeypatch) <= 4
