"""What a manifest points at: read only from where it may be, and never more than fits."""

import os
import uuid

import pytest

from stereo_jobs.data.images import InputError
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.storage import open_storage
from stereo_jobs.spec import StorageSpec

LOCAL = StorageSpec()


@pytest.fixture
def allowed(tmp_path):
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"content")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not/a.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def reader(allowed):
    return InputReader([str(allowed)], 100, LOCAL)


def test_inline_bytes_need_no_prefix():
    reader = InputReader((), 100, LOCAL)
    assert reader.read(b"content", "image") == b"content"
    assert reader.read({"bytes": b"content", "path": "/etc/passwd"}, "image") == b"content"
    assert reader.read({"bytes": b"", "path": "/etc/passwd"}, "image") == b""


def test_uris_below_an_allowed_prefix_are_read(reader, allowed):
    for uri in (f"{allowed}/a.png", f"file://{allowed}/a.png", f"{allowed}/../allowed/./a.png"):
        assert reader.read(uri, "image") == b"content"
    assert reader.read({"bytes": None, "path": f"{allowed}/a.png"}, "image") == b"content"
    assert InputReader([f"file://{allowed}/"], 100, LOCAL).read(f"{allowed}/a.png", "image") == b"content"


@pytest.mark.parametrize(
    "uri",
    [
        "{outside}/secret.png",
        "{outside}/allowed/../secret.png",
        "{outside}/allowed-not/a.png",
        "{outside}/allowed",
        "file://{outside}/allowed/../secret.png",
        "/etc/passwd",
        "secret.png",
        "../secret.png",
        "~/secret.png",
        "s3://bucket/a.png",
    ],
)
def test_uris_outside_the_allowed_prefixes_are_refused(reader, tmp_path, uri):
    with pytest.raises(InputError, match=r"outside the allowed prefixes; add its folder to runtime.allowed_prefixes"):
        reader.read(uri.format(outside=tmp_path), "image")


def test_a_symbolic_link_does_not_lead_out(reader, allowed, tmp_path):
    (allowed / "link.png").symlink_to(tmp_path / "secret.png")
    (allowed / "up").symlink_to(tmp_path)
    for uri in (f"{allowed}/link.png", f"{allowed}/up/secret.png"):
        with pytest.raises(InputError, match="outside the allowed prefixes"):
            reader.read(uri, "image")


def test_a_prefix_may_itself_be_a_symbolic_link(allowed, tmp_path):
    (tmp_path / "alias").symlink_to(allowed)
    assert InputReader([f"{tmp_path}/alias"], 100, LOCAL).read(f"{allowed}/a.png", "image") == b"content"


@pytest.mark.parametrize("uri", ["http://host/a.png", "https://host/a.png", "gs://bucket/a.png", "ftp://host/a"])
def test_other_schemes_are_refused(reader, uri):
    with pytest.raises(InputError, match="only s3:// and local files can be read"):
        reader.read(uri, "image")


@pytest.mark.parametrize("uri", ["~nobody-at-all/a.png", "nul\0.png", "loop/a.png", "x" * 5000, "\ud800.png"])
def test_an_impossible_path_is_an_input_error(allowed, uri):
    (allowed / "loop").symlink_to(allowed / "loop")
    for value in (uri, f"{allowed}/{uri}"):
        with pytest.raises(InputError):
            InputReader([str(allowed)], 100, LOCAL).read(value, "image")


@pytest.mark.parametrize("value", [None, 3, "", {"bytes": None, "path": None}, {}])
def test_a_cell_without_an_image_is_refused(reader, value):
    with pytest.raises(InputError, match=r"image: must be bytes, {bytes, path} or a URI; got"):
        reader.read(value, "image")


def test_too_many_bytes_are_refused_unread(reader, allowed, monkeypatch):
    (allowed / "big.png").write_bytes(b"x" * 101)
    (allowed / "fits.png").write_bytes(b"x" * 100)
    assert len(reader.read(f"{allowed}/fits.png", "image")) == 100
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("was read"))
    with pytest.raises(InputError, match="image: 101 bytes, more than max_image_bytes = 100"):
        reader.read(f"{allowed}/big.png", "image")
    with pytest.raises(InputError, match="101 bytes"):
        reader.read(b"x" * 101, "image")


def test_a_missing_file_is_named(reader, allowed):
    with pytest.raises(InputError, match=r"image: '.*/gone.png' does not exist"):
        reader.read(f"{allowed}/gone.png", "image")
    (allowed / "folder").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        reader.read(f"{allowed}/folder", "image")


def test_s3_uris_are_held_to_their_prefix(s3_server):
    settings = StorageSpec(endpoint_url=s3_server)
    name = uuid.uuid4().hex
    storage = open_storage(f"s3://jobs/{name}", settings)
    storage.create("in/a.png", b"content")
    storage.create("secret.png", b"secret")
    reader = InputReader([f"s3://jobs/{name}/in/"], 100, settings)
    assert reader.read(f"s3://jobs/{name}/in/a.png", "image") == b"content"
    with pytest.raises(InputError, match="does not exist"):
        reader.read(f"s3://jobs/{name}/in/gone.png", "image")
    for uri in (f"s3://jobs/{name}/secret.png", f"s3://jobs/{name}/in-not/a.png", "/etc/passwd"):
        with pytest.raises(InputError, match="outside the allowed prefixes"):
            reader.read(uri, "image")
    for trick in ("in/../secret.png", "in/%2e%2e/secret.png", "in/%2E./secret.png"):
        with pytest.raises(InputError, match=r"'\.\.' is not allowed"):
            reader.read(f"s3://jobs/{name}/{trick}", "image")


def test_a_pipe_and_a_device_are_refused_and_not_opened(reader, allowed):
    os.mkfifo(allowed / "pipe.png")
    (allowed / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"image: .*pipe\.png: not a regular file"):
        reader.read(f"{allowed}/pipe.png", "image")
    with pytest.raises(InputError, match="not a regular file"):
        InputReader([str(allowed), "/dev"], 100, LOCAL).read(f"{allowed}/zero.png", "image")


def test_files_of_another_host_are_refused(reader, allowed):
    assert reader.read(f"file://localhost{allowed}/a.png", "image") == b"content"
    for uri in (f"file://host{allowed}/a.png", "file:a.png", f"file:{allowed}/a.png"):
        with pytest.raises(InputError, match="write a local file as file:///folder/name"):
            reader.read(uri, "image")


def test_a_file_at_the_root_is_not_looked_for_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"of the working folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        InputReader(["/"], 100, LOCAL).read("/a.png", "image")
