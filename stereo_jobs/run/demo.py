"""The demo job: the manifest that comes with the project, the embedded models."""

import io
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import AlreadyExistsError, open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import JobSpec, parse_spec


def demo_spec(output: str, rows: int = 16) -> JobSpec:
    """The spec of `stereo-jobs demo`: the first `rows` rows of manifests/demo.parquet, copied to the output."""
    buffer = io.BytesIO()
    pq.write_table(read_table(_demo_manifest().read_bytes()).slice(0, rows), buffer)
    storage, name = open_storage(output), f"manifest/demo-{rows}.parquet"
    others = [info.key for info in storage.list("manifest/") if info.key != name]
    if others:
        raise ManifestError(
            f"{storage.locate(others[0])}: this demo was begun with other --rows; choose another output"
        )
    with suppress(AlreadyExistsError):
        storage.create(name, buffer.getvalue())
    return parse_spec(
        {
            "manifest": storage.locate(name),
            "output": output,
            "recipe": {"scale_percent": 10.0},
            "runtime": {"batch_size": 4, "shard_rows": 4, "lease_ttl_s": 20.0},
        }
    )


def _demo_manifest() -> Path:
    """Inside an installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    for path in (here / "manifests/demo.parquet", here.parent / "manifests/demo.parquet"):
        if path.is_file():
            return path
    raise ManifestError("the demo manifest is missing from this installation; install the package again")
