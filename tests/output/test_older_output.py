"""An output that another method began is read, verified and reported, and refused where it would be continued.

tests/fixtures/README.md says what the files are and how they were made.
"""

import json
from pathlib import Path

import pytest
import yaml

from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import DriftError
from stereo_jobs.output import layout
from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import parse_spec
from tests import datasets
from tests.conftest import REPOSITORY
from tests.seaweed import as_admin

OLDER = REPOSITORY / "tests/fixtures/older"
BUCKET = "older"
BEGUN_SHARDS = ("data/train-0000-0000000.parquet", "data/train-0000-0000001.parquet")

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


def begun_shards(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in BEGUN_SHARDS}


def test_the_planned_manifest_has_its_tag(store):
    plan = json.loads((OLDER / "begun/_job/plan-0000.json").read_text())
    [file] = plan["files"]
    found = store.head_object(Bucket=BUCKET, Key=file["uri"].removeprefix(f"s3://{BUCKET}/"))
    assert (found["ETag"].strip('"'), found["ContentLength"]) == (file["tag"], file["size"])


def test_an_older_output_is_read_and_reported_but_not_continued(store, spec, tmp_path, command_line, capsys):
    storage = open_storage(spec.output, spec.runtime.storage)
    before = {info.key: storage.read(info.key) for info in storage.list("")}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    address = ("--endpoint-url", spec.runtime.storage.endpoint_url)

    def call(*words: object) -> tuple[int, dict]:
        code, said, complaint = command_line(capsys, *words, "--json")
        assert said, complaint
        return code, json.loads(said)

    # What the killed run left: a shard without its record, which holds a failed row, and a shard that is missing.
    assert list(storage.list(layout.ERRORS_PREFIX)) == []
    code, found = call("verify", spec.output, *address)
    assert (code, found["ok"]) == (4, False)
    assert (found["planned"], found["succeeded"], found["failed"], found["missing"]) == (7, 5, 1, 1)

    code, status = call("status", spec.output, *address)
    assert (code, status["planned"], status["complete"]) == (0, 7, False)
    code, _ = call("report", spec.output, *address)
    assert (code, storage.read(layout.REPORT_DATA) != b"") == (0, True)
    rows = datasets.rows(spec)
    assert set(rows) == {"scene-0", "scene-2", "scene-3", "scene-4", "scene-5"}
    assert all(row["left"]["bytes"] for row in rows.values())

    # This version would make other pixels: it adds no row, and says which version would.
    upload(store, "prompts/second.parquet", OLDER / "prompts/second.parquet")
    upload(store, "prompts/scene-1.tif", OLDER / "prompts/scene-1.tif")
    for words in (("run", job, "--local"), ("run", job, "--local", "--extend"), ("retry-failed", job, "--local")):
        code, _, complaint = command_line(capsys, *words)
        assert code == DriftError.exit_code, complaint
        assert "method_version 1" in complaint
        remedy = "finish the output with the version that started it, or choose a new output"
        assert remedy in " ".join(complaint.split())
    assert begun_shards(storage) == {key: before[key] for key in BEGUN_SHARDS}
    for key, data in before.items():
        if key != layout.LEASE:  # each run held the output while it found out
            assert storage.read(key) == data, key
    assert [info.key for info in storage.list("data/")] == sorted(BEGUN_SHARDS)
