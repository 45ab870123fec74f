"""Who asks a store: nobody (public buckets), or whoever boto3 finds; Arrow always asks as the same one as boto3."""

import json
import re
import sys
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.data.s3_access import S3Access
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import SpecError, StorageError, StorageUnavailableError
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.verify import verify
from stereo_jobs.run.driver import run
from stereo_jobs.spec import StorageSpec
from stereo_jobs.spec_reading import parse_storage
from tests import standin
from tests.fake_s3 import Manners, serve
from tests.seaweed import ACCESS_KEY, PUBLIC_BUCKET, SECRET_KEY, as_admin

KEYS = {"access_key_id": "id", "secret_access_key": "do-not-print"}
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@pytest.fixture
def nobody(monkeypatch):
    """An environment without credentials."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def public(s3_server):
    """A prefix in the public bucket with a manifest of 4 prompts."""
    prefix = uuid.uuid4().hex
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": list("abcd"), "prompt": ["a red star"] * 4}), sink)
    body = sink.getvalue().to_pybytes()
    as_admin(s3_server).Bucket(PUBLIC_BUCKET).put_object(Key=f"{prefix}/rows.parquet", Body=body)
    return f"s3://{PUBLIC_BUCKET}/{prefix}"


def arrow_read(storage, key):
    filesystem, path = storage.for_pyarrow(key)
    with filesystem.open_input_file(path) as file:
        return file.read()


# --- Public buckets ---


@pytest.mark.parametrize("anonymous", [True, [PUBLIC_BUCKET]])
def test_a_public_bucket_is_read_without_credentials(s3_server, public, nobody, anonymous):
    storage = open_storage(public, parse_storage(endpoint_url=s3_server, anonymous=anonymous))
    [info] = storage.list()
    assert storage.size("rows.parquet") == info.size
    assert storage.read("rows.parquet") == arrow_read(storage, "rows.parquet")


def test_a_job_reads_a_public_bucket_and_writes_with_credentials(s3_server, public, make_spec):
    storage = {"endpoint_url": s3_server, "anonymous": [PUBLIC_BUCKET]}
    spec = make_spec(public, output=f"s3://jobs/{uuid.uuid4().hex}", storage=storage)
    assert run(spec, local=True, load=standin.load).complete
    output = open_storage(spec.output, spec.runtime.storage)
    assert verify(output, load_job(output), spec.runtime.storage).ok
    with pytest.raises(StorageError, match="take it out there and give credentials"):
        open_storage(public, spec.runtime.storage).create("x", b"nobody may write here")


@pytest.mark.usefixtures("nobody")
def test_commands_read_a_public_bucket_without_a_spec(s3_server, public, make_spec, tmp_path, command_line, capsys):
    run(make_spec(), local=True, load=standin.load)
    bucket, _, prefix = public.removeprefix("s3://").partition("/")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            key = f"{prefix}/out/{path.relative_to(tmp_path / 'out')}"
            as_admin(s3_server).Bucket(bucket).put_object(Key=key, Body=path.read_bytes())
    for words in (
        ("verify", f"{public}/out"),
        ("status", f"{public}/out"),
        ("errors", f"{public}/out"),
        ("manifest", "build", f"{public}/rows.parquet", tmp_path / "m.parquet"),
    ):
        code, _, err = command_line(capsys, *words, "--endpoint-url", s3_server)
        assert code == 2
        assert "without a spec, --anonymous" in " ".join(err.split())
        assert command_line(capsys, *words, "--endpoint-url", s3_server, "--anonymous")[0] == 0


def test_a_bucket_that_is_not_public_says_so(s3_server):
    storage = open_storage("s3://jobs/x", StorageSpec(endpoint_url=s3_server, anonymous=True))
    with pytest.raises(StorageError, match=r"denied without credentials, which runtime.storage.anonymous says"):
        storage.read("a")
    with pytest.raises(OSError, match="AWS Error ACCESS_DENIED"):
        arrow_read(storage, "a")


def test_without_credentials_the_field_is_named(s3_server, public, nobody):
    storage = open_storage(public, StorageSpec(endpoint_url=s3_server))
    for read in (storage.read, storage.for_pyarrow):
        with pytest.raises(StorageError, match=r"no credentials;.*if the bucket is public, set runtime\.storage\.anon"):
            read("rows.parquet")


@pytest.mark.parametrize("code", ["AccessDenied", "403"])
def test_a_refusal_names_the_field(code):
    with serve(Manners(refuse=lambda method, headers: (403, code))) as endpoint:
        storage = open_storage("s3://bucket/x", StorageSpec(endpoint_url=endpoint, **KEYS))
        with pytest.raises(
            StorageError, match=r"access denied; check the credentials and the bucket policy, or, if the"
        ):
            storage.read("a")


def test_requests_to_listed_buckets_alone_are_unsigned():
    signed = {}

    def look(method, headers):
        signed[len(signed)] = "authorization" in headers

    with serve(Manners(refuse=look)) as endpoint:
        settings = StorageSpec(endpoint_url=endpoint, anonymous=("open", "other-open"), **KEYS)
        for bucket in ("closed", "open", "other-open", "open-too"):
            storage = open_storage(f"s3://{bucket}/x", settings)
            assert list(storage.list()) == []
            with pytest.raises(OSError, match="does not exist"):
                arrow_read(storage, "missing")
    # Arrow asks for the size alone; boto3 and Arrow each ask once.
    assert [signed[i] for i in range(8)] == [True] * 2 + [False] * 4 + [True] * 2


@pytest.mark.parametrize("value", ["yes", 1, None, {"bucket": True}, ["s3://bucket"], ["bucket/prefix"], [""], [3]])
def test_what_is_neither_a_switch_nor_buckets_is_refused(value):
    with pytest.raises(SpecError, match="anonymous: must"):
        parse_storage(anonymous=value)


@pytest.mark.parametrize("other", [{"profile": "me"}, KEYS])
def test_credentials_that_would_be_ignored_are_refused(other):
    with pytest.raises(SpecError, match=r"anonymous: true uses no credentials.*drop one of them, or list"):
        parse_storage(anonymous=True, **other)
    assert parse_storage(anonymous=["open"], **other).for_bucket("closed").anonymous is False
    opened = parse_storage(anonymous=["open"], **other).for_bucket("open")
    assert opened == StorageSpec(anonymous=True)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,30}", fullmatch=True)


@given(st.one_of(st.booleans(), st.lists(NAMES, max_size=3)), NAMES, st.sampled_from([{}, {"profile": "me"}, KEYS]))
def test_a_bucket_is_asked_anonymously_exactly_if_the_field_says_so(anonymous, bucket, given_credentials):
    if anonymous is True and given_credentials:
        return
    settings = parse_storage(anonymous=anonymous, region="eu-west-3", **given_credentials).for_bucket(bucket)
    unsigned = anonymous if isinstance(anonymous, bool) else bucket in anonymous
    assert settings.anonymous is unsigned
    assert settings.region == "eu-west-3"
    assert StorageSpec.model_validate(settings.model_dump()) == settings
    has = settings.profile is not None or settings.access_key_id is not None
    assert has == (bool(given_credentials) and not unsigned)
    assert settings.for_bucket("another") == settings


# --- Profiles, roles and commands that give credentials ---


@pytest.fixture
def aws_files(tmp_path, monkeypatch, nobody):
    """Writes the AWS configuration file, and a command that gives credentials which end after some seconds."""

    class Files:
        answers = tmp_path / "answers"

        def config(self, text):
            (tmp_path / "config").write_text(text)
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

        def command(self, body):
            (tmp_path / "give.py").write_text(body)
            return f"{sys.executable} {tmp_path / 'give.py'}"

        def gives(self, *keys, seconds=3600):
            """A command that gives each pair of keys once, the last one for ever."""
            self.answers.mkdir()
            ends = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
            for number, (access, secret) in enumerate(keys):
                answer = {"Version": 1, "AccessKeyId": access, "SecretAccessKey": secret, "Expiration": ends}
                (self.answers / f"{number}").write_text(json.dumps(answer))
            return self.command(
                "import pathlib, os\n"
                f"folder = pathlib.Path({str(self.answers)!r})\n"
                "names = sorted(folder.iterdir())\n"
                "print(names[0].read_text())\n"
                "if len(names) > 1: names[0].unlink()\n"
            )

    return Files()


@pytest.mark.parametrize("how", ["profile", "AWS_PROFILE", "default"])
@pytest.mark.parametrize("kind", ["keys", "command", "credentials file"])
def test_a_profile_opens_the_store_for_boto3_and_arrow(s3_server, aws_files, monkeypatch, tmp_path, how, kind):
    name = "default" if how == "default" else "someone"
    section = "[default]" if how == "default" else "[profile someone]"
    keys = f"aws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    if kind == "credentials file":
        (tmp_path / "credentials").write_text(f"[{name}]\n{keys}")
    gives = {"keys": keys, "command": "credential_process=" + aws_files.gives((ACCESS_KEY, SECRET_KEY))}
    aws_files.config(f"{section}\nregion=us-east-1\n{gives.get(kind, '')}")
    if how == "AWS_PROFILE":
        monkeypatch.setenv("AWS_PROFILE", name)
    settings = StorageSpec(endpoint_url=s3_server, profile=name if how == "profile" else None)
    storage = open_storage(f"s3://jobs/{uuid.uuid4().hex}", settings)
    storage.create("a", b"content")
    assert storage.read("a") == arrow_read(storage, "a") == b"content"


def test_a_named_profile_comes_before_keys_of_the_environment(s3_server, aws_files, monkeypatch):
    aws_files.config(f"[profile someone]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    storage = open_storage(f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(endpoint_url=s3_server, profile="someone"))
    storage.create("a", b"content")
    assert arrow_read(storage, "a") == b"content"


def signer(headers):
    found = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
    return found and found[1]


def test_credentials_that_end_are_renewed_for_boto3_and_arrow(aws_files):
    """A store that takes the newest keys only; those that end within ten minutes are fetched anew at each use."""
    keys = [(f"KEY{number}", "secret") for number in range(10)]
    aws_files.config("[default]\ncredential_process=" + aws_files.gives(*keys, seconds=60))
    seen = []

    def newest(method, headers):
        seen.append(signer(headers))
        # The command has given the next answer away as soon as it is asked: the first one left is the newest but one.
        given = 10 - len(list(aws_files.answers.iterdir()))
        return None if int(seen[-1].removeprefix("KEY")) >= given - 1 else (400, "ExpiredToken")

    with serve(Manners(refuse=newest)) as endpoint:
        storage = open_storage("s3://bucket/x", StorageSpec(endpoint_url=endpoint))
        storage.create("a", b"content")
        for _ in range(2):
            assert storage.read("a") == b"content"
            assert arrow_read(storage, "a") == b"content"
    assert len(set(seen)) > 3


def test_lasting_credentials_are_fetched_once(aws_files):
    aws_files.config("[default]\ncredential_process=" + aws_files.gives(("KEY0", "s"), ("KEY1", "s"), seconds=3600))
    with serve(Manners()) as endpoint:
        storage = open_storage("s3://bucket/x", StorageSpec(endpoint_url=endpoint))
        storage.create("a", b"content")
        first = storage.for_pyarrow("a")[0]
        assert storage.for_pyarrow("a")[0] is first
        assert [path.name for path in aws_files.answers.iterdir()] == ["1"]


def test_a_role_is_assumed_with_the_keys_of_its_source(aws_files):
    """The role's credentials come from STS, here a stand-in on loopback, and sign for boto3 and Arrow alike."""

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            keys = f"<AccessKeyId>ROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>{signer_of}"
            body = (
                '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
                f"{keys}</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleResult>"
                "</AssumeRoleResponse>"
            ).encode()
            asked.append(signer({"authorization": self.headers["Authorization"]}))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    asked, signer_of, seen = [], "token", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sts)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    aws_files.config(
        "[profile base]\naws_access_key_id=BASE\naws_secret_access_key=s\n"
        "[profile role]\nrole_arn=arn:aws:iam::123456789012:role/reader\nsource_profile=base\nregion=us-east-1\n"
        f"services=local\n[services local]\nsts =\n  endpoint_url = http://127.0.0.1:{server.server_port}\n"
    )

    def look(method, headers):
        seen.append((signer(headers), headers.get("x-amz-security-token")))

    try:
        with serve(Manners(refuse=look)) as endpoint:
            storage = open_storage("s3://bucket/x", StorageSpec(endpoint_url=endpoint, profile="role"))
            storage.create("a", b"content")
            assert arrow_read(storage, "a") == b"content"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert asked == ["BASE"]
    assert set(seen) == {("ROLE", "token")}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit(3)", "try it by itself"),
        ("print('no JSON')", "try it by itself"),
        ("print('{}')", "try it by itself"),
        (None, "try it by itself"),
    ],
)
def test_a_command_that_gives_no_credentials_is_one_line(aws_files, body, words):
    command = aws_files.command(body) if body else "/no/such/command"
    aws_files.config(f"[default]\ncredential_process={command}\n")
    with pytest.raises(StorageUnavailableError, match=words) as caught:
        open_storage("s3://bucket/x", StorageSpec(endpoint_url="http://127.0.0.1:9"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("role_arn=arn:aws:iam::123456789012:role/reader", "not complete or not valid"),
        ("role_arn=arn:aws:iam::123456789012:role/reader\nsource_profile=nobody", "not complete or not valid"),
        ("aws_access_key_id=only-half", "not complete or not valid"),
        ("sso_start_url=https://x.invalid\nsso_region=eu-west-3\nsso_account_id=1\nsso_role_name=r", "aws sso login"),
    ],
)
def test_a_profile_that_cannot_work_is_final_and_says_what_to_do(aws_files, profile, words):
    aws_files.config(f"[profile broken]\n{profile}\n")
    with pytest.raises(StorageError, match=words) as caught:
        open_storage("s3://bucket/x", StorageSpec(profile="broken", endpoint_url="http://127.0.0.1:9")).read("a")
    assert caught.value.exit_code == 2


def test_arrow_never_looks_for_credentials_of_its_own(nobody):
    access = S3Access(StorageSpec(endpoint_url="http://127.0.0.1:9"), 60.0)
    with pytest.raises(Exception, match="Unable to locate credentials"):
        access.file_system("bucket")
