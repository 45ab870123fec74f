"""Rows are decoded a batch ahead of the models, in the order and the batches that the models take."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.pipeline.batching import batches
from stereo_jobs.records import Row
from stereo_jobs.run.driver import run
from stereo_jobs.workers.reading import Batches
from tests import standin
from tests.datasets import rows, verdict


def make_rows(lefts: list[int]) -> list[Row]:
    """Rows whose left image has this seed each."""
    return [Row(f"r{i}", "a red circle", "", seed, 8.0) for i, seed in enumerate(lefts)]


def counted(begun: list[str]):
    """Decodes at once, and keeps the order."""

    def decode(row: Row) -> "Future[Any]":
        begun.append(row.id)
        future: Future[Any] = Future()
        future.set_result(f"decoded {row.id}")
        return future

    return decode


@given(lefts=st.lists(st.integers(0, 3), max_size=12), size=st.integers(1, 4))
def test_batches_are_those_of_the_rows_and_each_is_decoded_while_the_one_before_is_out(lefts, size):
    given_rows, begun = make_rows(lefts), []
    ahead = Batches(given_rows, size, counted(begun))
    expected = list(batches(given_rows, size))
    for number, batch in enumerate(expected):
        assert begun == [row.id for each in expected[: number + 1] for row in each]
        assert ahead.pop(size) == (batch, {row.id: f"decoded {row.id}" for row in batch})
    assert not ahead
    assert begun == [row.id for row in given_rows]


@given(lefts=st.lists(st.integers(0, 3), max_size=12), sizes=st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_a_batch_size_that_changes_decodes_no_row_twice(lefts, sizes):
    begun: list[str] = []
    ahead = Batches(make_rows(lefts), 4, counted(begun))
    popped = []
    for size in sizes:
        if ahead:
            popped += [row.id for row in ahead.pop(size)[0]]
    assert popped == [f"r{i}" for i in range(len(lefts))]
    assert sorted(begun) == sorted(set(begun)) == sorted(popped)


def test_rows_that_are_not_decoded_ahead_are_given_as_they_are():
    given_rows = make_rows([1, 2, 3])
    ahead = Batches(given_rows, 2, None)
    assert ahead.pop(None) == (given_rows[:1], {"r0": given_rows[0]})
    assert ahead.pop(2)[0] == given_rows[1:]


class Decoding(standin.StandIn):
    """Remembers in which threads rows were decoded and generated; one row cannot be decoded."""

    inputs = ("image",)
    threads: set[str]

    def decode(self, row: Row) -> Row:
        self.threads.add(f"decoded in {threading.current_thread().name}")
        if row.id == "p1":
            raise ValueError("a picture like no other")
        return super().decode(row)

    def generate(self, rows):
        self.threads.add(f"generated in {threading.current_thread().name.split('_')[0]}")
        bad = [row for row in rows if not isinstance(row, Row)]
        return super().generate([row for row in rows if isinstance(row, Row)]) + bad


@pytest.fixture
def photo_spec(make_spec, write_photos):
    return make_spec(mode="image", manifest=write_photos(6), max_failure_ratio=0.5)
