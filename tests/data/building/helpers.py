"""Builds a manifest as a user does, and holds it against what a plan checks."""

import pyarrow.parquet as pq

from stereo_jobs.data.building.build import Built, Options, build
from stereo_jobs.data.manifest import inspect, stream_ids
from stereo_jobs.data.manifest_files import find
from stereo_jobs.spec import Recipe, StorageSpec

LOCAL = StorageSpec()


def build_and_plan(source, target, settings=LOCAL, **options) -> Built:
    """Build a manifest, then do what a plan of the right mode does with it."""
    made = build(source, str(target), settings, Options(**options))
    (uri,) = find([str(target)], settings)
    columns = pq.read_schema(target).names if settings is LOCAL else ["prompt"]
    file, _ = inspect(uri, Recipe(mode="text" if "prompt" in columns else "image"), settings)
    ids = [each for batch in stream_ids(file, settings) for each in batch.to_pylist()]
    assert len(set(ids)) == len(ids) == made.rows == file.rows
    return made


def built(source, tmp_path, **options) -> list[dict]:
    """The rows of the manifest that a source becomes."""
    target = tmp_path / "built.parquet"
    target.unlink(missing_ok=True)
    build_and_plan(source, target, **options)
    return pq.ParquetFile(target).read().to_pylist()
