"""Storage: what exactly-once rests on, for a local folder and for a real S3 server alike, and what goes wrong."""

import contextlib
import errno
import os
import socket
import threading
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data.storage import (
    AlreadyExistsError,
    ChangedError,
    LocalStorage,
    NotFoundError,
    ObjectInfo,
    open_storage,
)
from stereo_jobs.errors import StorageError
from stereo_jobs.spec import StorageSpec
from tests.fake_s3 import serve_careless
from tests.seaweed import ACCESS_KEY, SECRET_KEY


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "store"))
    endpoint = request.getfixturevalue("s3_server")
    return open_storage(f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(endpoint_url=endpoint))


@pytest.fixture
def local(tmp_path):
    return LocalStorage(tmp_path / "store")


def files_below(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


# --- The contract, local and S3 ---


def test_create_refuses_a_second_writer_and_keeps_the_first(storage):
    storage.create("data/a", b"first")
    with pytest.raises(AlreadyExistsError):
        storage.create("data/a", b"second")
    assert storage.read("data/a") == b"first"


def test_of_many_creators_exactly_one_wins(storage):
    for attempt in range(4):
        won = []
        start = threading.Barrier(8)

        def write(who, key=f"race/{attempt}", won=won, start=start):
            start.wait()
            with contextlib.suppress(AlreadyExistsError):
                storage.create(key, b"%d" % who * 100)
                won.append(who)

        threads = [threading.Thread(target=write, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"race/{attempt}") == b"%d" % won[0] * 100


def test_swap_replaces_only_the_version_that_was_seen(storage):
    storage.create("lease", b"one")
    data, tag = storage.read_tagged("lease")
    newer = storage.swap("lease", b"two", tag)
    assert (data, storage.read("lease")) == (b"one", b"two")
    with pytest.raises(ChangedError):
        storage.swap("lease", b"three", tag)
    assert storage.read_tagged("lease") == (b"two", newer)
    storage.swap("lease", b"four", newer)
    assert storage.read("lease") == b"four"


def test_swap_of_a_missing_object_is_lost(storage):
    with pytest.raises(ChangedError):
        storage.swap("nowhere/lease", b"mine", '"00000000000000000000000000000000"')
    assert not storage.exists("nowhere/lease")


def test_of_many_swappers_exactly_one_wins(storage):
    storage.create("lease", b"start")
    _, tag = storage.read_tagged("lease")
    won = []

    def take(who):
        with contextlib.suppress(ChangedError):
            storage.swap("lease", who, tag)
            won.append(who)

    threads = [threading.Thread(target=take, args=(b"%d" % who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [storage.read("lease")]


def test_replace_writes_whether_or_not_there_is_something(storage):
    storage.replace("report/a", b"one")
    storage.replace("report/a", b"two")
    assert storage.read("report/a") == b"two"


def test_list_is_in_key_order_and_filtered_by_prefix(storage):
    for key in ("data/b", "data/a-2", "data/c/deep", "data/a-1", "database", "other/x", "top"):
        storage.create(key, key.encode())
    assert [info.key for info in storage.list()] == [
        *("data/a-1", "data/a-2", "data/b", "data/c/deep", "database", "other/x", "top")
    ]
    assert list(storage.list("data/a-")) == [ObjectInfo("data/a-1", 8), ObjectInfo("data/a-2", 8)]
    assert [info.key for info in storage.list("data/")] == ["data/a-1", "data/a-2", "data/b", "data/c/deep"]
    assert list(storage.list("nothing/here")) == []


def test_size_and_exists_tell_without_reading(storage):
    storage.create("data/a", b"12345")
    assert storage.size("data/a") == 5
    assert storage.exists("data/a")
    assert not storage.exists("data/b")
    assert not storage.exists("data")


@pytest.mark.parametrize("operation", ["read", "read_tagged", "size", "content_tag"])
def test_a_missing_object_is_not_found(storage, operation):
    with pytest.raises(NotFoundError):
        getattr(storage, operation)("nowhere/x")


def test_the_probe_passes_and_can_be_repeated(storage):
    for _ in range(3):
        storage.probe("_job/probe")
    assert storage.read("_job/probe") == b"create-if-absent probe"


def test_the_content_tag_changes_with_the_content_alone(storage):
    storage.replace("a", b"same size 1")
    first = storage.content_tag("a")
    assert storage.content_tag("a") == first
    storage.replace("a", b"same size 2")
    second = storage.content_tag("a")
    storage.replace("a", b"same size 1")
    assert second != first == storage.content_tag("a")


def test_pyarrow_reads_what_create_wrote(storage):
    table = pa.table({"id": ["a", "b"]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.create("data/x.parquet", sink.getvalue().to_pybytes())
    filesystem, path = storage.for_pyarrow("data/x.parquet")
    assert pq.read_table(path, filesystem=filesystem) == table


def test_an_empty_object_is_an_object(storage):
    storage.create("empty", b"")
    assert (storage.read("empty"), storage.size("empty"), storage.exists("empty")) == (b"", 0, True)


def test_locate_names_the_object_in_full(storage):
    assert storage.locate("data/a") == f"{storage.uri}/data/a"


# --- Local: never half, never twice ---


@pytest.mark.parametrize("write", ["create", "replace"])
@pytest.mark.parametrize(
    ("call", "code", "remedy"),
    [
        ("fsync", errno.ENOSPC, "free space and run again"),
        ("fsync", errno.EDQUOT, "free space or raise the quota"),
        ("fsync", errno.EIO, "fix the cause and run again"),
    ],
)
def test_a_write_that_breaks_off_leaves_nothing(local, monkeypatch, write, call, code, remedy):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=remedy) as caught:
        patch.setattr(os, call, fail)
        getattr(local, write)("data/a", b"content")
    assert "data/a" in str(caught.value)
    assert files_below(local.root) == []
    local.create("data/a", b"content")


def test_a_failing_link_leaves_nothing(local, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="Input/output error"):
        patch.setattr(os, "link", fail)
        local.create("data/a", b"content")
    assert files_below(local.root) == []


def test_a_file_is_never_seen_half_written(local, monkeypatch):
    seen = []
    real = os.fsync

    def look(handle):
        seen.append((local.exists("data/a"), list(local.list())))
        real(handle)

    monkeypatch.setattr(os, "fsync", look)
    local.create("data/a", b"content")
    assert seen[0] == (False, [])
    assert seen[-1] == (True, [ObjectInfo("data/a", 7)])


def test_a_read_only_file_system_is_named(local, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(StorageError, match="Read-only file system; choose a writable output"):
        local.create("data/a", b"content")


def test_a_file_system_without_hard_links_is_refused(local, monkeypatch):
    def fail(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageError, match=r"no hard links.*choose an output on another file system or on S3"):
        local.create("data/a", b"content")
    assert files_below(local.root) == []


def test_a_link_whose_reply_was_lost_counts_as_made(local, monkeypatch):
    real = os.link

    def lossy(source, target):
        real(source, target)
        raise OSError(errno.EIO, "NFS lost the reply")

    monkeypatch.setattr(os, "link", lossy)
    local.create("data/a", b"content")
    assert local.read("data/a") == b"content"
    assert files_below(local.root) == ["a"]


def test_temporary_and_lock_files_are_not_listed(local):
    local.create("data/a", b"1")
    local.swap("data/a", b"2", local.read_tagged("data/a")[1])
    (local.root / "data/.a.0123").write_bytes(b"left by a killed process")
    (local.root / ".hidden").mkdir()
    (local.root / ".hidden/b").write_bytes(b"")
    assert [info.key for info in local.list()] == ["data/a"]
    assert [info.key for info in local.list("data/")] == ["data/a"]


def test_a_file_in_place_of_a_folder_is_a_storage_error(local):
    local.create("data", b"a file")
    with pytest.raises(StorageError, match="data/a"):
        local.create("data/a", b"content")


def test_a_file_uri_is_the_folder(tmp_path):
    assert open_storage(f"file://{tmp_path}/x").uri == str(tmp_path / "x")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3://", "s3:///x"])
def test_an_unknown_uri_is_refused_with_the_right_form(uri):
    with pytest.raises(StorageError, match="s3://bucket/prefix"):
        open_storage(uri)


# --- S3: errors name the remedy, never the secret ---


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refusal(uri, **settings):
    """What three operations say; each must be one line naming the object and holding no secret."""
    storage = open_storage(uri, StorageSpec(**settings))
    said = []
    for operation in (lambda: storage.read("a"), lambda: list(storage.list()), lambda: storage.content_tag("a")):
        try:
            operation()
        except NotFoundError:
            continue
        except StorageError as error:
            said.append(str(error))
    assert said
    for text in said:
        assert text.startswith(uri)
        assert len(text.splitlines()) == 1
        assert SECRET_KEY not in text
        assert "wrong-secret" not in text
    return said


def test_a_wrong_secret_key_is_named(s3_server):
    said = refusal(
        "s3://jobs/x", endpoint_url=s3_server, access_key_id=ACCESS_KEY, secret_access_key="wrong-secret-key"
    )
    assert "the secret key is wrong; check the credentials" in said[0]
    assert len(said) == 3


def test_an_unknown_access_key_is_named(s3_server):
    said = refusal("s3://jobs/x", endpoint_url=s3_server, access_key_id="nobody", secret_access_key="wrong-secret-key")
    assert "the access key is unknown; check the credentials" in said[0]
    assert len(said) == 3


def test_a_missing_bucket_is_named(s3_server):
    said = refusal("s3://no-such-bucket/x", endpoint_url=s3_server)
    assert "the bucket does not exist; create it or fix the URI" in said[0]


def test_an_impossible_bucket_name_is_named(s3_server):
    assert "not a valid bucket or object name" in refusal("s3://no_such$bucket/x", endpoint_url=s3_server)[0]


def test_missing_credentials_are_named(s3_server, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials; the standard AWS chain found none" in refusal("s3://jobs/x", endpoint_url=s3_server)[0]


def test_a_missing_profile_is_named():
    with pytest.raises(StorageError, match=r"the AWS profile does not exist; check storage.profile"):
        open_storage("s3://jobs/x", StorageSpec(profile="nobody"))


def test_an_unreachable_endpoint_is_named(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the bounded retries
    endpoint = f"http://127.0.0.1:{closed_port()}"
    said = refusal("s3://jobs/x", endpoint_url=endpoint, access_key_id="id", secret_access_key="wrong-secret-key")
    assert "the endpoint cannot be reached; check endpoint_url and the network" in said[0]


def test_a_store_that_ignores_conditions_is_refused():
    with serve_careless() as endpoint:
        settings = StorageSpec(endpoint_url=endpoint, access_key_id="id", secret_access_key="any")
        storage = open_storage("s3://bucket/out", settings)
        storage.create("a/b", b"content")
        assert storage.read("a/b") == b"content"
        assert list(storage.list("a/")) == [ObjectInfo("a/b", 7)]
        with pytest.raises(StorageError, match=r"ignores create-if-absent \(IfNoneMatch\).*use AWS S3"):
            storage.probe("_job/probe")


def test_a_store_that_ignores_only_the_overwrite_condition_is_refused_too(local, monkeypatch):
    monkeypatch.setattr(local, "swap", lambda key, data, tag: "tag")
    with pytest.raises(StorageError, match=r"conditional overwrites \(IfMatch\)"):
        local.probe("_job/probe")
