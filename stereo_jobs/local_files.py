"""Local paths: which texts name one, and what is read behind it.

A path may come from a spec or from a manifest, so anything may stand behind it. Only regular files are read: to open a
named pipe, a socket or a terminal may wait for ever, and a device has no end.
"""

import errno
import re
import stat
from pathlib import Path


class UnknownSchemeError(ValueError):
    """A text names a place that is neither on S3 nor local."""


def local_path(text: str) -> Path:
    """Return the local path that a text names: a plain path, where `~` is the home folder, or `file:///folder/name`.

    A `file:` URI may name the host `localhost`, and its percent signs stand for themselves, as in `s3://` URIs.

    Raises:
        ValueError: the text names another host, a relative `file:` path, another scheme, an unknown user, or it
            cannot be the name of a file here.
    """
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the name is not UTF-8; rename it") from None
    if text.startswith("file:"):
        match = re.fullmatch(r"file://(?:localhost)?(/.*)", text, re.DOTALL)
        if not match:
            raise ValueError("write a local file as file:///folder/name: no other host, and no relative path")
        return Path(match[1])
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UnknownSchemeError("unknown scheme; use a local path or s3://bucket/prefix")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user on this machine; write the path in full") from None


def check_location(text: str) -> None:
    """Check that a text names a place on S3 or a local one. Raises ValueError."""
    if not text:
        raise ValueError("must not be empty; write . for the working folder")
    if text.startswith("s3://"):
        if not re.match(r"s3://[^/]", text):
            raise ValueError("write it as s3://bucket/prefix")
    else:
        local_path(text)


def refuse_special(path: Path) -> None:
    """Check that there is a regular file or a folder. Raises OSError for anything else, and where nothing is."""
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "not a regular file, but a pipe, a socket or a device; copy it into a file")
