"""GPUs that are asked for on a cluster without any: refused at once, or waited for with a word."""

import pytest
import ray

from stereo_jobs.errors import SpecError
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.ray.cluster import refuse_missing_gpus


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
