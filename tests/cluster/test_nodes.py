"""Clusters of two and three nodes, head included, whose parts are killed, frozen and added while a job runs."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.nodes import cluster, comes_back
from tests.conftest import REPOSITORY
from tests.run.processes import finish
from tests.waiting import PATIENCE_S, wait_until

of_two_and_three_nodes = pytest.mark.parametrize("workers", [1, 2])


@pytest.mark.parametrize(
    ("workers", "where"),
    [(1, "s3"), *(pytest.param(*both, marks=pytest.mark.slow) for both in [(1, "disk"), (2, "s3"), (2, "disk")])],
)
def test_a_node_is_killed(long_job, monkeypatch, request, workers, where):
    job = long_job(24, request.getfixturevalue("s3_server") if where == "s3" else None)
    with cluster(workers) as nodes:
        victim = nodes.all[-1]
        process = job.start()
        wait_until(lambda: victim.actors() and job.commits() >= 2, what="two commits")
        victim.kill()
        if workers == 1:
            nodes.add()  # as a cluster does that replaces what it lost
        said = job.end(process)
    assert "its node is gone" in said
    wasted = job.check(monkeypatch)
    assert wasted <= 2 * 2, "more was generated twice than was in flight on the lost actor"
    assert job.wasted_seconds() > 0


@pytest.mark.slow
def test_nodes_are_used_as_they_join(long_job, monkeypatch):
    job = long_job(60)
    with cluster(1) as nodes:
        process = job.start()
        wait_until(lambda: job.commits() >= 1, what="a commit")
        nodes.add()
        nodes.add()
        job.end(process)
    assert len(job.workers()) == 3
    assert job.check(monkeypatch) == 0


@pytest.mark.slow
def test_gpus_that_come_later_are_waited_for(long_job, monkeypatch):
    job = long_job(12, actors={"min": 1, "max": 4}, device="cuda", gpus_per_actor=0.5)
    with cluster(0) as nodes:
        process = job.start()
        time.sleep(10)
        nodes.add(cpus=2, gpus=1)
        job.end(process)
    assert 1 <= len(job.workers()) <= 2
    assert job.check(monkeypatch) == 0


@pytest.mark.slow
@of_two_and_three_nodes
def test_actors_are_killed_one_after_the_other(long_job, monkeypatch, workers):
    job = long_job(60)
    with cluster(workers) as nodes:
        process = job.start()
        for commits in (2, 6, 10):
            wait_until(lambda commits=commits: job.commits() >= commits, what=f"{commits} commits")
            victims = [actor for node in nodes.all for actor in node.actors()]
            with contextlib.suppress(psutil.NoSuchProcess):
                victims[0].kill()
        said = job.end(process)
    assert "its process died" in said
    assert job.check(monkeypatch) <= 3 * 2 * 2


@pytest.mark.slow
@of_two_and_three_nodes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_is_ended(long_job, monkeypatch, number, workers):
    job = long_job(40)
    with cluster(workers):
        process = job.start()
        wait_until(lambda: job.commits() >= 3, what="three commits")
        process.send_signal(number)
        code, said = finish(process)
        assert code == (75 if number == signal.SIGTERM else -number), said
        job.end(job.start())
    assert job.check(monkeypatch) <= 2 * 2 * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@of_two_and_three_nodes
def test_the_head_is_killed(long_job, monkeypatch, workers):
    job = long_job(120 * workers)
    with cluster(workers) as nodes:
        process = job.start()
        wait_until(lambda: job.commits() >= 3, what="three commits")
        nodes.head.kill()
        code, said = finish(process)
        assert (code, "the head of the cluster has not answered" in said) == (75, True), said
    with cluster(workers):
        job.end(job.start())
    assert job.check(monkeypatch) <= 2 * 2 * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_freezes_for_a_minute_and_comes_back(long_job, monkeypatch):
    # All its processes stop: it answers nothing, its connections stay open, and its shards are dispatched to others.
    job = long_job(300)
    with cluster(2) as nodes:
        victim = nodes.all[-1]
        process = job.start()
        wait_until(lambda: victim.actors() and job.commits() >= 6, what="six commits")
        victim.signal(signal.SIGSTOP)
        time.sleep(60)
        victim.signal(signal.SIGCONT)
        replaced = comes_back(victim, nodes, process)
        said = job.end(process)
    assert "its node is gone" in said
    assert job.workers() & replaced, "the machine served again"
    assert job.check(monkeypatch) <= 2 * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_network_between_two_nodes_fails_for_a_minute(long_job, monkeypatch):
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces need more rights here; the frozen node above stands in")
    job = long_job(300)
    Path(job.folder, "spec.json").write_text(job.spec.model_dump_json())
    command = ["unshare", "-rn", sys.executable, "-m", "tests.cluster.partition", str(job.folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "its node is gone" in done.stderr
    assert job.workers() & set(json.loads(done.stdout.splitlines()[-1])), "the machine served again"
    # The one that was cut off goes on with what it had, and finds it done when it can write again.
    assert job.check(monkeypatch) <= 2 * 2


@pytest.mark.slow
def test_nothing_is_dispatched_to_a_node_that_is_drained(long_job, monkeypatch):
    job = long_job(60)
    with cluster(1) as nodes:
        leaving = nodes.add()
        process = job.start()
        wait_until(lambda: leaving.actors() and job.commits() >= 2, what="two commits")
        nodes.drain(leaving, seconds=300)
        time.sleep(5)  # what was dispatched to it before is done then, and nothing more was
        leaving.kill()
        said = job.end(process)
    assert "about to go" in said
    assert job.check(monkeypatch) == 0
