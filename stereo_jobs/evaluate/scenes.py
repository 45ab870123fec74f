"""Scenes with truth as manifests, so that an evaluation is a job like any other."""

import hashlib
import io
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.data.storage import AlreadyExistsError, Storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.evaluate.datasets import Dataset, DatasetError, Prepared, Problem
from stereo_jobs.spec import StorageSpec
from stereo_jobs.toyscapes.manifest import Mode, write_manifest
from stereo_jobs.toyscapes.scenes import Level

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("disparity", pa.binary()),
        ("given_right", pa.binary()),
        ("true_right", pa.binary()),
        ("true_disparity", pa.binary()),
        ("level", pa.string()),
    ]
)
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_GROUP_ROWS = 32


@dataclass(frozen=True)
class Manifests:
    """The scenes of one data set as one kind of method is given them.

    Attributes:
        first: URIs of the first scenes, which slow methods see, too.
        all: URIs of all scenes.
        problems: scenes that could not be used.
    """

    first: tuple[str, ...]
    all: tuple[str, ...]
    problems: tuple[Problem, ...]


def write_manifests(
    storage: Storage,
    dataset: Dataset,
    *,
    size: int,
    slow_scenes: int,
    with_disparity: bool = True,
    given: tuple[str, Path] | None = None,
) -> Manifests:
    """Write the scenes below `<name>/scenes/`, unless they are there; nothing is read or rendered then.

    Args:
        storage: of the evaluation.
        dataset: its scenes.
        size: of the pictures, pixels.
        slow_scenes: how many of them slow methods see.
        with_disparity: False leaves the disparity to the estimator.
        given: name and folder of right views that another program made, files named by id.

    Raises:
        DatasetError: other scenes are there, or none can be used.
    """
    kind = f"given-{given[0]}" if given else "true" if with_disparity else "estimated"
    known = _listing(given[1], dataset.ids) if given else {}
    files = [f"{path.name} {path.stat().st_size}" for path in known.values()]
    identity = [*dataset.identity, str(size), str(slow_scenes), *files]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:8]
    folder = f"{dataset.name}/scenes/{kind}"
    refuse_others(storage, folder, digest)
    left_out = {name for name, wanted in (("disparity", with_disparity), ("given_right", given)) if not wanted}
    columns = [name for name in COLUMNS.names if name not in left_out]
    uris: list[tuple[str, ...]] = []
    problems: list[Problem] = []
    for part, ids in (("first", dataset.ids[:slow_scenes]), ("rest", dataset.ids[slow_scenes:])):
        name = f"{folder}/{part}-{digest}"
        if not storage.exists(f"{name}.json"):
            _write(storage, name, dataset.prepared(ids, size), columns, known)
        facts = json.loads(storage.read(f"{name}.json"))
        problems += [Problem(*problem) for problem in facts["problems"]]
        uris.append((storage.locate(f"{name}.parquet"),) if facts["scenes"] else ())
    if not any(uris):
        raise DatasetError(
            f"{dataset.name}: no scene can be used; the first: {problems[0].id}: {problems[0].message}"
            if problems
            else f"{dataset.name}: has no scenes"
        )
    return Manifests(uris[0], uris[0] + uris[1], tuple(problems))


def write_inputs(
    storage: Storage, settings: StorageSpec, name: str, *, rows: int, mode: Mode, level: Level, size: int
) -> str:
    """The first held-out ToyScapes of a level as one mode is given them, unless they are there; URI of the manifest.

    Args:
        storage: of the evaluation.
        settings: of that storage.
        name: of the manifest.
        rows: how many.
        mode: photos come with their true disparity.
        level: of the scenes.
        size: of the pictures, pixels.
    """
    target = storage.locate(name)
    if not storage.exists(name):
        with suppress(ManifestError):  # written by another run meanwhile
            write_manifest(
                target, settings, rows=rows, mode=mode, level=level, size=(size, size), with_disparity=mode == "image"
            )
    return target


def _write(
    storage: Storage, name: str, scenes: Iterable[Prepared | Problem], columns: list[str], known: dict[str, Path]
) -> None:
    """One manifest, then the facts that say it is whole."""
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for scene in scenes:
        if isinstance(scene, Problem):
            problems.append(scene)
        else:
            rows.append(_row(scene, known))
    if rows:
        schema = pa.schema([COLUMNS.field(column) for column in columns])
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd", row_group_size=_GROUP_ROWS)
        with suppress(AlreadyExistsError):  # by a run that was cut off
            storage.create(f"{name}.parquet", buffer.getvalue())
    storage.replace(f"{name}.json", json.dumps({"scenes": len(rows), "problems": problems}).encode())


def _row(scene: Prepared, known: dict[str, Path]) -> dict[str, Any]:
    return {
        "id": scene.id,
        "image": encode_png(scene.left),
        "disparity": encode_disparity(scene.disparity),
        "given_right": known[scene.id].read_bytes() if scene.id in known else None,
        "true_right": encode_png(scene.right),
        "true_disparity": encode_disparity(scene.true_disparity),
        "level": scene.level,
    }


def _listing(folder: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The images of a folder by the ids they are named by. Raises DatasetError for a folder without any."""
    found = {i: path for i in ids for path in (folder / f"{i}{suffix}" for suffix in _IMAGES) if path.is_file()}
    if not found:
        raise DatasetError(f"{folder}: no image in it is named by the id of a scene, such as {next(iter(ids))}.png")
    return found


def refuse_others(storage: Storage, folder: str, digest: str) -> None:
    """Raise DatasetError where a folder of scenes holds others than those whose files end in `-<digest>`."""
    for info in storage.list(f"{folder}/"):
        if f"-{digest}." not in info.key:
            raise DatasetError(
                f"{storage.locate(info.key)}: this evaluation was begun with other scenes, --size or --slow-scenes; "
                "choose another output"
            )
