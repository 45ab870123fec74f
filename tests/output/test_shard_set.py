"""A set of shards behaves as a set and stays small."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.output.shard_set import ShardSet

keys = st.tuples(st.integers(0, 3), st.integers(0, 500))


@given(st.lists(keys), st.lists(keys), keys)
def test_it_behaves_as_a_set(some, others, asked):
    ours, theirs = ShardSet(some), ShardSet(others)
    assert list(ours) == sorted(set(some))
    assert len(ours) == len(set(some))
    assert (asked in ours) == (asked in set(some))
    assert list(ours.without(theirs)) == sorted(set(some) - set(others))
    assert (ours == theirs) == (set(some) == set(others))


@given(st.lists(keys))
def test_packed_and_unpacked_it_is_the_same(some):
    ours = ShardSet(some)
    again = ShardSet.unpack(json.loads(json.dumps(ours.pack())))
    assert again == ours
    again.add((0, 1000))
    assert (0, 1000) in again
    assert len(again) == len(ours) + 1


def test_a_million_shards_are_small():
    million = ShardSet((0, shard) for shard in range(1_000_000))
    assert len(million) == 1_000_000
    assert sum(len(bitmap) for bitmap in million._bitmaps.values()) < 300_000
    assert sum(map(len, million.pack().values())) < 10_000


def test_broken_bitmaps_are_refused():
    with pytest.raises(ValueError, match="shards of generation 0"):
        ShardSet.unpack({"0": "AAAA"})


@given(st.lists(keys), st.integers(0, 3), st.integers(0, 600))
def test_gaps_are_what_is_missing(some, generation, shards):
    gaps = list(ShardSet(some).gaps(generation, shards))
    missing = [shard for shard in range(shards) if (generation, shard) not in set(some)]
    assert [shard for gap in gaps for shard in gap] == missing
    assert all(earlier.stop < later.start for earlier, later in itertools.pairwise(gaps))
