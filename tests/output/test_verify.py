"""`verify` sees what is missing, doubled, broken or strange."""

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import verdict


@pytest.fixture
def spec(make_spec):
    spec = make_spec()
    run(spec, local=True, load=standin.load)
    return spec


def test_a_whole_dataset_is_ok_even_without_its_manifest(spec):
    from pathlib import Path

    Path(spec.manifest).unlink()
    found = verdict(spec)
    assert found.as_json() == {
        "planned": 8,
        "succeeded": 8,
        "failed": 0,
        "rejected": 0,
        "missing": 0,
        "duplicated": 0,
        "corrupt": 0,
        "problems": [],
        "ok": True,
    }


def test_a_lost_ids_file_is_made_up_for_from_the_manifest(spec):
    (open_storage(spec.output).root / layout.ids(0)).unlink()
    assert verdict(spec).ok


def test_a_lost_object_is_missing(spec):
    (open_storage(spec.output).root / layout.data((0, 1))).unlink()
    found = verdict(spec)
    assert (found.ok, found.missing, found.corrupt) == (False, 3, 1)
    assert "recorded as committed, but gone" in found.problems[0]


def test_a_lost_object_is_made_again_and_its_record_follows(spec, make_spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).unlink()
    assert run(spec, local=True, load=standin.load).complete
    found = verdict(spec)
    assert found.ok, found.problems


def test_an_unfinished_job_is_not_ok(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).unlink()
    (root / layout.record((0, 1))).unlink()
    found = verdict(spec)
    assert (found.ok, found.missing, found.corrupt) == (False, 3, 0)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(spec, at):
    path = open_storage(spec.output).root / layout.data((0, 0))
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    assert verdict(spec).corrupt == 1


def test_a_truncated_object_is_found(spec):
    path = open_storage(spec.output).root / layout.data((0, 0))
    path.write_bytes(path.read_bytes()[:-100])
    found = verdict(spec)
    assert (found.corrupt, found.missing) == (1, 3)


def test_an_object_under_another_shards_name_is_found(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).write_bytes((root / layout.data((0, 0))).read_bytes())
    assert verdict(spec).corrupt == 1


def test_an_object_that_no_plan_knows_is_found(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 77))).write_bytes((root / layout.data((0, 0))).read_bytes())
    assert "no plan has this shard" in verdict(spec).problems[0]


def test_rows_doubled_across_shards_are_counted(spec):
    """Two objects that are valid in themselves, with one id in both: made here by hand."""
    import io
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    root = open_storage(spec.output).root
    first, second = (pq.read_table(root / layout.data((0, shard))) for shard in (0, 1))
    ids = second["id"].to_pylist()
    ids[0] = first["id"][0].as_py()
    doubled = second.set_column(0, "id", pa.array(ids))
    buffer = io.BytesIO()
    pq.write_table(doubled, buffer)
    (root / layout.data((0, 1))).write_bytes(buffer.getvalue())
    (root / layout.record((0, 1))).unlink()
    found = verdict(spec)
    assert (found.duplicated, found.missing) == (1, 1)
    assert json.dumps(found.as_json())
