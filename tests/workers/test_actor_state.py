"""The states of an actor, and which transitions there are."""

import time

import pytest

from stereo_jobs.workers.ray.actor_state import Actor, ActorState, Place

WAITING, LOADING, READY, DRAINING = ActorState
EVENTS = {
    "placed": lambda actor: actor.placed(Place("node", "0")),
    "loaded": lambda actor: actor.loaded(),
    "drained": lambda actor: actor.drain("its machine is about to go"),
}


def after(*events: str) -> Actor:
    actor = Actor(7, "handle", "placing", "loading")
    for event in events:
        EVENTS[event](actor)
    return actor


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], WAITING),
        (["drained"], WAITING),
        (["placed"], LOADING),
        (["placed", "loaded"], READY),
        (["placed", "drained"], DRAINING),
        (["placed", "drained", "loaded"], DRAINING),
        (["placed", "loaded", "drained"], DRAINING),
        (["placed", "loaded", "drained", "drained"], DRAINING),
    ],
)
def test_transitions(events, state):
    assert after(*events).state is state


def test_what_ray_has_answered_is_not_asked_again():
    assert (after().placing, after().loading) == ("placing", "loading")
    assert (after("placed").placing, after("placed").loading) == (None, "loading")
    assert after("placed", "drained").loading == "loading", "the end of its loading is still of interest"
    assert after("placed", "drained", "loaded").loading is None


def test_labels():
    assert after().label == "number 7"
    assert after("placed").label == "node/0"
    assert Place("0123456789abcdef", "").label == "0123456789ab/cpu"


def test_time_to_load_counts_from_its_place():
    waiting, loading, draining, ready = after(), after("placed"), after("placed", "drained"), after("placed", "loaded")
    time.sleep(0.02)
    slow = [actor.loads_for_longer_than(0.01) for actor in (waiting, loading, draining, ready)]
    assert slow == [False, True, True, False]
    assert not loading.loads_for_longer_than(60)


def test_draining_is_logged_once(caplog):
    after("placed", "loaded", "drained", "drained")
    assert caplog.text.count("its machine is about to go; nothing more is dispatched to it") == 1
