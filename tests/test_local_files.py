"""Which texts name a local path, and what is not opened."""

import os
import socket
from pathlib import Path

import pytest

from stereo_jobs.errors import StorageError
from stereo_jobs.local_files import check_location, local_path, refuse_special


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b", "a/b"),
        ("/a/b", "/a/b"),
        ("/a/b://c", "/a/b:/c"),
        ("~/a", "HOME/a"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a%20b", "/a%20b"),
    ],
)
def test_local_paths(text, path):
    assert str(local_path(text)) == path.replace("HOME", str(Path.home()))
    check_location(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file://host/x", "write a local file as file:///folder/name"),
        ("file://x", "write a local file as"),
        ("file:x", "write a local file as"),
        ("file:/x", "write a local file as"),
        ("http://x", "unknown scheme"),
        ("FILE:///x", "unknown scheme"),
        ("~nobody-at-all/x", "no such user"),
        ("a\0b", "NUL"),
        ("a\udcff", "not UTF-8"),
    ],
)
def test_what_is_no_local_path(text, words):
    from stereo_jobs.data.storage import open_storage

    with pytest.raises(ValueError, match=words):
        local_path(text)
    with pytest.raises(StorageError, match=words):
        open_storage(text)


@pytest.mark.parametrize("text", ["", "s3:///x", "s3://"])
def test_a_location_names_a_place(text):
    with pytest.raises(ValueError, match=r"must not be empty|write it as s3://bucket/prefix"):
        check_location(text)


def test_only_files_and_folders_are_no_special_ones(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    refuse_special(tmp_path / "file")
    refuse_special(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        (tmp_path / "link").symlink_to(tmp_path / "pipe")
        monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
        listener.bind("socket")
        for name in ("pipe", "link", "socket", "/dev/zero"):
            with pytest.raises(OSError, match="not a regular file"):
                refuse_special(tmp_path / name)
