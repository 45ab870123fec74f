"""Folders of pictures, local or on S3, with all folders inside them."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pyarrow as pa

from stereo_jobs.data.building.source import BATCH_ROWS, LeftOut, Source, sorted_out
from stereo_jobs.data.images import HEIF_SUFFIXES, IMAGE_SUFFIXES, InputError, open_image
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.local_files import local_path
from stereo_jobs.spec import StorageSpec


class Pictures(Source):
    """A folder of pictures. Ids are made from their names, those of folders inside it included.

    Args:
        where: the folder.
        names: all files below it.
        settings: S3 access.

    Attributes:
        root: absolute path or s3:// URI of the folder.
    """

    def __init__(self, where: str, names: list[str], settings: StorageSpec) -> None:
        self.where, self.columns = where, ["id", "image"]
        # Pictures of the folder itself come first: their ids stay the same when a folder with more of them is added.
        ordered = sorted(names, key=lambda name: (name.count("/"), name))
        self._names, self.left_out = sorted_out(ordered, IMAGE_SUFFIXES, "a picture that can be read")
        is_local = not where.startswith("s3://")
        self.root = str(local_path(where).resolve()) if is_local else open_storage(where, settings).uri
        if is_local:
            unreadable = LeftOut("file", "that no decoder here reads")
            self.left_out.append(unreadable)
            names, self._names = self._names, []
            for name in names:
                if self._is_readable(name):
                    self._names.append(name)
                else:
                    unreadable.add(name)

    def is_below(self, manifest: str) -> bool:
        """Whether the pictures are in the folder of a manifest or below it; there, a job may read them unasked."""
        place = manifest if manifest.startswith("s3://") else str(local_path(manifest).resolve())
        return f"{self.root}/".startswith(place.rpartition("/")[0] + "/")

    def count(self) -> int:
        """Return the number of pictures."""
        return len(self._names)

    def schema(self, chosen: Mapping[str, str]) -> pa.Schema:
        """Return the types of the manifest's columns."""
        return pa.schema([(name, pa.string()) for name in chosen])

    def tables(self, chosen: Mapping[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
        """List all pictures. Raises ManifestError for a pipe, a device or a link to nowhere."""
        distinct = Distinct()
        for start in range(0, len(self._names), BATCH_ROWS):
            names = self._names[start : start + BATCH_ROWS]
            columns = {
                "id": [distinct(clean(str(PurePosixPath(name).with_suffix("")))) for name in names],
                "image": [self._locate(name) for name in names],
            }
            yield pa.table([pa.array(columns[chosen[name]], pa.string()) for name in schema.names], schema=schema)

    def _is_readable(self, name: str) -> bool:
        """Whether a decoder here knows the codec inside a file of the HEIF family, which its name does not tell."""
        path = local_path(self.root) / name
        if not name.lower().endswith(HEIF_SUFFIXES) or not path.is_file():
            return True
        try:
            open_image(path.read_bytes(), sys.maxsize, "image")
        except InputError:
            return False
        return True

    def _locate(self, name: str) -> str:
        if self.root.startswith("s3://"):
            return f"{self.root}/{name}"
        path = local_path(self.root) / name
        if not path.is_file():
            raise ManifestError(
                f"{path}: not a regular file; a folder of images may hold no other thing of such a name"
            )
        return str(path.resolve())


def clean(name: str) -> str:
    """Turn a file name into a valid id that is close to it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:150] or "row"


class Distinct:
    """Appends a number to each name that was given before."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """Return the name, or with a number that makes it a new one."""
        unique, count = name, self._seen.get(name, 0)
        while unique in self._seen:
            count += 1
            unique = f"{name}-{count}"
        self._seen[name] = max(count, 1)
        self._seen.setdefault(unique, 1)
        return unique
