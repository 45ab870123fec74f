"""The benchmark of the busy share runs a whole job and counts what it should."""

from argparse import Namespace

import pytest

from benchmarks import busy


@pytest.mark.usefixtures("one_thread")
def test_the_played_accelerator_is_busy_for_a_part_of_the_job():
    pairs = [busy.finished_pair(busy.FIRST_SEED + n, 64) for n in range(busy.SCENES)]
    options = Namespace(size=64, rows=6, shard_rows=3, s3=False)
    found = busy.measure(0.2, pairs, options)
    assert 0 < found["busy share"] <= 1
    # The accelerator sleeps 1.2 s in all, and the job ends after it.
    assert found["after it"] > 0
    assert found["CPU s a pair"] > 0
