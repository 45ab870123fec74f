"""Reads the images that a manifest points to: only from allowed places, and within limits of size."""

import urllib.parse
from collections.abc import Sequence

from stereo_jobs.data.images import InputError, open_image
from stereo_jobs.data.maps import check_map
from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.errors import SpecError, StorageError, StorageUnavailableError
from stereo_jobs.local_files import UnknownSchemeError, local_path
from stereo_jobs.spec import StorageSpec


class InputReader:
    """Reads the image columns of a manifest, within limits.

    Args:
        allowed_prefixes: folders and s3:// prefixes that URIs may point to.
        max_bytes: largest size of an input; larger ones are rejected before download.
        settings: S3 access.
        max_pixels: largest number of pixels; larger inputs are rejected before decoding.
    """

    def __init__(
        self, allowed_prefixes: Sequence[str], max_bytes: int, settings: StorageSpec, max_pixels: int = 50_000_000
    ) -> None:
        try:
            self.allowed = [_normal(prefix or "/") for prefix in allowed_prefixes]
        except InputError as error:
            raise SpecError(f"runtime.allowed_prefixes: {error}") from None
        self.max_bytes = max_bytes
        self.settings = settings
        self.max_pixels = max_pixels

    def read_image(self, value: object, column: str) -> bytes:
        """Read a cell that must hold an image, as `read` does, and check its header."""
        data = self.read(value, column)
        open_image(data, self.max_pixels, column)
        return data

    def read_map(self, value: object, column: str) -> bytes:
        """Read a cell that must hold a depth or disparity map, as `read` does, and check its header."""
        data = self.read(value, column)
        check_map(data, self.max_pixels, column)
        return data

    def read(self, value: object, column: str) -> bytes:
        """Read one cell: inline bytes, `{bytes, path}`, or a URI below an allowed prefix.

        Raises:
            InputError: the cell cannot be used; the message names column, rule and value.
            StorageUnavailableError: the store does not answer at the moment.
        """
        if isinstance(value, dict):
            inline = value.get("bytes")
            value = inline if inline is not None else value.get("path")
        if isinstance(value, bytes):
            return self._bounded(value, column)
        if not isinstance(value, str) or not value:
            raise InputError(f"{column}: must be bytes, {{bytes, path}} or a URI; got {type(value).__name__}")
        uri = _normal(value)
        if not any(uri.startswith(prefix.rstrip("/") + "/") for prefix in self.allowed):
            raise InputError(
                f"{column}: {value!r} is outside the allowed prefixes; add its folder to "
                "runtime.allowed_prefixes if you trust it"
            )
        folder, _, name = uri.rpartition("/")
        storage = open_storage(folder or "/", self.settings)
        try:
            size = storage.size(name)
            if size > self.max_bytes:
                raise InputError(f"{column}: {size} bytes, more than max_image_bytes = {self.max_bytes}")
            return self._bounded(storage.read(name), column)
        except NotFoundError:
            raise InputError(f"{column}: {value!r} does not exist") from None
        except StorageUnavailableError:
            raise  # not the fault of this row
        except StorageError as error:
            raise InputError(f"{column}: {error}") from None

    def _bounded(self, data: bytes, column: str) -> bytes:
        if len(data) > self.max_bytes:
            raise InputError(f"{column}: {len(data)} bytes, more than max_image_bytes = {self.max_bytes}")
        return data


def _normal(uri: str) -> str:
    """Return one spelling per place, so that `..` and symbolic links cannot lead out of a prefix. Raises InputError."""
    if uri.startswith("s3://"):
        key = uri.removeprefix("s3://").partition("/")[2]
        if ".." in urllib.parse.unquote(key).split("/"):
            raise InputError(f"{uri!r}: '..' is not allowed in a URI")
        return uri
    try:
        return str(local_path(uri).resolve())
    except UnknownSchemeError:
        raise InputError(f"{uri!r}: only s3:// and local files can be read") from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, another host, a NUL byte
        raise InputError(f"{uri!r}: not a usable path ({error})") from None
