"""Storage: what exactly-once rests on, for a local folder and for a real S3 server alike, and what goes wrong."""

import contextlib
import errno
import gzip
import hashlib
import os
import pickle
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError

from stereo_jobs.data import s3_access
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.storage import (
    AlreadyExistsError,
    ChangedError,
    LocalStorage,
    NotFoundError,
    ObjectInfo,
    open_storage,
)
from stereo_jobs.errors import StorageError, StorageUnavailableError
from stereo_jobs.spec import StorageSpec
from tests.fake_s3 import Manners, make_certificate, serve, serve_careless
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


def test_list_begins_behind_a_key_that_need_not_exist(storage):
    for key in ("data/a", "data/b.x", "data/c/deep", "data/d", "other/x"):
        storage.create(key, key.encode())
    behind = {"data/b": ["data/b.x", "data/c/deep", "data/d"], "data/c/deep": ["data/d"], "data/d": [], "data/e": []}
    for after, found in behind.items():
        assert [info.key for info in storage.list("data/", after)] == found
    assert [info.key for info in storage.list(after="data/d")] == ["other/x"]


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


def test_many_may_probe_at_the_same_time(storage):
    with ThreadPoolExecutor(4) as pool:
        for probing in [pool.submit(storage.probe, "_job/probe") for _ in range(4)]:
            probing.result()


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


def test_a_probe_that_another_run_keeps_winning_against_ends(local, monkeypatch):
    def lose(key, data, tag):
        raise ChangedError(key)

    monkeypatch.setattr(local, "swap", lose)
    with pytest.raises(StorageError, match=r"\(IfMatch\) with the tag \(ETag\) that it has just given"):
        local.probe("_job/probe")


# --- S3: bodies go out plain, and come back as they went out ---

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
KEYS = {"access_key_id": "id", "secret_access_key": SECRET_KEY}


@pytest.fixture(scope="module")
def odd_server():
    manners = Manners()
    with serve(manners) as endpoint:
        yield endpoint, manners


@pytest.fixture
def manners(odd_server):
    """Those of the server of `odd_store`: perfect at first."""
    Manners.__init__(odd_server[1])
    return odd_server[1]


@pytest.fixture
def odd_store(odd_server, manners):
    settings = StorageSpec(endpoint_url=odd_server[0], access_key_id="id", secret_access_key=SECRET_KEY)
    return open_storage(f"s3://bucket/{uuid.uuid4().hex}", settings)


def configure(tmp_path, monkeypatch, text):
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.mark.parametrize("where", ["http", "https", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile", "service"])
def test_bodies_go_out_plain_to_a_store_of_ones_own(tmp_path, monkeypatch, where):
    manners, certificate = Manners(unframes=False), make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with serve(manners, None if where == "http" else certificate) as endpoint:
        settings = StorageSpec(endpoint_url=endpoint if where.startswith("http") else None, **KEYS)
        if where.startswith("AWS"):
            monkeypatch.setenv(where, endpoint)
        elif where == "profile":
            configure(tmp_path, monkeypatch, f"[default]\nendpoint_url = {endpoint}\n")
        elif where == "service":
            services = f"[services mine]\ns3 =\n  endpoint_url = {endpoint}\n"
            configure(tmp_path, monkeypatch, f"[default]\nservices = mine\n{services}")
        storage = open_storage("s3://bucket/out", settings)
        storage.create("a", b"one")
        storage.swap("a", b"two", storage.read_tagged("a")[1])
        storage.replace("a", b"three")
        assert storage.read("a") == b"three"
        filesystem, path = storage.for_pyarrow("a")
        assert filesystem.open_input_stream(path).read() == b"three"
    digests = [hashlib.sha256(body).hexdigest() for body in (b"one", b"two", b"three")]
    assert [put["x-amz-content-sha256"] for put in manners.puts] == digests
    for put in manners.puts:
        assert "aws-chunked" not in put.get("content-encoding", "")
        assert not [name for name in put if "trailer" in name or "checksum" in name]


@pytest.mark.parametrize("where", ["environment", "configuration file"])
def test_whoever_asks_for_checksums_gets_them(odd_store, manners, tmp_path, monkeypatch, where):
    if where == "environment":
        monkeypatch.setenv(CHECKSUMS, "when_supported")
    else:
        configure(tmp_path, monkeypatch, "[default]\nrequest_checksum_calculation = when_supported\n")
    open_storage(odd_store.uri, odd_store._settings).probe("_job/probe")
    assert all("x-amz-sdk-checksum-algorithm" in put for put in manners.puts)


def test_aws_itself_gets_checksums(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    access = s3_access.S3Access(StorageSpec(**KEYS), 60.0)
    assert (access.is_aws, access.sends_checksums) == (True, True)


@pytest.mark.parametrize(
    ("endpoint", "is_aws"),
    [
        ("https://s3.amazonaws.com", True),
        ("https://s3.eu-central-1.amazonaws.com", True),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("https://storage.googleapis.com", False),
        ("http://amazonaws.com.example.org", False),
        ("https://s3.example.org/amazonaws.com", False),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_awss_own_endpoints_are_known(endpoint, is_aws):
    assert s3_access._is_aws(endpoint) == is_aws


def opaque(body):
    """An ETag that says nothing about the body, as with encryption."""
    return f'"{uuid.uuid4().hex}"'


MANGLED = {
    "empty": lambda body: b"",
    "truncated": lambda body: body[:1000],
    "one byte short": lambda body: body[:-1],
    "one bit flipped": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "compressed": gzip.compress,
    "line ends": lambda body: body.replace(b"\n", b"\r\n"),
    "7 bits": lambda body: bytes(byte & 127 for byte in body),
    "large bodies only": lambda body: body[:60_000],
}


@pytest.mark.parametrize("tags", [None, opaque], ids=["md5", "opaque"])
@pytest.mark.parametrize("how", ["keep", "give"])
@pytest.mark.parametrize("mangled", MANGLED.values(), ids=MANGLED)
def test_the_probe_refuses_a_store_that_changes_bodies(odd_store, manners, mangled, how, tags):
    setattr(manners, how, mangled)
    manners.etag = tags or manners.etag
    with pytest.raises(
        StorageError, match=r"other bytes come back than were written.*checksums \(aws-chunked\)"
    ) as end:
        odd_store.probe("_job/probe")
    assert end.value.exit_code == 2
    assert "bodies go out without checksums here, so the cause is another" in str(end.value)
    # Once it is mended, what it has kept does not stand in the way.
    manners.keep = manners.give = bytes
    odd_store.probe("_job/probe")


def test_a_store_that_keeps_frames_is_refused_and_the_remedy_helps(tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv(CHECKSUMS, "when_supported")
    with serve(Manners(unframes=False), certificate) as endpoint:
        settings = StorageSpec(endpoint_url=endpoint, **KEYS)
        remedy = "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        with pytest.raises(StorageError, match=rf"\(aws-chunked\).*: {remedy}"):
            open_storage("s3://bucket/out", settings).probe("_job/probe")
        monkeypatch.setenv(CHECKSUMS, "when_required")
        open_storage("s3://bucket/out", settings).probe("_job/probe")


def test_a_store_may_have_etags_that_are_no_md5(odd_store, manners):
    manners.etag = opaque
    odd_store.probe("_job/probe")
    odd_store.create("data/a", b"content")
    assert odd_store.read("data/a") == b"content"


def test_a_store_whose_etags_cannot_be_used_again_is_refused(odd_store, manners):
    manners.etag_read = lambda etag: f"W/{etag}"
    with pytest.raises(StorageError, match=r"\(IfMatch\) with the tag \(ETag\) that it has just given.*a proxy"):
        odd_store.probe("_job/probe")


@pytest.mark.parametrize("tags", ["of what is kept", "opaque"])
def test_an_object_that_is_mangled_after_the_probe_is_no_commit(odd_store, manners, tags):
    odd_store.probe("_job/probe")
    manners.keep = lambda body: body[:4]
    manners.etag = opaque if tags == "opaque" else lambda body: f'"{hashlib.md5(body[:4]).hexdigest()}"'
    with pytest.raises(StorageError, match=r"/data/a: other bytes come back.*Move the object away"):
        odd_store.create("data/a", b"content")


class AlteredReads:
    """One other byte, at another place each time, in the first answers."""

    def __init__(self, answers: int) -> None:
        self.left = answers

    def __call__(self, body: bytes) -> bytes:
        if not self.left:
            return body
        self.left -= 1
        place = self.left % len(body)
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


@pytest.mark.parametrize("tags", [None, opaque], ids=["md5", "opaque"])
def test_bytes_that_are_altered_for_a_while_are_read_again(odd_store, manners, monkeypatch, tags):
    monkeypatch.setattr(type(odd_store).read_tagged.retry, "wait", tenacity.wait_none())
    manners.etag = tags or manners.etag
    odd_store.create("data/a", b"content")
    for answers in range(4):
        manners.give = AlteredReads(answers)
        assert odd_store.read("data/a") == b"content"
    manners.give = AlteredReads(100)
    with pytest.raises(StorageUnavailableError, match="/data/a: the store gives other bytes each time it is read"):
        odd_store.read("data/a")


def test_an_object_that_vanishes_is_no_commit(odd_store, manners):
    manners.etag = opaque
    manners.refuse = lambda method, headers: (404, "NoSuchKey") if method == "GET" else None
    with pytest.raises(StorageError, match="other bytes come back"):
        odd_store.create("data/a", b"content")


# --- S3: what its errors mean ---


@pytest.mark.parametrize(
    ("status", "code", "words", "exit_code"),
    [
        (403, "SignatureDoesNotMatch", ("the secret key is wrong", "clock", "checksums", "Version 4"), 2),
        (403, "RequestTimeTooSkewed", ("the clock of this machine", "NTP"), 75),
        (400, "BadDigest", ("another body than was sent", "aws-chunked", "proxy"), 2),
        (400, "InvalidDigest", ("another body than was sent", "aws-chunked", "proxy"), 2),
        (400, "XAmzContentSHA256Mismatch", ("another body than was sent", "aws-chunked", "proxy"), 2),
        (411, "MissingContentLength", ("without its length", "aws-chunked"), 2),
        (501, "NotImplemented", ("conditional writes (IfNoneMatch, IfMatch)", "aws-chunked"), 2),
        (301, "PermanentRedirect", ("another region", "runtime.storage", "endpoint_url"), 2),
        (400, "AuthorizationHeaderMalformed", ("another region", "runtime.storage", "AWS_REGION"), 2),
        (400, "ExpiredToken", ("the session token has expired; renew the credentials",), 2),
        (503, "SlowDown", ("SlowDown",), 75),
        (400, "SomethingNew", ("SomethingNew: In the store's words.",), 2),
    ],
)
def test_an_error_code_is_told_with_its_remedy(odd_store, manners, monkeypatch, status, code, words, exit_code):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the bounded retries
    manners.refuse = lambda method, headers: (status, code) if method == "PUT" else None
    for operation in (odd_store.probe, lambda key: odd_store.create(key, b"content")):
        with pytest.raises(StorageError) as caught:
            operation("_job/probe")
        assert caught.value.exit_code == exit_code
        assert isinstance(caught.value, StorageUnavailableError) == (exit_code == 75)
        assert str(caught.value).startswith(f"{odd_store.uri}/_job/probe: ")
        assert len(str(caught.value).splitlines()) == 1
        assert SECRET_KEY not in str(caught.value)
        assert "{" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


def test_a_body_that_was_damaged_on_its_way_is_sent_again(odd_store, manners, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    manners.refuse = lambda method, headers: (400, "BadDigest") if len(manners.puts) in (1, 2) else None
    odd_store.create("a", b"content")
    assert (odd_store.read("a"), len(manners.puts)) == (b"content", 3)


def test_aws_is_believed_about_the_secret_key():
    storage = open_storage("s3://bucket/out", StorageSpec(**KEYS))
    with (
        pytest.raises(StorageError, match=r"out/a: the secret key is wrong; check the credentials$"),
        storage._errors("a"),
    ):
        raise ClientError({"Error": {"Code": "SignatureDoesNotMatch", "Message": "x"}}, "PutObject")


# --- S3: one client for everything ---


@pytest.fixture
def clients(monkeypatch):
    """The clients made from here on."""
    made = []
    real = boto3.Session.client

    def client(self, *args, **kwargs):
        made.append(real(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(boto3.Session, "client", client)
    return made


def test_many_shards_and_pictures_share_one_client(s3_server, clients, monkeypatch):
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "regional")  # other settings than in any test before
    settings, place = StorageSpec(endpoint_url=s3_server), f"s3://jobs/{uuid.uuid4().hex}"
    open_storage(place, settings).create("pictures/a.png", b"picture")
    reader = InputReader([f"{place}/pictures"], 100, settings)

    def shard(number):
        storage = open_storage(f"{place}/out", settings)
        storage.create(f"data/{number}", b"shard")
        filesystem, path = storage.for_pyarrow(f"data/{number}")
        with filesystem.open_input_file(path) as file:
            return file.read(), reader.read(f"{place}/pictures/a.png", "image"), id(filesystem)

    with ThreadPoolExecutor(8) as pool:
        done = set(pool.map(shard, range(40)))
    assert len(clients) == 1
    assert len(done) == 1
    assert next(iter(done))[:2] == (b"shard", b"picture")


def test_other_settings_have_clients_of_their_own(clients, monkeypatch):
    def opened(patience_s=60.0, **settings):
        return open_storage("s3://bucket/x", StorageSpec(**KEYS | settings), patience_s)._client

    here = {"endpoint_url": "http://127.0.0.1:9"}
    usual = opened(**here)
    assert opened(**here) is usual
    others = [
        opened(**here, patience_s=2.0),
        opened(endpoint_url="http://127.0.0.1:10"),
        opened(**here, secret_access_key="another"),
        opened(**here, region="eu-west-3"),
    ]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    others.append(opened(**here))
    assert len({id(client) for client in [usual, *others]}) == 6


def test_a_process_keeps_few_clients(clients, monkeypatch):
    monkeypatch.setattr(s3_access, "_accesses", {})
    monkeypatch.setattr(s3_access, "_KEPT", 2)
    for port in (1, 2, 3, 4):
        open_storage("s3://bucket/x", StorageSpec(endpoint_url=f"http://127.0.0.1:{port}", **KEYS))
    assert [access.client for access in s3_access._accesses.values()] == clients[-2:]


def test_without_credentials_they_are_looked_for_again(clients, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    for opened in (1, 2):
        storage = open_storage("s3://bucket/x", StorageSpec(endpoint_url="http://127.0.0.1:9"))
        for _ in range(2):
            with pytest.raises(StorageError, match="no credentials"):
                storage.read("a")
        assert len(clients) == opened


def test_renewed_credentials_reach_arrow():
    access = s3_access.S3Access(StorageSpec(endpoint_url="http://127.0.0.1:9", **KEYS), 60.0)
    first = access.file_system("bucket")
    assert access.file_system("other") is first

    class Role:
        def get_frozen_credentials(self):
            return ReadOnlyCredentials("id", "renewed", "token")

    access._credentials = Role()
    renewed = access.file_system("bucket")
    assert renewed is not first
    assert access.file_system("bucket") is renewed


def test_storage_can_be_sent_to_another_process(storage, monkeypatch):
    storage.create("a", b"content")
    sent = pickle.dumps(storage)
    assert SECRET_KEY.encode() not in sent
    assert pickle.loads(sent).read("a") == b"content"


def test_a_forked_process_has_connections_of_its_own(storage):
    storage.create("a", b"content")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if [storage.read("a") for _ in range(3)] == [b"content"] * 3 else 1)
        os._exit(2)
    assert [storage.read("a") for _ in range(3)] == [b"content"] * 3
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
