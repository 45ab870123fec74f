"""Planted secrets turn up nowhere: not in what is said, not in what is written, however a command ends."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ClusterError, SpecError, StorageError, hide_passwords
from stereo_jobs.launch import submit
from stereo_jobs.output import layout
from stereo_jobs.spec import StorageSpec
from stereo_jobs.spec_reading import load_spec
from tests import seaweed
from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S

PLANTED = {
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "HF_TOKEN": "hf_" + secrets.token_hex(16),
    "MY_ACCESS_KEY": seaweed.ACCESS_KEY,
    "MY_SECRET_KEY": seaweed.SECRET_KEY,
    "WRONG_KEY": "wrong-" + secrets.token_hex(16),
}
KEYS = {"access_key_id": "${MY_ACCESS_KEY}", "secret_access_key": "${MY_SECRET_KEY}"}
WITH_STAND_IN = """
import sys
from stereo_jobs import cli
from stereo_jobs.run import driver
from stereo_jobs.run import estimate
from tests import standin
run, measure_rows = driver.run, estimate.measure_rows
driver.run = lambda spec, **options: run(spec, **options | {"load": standin.load})
estimate.measure_rows = lambda *parts: measure_rows(*parts, standin.load)
cli.main()
"""


def found_in(said: str | bytes) -> list[str]:
    """Names of the secrets that a text holds."""
    text = said if isinstance(said, bytes) else said.encode()
    return [name for name, value in PLANTED.items() if value.encode() in text]


@pytest.fixture
def say(tmp_path):
    """Runs `stereo-jobs -v` in a process with all secrets in its environment: exit code, and all it said."""

    def invoke(*words: object, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", WITH_STAND_IN, "-v", *map(str, words)],
            env=os.environ | PLANTED | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return invoke


@pytest.fixture
def spec_file(tmp_path, make_manifest, s3_server):
    """Writes the spec of a job on S3 whose keys come from the environment; keyword arguments go into `storage`."""

    def write(output: str = "", prompt: str = "fine", **storage: str) -> Path:
        spec = {
            "manifest": str(make_manifest(prompt=[prompt, "boom", *["fine"] * 6])),
            "output": output or f"s3://jobs/secret-{os.urandom(6).hex()}",
            "recipe": {"quality": {"enabled": False}},
            "runtime": {
                "shard_rows": 3,
                "lease_ttl_s": 60,
                "max_failure_ratio": 0.5,
                "storage": {"endpoint_url": s3_server} | KEYS | storage,
            },
        }
        path = tmp_path / f"job-{os.urandom(4).hex()}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


def written(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Every object of the output of a spec."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    spec = load_spec(path)
    storage = open_storage(spec.output, spec.runtime.storage)
    return {info.key: storage.read(info.key) for info in storage.list()}


def test_of_a_job_that_is_planned_run_and_looked_at(say, spec_file, monkeypatch):
    path = spec_file()
    for code, *words in (
        (0, "spec", path),
        (0, "plan", path, "--estimate"),
        (0, "plan", path),
        (0, "run", path, "--local", "--log-format", "json"),
        (0, "status", path, "--json"),
        (0, "verify", path),
        (0, "report", path, "--pairs", 1),
        (3, "retry-failed", path, "--local", "--set", "runtime.max_failure_ratio=0"),
        (2, "run", path, "--local", "--set", "recipe.seed=5"),
    ):
        ended, said = say(*words)
        assert ended == code, said
        assert said
        assert not found_in(said), (words, said)
    objects = written(path, monkeypatch)
    assert objects.keys() >= {layout.CARD, layout.PROGRESS, layout.REPORT, layout.plan(0), layout.errors((0, 0))}
    for key, data in objects.items():
        assert not found_in(data), key


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({"secret_access_key": "${WRONG_KEY}"}, 2),
        ({"access_key_id": "${WRONG_KEY}"}, 2),
        ({"endpoint_url": "http://127.0.0.1:9"}, 75),
    ],
)
def test_of_a_store_that_refuses(say, spec_file, storage, expected):
    code, said = say("run", spec_file(**storage), "--local", "--log-format", "json")
    assert code == expected
    assert not found_in(said), said


def test_of_a_hub_that_cannot_be_reached(say, spec_file):
    words = ("plan", spec_file(), "--set", "recipe.models.stable_diffusion.path=owner/name")
    for environment, complaint in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1 forbids"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://me:{PLANTED['WRONG_KEY']}@127.0.0.1:9"}, "cannot be reached"),
    ):
        code, said = say(*words, **environment)
        assert (code, complaint in said) == (2, True), said
        assert not found_in(said), said


def test_of_a_submission_that_fails(say, spec_file):
    secret = PLANTED["WRONG_KEY"]
    for address in ("http://127.0.0.1:9", f"http://me:{secret}@127.0.0.1:9", f"me:{secret}@head:8265"):
        code, said = say("submit", spec_file(), "--address", address)
        assert code == 2
        assert "--address" in said or "no Ray head answers there" in said
        assert not found_in(said), said


@pytest.mark.parametrize("kind", ["kuberay", "kuberay-cron", "cronjob", "ray-up", "slurm"])
def test_of_launch_files(say, spec_file, tmp_path, kind):
    path = spec_file()
    text = path.read_text().replace(str(tmp_path / "manifests"), "s3://jobs/manifests")
    path.write_text(text)
    options = {"slurm": (), "ray-up": ("--image", "x")}.get(kind, ("--image", "x", "--env-secret", "s3-keys"))
    code, said = say("render", kind, path, *options)
    assert (code, "MY_SECRET_KEY" in said) == (0, True), said
    assert not found_in(said), said


# --- Passwords in addresses ---


def test_no_password_in_an_endpoint(say, spec_file):
    url = f"http://me:{PLANTED['WRONG_KEY']}@127.0.0.1:9"
    for words, environment in (
        (("run", spec_file(endpoint_url=url), "--local"), {}),
        (("run", spec_file(endpoint_url="${S3_URL}"), "--local"), {"S3_URL": url}),
        (("plan", spec_file(), "--set", f"runtime.storage.endpoint_url={url}"), {}),
        (("status", "s3://jobs/x", "--endpoint-url", url), {}),
    ):
        code, said = say(*words, **environment)
        assert code == 2, said
        assert "endpoint_url: " in said and "has a password in it" in said
        assert not found_in(said), said


@pytest.mark.parametrize("output", ["s3://me:{}@jobs/x", "https://{}@host/x", "s3://{}@jobs/x"])
def test_no_password_of_an_output_is_said_again(say, spec_file, output):
    code, said = say("run", spec_file(output.format(PLANTED["WRONG_KEY"])), "--local")
    assert code == 2
    assert "***@" in said
    assert not found_in(said), said


def test_what_a_models_exception_says_of_an_address_is_hidden(spec_file, monkeypatch, capsys):
    from stereo_jobs.run.driver import run
    from tests import standin

    class Careless(standin.StandIn):
        def generate(self, rows):
            raise OSError(f"cannot fetch https://me:{PLANTED['WRONG_KEY']}@host/weights")

    path = spec_file()
    written(path, monkeypatch)
    with pytest.raises(Exception, match="rows failed"):
        run(load_spec(path), local=True, load=lambda recipe, device, batch_size: Careless(batch_size))
    objects = written(path, monkeypatch)
    assert any(b"***@host/weights" in data for data in objects.values())
    assert not any(found_in(data) for data in objects.values())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x and s3://key@bucket", "https://***@host/x and s3://***@bucket"),
        ("(got 'me:pass@host:8265')", "(got '***@host:8265')"),
        ("http://[::1]:9/a@b", "http://[::1]:9/a@b"),
        ("row a: mail x@y at 12:30, s3://bucket/a:b@c", "row a: mail x@y at 12:30, s3://bucket/a:b@c"),
    ],
)
def test_only_passwords_are_hidden(text, shown):
    assert hide_passwords(text) == shown


def test_errors_hide_them(monkeypatch):
    for kind in (SpecError, StorageError, ClusterError):
        assert str(kind("no http://a:b@c")) == "no http://***@c"
    with pytest.raises(ClusterError) as refusal, submit.connect("me:hush@head:8265"):
        pass
    assert "hush" not in str(refusal.value)
    assert "hush" not in repr(StorageSpec(access_key_id="hush", secret_access_key="hush"))
