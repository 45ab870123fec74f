"""An output that is removed, emptied or swapped while actors work on it: the run ends, and nothing is mixed."""

import os
from functools import partial
from pathlib import Path

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import OutputGoneError, StorageError
from stereo_jobs.output import layout
from stereo_jobs.run.driver import run
from tests import seaweed
from tests.run import killed
from tests.run.test_gone import files, remove, strike_when_begun, swapped
from tests.seaweed import as_admin
from tests.waiting import wait_until


@pytest.fixture
def slow(pids, make_spec, make_manifest):
    """A spec whose shards take 0.4 s each, for a minute on two actors."""

    def make(output: str | None = None, **runtime):
        return make_spec(make_manifest(rows=300, prompt=["slow"] * 300), output, shard_rows=1, **runtime)

    return make


def ends(spec, act) -> StorageError:
    """The one line with which a run ends after `act`, which is called when the first pair is made."""
    with pytest.raises(StorageError, match=r"(gone|removed|does not exist|was replaced)") as end:
        run(spec, load=killed.load_armed, watch=strike_when_begun(act))
    assert end.value.exit_code == 2
    assert "\n" not in str(end.value)
    return end.value


def storage_settings(endpoint: str) -> dict[str, str]:
    """Ray's processes may have been started before the server, and then lack its credentials."""
    keys = {"access_key_id": seaweed.ACCESS_KEY, "secret_access_key": seaweed.SECRET_KEY, "region": "us-east-1"}
    return {"endpoint_url": endpoint} | keys


def assert_nothing_began(keys: list[str]) -> None:
    """What two actors were writing to a store at the moment of the removal may arrive after it. No more does."""
    assert all(key.startswith((layout.DATA_PREFIX, layout.RECORDS_PREFIX)) for key in keys), keys
    assert sum(key.startswith(layout.DATA_PREFIX) for key in keys) <= 2, keys


def visible(folder: Path) -> list[str]:
    return [name for name in files(folder) if not Path(name).name.startswith(".")]


@pytest.mark.parametrize("what", ["", pytest.param("_job", marks=pytest.mark.slow)])
def test_a_folder_that_is_removed_ends_the_run(slow, what):
    spec = slow()
    gone = Path(spec.output, what)
    ends(spec, partial(remove, gone))
    assert not gone.exists(), "nothing of it is created again"


@pytest.mark.slow
def test_a_folder_swapped_for_an_empty_one_stays_empty(slow, tmp_path):
    spec = slow()

    def swap():
        Path(spec.output).rename(tmp_path / "away")
        Path(spec.output).mkdir()

    assert isinstance(ends(spec, swap), OutputGoneError)
    assert visible(Path(spec.output)) == []


@pytest.mark.slow
def test_an_output_swapped_for_another_jobs_gets_nothing(slow, make_spec, make_manifest, tmp_path):
    other = make_spec(make_manifest(rows=5, name="other.parquet"), str(tmp_path / "other"))
    before, after = swapped(slow(), other, load=killed.load_armed)
    assert after == before


@pytest.mark.slow
def test_nothing_is_begun_in_a_prefix_that_is_emptied(slow, s3_server):
    name = f"gone-{os.urandom(4).hex()}"
    spec = slow(f"s3://jobs/{name}", storage=storage_settings(s3_server))
    objects = as_admin(s3_server).Bucket("jobs").objects.filter(Prefix=f"{name}/")
    assert isinstance(ends(spec, objects.delete), OutputGoneError)
    assert_nothing_began([found.key for found in open_storage(spec.output, spec.runtime.storage).list()])


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["deleted", "deleted and made again"])
def test_a_bucket_that_is_deleted_stays_as_it_is(slow, s3_server, again):
    bucket = as_admin(s3_server).create_bucket(Bucket=f"gone-{os.urandom(4).hex()}")
    spec = slow(f"s3://{bucket.name}/out", storage=storage_settings(s3_server))

    def delete():
        bucket.objects.delete()
        bucket.delete()
        if again:
            bucket.create()

    ends(spec, delete)
    if again:
        assert_nothing_began([found.key.removeprefix("out/") for found in bucket.objects.all()])
    else:
        # The server lists a bucket for a moment longer than it is there.
        wait_until(lambda: as_admin(s3_server).Bucket(bucket.name).creation_date is None)
