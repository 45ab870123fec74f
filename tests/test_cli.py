"""The command line as people use it: exit codes, one clear line, JSON, nothing heavy for light verbs."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stereo_jobs import cli
from stereo_jobs.launch.options import KINDS, LaunchOptions
from stereo_jobs.run import driver
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.toyscapes.manifest import Mode
from stereo_jobs.toyscapes.scenes import Level, Split
from tests import standin
from tests.conftest import REPOSITORY
from tests.seaweed import SECRET_KEY
from tests.waiting import PATIENCE_S

VERBS = [
    "demo",
    "make",
    "plan",
    "run",
    "retry-failed",
    "status",
    "verify",
    "report",
    "evaluate",
    "spec",
    "manifest",
    "submit",
    "logs",
    "stop",
    "render",
]


@pytest.fixture
def stereo_jobs(command_line, monkeypatch, capsys):
    """Runs the command line in this process; returns exit code, output, errors."""
    real = driver.run
    monkeypatch.setattr(driver, "run", lambda spec, **options: real(spec, **options | {"load": standin.load}))
    return partial(command_line, capsys)


@pytest.fixture
def spec_file(tmp_path, make_manifest):
    """Writes a spec file; keyword arguments replace parts of it."""

    def write(name: str = "job.yaml", **parts) -> Path:
        spec = {
            "manifest": parts.get("manifest") or str(make_manifest()),
            "output": str(tmp_path / "out"),
            "runtime": {"shard_rows": 3, "lease_ttl_s": 2.0},
        } | parts
        path = tmp_path / name
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


def test_plan_run_status_verify_report(stereo_jobs, spec_file, tmp_path):
    spec = spec_file()
    code, out, _ = stereo_jobs("plan", spec, "--dry-run", "--json")
    assert (code, json.loads(out)["planned"], json.loads(out)["written"]) == (0, 8, False)
    assert not (tmp_path / "out").exists()
    code, out, _ = stereo_jobs("plan", spec)
    assert (code, "8 pairs in 3 shards of 3" in out) == (0, True)
    code, out, _ = stereo_jobs("status", tmp_path / "out")
    assert (code, out.startswith("not done: 0 of 8 pairs")) == (0, True)
    assert stereo_jobs("verify", tmp_path / "out")[0] == 4
    code, out, err = stereo_jobs("run", spec, "--local")
    assert (code, out.startswith("done: 8 of 8 pairs, 0 failed, 3 of 3 shards")) == (0, True)
    assert "pairs/s" in err
    code, out, _ = stereo_jobs("status", spec, "--json")
    assert json.loads(out)["complete"] is True
    code, out, _ = stereo_jobs("verify", tmp_path / "out", "--json")
    verdict = json.loads(out)
    names = ["planned", "succeeded", "failed", "missing", "duplicated", "corrupt", "ok"]
    assert (code, [verdict[name] for name in names]) == (0, [8, 8, 0, 0, 0, 0, True])
    code, out, _ = stereo_jobs("report", tmp_path / "out", "--pairs", 5)
    first = Path(out.strip()).read_text().partition("<h2>The first 5</h2>")[2]
    assert first.count("<article>") == 5
    assert first.count("data:image/png;base64,") == 25


def test_the_schema_is_json(stereo_jobs):
    code, out, _ = stereo_jobs("spec", "--schema")
    assert code == 0
    assert "recipe" in json.loads(out)["properties"]


def test_choices_of_the_command_line_are_those_of_the_package():
    assert get_args(cli.cluster.LaunchKind) == KINDS
    assert cli.cluster.Provider == LaunchOptions.model_fields["provider"].annotation
    assert (cli.manifests.ToyScapesMode, cli.manifests.ToyScapesSplit, cli.manifests.ToyScapesLevel) == (
        Mode,
        Split,
        Level,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("manifest", "toyscapes", "x.parquet", "--mode", "nope"),
        ("manifest", "toyscapes", "x.parquet", "--split", "nope"),
        ("manifest", "toyscapes", "x.parquet", "--level", "nope"),
        ("evaluate", "out", "--toyscapes", "1", "--protocol", "nope"),
        ("render", "nope", "job.yaml"),
        ("render", "kuberay", "job.yaml", "--provider", "nope"),
    ],
)
def test_a_wrong_choice_exits_2_and_names_the_choices(stereo_jobs, words):
    code, out, err = stereo_jobs(*words)
    assert (code, out) == (2, "")
    choices = {"--mode": "depth", "--split": "train", "--level": "crowded", "--protocol": "metric", "--provider": "eks"}
    assert "nope" in err
    assert next((choices[word] for word in words if word in choices), "slurm") in err


def test_spec_prints_what_it_understood(stereo_jobs, spec_file):
    code, out, _ = stereo_jobs("spec", spec_file(), "--set", "recipe.scale_percent=6")
    assert (code, yaml.safe_load(out)["recipe"]["scale_percent"]) == (0, 6.0)


def test_manifest_build(stereo_jobs, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue star\n")
    code, out, _ = stereo_jobs("manifest", "build", tmp_path / "prompts.txt", tmp_path / "m.parquet", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 2)
    assert stereo_jobs("manifest", "build", tmp_path / "prompts.txt", tmp_path / "m.parquet")[0] == 2


def test_manifest_build_says_what_it_leaves_out(stereo_jobs, tmp_path):
    (tmp_path / "photos/sub").mkdir(parents=True)
    for name in ("a.png", "._a.png", "sub/b.jpg", "notes.md"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    code, out, _ = stereo_jobs("manifest", "build", tmp_path / "photos", tmp_path / "m.parquet")
    assert (code, out.splitlines()) == (
        0,
        [
            f"{tmp_path}/m.parquet: 2 rows",
            "left out 1 file with a hidden name: ._a.png",
            "left out 1 file whose name does not end as that of a picture that can be read: notes.md",
        ],
    )
    code, out, _ = stereo_jobs("manifest", "build", tmp_path / "photos", tmp_path / "n.parquet", "--json")
    said = json.loads(out)
    assert said["left_out"][0] == {"what": "file with a hidden name", "count": 1, "first": ["._a.png"]}
    assert said["warnings"] == []


@pytest.mark.parametrize(
    ("header", "mode"),
    [
        ("prompt", "text"),
        ("prompt,depth", "depth"),
        ("image,prompt", "image"),
        ("image,mask", "inpaint"),
    ],
)
def test_manifest_build_ends_with_a_job_spec_that_plans(stereo_jobs, tmp_path, header, mode):
    (tmp_path / "p.csv").write_text(f"{header}\n{','.join('x' for _ in header.split(','))}\n")
    code, _, err = stereo_jobs("manifest", "build", tmp_path / "p.csv", tmp_path / "m: ü #1.parquet")
    spec = yaml.safe_load(err.partition("begin as ")[2])
    assert (code, len(err.splitlines()), spec["recipe"]) == (0, 1, {"mode": mode})
    assert parse_spec(spec).manifests == (str(tmp_path / "m: ü #1.parquet"),)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec | {"output": str(tmp_path / "out")}))
    if mode != "depth":  # for which there is no embedded model
        code, out, _ = stereo_jobs("plan", tmp_path / "job.yaml")
        assert (code, "1 pair in 1 shard of" in out) == (0, True)


def test_pictures_in_another_folder_are_allowed_by_the_spec_that_is_shown(stereo_jobs, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos2").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    for target, outside in (
        (tmp_path / "photos/m.parquet", False),
        (tmp_path / "m.parquet", False),
        (tmp_path / "photos2/m.parquet", True),
    ):
        _, _, err = stereo_jobs("manifest", "build", tmp_path / "photos", target)
        spec = parse_spec(yaml.safe_load(err.partition("begin as ")[2]))
        assert spec.runtime.allowed_prefixes == ((str(tmp_path / "photos"),) if outside else None)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("id,prompt,negative_prompt,note\na,a red star,,\n", ()),
        ("id,prompt,,\na,a red star,,\n", ()),
        ("id,prompt,seed\n2024-01-01,1984,\nb,2001,1\n", ()),
        ("key^caption\n01^a red star\n1^a ball\n", ("--id-from=key", "--prompt-column=caption", "--delimiter=^")),
        ("key\tcaption\n01\t\n", ("--id-from=content", "--prompt-column=caption", "--delimiter=tab")),
    ],
)
def test_a_plan_accepts_what_manifest_build_accepts(stereo_jobs, spec_file, tmp_path, content, options):
    (tmp_path / "p.csv").write_text(content)
    assert stereo_jobs("manifest", "build", tmp_path / "p.csv", tmp_path / "m.parquet", *options)[0] == 0
    assert stereo_jobs("plan", spec_file(manifest=str(tmp_path / "m.parquet")), "--dry-run")[0] == 0


def test_a_delimiter_is_one_character(stereo_jobs, tmp_path):
    for delimiter in ("", ";;", '"', "\n"):
        code, _, err = stereo_jobs("manifest", "build", "p.csv", tmp_path / "m.parquet", "--delimiter", delimiter)
        assert (code, "one character" in err) == (2, True)


def test_retry_failed(stereo_jobs, spec_file, make_manifest, tmp_path):
    manifest = make_manifest(rows=3, prompt=["fine", f"flaky:{tmp_path}/x", "fine"])
    runtime = {"batch_size": 1, "row_attempts": 1, "max_failure_ratio": 0.5}
    spec = spec_file(manifest=str(manifest), runtime=runtime)
    assert "1 failed" in stereo_jobs("run", spec, "--local")[1]
    assert "3 of 3 pairs, 0 failed" in stereo_jobs("retry-failed", spec, "--local")[1]


def test_exit_code_3_for_too_many_failures(stereo_jobs, spec_file, make_manifest):
    spec = spec_file(manifest=str(make_manifest(prompt=["boom"] * 8)))
    code, _, err = stereo_jobs("run", spec, "--local")
    assert code == 3
    assert "max_failure_ratio" in err


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"recipe": {"scale_percent": 0.08}}, "recipe.scale_percent: must be a percentage"),
        ({"manifest": "nowhere/*.parquet"}, "no Parquet file there"),
        ({"recipe": {"models": {"stable_diffusion": {"path": "./nothing"}}}}, "no such folder"),
        ({"output": "gs://bucket/x"}, "unknown scheme"),
    ],
)
def test_bad_specs_exit_2_and_say_why(stereo_jobs, spec_file, parts, complaint):
    code, out, err = stereo_jobs("run", spec_file(**parts), "--local")
    assert (code, out) == (2, "")
    assert complaint in err


def test_a_corrupt_manifest_exits_2(stereo_jobs, spec_file, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    code, _, err = stereo_jobs("run", spec_file(manifest=str(tmp_path / "bad.parquet")), "--local")
    assert code == 2
    assert "bad.parquet: not a readable Parquet file" in err


def test_a_read_only_output_exits_2(stereo_jobs, spec_file, monkeypatch):
    import errno
    import os

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("stereo_jobs.data.storage.os.link", refuse)
    code, _, err = stereo_jobs("run", spec_file(), "--local")
    assert code == 2
    assert "Read-only file system; choose a writable output" in err


def test_a_disk_that_fills_up_loses_nothing(stereo_jobs, spec_file, monkeypatch, tmp_path):
    import errno
    import os

    real, writes = os.fsync, []

    def fill_up(handle):
        writes.append(handle)
        if len(writes) > 14:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr("stereo_jobs.data.storage.os.fsync", fill_up)
    spec = spec_file()
    code, _, err = stereo_jobs("run", spec, "--local")
    assert code == 2
    assert "No space left on device; free space and run again" in err
    monkeypatch.setattr("stereo_jobs.data.storage.os.fsync", real)
    assert stereo_jobs("run", spec, "--local")[0] == 0
    assert stereo_jobs("verify", tmp_path / "out")[0] == 0


def test_an_output_without_a_job(stereo_jobs, tmp_path):
    code, _, err = stereo_jobs("status", tmp_path / "empty")
    assert code == 2
    assert "no job was ever planned here" in err


# --- Hostile names and files ---


def test_column_names_do_not_reach_the_terminal_raw(stereo_jobs, spec_file, tmp_path):
    name = "\x1b[2J\x1b[31mPWNED\x1b]0;title\x07"
    pq.write_table(pa.table({name: ["a"], "x\nerror: y": [1]}), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text(f"{name},b\n1,2\n")
    (tmp_path / "k.yaml").write_text('manifest: m.parquet\noutput: out\n"\\e[31mkey\\e]0;t\\a": 1\n')
    for words in (
        ("plan", spec_file(manifest=str(tmp_path / "m.parquet")), "--dry-run"),
        ("manifest", "build", tmp_path / "m.csv", tmp_path / "t.parquet"),
        ("spec", tmp_path / "k.yaml"),
    ):
        code, out, err = stereo_jobs(*words)
        assert (code, out) == (2, "")
        assert "\\x1b[31m" in one_line(err)
        assert not {"\x1b", "\x07"} & set(err)


@pytest.mark.parametrize("words", [("plan", "--dry-run"), ("run", "--local"), ("spec",), ("render",)])
def test_a_pipe_as_spec_is_refused(stereo_jobs, tmp_path, words):
    os.mkfifo(tmp_path / "job.yaml")
    verb, *rest = words
    kind = ["slurm"] if verb == "render" else []
    code, _, err = stereo_jobs(verb, *kind, tmp_path / "job.yaml", *rest)
    assert code == 2
    assert "job.yaml: cannot be read (not a regular file" in one_line(err)


@pytest.mark.parametrize(
    "output", ["file://host/x", "file:x", "~nobody-at-all/x", "x" * 5000, "a\udcff", "gs://b/x", "nul\0", "/dev/null/x"]
)
def test_an_output_that_cannot_be_is_refused_by_every_verb(stereo_jobs, spec_file, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, before = spec_file(), set(tmp_path.iterdir())
    for words in (
        ("run", spec, "--local", "--set", f"output='{output}'"),
        ("plan", spec, "--set", f"output='{output}'"),
        ("status", output),
        ("verify", output),
        ("report", output),
        ("manifest", "toyscapes", f"{output}/m.parquet", "--rows", "1"),
    ):
        code, _, err = stereo_jobs(*words)
        assert (code, set(tmp_path.iterdir())) == (2, before), (words, err)
        one_line(err.replace("is not valid:\n", ""))


# --- S3 -----------------------------------------------------------------------------------------------------


def s3_spec(spec_file, endpoint: str, bucket: str = "jobs", **storage):
    runtime = {"shard_rows": 3, "storage": {"endpoint_url": endpoint} | storage}
    return spec_file(output=f"s3://{bucket}/cli", runtime=runtime)


def one_line(err: str) -> str:
    assert err.count("\n") == 1, err
    assert SECRET_KEY not in err
    return err


def test_the_whole_job_on_s3(stereo_jobs, spec_file, s3_server):
    spec = s3_spec(spec_file, s3_server)
    assert stereo_jobs("run", spec, "--local")[0] == 0
    assert stereo_jobs("verify", "s3://jobs/cli", "--endpoint-url", s3_server)[0] == 0
    assert stereo_jobs("report", spec)[1].strip() == "s3://jobs/cli/_job/report/index.html"


def test_wrong_credentials(stereo_jobs, spec_file, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    code, _, err = stereo_jobs("run", s3_spec(spec_file, s3_server), "--local")
    assert code == 2
    assert "check the credentials" in one_line(err)
    assert "wrong-secret" not in err


def test_a_missing_bucket(stereo_jobs, spec_file, s3_server):
    code, _, err = stereo_jobs("run", s3_spec(spec_file, s3_server, bucket="nowhere"), "--local")
    assert code == 2
    assert "bucket" in one_line(err)


def test_an_endpoint_that_is_away_may_come_back(stereo_jobs, spec_file, s3_server):
    code, _, err = stereo_jobs("run", s3_spec(spec_file, "http://127.0.0.1:9"), "--local")
    assert code == 75
    assert "cannot be reached" in one_line(err)


def test_a_store_that_ignores_conditions(stereo_jobs, spec_file, s3_server):
    from tests.fake_s3 import serve_careless

    with serve_careless() as endpoint:
        code, _, err = stereo_jobs("run", s3_spec(spec_file, endpoint), "--local")
    assert code == 2
    assert "ignores create-if-absent (IfNoneMatch)" in one_line(err)


def test_a_store_that_keeps_bodies_as_they_come(stereo_jobs, spec_file, s3_server, monkeypatch, tmp_path):
    from tests.fake_s3 import Manners, make_certificate, serve

    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with serve(Manners(unframes=False), certificate) as endpoint:
        spec = s3_spec(spec_file, endpoint)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        code, _, err = stereo_jobs("run", spec, "--local")
        assert code == 2
        assert "(aws-chunked)" in one_line(err)
        monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
        assert stereo_jobs("run", spec, "--local")[0] == 0
        assert stereo_jobs("verify", spec)[0] == 0


def test_a_store_that_truncates_a_shard(stereo_jobs, spec_file, s3_server):
    from tests.fake_s3 import Manners, serve

    manners = Manners(etag=lambda body: f'"{len(body)}-opaque"')
    with serve(manners) as endpoint:
        spec = s3_spec(spec_file, endpoint)
        manners.keep = lambda body: body[:-9] if b"left_psnr" in body else body
        code, _, err = stereo_jobs("run", spec, "--local")
        assert code == 2
        assert re.search(r"data/train-0000-000000\d.parquet: other bytes come back than were written", err)
        assert "Move the object away before the next run" in err
        manners.keep = bytes
        code, _, err = stereo_jobs("run", spec, "--local")
        assert code == 2
        assert "move it away and run again" in err


# --- Processes of their own ---------------------------------------------------------------------------------


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("stereo-jobs"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options)


def test_help_names_every_verb_and_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stereo_jobs", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        cwd=REPOSITORY,
    )
    assert all(verb in done.stdout for verb in VERBS)
    for heavy in ("torch", "diffusers", "transformers", "ray", "pyarrow", "boto3"):
        assert not re.search(rf"\| +{heavy}$", done.stderr, re.MULTILINE), heavy


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS), ("manifest", "build"), ("manifest", "toyscapes")])
def test_h_is_help_for_every_command(stereo_jobs, verb):
    short, long = stereo_jobs(*verb, "-h"), stereo_jobs(*verb, "--help")
    assert short == long
    assert (short[0], "Usage: " in short[1]) == (0, True)


def test_a_shell_completes_commands_and_options_and_nothing_heavy_is_imported():
    """As the lines that `--install-completion` writes ask for it."""
    code = (
        "import sys; from stereo_jobs.cli import app\n"
        "try: app(prog_name='stereo-jobs')\n"
        "finally: print('heavy:', {'torch', 'ray', 'pyarrow', 'boto3'} & {*sys.modules}, file=sys.stderr)"
    )
    for typed, expected in {"ver": {"verify"}, "status --wa": {"--watch"}, "manifest b": {"build"}}.items():
        words = f"stereo-jobs {typed}"
        asked = {"_STEREO_JOBS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=os.environ | asked,
            check=False,
        )
        assert expected <= {*done.stdout.split()}, done.stderr
        assert "heavy: set()" in done.stderr


@pytest.mark.parametrize("verb", ["plan", "status", "verify", "report"])
def test_light_verbs_import_no_torch(verb, spec_file, tmp_path):
    spec = spec_file()
    words = ["plan", str(spec)] if verb == "plan" else [verb, str(tmp_path / "out")]
    shell("plan", str(spec))
    code = f"import sys; sys.argv = {['x', *words]!r}\nfrom stereo_jobs import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True)


def test_sigterm_drains_and_exits_75(spec_file, make_manifest, tmp_path, stereo_jobs):
    import signal

    from tests.output.test_lease import wait_for
    from tests.run.processes import finish, start

    path = spec_file(manifest=str(make_manifest(prompt=["slow"] * 8)), runtime={"shard_rows": 1})
    from stereo_jobs.spec_reading import load_spec

    process = start(load_spec(path), tmp_path)
    wait_for(tmp_path / "out/_job/commits")
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert (code, "interrupted; run again to go on" in said) == (75, True)
    assert stereo_jobs("run", path, "--local")[0] == 0
    assert stereo_jobs("verify", path)[0] == 0


def test_a_sigterm_before_anything_has_begun_is_an_interruption_too():
    code = (
        "import os\nfrom stereo_jobs import cli\n"
        f"cli.app = lambda: os.kill(os.getpid(), {int(signal.SIGTERM)}) or print('went on')\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (75, ""), done.stderr


@pytest.mark.parametrize("hours", ["inf", "nan", "1e300", "-inf", "0"])
def test_a_time_limit_is_a_number_of_hours(spec_file, stereo_jobs, hours):
    code, _, errors = stereo_jobs("run", spec_file(), "--local", "--max-hours", hours)
    assert (code, "--max-hours" in errors) == (2, True)


@pytest.mark.parametrize("value", [".inf", ".nan", "1e300", "-1"])
@pytest.mark.parametrize(
    "field", ["lease_ttl_s", "drain_timeout_s", "batch_timeout_s", "shard_timeout_s", "start_timeout_s"]
)
def test_a_duration_is_finite(spec_file, stereo_jobs, field, value):
    code, _, errors = stereo_jobs("run", spec_file(), "--local", "--set", f"runtime.{field}={value}")
    assert code == 2
    assert f"runtime.{field}" in errors
