"""kill -9 at any point, then run again: the output verifies, and every row equals that of an uninterrupted run."""

import os
import random
import signal
import time

import pytest

from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec
from tests import standin
from tests.datasets import rows, verdict
from tests.run.processes import finish, start

# Runs of these tests end by a kill, never by a lease that a stalled machine could not renew within half of this.
LEASE_TTL_S = 8.0
PROMPTS = ["fine", "boom", "fine slow", "fine", "nan", "fine slow", "fine", "fine"]


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Makes a fresh output and the storage settings that go with it."""
    if request.param == "local":
        return lambda name: (str(tmp_path / name), {})
    endpoint = request.getfixturevalue("s3_server")
    return lambda name: (
        f"s3://jobs/{tmp_path.name}-{os.urandom(4).hex()}/{name}",
        {"storage": {"endpoint_url": endpoint}},
    )


@pytest.fixture
def job(place, make_spec, make_manifest):
    """Makes specs of one manifest with two failing rows, each with an output of its own."""
    quick = [prompt.replace(" slow", "") for prompt in PROMPTS]
    manifests = {
        slow: make_manifest(name=f"slow-{slow}.parquet", prompt=PROMPTS if slow else quick) for slow in (True, False)
    }

    def make(name: str, slow: bool = False, **runtime) -> JobSpec:
        output, settings = place(name)
        options = {"max_failure_ratio": 0.5, "lease_ttl_s": LEASE_TTL_S} | settings | runtime
        return make_spec(manifests[slow], output, **options)

    return make


def finish_and_compare(spec: JobSpec, whole: JobSpec) -> None:
    status = run(spec, local=True, load=standin.load)
    assert (status.succeeded, status.failed) == (6, 2)
    found = verdict(spec)
    assert found.ok, found.problems
    assert rows(spec) == rows(whole)


def kill_at_every_write(job, tmp_path, writes: list[int], **environment: str) -> None:
    whole = job("whole")
    run(whole, local=True, load=standin.load)
    for at in writes:
        # Without a lease nobody waits for the dead run's; exactly-once must hold without it anyway.
        spec = job(f"killed-{at}", lease_ttl_s=0)
        code, said = finish(start(spec, tmp_path, KILL_AT=str(at), **environment))
        assert code in (-signal.SIGKILL, 0), said
        assert code or at > 10, "the run ended before the write at which it should have died"
        finish_and_compare(spec, whole)


def test_killed_before_a_write(job, tmp_path):
    # 1 card, 2 ids, 3 plan, 4 progress; then three shards of object, (errors), record; then the end.
    kill_at_every_write(job, tmp_path, [2, 3, 4, *sorted(random.sample(range(5, 13), 5))])


@pytest.mark.slow
def test_killed_before_every_write(job, tmp_path):
    kill_at_every_write(job, tmp_path, list(range(1, 18)))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_killed_halfway_through_every_write(job, tmp_path):
    kill_at_every_write(job, tmp_path, list(range(1, 18)), KILL_HALFWAY="1")


def kill_driver(job, tmp_path, moments: list[float], *options: str) -> None:
    whole = job("whole", slow=True)
    run(whole, local=True, load=standin.load)
    for i, moment in enumerate(moments):
        spec = job(f"killed-{i}", slow=True)
        process = start(spec, tmp_path, *options)
        time.sleep(moment)
        process.kill()
        finish(process)
        finish_and_compare(spec, whole)


def test_driver_killed_at_a_random_moment(job, tmp_path):
    kill_driver(job, tmp_path, [random.uniform(0.5, 2.5)])


@pytest.mark.slow
def test_driver_killed_at_many_moments(job, tmp_path):
    kill_driver(job, tmp_path, [random.uniform(0.2, 2.5) for _ in range(8)])


@pytest.mark.slow
def test_driver_on_ray_killed_at_random_moments(job, tmp_path):
    kill_driver(job, tmp_path, [random.uniform(4, 12) for _ in range(4)], "--ray")
