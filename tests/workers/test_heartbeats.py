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
