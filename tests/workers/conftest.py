"""A Ray for the tests of one file, and deaths as its memory monitor reports them."""

import os

import pytest

from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.ray.cluster import start_ray


@pytest.fixture(scope="module")
def pids(tmp_path_factory):
    """A private Ray for this module; its workers leave files named by their process ids in this folder."""
    folder = tmp_path_factory.mktemp("pids")
    os.environ["PID_FOLDER"] = str(folder)
    os.environ["KILL_IN"] = "worker"
    # Two GPUs that do not exist: Ray only counts them and tells each actor which it may see.
    ray = start_ray(parse_spec({"manifest": "x", "output": "y", "runtime": {"actors": 4}}), gpus=2)[0]
    yield folder
    ray.shutdown()
    del os.environ["PID_FOLDER"], os.environ["KILL_IN"]


@pytest.fixture(params=[False, True], ids=["killed", "out of memory"])
def monitored(request, pids, monkeypatch):
    """Runs a test twice: an actor's death raises what it does, or what it does if Ray's memory monitor is the cause."""
    import ray

    real = ray.get

    def get(refs, **options):
        try:
            return real(refs, **options)
        except ray.exceptions.ActorDiedError as error:
            raise ray.exceptions.OutOfMemoryError(str(error)) from None

    if request.param:
        monkeypatch.setattr(ray, "get", get)
