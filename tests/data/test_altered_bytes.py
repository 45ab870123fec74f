"""A store that gives other bytes than it keeps, for a while: a run may end, and is never done with wrong rows."""

import os

import pyarrow as pa
import pytest

from stereo_jobs.data.building.publish import publish
from stereo_jobs.data.images import encode_png
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.run.driver import run
from stereo_jobs.spec import StorageSpec
from tests import standin
from tests.datasets import rows, verdict
from tests.fault_proxy import FaultProxy

ROWS = 24


@pytest.fixture
def make_job(s3_server, make_spec):
    """Writes a manifest and pictures to S3; the spec of a job reaches them by an endpoint."""
    place = f"s3://jobs/altered-{os.urandom(4).hex()}"
    settings = StorageSpec(endpoint_url=s3_server)
    columns = {
        "id": [f"row-{i:04d}" for i in range(ROWS)],
        "image": [f"{place}/in/{i}.png" for i in range(ROWS)],
        "note": [f"carried {i}" for i in range(ROWS)],
    }
    for i in range(ROWS):
        picture = standin.np.full((standin.SIZE, standin.SIZE, 3), i, "uint8")
        open_storage(place, settings).create(f"in/{i}.png", encode_png(picture))
    publish(pa.table(columns), f"{place}/in/rows.parquet", settings)

    def make(endpoint: str, output: str):
        recipe = {"mode": "image"}
        return make_spec(
            f"{place}/in/rows.parquet", f"{place}/{output}", recipe, storage={"endpoint_url": endpoint}, actors=1
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_run_on_a_store_that_alters_bytes(make_job, s3_server, seed):
    whole = make_job(s3_server, "whole")
    run(whole, local=True, load=standin.load_with_images)
    expected = rows(whole)
    with FaultProxy(s3_server, seed).serving() as proxy:
        proxy.altered_share = 0.2
        job = make_job(proxy.endpoint, "out")
        for _ in range(20):
            try:
                run(job, local=True, load=standin.load_with_images)
                break
            except StereoJobsError as error:
                assert error.exit_code in (2, 75)
                assert "\n" not in str(error)
        altered = proxy.refused
        proxy.heal()
        run(job, local=True, load=standin.load_with_images)
        assert altered
        found = verdict(job)
        assert (found.ok, found.succeeded, found.failed) == (True, ROWS, 0)
        assert rows(job) == expected
