"""Actors that cannot load their models, a cluster without room for them, and an estimate on a cluster."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from stereo_jobs.errors import (
    ClusterError,
    InterruptedRunError,
    ModelError,
    SpecError,
    StorageUnavailableError,
)
from stereo_jobs.run import estimate
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import prepared
from tests.run import killed
from tests.waiting import wait_until


def load_dying_once(recipe, device, batch_size):
    mark = Path(os.environ["PID_FOLDER"], "died-loading")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return standin.StandIn(batch_size)


def test_an_actor_lost_while_loading_is_replaced(pids, monitored, make_spec):
    assert run(make_spec(actors=1), load=load_dying_once).complete
    (pids / "died-loading").unlink()


def load_dying(recipe, device, batch_size):
    os.kill(os.getpid(), signal.SIGKILL)


def test_actors_that_always_die_while_loading_end_the_run(pids, make_spec):
    with pytest.raises(ClusterError, match="an actor died while it loaded its models"):
        run(make_spec(actors=1, shard_attempts=2), load=load_dying)


class WithAnother(standin.StandIn):
    """Generates nothing before another actor has loaded its models, too."""

    loaded = Path(os.environ.get("PID_FOLDER", ""), "loaded")
    generating = loaded.with_name("generating")

    def __init__(self, batch_size):
        super().__init__(batch_size)
        self.loaded.mkdir(exist_ok=True)
        (self.loaded / str(os.getpid())).touch()

    def generate(self, rows):
        self.generating.mkdir(exist_ok=True)  # so the pool has heard that this actor is ready
        wait_until(lambda: len(list(self.loaded.iterdir())) > 1)
        return super().generate(rows)


def tries(times: int) -> bool:
    """Whether this process is not the first in its job to load its models, but among the next `times`."""
    tried = Path(os.environ["PID_FOLDER"], "tried")
    tried.mkdir(exist_ok=True)
    (tried / str(time.monotonic_ns())).touch()
    return 1 < len(list(tried.iterdir())) <= 1 + times


@pytest.fixture
def tried(pids):
    yield
    for name in ("tried", "loaded", "generating"):
        shutil.rmtree(pids / name, ignore_errors=True)


def load_hanging(recipe, device, batch_size):
    if tries(1):
        time.sleep(3600)
    return WithAnother(batch_size)


def load_while_the_store_is_away(recipe, device, batch_size):
    if tries(2):
        wait_until(WithAnother.generating.exists)
        raise StorageUnavailableError("s3://x: SlowDown")
    return WithAnother(batch_size)


@pytest.mark.parametrize(
    ("load", "attempts", "start_timeout_s", "said"),
    [
        (load_hanging, 2, 60, "took more than runtime.start_timeout_s = 60 to load its models"),
        (load_while_the_store_is_away, 1, 300, "starting another actor: s3://x: SlowDown"),
    ],
)
def test_an_actor_that_cannot_load_while_another_serves(
    pids, tried, make_spec, caplog, load, attempts, start_timeout_s, said
):
    spec = make_spec(actors={"min": 1, "max": 2}, start_timeout_s=start_timeout_s, shard_attempts=attempts)
    assert run(spec, load=load).complete
    assert said in caplog.text
    assert "going on without" not in caplog.text


def load_where_it_can(recipe, device, batch_size):
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "1":
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
    time.sleep(2)  # so that the other one fails while no actor is ready
    return standin.StandIn(batch_size)


def test_one_bad_machine_at_the_start(pids, make_spec, make_manifest, caplog):
    manifest = make_manifest(rows=30, prompt=["slow"] * 30)
    assert run(make_spec(manifest, actors=None), load=load_where_it_can).complete
    assert "/1: an actor could not load its models: RuntimeError('CUDA error" in caplog.text
    with pytest.raises(ClusterError, match="devices are busy"):  # both are asked for, and one cannot
        run(make_spec(manifest, output=f"{manifest}-2", actors=2, shard_attempts=1), load=load_where_it_can)


def load_from_nowhere(recipe, device, batch_size):
    raise StorageUnavailableError("s3://x: the endpoint cannot be reached")


def test_a_store_that_is_away_while_the_first_actors_load(pids, make_spec):
    with pytest.raises(StorageUnavailableError, match="s3://x: the endpoint cannot be reached"):
        run(make_spec(), load=load_from_nowhere)


def load_badly(recipe, device, batch_size):
    raise ModelError("model nowhere: cannot be loaded")


def test_models_that_do_not_load_end_the_run_at_once(pids, make_spec):
    started = time.monotonic()
    with pytest.raises(ModelError, match="model nowhere: cannot be loaded"):
        run(make_spec(), load=load_badly)
    assert time.monotonic() - started < 60


def test_more_actors_than_the_cluster_holds(pids, make_spec):
    with pytest.raises(SpecError, match=r"runtime\.actors: . of 3 actors ready"):
        run(make_spec(actors=3, cpus_per_actor=3, start_timeout_s=20), load=killed.load_armed)


def test_a_cluster_without_room_for_any_actor(pids, make_spec):
    with pytest.raises(InterruptedRunError, match=r"0 of 2 actors ready .* run again when it has room"):
        run(make_spec(cpus_per_actor=300, start_timeout_s=3), load=killed.load_armed)


def measured(spec, load, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    _, job, recipe = prepared(spec, publish=False)
    return estimate.measure_rows(spec, recipe, job.plans[0], load)


def load_hanging_always(recipe, device, batch_size):
    time.sleep(3600)


def test_an_estimate_on_a_cluster(pids, make_spec, monkeypatch):
    assert measured(make_spec(), standin.load, monkeypatch).pairs == 6
    with pytest.raises(ModelError, match="model nowhere"):
        measured(make_spec(), load_badly, monkeypatch)


@pytest.mark.parametrize(
    ("load", "runtime", "kind", "said"),
    [
        (standin.load, {"cpus_per_actor": 300}, InterruptedRunError, "no room for a worker within 4 s"),
        (load_dying, {"start_timeout_s": 300}, ClusterError, "the worker died while it measured"),
        (load_hanging_always, {"batch_timeout_s": 0.5, "start_timeout_s": 20}, ClusterError, "4 batches within 22 s"),
    ],
)
def test_an_estimate_that_cannot_be_made(pids, make_spec, monkeypatch, load, runtime, kind, said):
    with pytest.raises(kind, match=said):
        measured(make_spec(**{"start_timeout_s": 4} | runtime), load, monkeypatch)


@pytest.mark.slow
def test_a_run_tells_what_its_first_actors_wait_for(make_spec):
    seen = []
    run(make_spec(actors=1, device="cpu"), load=standin.load, watch=seen.append)
    starting = [state.starting for state in seen if state.starting]
    assert starting[0] == "starting Ray, or joining its cluster"
    assert "0 of 1 workers ready, 1 waiting for room (CPU 1 each)" in starting
    assert not seen[-1].starting
    assert seen[-1].workers == 1


def test_a_run_tells_that_no_node_has_room(pids, make_spec):
    seen = []
    with pytest.raises(InterruptedRunError, match="0 of 1 actors ready"):
        spec = make_spec(actors=1, gpus_per_actor=64, start_timeout_s=2)
        run(spec, load=standin.load, watch=seen.append)
    assert seen[-1].starting == ("0 of 1 workers ready, 1 waiting for room (GPU 64, CPU 1 each), which no node has yet")
