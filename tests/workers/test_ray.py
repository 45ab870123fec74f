"""A job on Ray actors makes the same dataset as one in this process, whatever dies meanwhile."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import (
    StereoJobsError,
)
from stereo_jobs.output.commits import read_records
from stereo_jobs.output.plan import load_job
from stereo_jobs.records import RowError
from stereo_jobs.run.driver import run
from stereo_jobs.workers.ray.blocklist import EXCLUDED_AFTER
from stereo_jobs.workers.task import IN_FLIGHT
from tests import standin
from tests.datasets import rows, verdict
from tests.output.test_lease import wait_for
from tests.run import killed
from tests.run.processes import finish, start
from tests.waiting import wait_until


@pytest.fixture
def whole(make_spec, make_manifest, tmp_path):
    """A manifest with slow rows, and the dataset rows that an undisturbed local run makes of it."""
    manifest = make_manifest(rows=10, prompt=["fine", "slow"] * 5)
    spec = make_spec(manifest, str(tmp_path / "whole"))
    run(spec, local=True, load=standin.load)
    return manifest, rows(spec)


def alive(pids: Path) -> list[int]:
    return [int(p.name) for p in pids.iterdir() if p.name.isdigit() and Path("/proc", p.name).exists()]


def test_ray_and_local_make_the_same_dataset(pids, whole, make_spec):
    manifest, expected = whole
    spec = make_spec(manifest)
    seen = []
    status = run(spec, load=killed.load_armed, watch=seen.append)
    assert status.complete
    assert max(state.workers for state in seen) == 2
    assert verdict(spec).ok
    assert rows(spec) == expected


def load_telling_its_gpu(recipe, device, batch_size):
    folder = Path(os.environ["PID_FOLDER"], "gpus")
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    return standin.StandIn(batch_size)


@pytest.mark.parametrize(("gpus", "actors", "seen"), [(1, None, ["0", "1"]), (0.5, None, ["0", "0", "1", "1"])])
def test_each_actor_is_pinned_to_its_gpu(pids, make_spec, make_manifest, gpus, actors, seen):
    spec = make_spec(make_manifest(rows=20, prompt=["slow"] * 20), actors=actors, gpus_per_actor=gpus, shard_rows=1)
    run(spec, load=load_telling_its_gpu)
    told = [path.read_text() for path in (pids / "gpus").iterdir()]
    shutil.rmtree(pids / "gpus")
    assert sorted(told) == seen


def test_actors_killed_at_random_moments(pids, whole, make_spec):
    manifest, expected = whole
    spec = make_spec(manifest, shard_rows=2)
    ended = threading.Event()
    hits = []

    def kill_now_and_then() -> None:
        while not ended.wait(random.uniform(0.3, 1.5)) and len(hits) < 3:
            for pid in random.sample(alive(pids), 1) if alive(pids) else []:
                os.kill(pid, signal.SIGKILL)
                hits.append(pid)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        # A row during which two actors are killed is quarantined: a listed error, not a missing row.
        run(spec, load=killed.load_armed)
    finally:
        ended.set()
        killer.join()
    assert hits
    found = verdict(spec)
    assert found.ok, found.problems
    made = rows(spec)
    assert all(made[key] == expected[key] for key in made)
    assert len(made) + found.failed == len(expected)


def test_actors_killed_between_their_writes(pids, make_spec, make_manifest, tmp_path):
    # Ray's workers have the environment of its start: the armed generator reads these from a fresh Ray.
    manifest = make_manifest(rows=6, prompt=["fine", "fine", "boom"] * 2)
    runs = []
    for at in (1, 2, 3):
        spec = make_spec(manifest, str(tmp_path / f"killed-{at}"), max_failure_ratio=1.0)
        mark = tmp_path / f"mark-{at}"
        armed = {"KILL_AT": str(at), "KILL_IN": "worker", "KILL_MARK": str(mark)}
        runs.append((spec, mark, start(spec, tmp_path, "--ray", **armed)))
    for spec, mark, process in runs:
        code, said = finish(process)
        assert code == 0, said
        assert mark.exists()
        found = verdict(spec)
        assert (found.ok, found.succeeded, found.failed) == (True, 4, 2)


def test_a_row_that_kills_its_worker_is_quarantined(pids, monitored, make_spec, make_manifest):
    prompts = ["fine", "fine", "poison", "fine", "fine", "fine"]
    spec = make_spec(make_manifest(rows=6, prompt=prompts), max_failure_ratio=0.5, actors=1)
    status = run(spec, load=killed.load_armed)
    assert (status.succeeded, status.failed) == (5, 1)
    assert verdict(spec).ok
    from stereo_jobs.output.commits import read_footer

    footer = read_footer(open_storage(spec.output).read("data/train-0000-0000000.parquet"))
    assert [(error.id, error.error_type) for error in footer.errors] == [("row-0002", "KilledWorker")]


class HeartbeatsKiller(standin.StandIn):
    """Kills the heartbeats actor once, before anything is generated."""

    def generate(self, rows):
        mark = Path(os.environ["PID_FOLDER"], "heartbeats-killed")
        if not mark.exists():
            for process in self.heartbeats():
                process.kill()
                process.wait(60)
                mark.touch()
            assert mark.exists()
            wait_until(self.heartbeats)  # the pool has asked it in vain, and started another
            time.sleep(1)
        return super().generate(rows)

    @staticmethod
    def heartbeats():
        """The processes of the heartbeats actor of this run that are alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("PID_FOLDER") == os.environ["PID_FOLDER"]
                if ours and "ray::Heartbeats" in " ".join(process.cmdline()):
                    found.append(process)
        return found


def load_heartbeats_killer(recipe, device, batch_size):
    return HeartbeatsKiller(batch_size)


def test_lost_heartbeats_are_replaced(pids, make_spec, make_manifest):
    prompts = ["fine", "fine", "fine", "fine", "poison", "fine"]
    spec = make_spec(make_manifest(rows=6, prompt=prompts), max_failure_ratio=0.5, actors=1)
    status = run(spec, load=load_heartbeats_killer)
    (pids / "heartbeats-killed").unlink()
    assert (status.succeeded, status.failed) == (5, 1)


def test_an_actor_over_its_shard_timeout_is_discarded(pids, make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=1, prompt=["hang"]), shard_timeout_s=2, shard_attempts=2)
    with pytest.raises(StereoJobsError, match="failed 2 times, last: the shard took more than 2 s"):
        run(spec, load=killed.load_armed)


@pytest.mark.slow
def test_a_shard_that_waits_its_turn_is_not_late(pids, make_spec, make_manifest, caplog):
    spec = make_spec(make_manifest(rows=24, prompt=["slow"] * 24), shard_rows=6, actors=1, shard_timeout_s=4.6)
    assert run(spec, load=killed.load_armed).complete
    assert "took more than" not in caplog.text


class DyingOutsideBatches(standin.StandIn):
    @property
    def inputs(self):
        os.kill(os.getpid(), signal.SIGKILL)

    @inputs.setter
    def inputs(self, value):
        pass


def load_dying_outside_batches(recipe, device, batch_size):
    return DyingOutsideBatches(batch_size)


def test_a_shard_whose_workers_always_die_ends_the_run(pids, make_spec, monkeypatch):
    from stereo_jobs.run import retry

    monkeypatch.setattr(retry, "MAX_LOST_BETWEEN_BATCHES", 2)
    with pytest.raises(Exception, match="lost 2 workers that were not generating any row"):
        run(make_spec(actors=1), load=load_dying_outside_batches)


@pytest.mark.slow
def test_a_row_that_never_ends_is_quarantined(pids, make_spec, make_manifest):
    prompts = ["fine", "fine", "hang", "fine"]
    spec = make_spec(make_manifest(rows=4, prompt=prompts), shard_rows=4, batch_timeout_s=6.0, max_failure_ratio=0.5)
    status = run(spec, load=killed.load_armed)
    assert (status.succeeded, status.failed) == (3, 1)
    assert status.wasted_seconds > 2 * 6
    assert verdict(spec).ok


class OnABadGpu(standin.StandIn):
    """Dies, or generates only NaN, on GPU 1, once the other GPU has begun; that one leaves it enough rows."""

    dies = True

    def _one(self, row):
        good, bad = (Path(os.environ["PID_FOLDER"], "rows-by-gpu", gpu) for gpu in "01")
        for folder in (good, bad):
            folder.mkdir(parents=True, exist_ok=True)
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "1":
            wait_until(lambda: any(good.iterdir()))
            (bad / row.id).touch()
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._one(row)  # takes as long as a good row
            return RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
        (good / row.id).touch()
        if len(list(good.iterdir())) > 10:
            wait_until(lambda: len(list(bad.iterdir())) >= EXCLUDED_AFTER)
        return super()._one(row)


class OnASickGpu(OnABadGpu):
    dies = False


def load_on_a_bad_gpu(recipe, device, batch_size):
    return OnABadGpu(batch_size)


def load_on_a_sick_gpu(recipe, device, batch_size):
    return OnASickGpu(batch_size)


@pytest.mark.parametrize(
    ("load", "most_failed"), [(load_on_a_bad_gpu, 0), pytest.param(load_on_a_sick_gpu, 3 + 2, marks=pytest.mark.slow)]
)
def test_a_gpu_where_every_shard_fails_is_excluded(pids, make_spec, make_manifest, caplog, load, most_failed):
    shutil.rmtree(pids / "rows-by-gpu", ignore_errors=True)
    manifest = make_manifest(rows=40, prompt=["slow"] * 40)
    spec = make_spec(manifest, shard_rows=1, actors=None, max_failure_ratio=0.5)
    status = run(spec, load=load)
    assert status.complete
    assert status.failed <= most_failed
    assert "/1: 3 shards in a row failed there; going on without it" in caplog.text
    assert verdict(spec).ok


class OnASpotMachine(standin.StandIn):
    """The preemption of the first actor is announced during its first batch, until it has been noticed."""

    def generate(self, rows):
        folder = Path(os.environ["PID_FOLDER"])
        with contextlib.suppress(FileExistsError):
            (folder / "announced").touch(exist_ok=False)
            (folder / "notice").touch()
            while any(thread.name == "preemption" for thread in threading.enumerate()):
                time.sleep(0.05)
            (folder / "notice").unlink()
        return super().generate(rows)


def load_on_a_spot_machine(recipe, device, batch_size):
    return OnASpotMachine(batch_size)


@pytest.mark.slow
def test_nothing_more_is_dispatched_after_a_preemption_notice(pids, make_spec, make_manifest, caplog):
    manifest = make_manifest(rows=24, prompt=["slow"] * 24)
    spec = make_spec(manifest, shard_rows=2, actors=1, spot_notice=str(pids / "notice"))
    assert run(spec, load=load_on_a_spot_machine).complete
    assert caplog.text.count("its machine is about to go") == 1
    storage = open_storage(spec.output)
    made = Counter(record.worker for record in read_records(storage, load_job(storage).shard_keys()))
    assert sorted(made.values())[0] <= IN_FLIGHT
    assert len(made) == 2


class LongAndDeadly(standin.StandIn):
    def generate(self, rows):
        mark = Path(os.environ["PID_FOLDER"], "long-and-deadly")
        if not mark.exists():
            mark.touch()
            time.sleep(25)
            os.kill(os.getpid(), signal.SIGKILL)
        mark.unlink(missing_ok=True)
        return super().generate(rows)


def load_long_and_deadly(recipe, device, batch_size):
    return LongAndDeadly(batch_size)


@pytest.mark.slow
def test_losing_all_under_a_long_last_shard(pids, make_spec, make_manifest):
    """The shard takes longer than `start_timeout_s`, which counts only the time without an actor."""
    spec = make_spec(make_manifest(rows=1), actors=1, start_timeout_s=40)
    assert run(spec, load=load_long_and_deadly).complete


def test_sigterm_drains_on_ray_too(make_spec, make_manifest, tmp_path):
    spec = make_spec(make_manifest(rows=16, prompt=["slow"] * 16), shard_rows=1)
    process = start(spec, tmp_path, "--ray")
    wait_for(tmp_path / "out/_job/commits")
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert (code, "interrupted; run again to go on" in said) == (75, True), said
    before = verdict(spec)
    assert (before.duplicated, before.corrupt) == (0, 0)
    assert before.missing > 0
    run(spec, local=True, load=standin.load)
    assert verdict(spec).ok
