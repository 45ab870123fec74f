"""What the heartbeats actor remembers, without Ray."""

import time

from stereo_jobs.workers.ray.heartbeats import Heartbeats, HeartbeatSummary

KEY = (0, 3)


def test_the_current_batch_of_a_lost_worker_is_known_once():
    heartbeats = Heartbeats()
    heartbeats.report(1, KEY, [0, 1])
    heartbeats.report(1, KEY, [2])
    heartbeats.report(2, (0, 4), [5])
    assert heartbeats.take_batch(1) == (KEY, [2])
    assert heartbeats.take_batch(1) is None
    assert heartbeats.take_batch(2) == ((0, 4), [5])


def test_after_its_last_batch_a_worker_is_not_generating():
    heartbeats = Heartbeats()
    heartbeats.report(1, KEY, [0])
    heartbeats.report(1, KEY, [])
    assert heartbeats.take_batch(1) is None


def test_late_and_preempted_actors():
    heartbeats = Heartbeats()
    heartbeats.report(1, KEY, [0])
    heartbeats.report(2, KEY, [0])
    time.sleep(0.05)
    heartbeats.report(2, KEY, [1])
    for number in (5, 4, 5):
        heartbeats.report_preemption(number)
    assert heartbeats.summary(0.04) == HeartbeatSummary([1], [4, 5])
    assert heartbeats.summary(60) == HeartbeatSummary([], [4, 5])


def test_encoding_is_blamed_where_nothing_is_generated_or_it_is_late():
    heartbeats = Heartbeats()
    heartbeats.report(1, KEY, [7], "encode 7")
    heartbeats.report(1, KEY, [8], "encode 8")
    heartbeats.report(1, KEY, [9], "encode 9")
    heartbeats.report(1, KEY, [], "encode 9")
    assert heartbeats.take_batch(1) == (KEY, [7, 8])
    heartbeats.report(1, KEY, [7], "encode 7")
    heartbeats.report(1, KEY, [0, 1])
    assert heartbeats.take_batch(1) == (KEY, [0, 1])
    heartbeats.report(1, KEY, [7], "encode 7")
    time.sleep(0.05)
    heartbeats.report(1, KEY, [0, 1])
    assert heartbeats.summary(0.02).late == [1]  # after twice the time: the actor itself comes first
    assert heartbeats.summary(60).late == []
    assert heartbeats.take_batch(1, 0.02) == (KEY, [7])
