"""A private cluster that does not start; GPUs that are asked for on a cluster without any: refused, or waited for."""

import pytest
import ray

from stereo_jobs.errors import ClusterError, SpecError
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.ray.cluster import refuse_missing_gpus, start_ray


@pytest.fixture
def runtime(monkeypatch):
    """Settings of a run on a cluster that has these resources."""

    def make(resources, address="head:6379", **settings):
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        settings = {"device": "cuda", "ray_address": address} | settings
        return parse_spec({"manifest": "x", "output": "y", "runtime": settings}).runtime

    return make


def test_without_a_number_of_actors_nothing_is_waited_for(runtime):
    with pytest.raises(
        SpecError, match=r"no node of the cluster head:6379 has a GPU; set it to auto or cpu, start nodes"
    ):
        refuse_missing_gpus(runtime({"CPU": 4.0}))


def test_a_private_cluster_gets_no_more_nodes(runtime):
    with pytest.raises(SpecError, match=r"Ray finds no GPU here; set it to auto or cpu, or use a machine"):
        refuse_missing_gpus(runtime({"CPU": 4.0}, address=None, actors=2))


@pytest.mark.parametrize("actors", [2, {"min": 1, "max": 4}])
def test_a_number_of_actors_is_waited_for_and_it_is_said(runtime, caplog, actors):
    refuse_missing_gpus(runtime({"CPU": 4.0}, actors=actors, start_timeout_s=120))
    assert (
        "no node of the cluster head:6379 has a GPU yet; waiting up to runtime.start_timeout_s = 120 s" in caplog.text
    )


def test_where_there_is_one_or_none_is_asked_for_nothing_is_said(runtime, caplog):
    refuse_missing_gpus(runtime({"CPU": 4.0, "GPU": 1.0}))
    refuse_missing_gpus(runtime({"CPU": 4.0}, device="auto"))
    refuse_missing_gpus(runtime({"CPU": 4.0}, device="cpu"))
    assert caplog.text == ""


class NodeThatDoesNotStart:
    """Ray's module as far as starting it goes: the first `failures` attempts fail as they do on a busy machine."""

    def __init__(self, failures: int):
        self.failures, self.attempts = failures, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: object) -> None:
        assert settings["address"] == "local"
        self.attempts += 1
        if self.attempts <= self.failures:
            raise Exception("The current node timed out during startup.")


def started(monkeypatch, failures: int) -> int:
    module = NodeThatDoesNotStart(failures)
    monkeypatch.setattr(ray, "init", module.init)
    monkeypatch.setattr(ray, "is_initialized", module.is_initialized)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_ray(parse_spec({"manifest": "x", "output": "y"}))
    return module.attempts


def test_a_private_cluster_that_did_not_come_up_is_started_again(monkeypatch, caplog):
    assert started(monkeypatch, failures=2) == 3
    assert "did not start (The current node timed out during startup.); trying again" in caplog.text


def test_a_private_cluster_that_never_comes_up_ends_the_run_with_a_remedy(monkeypatch):
    with pytest.raises(ClusterError, match=r"timed out during startup.*in 3 attempts.*--local runs without Ray"):
        started(monkeypatch, failures=3)
