"""Looks and resumes ask a store for little, however many shards there are: `benchmarks/scale.py` counts it at large."""

import functools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.data.storage import LocalStorage, ObjectInfo, open_storage
from stereo_jobs.output import commits, layout, progress, watch
from stereo_jobs.output.commits import recorded_beyond
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.run import driver
from stereo_jobs.run.driver import run
from tests import standin
from tests.output.test_plan import plan_of

PAGE = 7
PLANS = [plan_of(30, generation=0, shard_rows=1), plan_of(50, generation=1, shard_rows=1)]
shards = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 49)))


class Records:
    """A storage of records, listed in pages."""

    def __init__(self, keys):
        self.names, self.pages = sorted(map(layout.record, keys)), 0

    def list(self, prefix, after=""):
        rest = [name for name in self.names if name.startswith(prefix) and name > after]
        for start in range(0, max(1, len(rest)), PAGE):
            self.pages += 1
            yield from (ObjectInfo(name, 1) for name in rest[start : start + PAGE])


@given(shards, shards)
def test_records_beyond_a_set_are_found_by_its_gaps(recorded, known):
    """Each gap is listed, as long as there are few of them, and no record that a plan does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "PAGE_KEYS", PAGE)
        patch.setattr(commits, "MOST_SPANS", 100)
        found = list(recorded_beyond(Records(recorded), PLANS, ShardSet(known)))
    assert found == sorted(key for key in recorded - known if key[1] < PLANS[key[0]].shards)


@given(st.sets(st.integers(0, 29), max_size=10), st.integers(1, 20))
def test_a_look_lists_few_pages(open_early, done):
    """Shards that failed early lie far apart; all but the widest of their gaps are left out."""
    known = {(0, shard) for shard in range(30) if shard not in open_early} | {(1, shard) for shard in range(done)}
    storage = Records(known | {(1, done), (1, done + 1)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "PAGE_KEYS", PAGE)
        patch.setattr(commits, "MOST_SPANS", 2)
        assert list(recorded_beyond(storage, PLANS, ShardSet(known))) == [(1, done), (1, done + 1)]
    assert storage.pages <= 4


@pytest.fixture
def asked(monkeypatch):
    """How often each folder was listed, and objects of it were read."""
    counts = Counter()

    def counted(name, function):
        @functools.wraps(function)
        def count(self, key="", *args):
            counts[f"{name} {key.rpartition('/')[0]}"] += 1
            return function(self, key, *args)

        return count

    for name in ("list", "read"):
        monkeypatch.setattr(LocalStorage, name, counted(name, getattr(LocalStorage, name)))
    return counts


def test_a_resume_lists_each_folder_once(make_spec, make_manifest, asked):
    spec = make_spec(make_manifest(rows=8))
    run(spec, local=True, load=standin.load)
    (open_storage(spec.output).root / layout.data((0, 1))).unlink()
    (open_storage(spec.output).root / layout.PROGRESS).unlink()
    asked.clear()
    run(spec, local=True, load=standin.load)
    assert (asked["list data"], asked["list _job/commits"]) == (1, 1)


def test_a_look_reads_what_the_roll_up_lacks(make_spec, make_manifest, asked):
    spec = make_spec(make_manifest(rows=8))
    run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output)
    job = load_job(storage)
    whole = progress.totals(storage, job)
    part = progress.Totals()
    progress.add(part, job, commits.read_records(storage, [(0, 0)]))
    progress.save(storage, part)
    asked.clear()
    assert watch.look(storage).status == progress.status(job, whole)
    assert (asked["list data"], asked["list _job/commits"], asked["read _job/commits"]) == (0, 1, 2)


def test_looks_without_a_roll_up_read_each_record_once(make_spec, make_manifest, asked):
    spec = make_spec(make_manifest(rows=8))
    run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output)
    (storage.root / layout.PROGRESS).unlink()
    (storage.root / layout.success(0)).unlink()
    asked.clear()
    looks = watch.watch(storage, every_s=1, patience_s=1e9, sleep=lambda seconds: None)
    assert [next(looks).status.shards_done for _ in range(3)] == [3, 3, 3]
    assert asked["read _job/commits"] == 3


def test_a_watch_forgets_what_it_read_of_another_job(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=8))
    run(spec, local=True, load=standin.load)
    before = load_job(open_storage(spec.output))
    assert load_job(open_storage(spec.output)).continues(before)
    other = make_spec(make_manifest(rows=9), output=f"{spec.output}-2")
    run(other, local=True, load=standin.load)
    assert not load_job(open_storage(other.output)).continues(before)


def test_the_roll_up_lacks_few_shards_while_a_run_lives(make_spec, make_manifest, monkeypatch):
    lacks = []
    real = progress.save

    def save(storage, sums, throughput=None):
        lacks.append(len(commits.committed(storage).records) - len(known))
        known.update(sums.shards)
        real(storage, sums, throughput)

    known = set()
    monkeypatch.setattr(driver.progress, "save", save)
    monkeypatch.setattr(driver, "SAVE_TOTALS_AT_MOST_EVERY_S", 0)
    run(make_spec(make_manifest(rows=40), shard_rows=1), local=True, load=standin.load)
    in_flight = 3
    assert max(lacks) <= driver.SAVE_TOTALS_AFTER + in_flight
    assert len(lacks) >= 40 // (driver.SAVE_TOTALS_AFTER + in_flight)
