"""Jobs submitted to a real Ray head on loopback, with token auth: ids, logs, exit codes, errors with a remedy."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from stereo_jobs.errors import ClusterError, InterruptedRunError, SpecError
from stereo_jobs.launch import submit
from stereo_jobs.launch.portable import read_portable
from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S

BIN = Path(sys.executable).parent
PLANTED = {"MY_ACCESS_KEY": secrets.token_hex(16), "MY_SECRET_KEY": secrets.token_hex(16)}
"""In the environment of the head, where the specs of all jobs here read them."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def head():
    """URL and token of a Ray head of this module's own."""
    port, dashboard, client, agent = (free_port() for _ in range(4))
    token = secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray makes sockets in it
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps a cluster of one machine on loopback
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "OMP_NUM_THREADS": "1",
        **PLANTED,
    }
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        environment.pop(name, None)
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "ray", *words, "--disable-usage-stats"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE_S
    while not listening(dashboard):
        assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
        time.sleep(0.5)
    yield SimpleNamespace(url=f"http://127.0.0.1:{dashboard}", token=token, folder=folder)
    process.send_signal(signal.SIGTERM)
    process.wait(240)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stereo_jobs(command_line, head, monkeypatch, capfd):
    """Runs the command line against the head; returns exit code, output, errors."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    monkeypatch.setenv("STEREO_JOBS_ADDRESS", head.url)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # must not get in the way
    return partial(command_line, capfd)


@pytest.fixture
def spec_file(tmp_path, make_manifest):
    """Writes the spec of a job that ends soon: two rows by the embedded models, with few steps."""

    def write(name: str = "job.yaml", **parts) -> Path:
        spec = {
            "manifest": parts.get("manifest") or str(make_manifest(rows=2)),
            "output": str(tmp_path / "out"),
            "recipe": {"method": {"steps": 4}, "size": {"width": 64, "height": 64}},
            "runtime": {"actors": 1, "device": "cpu", "batch_size": 2},
        } | parts
        keys = {"access_key_id": "${MY_ACCESS_KEY}", "secret_access_key": "${MY_SECRET_KEY}"}
        spec["runtime"] = {"storage": keys} | spec["runtime"]
        path = tmp_path / name
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


def files_with_secrets(head) -> list[Path]:
    """Of all that Ray's session has written so far."""
    files = [path for path in head.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    hidden = [secret.encode() for secret in (head.token, *PLANTED.values())]
    return [path for path in files if any(secret in path.read_bytes() for secret in hidden)]


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(stereo_jobs, spec_file, tmp_path, head):
    code, out, err = stereo_jobs("submit", spec_file())
    assert (code, "done: 2 of 2 pairs" in out) == (0, True), out + err
    assert stereo_jobs("verify", tmp_path / "out")[0] == 0
    code, out, _ = stereo_jobs("submit", spec_file(), "--json")  # the next run of the same job finds it done
    assert (code, json.loads(out)["exit_code"], json.loads(out)["id"][-2:]) == (0, 0, "-2")
    assert not files_with_secrets(head)


def test_no_file_of_the_session_holds_a_secret(stereo_jobs, spec_file, tmp_path, head):
    spec = spec_file(manifest=f"{tmp_path}/nowhere/*.parquet")
    assert stereo_jobs("submit", spec, "--log-format", "json")[0] == 2
    assert not files_with_secrets(head)


def test_the_exit_code_is_the_jobs_own_and_an_id_is_taken_once(stereo_jobs, spec_file, tmp_path):
    spec = spec_file(manifest=f"{tmp_path}/nowhere/*.parquet")
    code, out, err = stereo_jobs("submit", spec, "--id", "mine", "--json")
    end = json.loads(out)
    assert (code, end) == (2, {"id": "mine", "status": "FAILED", "exit_code": 2})
    assert "no Parquet file there" in err
    code, out, _ = stereo_jobs("logs", "mine", "--follow")
    assert (code, "no Parquet file there" in out) == (2, True)
    code, out, _ = stereo_jobs("logs", "mine")
    assert (code, "no Parquet file there" in out) == (0, True)
    assert "had ended before" in stereo_jobs("stop", "mine")[1]
    code, _, err = stereo_jobs("submit", spec, "--id", "mine")
    assert (code, "used it for a job that ended" in err) == (2, True)
    code, _, err = stereo_jobs("submit", spec_file(), "--id", "mine")
    assert (code, "used it for another job" in err) == (2, True)
    code, _, err = stereo_jobs("submit", spec, "--id", "not an id")
    assert (code, "at most 128 characters" in err) == (2, True)


@pytest.mark.slow
def test_a_running_job_is_joined_stopped_and_resumed(stereo_jobs, spec_file, make_manifest, tmp_path):
    spec = spec_file(
        manifest=str(make_manifest(rows=12)),
        recipe={"method": {"steps": 12}, "size": {"width": 64, "height": 64}},
        runtime={"actors": 1, "device": "cpu", "batch_size": 1, "shard_rows": 1},
    )
    first = json.loads(stereo_jobs("submit", spec, "--detach", "--json")[1])
    second = json.loads(stereo_jobs("submit", spec, "--detach", "--json")[1])
    assert (first["joined"], second["joined"], first["id"] == second["id"]) == (False, True, True)
    deadline = time.monotonic() + PATIENCE_S
    while not list((tmp_path / "out/_job/commits").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "stopping" in stereo_jobs("stop", first["id"])[1]
    code, out, err = stereo_jobs("logs", first["id"], "--follow")
    assert (code, "run again to go on" in out) == (75, True), out + err
    assert stereo_jobs("submit", spec)[0] == 0
    assert stereo_jobs("verify", tmp_path / "out")[0] == 0


@pytest.mark.slow
def test_max_hours_ends_in_time(stereo_jobs, spec_file, make_manifest):
    runtime = {"actors": 1, "device": "cpu", "batch_size": 1, "shard_rows": 1}
    spec = spec_file(manifest=str(make_manifest(rows=400)), runtime=runtime)
    started = time.monotonic()
    assert stereo_jobs("submit", spec, "--max-hours", 0.007)[0] == 75
    # 25 s, half of them for dealing; and what it takes to get a process with models up and to hear of its end.
    assert 12 < time.monotonic() - started < 25 + 30


def test_jobs_that_are_not_there(stereo_jobs):
    for verb in ("logs", "stop"):
        code, _, err = stereo_jobs(verb, "nothing")
        assert (code, "no job nothing" in err) == (2, True)


def test_wrong_and_missing_tokens(stereo_jobs, spec_file, monkeypatch):
    spec = spec_file()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    code, _, err = stereo_jobs("submit", spec)
    assert (code, "RAY_AUTH_TOKEN is not the token" in err) == (2, True)
    assert "0" * 64 not in err
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_MODE")
    code, _, err = stereo_jobs("submit", spec)
    assert (code, "set RAY_AUTH_TOKEN" in err) == (2, True)


# --- Without a cluster ---


def test_no_head(spec_file, monkeypatch):
    with pytest.raises(ClusterError, match="no Ray head answers there"), submit.connect("http://127.0.0.1:9"):
        pass
    with pytest.raises(ClusterError, match="http://HOST:8265"), submit.connect("127.0.0.1:8265"):
        pass


def test_something_else_answers(tmp_path):
    from functools import partial
    from http.server import HTTPServer, SimpleHTTPRequestHandler
    from threading import Thread

    (tmp_path / "api").mkdir()
    (tmp_path / "api/version").write_text("hello")
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with (
            pytest.raises(ClusterError, match="not a Ray dashboard"),
            submit.connect(f"http://127.0.0.1:{server.server_port}"),
        ):
            pass
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"runtime": {"storage": {"access_key_id": "${KEY}", "secret_access_key": "hush"}}}, "a secret in plain text"),
        ({"output": "out"}, "an absolute path on a file system that all nodes share"),
        ({"runtime": {"storage": {"endpoint_url": "http://me:hush@s3"}}}, "has a password in it"),
    ],
)
def test_specs_that_cannot_travel(spec_file, parts, complaint):
    with pytest.raises(SpecError, match=complaint) as refusal:
        read_portable(spec_file(**parts), local_paths=True)
    assert "hush" not in str(refusal.value)


def test_the_id_depends_on_what_the_job_is(spec_file, monkeypatch):
    def mark(*overrides, extend=False, **parts):
        return submit.fingerprint(read_portable(spec_file(**parts), overrides, local_paths=True), extend=extend)

    base = mark()
    assert mark("runtime.actors=2") == base
    assert mark(runtime={"storage": {"endpoint_url": "${S3_ENDPOINT}"}}) == base
    assert len({base, mark("recipe.seed=1"), mark(output="s3://other/place"), mark(extend=True)}) == 4


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ({"status": "SUCCEEDED"}, 0),
        ({"status": "STOPPED"}, 75),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED", "message": "Job entrypoint command failed with exit code 5, last available logs"}, 5),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "message": "Job supervisor actor died", "error_type": None}, 75),
        ({"status": "FAILED", "message": "no such environment", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, 1),
    ],
)
def test_how_a_job_ended(details, code):
    empty = {"message": None, "error_type": None}
    assert submit._end(SimpleNamespace(**(empty | details))).exit_code == code


@pytest.fixture
def connected(monkeypatch):
    """A connection to a cluster that is played by `client`."""

    def connect(client):
        monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address, headers: client)
        return submit.Cluster("http://127.0.0.1:9")

    return connect


def test_a_log_that_breaks_off_is_read_on_without_repeats(connected):
    connections = iter([["one\n", "two\n", OSError("gone")], ["one\ntwo\n", "three\n"]])

    class Client:
        async def tail_job_logs(self, job_id):
            for item in next(connections):
                if isinstance(item, OSError):
                    raise item
                yield item

        def get_job_info(self, job_id):
            return SimpleNamespace(status="SUCCEEDED", message=None)

    said = []
    assert connected(Client()).follow("x", said.append).exit_code == 0
    assert "".join(said) == "one\ntwo\nthree\n"


class Forgetful:
    """A head that knows a job for the first `times` that it is asked, and then not, or again after `gap` times."""

    def __init__(self, times: int, gap: int) -> None:
        self.asked, self.known = 0, lambda asked: asked <= times or asked > times + gap

    async def tail_job_logs(self, job_id):
        yield "working\n"

    def get_job_info(self, job_id):
        self.asked += 1
        if not self.known(self.asked):
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist")
        return SimpleNamespace(status="SUCCEEDED" if self.asked > 3 else "RUNNING", message=None)

    def list_jobs(self):
        return []

    def submit_job(self, **send):
        pass


def test_a_job_that_the_cluster_has_lost_is_an_interruption(connected, monkeypatch, spec_file):
    monkeypatch.setattr(submit, "PATIENCE_S", 2.0)
    with pytest.raises(ClusterError, match="no job x"):
        connected(Forgetful(0, gap=1000)).follow("x", print)
    with pytest.raises(InterruptedRunError, match=r"nothing was heard of x for 2 s .*404.* submit again"):
        connected(Forgetful(2, gap=1000)).follow("x", print)
    assert connected(Forgetful(2, gap=1)).follow("x", print).exit_code == 0
    cluster = connected(Forgetful(0, gap=1000))
    with pytest.raises(InterruptedRunError):
        cluster.follow(cluster.submit(spec_file()).id, print)


def test_submitting_imports_no_torch(tmp_path, spec_file):
    code = (
        f"import sys; sys.argv = ['x', 'submit', {str(spec_file())!r}, '--address', 'http://127.0.0.1:9']\n"
        "from stereo_jobs import cli\ntry: cli.main()\nexcept SystemExit as end: assert end.code == 2\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
