"""Names of objects: each has one meaning, however large its numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.data.storage import ObjectInfo
from stereo_jobs.output import layout
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.shard_set import ShardSet
from tests.datasets import prepared

KEYS = st.tuples(st.integers(0, 999_999), st.integers(0, layout.MOST_SHARDS - 1))


@given(KEYS)
def test_a_name_is_read_back(key):
    assert {layout.shard_key(name(key)) for name in (layout.data, layout.record, layout.errors)} == {key}
    assert layout.plan_generation(layout.plan(key[0])) == key[0]


@pytest.mark.parametrize(
    "name",
    [
        "data/train-0000-00000012.parquet",
        "data/train-00000-0000012.parquet",
        "data/train-0000-012.parquet",
        "data/train-0000-1000000000.parquet",
        "data/train-0000-99999999999999999999.parquet",
        "data/train-0000-0000001.parquet.bak",
        "data/train-\u0660000-0000001.parquet",
    ],
)
def test_other_spellings_are_no_names(name):
    assert layout.shard_key(name) is None


def test_shards_beyond_seven_digits_come_in_order():
    keys = [(0, 10_000_000), (0, 9_999_999), (10_000, 0), (9_999, 5)]
    assert list(ShardSet(layout.shard_key(layout.data(key)) for key in keys)) == sorted(keys)


def test_generations_beyond_four_digits_are_read_in_order(make_spec):
    ready = prepared(make_spec())
    plan = ready.job.plans[0]

    class Many:
        """Storage with ten thousand and one plans."""

        uri = "many"

        def list(self, prefix):
            return iter(ObjectInfo(name, 1) for name in sorted(layout.plan(n) for n in range(10_001)))

        def read(self, key):
            return plan.model_copy(update={"generation": layout.plan_generation(key)}).model_dump_json().encode()

        def locate(self, key):
            return key

    assert [p.generation for p in load_job(Many()).plans] == list(range(10_001))
