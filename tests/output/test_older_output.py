"""An output that version 0.1.0 began before the package had its present layout is resumed, extended, retried, verified.

tests/fixtures/README.md says what the files are and how they were made.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.output import layout
from stereo_jobs.records import RUN_PREFIX
from stereo_jobs.spec import JobSpec, parse_spec
from tests import datasets
from tests.conftest import REPOSITORY
from tests.seaweed import as_admin

OLDER = REPOSITORY / "tests/fixtures/older"
BUCKET = "older"
BEGUN_SHARDS = ("data/train-0000-0000000.parquet", "data/train-0000-0000001.parquet")
SAME_BITS_ON = ("2.13.0+cpu", "AVX512")
"""PyTorch and CPU instructions of the machine that made the reference; others may round differently."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(s3_server: str):
    """An S3 client for the bucket `older`, which holds what the older version left there."""
    client = as_admin(s3_server).meta.client
    client.create_bucket(Bucket=BUCKET)
    upload(client, "prompts/first.parquet", OLDER / "prompts/first.parquet")
    for file in sorted((OLDER / "begun").rglob("*")):
        if file.is_file():
            upload(client, f"out/{file.relative_to(OLDER / 'begun')}", file)
    return client


@pytest.fixture
def spec(s3_server: str) -> JobSpec:
    return parse_spec(
        {
            "manifest": f"s3://{BUCKET}/prompts/*.parquet",
            "output": f"s3://{BUCKET}/out",
            "recipe": {
                "mode": "depth",
                "size": {"width": 64, "height": 64},
                "method": {"steps": 8},
                "seed": 7,
            },
            "runtime": {
                "shard_rows": 3,
                "batch_size": 2,
                "lease_ttl_s": 1.0,
                "max_failure_ratio": 0.5,
                "device": "cpu",
                "storage": {"endpoint_url": s3_server},
            },
        }
    )


def upload(client, key: str, file: Path) -> None:
    client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())


def reference() -> dict[str, dict]:
    """Rows of an uninterrupted run by the older version: those that it had not made in the begun output."""
    table = pq.read_table(OLDER / "reference.parquet")
    kept = [name for name in table.column_names if not name.startswith(RUN_PREFIX)]
    return {row["id"]: row for row in table.select(kept).to_pylist()}


def pixels(cell: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])), dtype=np.float64)


def assert_same_row(new: dict, old: dict) -> None:
    """Equal in every column; where another PyTorch or CPU rounds differently, equal but for rounding."""
    assert new.keys() == old.keys()
    if (torch.__version__, torch.backends.cpu.get_cpu_capability()) == SAME_BITS_ON:
        assert new == old
        return
    for name, value in old.items():
        if isinstance(value, dict):
            assert np.abs(pixels(new[name]) - pixels(value)).mean() < 0.5, name
        elif isinstance(value, float):
            assert new[name] == pytest.approx(value, rel=0.05, abs=0.05), name
        else:
            assert new[name] == value, name


def begun_shards(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in BEGUN_SHARDS}


def test_the_planned_manifest_has_its_tag(store):
    plan = json.loads((OLDER / "begun/_job/plan-0000.json").read_text())
    [file] = plan["files"]
    found = store.head_object(Bucket=BUCKET, Key=file["uri"].removeprefix(f"s3://{BUCKET}/"))
    assert (found["ETag"].strip('"'), found["ContentLength"]) == (file["tag"], file["size"])


def test_an_older_output_is_resumed_extended_and_retried(store, spec, tmp_path, command_line, capsys, caplog):
    storage = open_storage(spec.output, spec.runtime.storage)
    before = begun_shards(storage)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))

    def call(*words: object) -> tuple[int, dict]:
        code, said, complaint = command_line(capsys, *words, "--json")
        assert said, complaint
        return code, json.loads(said)

    def verified() -> dict:
        code, found = call("verify", spec.output, "--endpoint-url", spec.runtime.storage.endpoint_url)
        assert (code, found["problems"]) == (0, []) if found["ok"] else code == 4
        return found

    # What the killed run left: a shard without its record, which holds a failed row, and a shard that is missing.
    assert list(storage.list(layout.ERRORS_PREFIX)) == []
    assert not (found := verified())["ok"]
    assert (found["planned"], found["succeeded"], found["failed"], found["missing"]) == (7, 5, 1, 1)

    # A plain run completes the plan and ignores the new manifest file.
    upload(store, "prompts/second.parquet", OLDER / "prompts/second.parquet")
    code, done = call("run", job, "--local")
    assert (code, done["planned"], done["succeeded"], done["failed"], done["complete"]) == (0, 7, 6, 1, True)
    assert f"s3://{BUCKET}/prompts/second.parquet" in caplog.text
    assert verified()["ok"]
    assert datasets.failures(spec) == {"scene-1": "InvalidRow"}

    # --extend adds exactly its rows.
    code, done = call("run", job, "--local", "--extend")
    assert (code, done["planned"], done["succeeded"], done["failed"], done["generations"]) == (0, 10, 9, 1, 2)
    assert verified()["ok"]

    # The depth map that was missing is there now: the failed row is made.
    upload(store, "prompts/scene-1.tif", OLDER / "prompts/scene-1.tif")
    code, done = call("retry-failed", job, "--local")
    assert (code, done["planned"], done["succeeded"], done["failed"], done["generations"]) == (0, 10, 10, 0, 3)
    found = verified()
    assert found["ok"]
    assert (found["planned"], found["succeeded"], found["failed"], found["missing"]) == (10, 10, 0, 0)

    code, status = call("status", spec.output, "--endpoint-url", spec.runtime.storage.endpoint_url)
    assert (code, status["succeeded"], status["complete"]) == (0, 10, True)
    code, _ = call("report", spec.output, "--endpoint-url", spec.runtime.storage.endpoint_url)
    assert (code, storage.read(layout.REPORT_DATA) != b"") == (0, True)

    # Rows made before are untouched; rows made now are those of the older version.
    assert begun_shards(storage) == before
    rows = datasets.rows(spec)
    assert set(rows) == {f"scene-{i}" for i in range(10)}
    for row_id, old in reference().items():
        assert_same_row(rows[row_id], old)
    older = pa.concat_tables([pq.read_table(io.BytesIO(data)) for data in before.values()])
    assert set(older["id"].to_pylist()) | reference().keys() == set(rows)
