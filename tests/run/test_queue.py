"""The order in which shards are dispatched."""

from dataclasses import replace

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.run.prepare import prepare
from stereo_jobs.run.queue import ShardQueue


def everywhere(task):
    return True


def at(*places):
    """Free workers at these places; others are busy."""
    return lambda task: any(place not in task.avoid for place in places)


@pytest.fixture
def queue(make_spec):
    """Three shards, none of them done."""
    spec = make_spec()
    job = prepare(spec, open_storage(spec.output)).job
    return ShardQueue(job, ShardSet())


def keys(tasks):
    return [task.key[1] for task in tasks]


def test_requeued_shards_come_first_and_those_to_retry_last(queue):
    first, second = queue.pop(everywhere), queue.pop(everywhere)
    queue.retry_later(second)
    queue.requeue(first)
    assert keys(queue.pop(everywhere) for _ in range(3)) == [0, 2, 1]
    assert queue.pop(everywhere) is None
    assert not queue


def test_a_shard_waits_for_another_place_while_that_one_gets_others(queue):
    died = queue.pop(everywhere)
    queue.requeue(replace(died, avoid=frozenset({"bad"})))
    assert keys([queue.pop(at("bad")), queue.pop(at("bad"))]) == [1, 2]
    assert queue.pop(at("bad")) is None
    assert queue
    assert keys([queue.pop(at("bad", "good"))]) == [0]


def test_a_shard_to_retry_waits_for_another_place_too(queue):
    died = queue.pop(everywhere)
    queue.retry_later(replace(died, avoid=frozenset({"bad"})))
    assert keys([queue.pop(at("bad")), queue.pop(at("bad"))]) == [1, 2]
    assert queue.pop(at("bad")) is None
    assert keys([queue.pop(at("good"))]) == [0]
