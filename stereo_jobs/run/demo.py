"""The demo job: the demo manifest of this package, and the embedded models."""

import io
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import AlreadyExistsError, open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import parse_spec


def demo_spec(output: str, rows: int = 16) -> JobSpec:
    """Return the spec of `stereo-jobs demo`. Its manifest is copied into the output.

    Args:
        output: URI of the output.
        rows: how many rows of the demo manifest to take, from its beginning.

    Raises:
        ManifestError: the output holds a demo with another number of rows, or this installation has no demo manifest.
    """
    buffer = io.BytesIO()
    pq.write_table(read_table(_demo_manifest().read_bytes()).slice(0, rows), buffer)
    storage, name = open_storage(output), f"manifest/demo-{rows}.parquet"
    others = [info.key for info in storage.list("manifest/") if info.key != name]
    if others:
        raise ManifestError(
            f"{storage.locate(others[0])}: this demo was begun with another value of --rows; use that value, or "
            "another output"
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
    """Return the path of the demo manifest: in an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    for path in (package / "manifests/demo.parquet", package.parent / "manifests/demo.parquet"):
        if path.is_file():
            return path
    raise ManifestError("manifests/demo.parquet is missing from this installation; install the package again")
