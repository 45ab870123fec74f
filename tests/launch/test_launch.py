"""Launch files: valid by the schedulers' own rules, without secrets, with the exit codes they need, and not stale."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stereo_jobs.errors import SpecError
from stereo_jobs.launch import make_options, render
from stereo_jobs.launch.render import to_yaml
from stereo_jobs.spec_reading import load_spec
from tests.launch.examples import CLUSTER, EXAMPLES, IMAGE, example
from tests.waiting import PATIENCE_S

BIN = Path(sys.executable).parent
KUBERNETES = "1.34"
KUBERAY = json.loads(Path(__file__).with_name("kuberay-1.7.0.json").read_text())
ON_KUBERNETES = ["kuberay", "kuberay-cron", "cronjob"]
VARIANTS = [
    {},
    {"provider": "eks", "gpu_type": "l4", "spot": False},
    {"provider": "gke", "gpu_type": "nvidia-l4", "service_account": "sa", "env_secrets": ["hub"]},
    {"gpus": 0, "min_workers": 2, "token_secret": "ray-token", "retries": 0},
]


@pytest.fixture
def spec_file(tmp_path):
    """Writes a spec whose data is on S3."""

    def write(**parts) -> str:
        spec = {"manifest": "s3://bucket/prompts/*.parquet", "output": "s3://bucket/out"} | parts
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(spec))
        return str(path)

    return write


def launch(kind: str, spec: str, overrides=(), **options) -> str:
    return render(spec, make_options(kind=kind, **({} if kind == "slurm" else {"image": IMAGE}), **options), overrides)


def documents(text: str) -> dict[str, dict]:
    found = list(yaml.safe_load_all(text))
    assert len({document["kind"] for document in found}) == len(found)
    return {document["kind"]: document for document in found}


# --- Kubernetes ---


@cache
def kuberay_schema(kind: str) -> jsonschema.Draft202012Validator:
    """Of RayJob or RayCronJob, strict: Kubernetes would drop an unknown field in silence."""

    def strict(part):
        if isinstance(part, list):
            return [strict(item) for item in part]
        if not isinstance(part, dict):
            return part
        part = {key: strict(value) for key, value in part.items()}
        if part.get("x-kubernetes-int-or-string"):
            part = {"type": ["integer", "string"]}
        if isinstance(part.get("properties"), dict):
            part.setdefault("additionalProperties", False)
        return part

    return jsonschema.Draft202012Validator(strict(KUBERAY) | {"$ref": f"#/{kind}"})


def pod_templates(value) -> list[dict]:
    """Everything that holds containers."""
    if isinstance(value, list):
        return [found for item in value for found in pod_templates(item)]
    if not isinstance(value, dict):
        return []
    found = [value] if "containers" in value.get("spec", {}) else []
    return found + [found for item in value.values() for found in pod_templates(item)]


def check_kubernetes(document: dict) -> None:
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    kuberay_schema(document["kind"]).validate(document)
    templates = pod_templates(document)
    assert len(templates) == 2
    for template in templates:
        metadata = {"name": "x"} | template["metadata"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, KUBERNETES, strict=True
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ON_KUBERNETES)
def test_kubernetes_takes_it(kind, variant, spec_file):
    found = documents(launch(kind, spec_file(), **variant))
    for document in found.values():
        check_kubernetes(document)
    if kind == "cronjob":
        check_kubernetes(yaml.safe_load(found["ConfigMap"]["data"]["rayjob.yaml"]))


def test_the_schema_would_notice():
    job = documents(example("kuberay/rayjob.yaml"))["RayJob"]
    for change in ({"shutdownAfterJobFinish": True}, {"backoffLimit": "2"}, {"submissionMode": 3}):
        with pytest.raises(jsonschema.ValidationError):
            kuberay_schema("RayJob").validate(job | {"spec": job["spec"] | change})
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(job)


def ray_job_spec(found: dict[str, dict]) -> dict:
    if "RayJob" in found:
        return found["RayJob"]["spec"]
    if "RayCronJob" in found:
        return found["RayCronJob"]["spec"]["jobTemplate"]
    return yaml.safe_load(found["ConfigMap"]["data"]["rayjob.yaml"])["spec"]


@pytest.mark.parametrize("kind", ON_KUBERNETES)
def test_what_a_ray_job_must_say(kind, spec_file):
    spec = ray_job_spec(documents(launch(kind, spec_file(), provider="gke", gpu_type="nvidia-l4", max_hours=2)))
    assert (spec["submissionMode"], spec["shutdownAfterJobFinishes"]) == ("K8sJobMode", True)
    assert spec["backoffLimit"] == 2
    # The run ends by itself, however late it begins: KubeRay's own deadline is for one that hangs.
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] + 7200
    assert spec["ttlSecondsAfterFinished"] > 0 and spec["preRunningDeadlineSeconds"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "nodeSelector" not in head and "tolerations" not in head
    assert '"NotIn"' in json.dumps(head["affinity"])
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {item["key"] for item in worker["tolerations"]} == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for pod in (head, worker):  # a PodMonitor finds it by name
        assert {"name": "metrics", "containerPort": 8080} in pod["containers"][0]["ports"]


def test_spot_can_be_off(spec_file):
    text = launch("kuberay", spec_file(), provider="eks", spot=False)
    worker = ray_job_spec(documents(text))["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}


@pytest.mark.parametrize(
    ("kind", "longest"), [("kuberay", 47), ("ray-up", 47), ("slurm", 47), ("kuberay-cron", 36), ("cronjob", 36)]
)
def test_names_have_limits(kind, longest, spec_file):
    launch(kind, spec_file(), name="a" * longest)
    for name in ("a" * (longest + 1), "Upper", "1st", "end-", ""):
        with pytest.raises(SpecError, match=rf"name must be at most {longest} characters"):
            launch(kind, spec_file(), name=name)


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("kuberay-cron", {"schedule": "every night"}, "five cron fields"),
        ("kuberay", {"schedule": "0 1 * * *"}, "schedule is for"),
        ("kuberay", {"min_workers": 9}, "needs min_workers <= max_workers, got 9 and 4"),
        ("kuberay", {"provider": "moon"}, "--provider"),
        ("kuberay", {"image": ""}, "--image"),
        ("slurm", {"setup": "one\ntwo"}, "--setup must be one line"),
        ("helm", {}, "--kind"),
    ],
)
def test_options_that_make_no_sense(kind, options, complaint, spec_file):
    with pytest.raises(SpecError, match=complaint):
        render(spec_file(), make_options(**{"kind": kind, "image": IMAGE} | options))
    with pytest.raises(SpecError, match="needs image"):
        make_options(kind="kuberay")


def test_the_run_is_told_about_the_cluster(spec_file):
    spec = spec_file(runtime={"gpus_per_actor": 0.5, "ray_address": "ray://elsewhere", "start_timeout_s": 9000})
    text = launch("kuberay", spec, ["recipe.seed=7"], gpus=2, min_workers=1, max_workers=3)
    script = documents(text)["ConfigMap"]["data"]["run.sh"]
    for override in (
        "runtime.device=cuda",
        "'runtime.actors={min: 4, max: 12}'",
        "runtime.start_timeout_s=9000",
        "runtime.ray_address=null",
        "recipe.seed=7",
    ):
        assert f"--set {override}" in script
    assert "--extend" not in script
    assert "--extend" in documents(launch("kuberay-cron", spec))["ConfigMap"]["data"]["run.sh"]
    script = documents(launch("kuberay", spec_file(), gpus=0))["ConfigMap"]["data"]["run.sh"]
    assert "runtime.device=cpu" in script and "runtime.actors={min: 1, max: 4}" in script


@pytest.mark.parametrize("kind", [*ON_KUBERNETES, "ray-up"])
def test_the_run_is_told_when_to_end(kind, spec_file):
    assert "--max-hours=2.5 " in launch(kind, spec_file(), max_hours=2.5)


@pytest.mark.parametrize(
    ("kind", "options", "source"),
    [
        ("kuberay", {"provider": "eks"}, "aws"),
        ("cronjob", {"provider": "gke"}, "gcp"),
        ("kuberay", {"provider": "generic"}, None),
        ("kuberay", {"provider": "eks", "spot": False}, None),
        ("ray-up", {}, "aws"),
        ("slurm", {"provider": "eks"}, None),
    ],
)
def test_who_announces_the_end_of_a_spot_machine(kind, options, source, spec_file):
    assert re.findall(r"spot_notice=(\w+)", launch(kind, spec_file(), **options)) == ([source] if source else [])
    own = spec_file(runtime={"spot_notice": "/run/notice"})
    assert "spot_notice=" not in launch(kind, own, **options)


# --- Secrets ---


@pytest.mark.parametrize("kind", [*ON_KUBERNETES, "ray-up", "slurm"])
def test_secrets_come_by_reference(kind, spec_file, monkeypatch):
    monkeypatch.setenv("MY_KEY", "planted-secret")
    keys = {"access_key_id": "${MY_KEY}", "secret_access_key": "${MY_OTHER_KEY}"}
    spec = spec_file(runtime={"storage": keys})
    text = launch(kind, spec, **({"env_secrets": ["s3-keys"]} if kind in ON_KUBERNETES else {}))
    assert "planted-secret" not in text
    assert "MY_KEY, MY_OTHER_KEY" in text or '"${MY_OTHER_KEY:?' in text
    if kind in ON_KUBERNETES:
        assert "secretRef" in text
    if kind != "ray-up":  # there the file itself is mounted
        assert "${MY_KEY}" in text
    for word in ("RAY_AUTH_TOKEN=", "auth_token: "):
        for line in text.splitlines():
            assert word not in line or "/" in line, line


def test_a_secret_in_clear_is_refused(spec_file):
    keys = {"access_key_id": "AKIA", "secret_access_key": "planted-secret"}
    with pytest.raises(SpecError, match=r"runtime.storage.access_key_id: a secret in plain text") as refusal:
        launch("kuberay", spec_file(runtime={"storage": keys}))
    assert "planted-secret" not in str(refusal.value)
    with pytest.raises(SpecError, match="a secret in plain text"):
        overrides = ["runtime.storage.access_key_id=${A}", "runtime.storage.secret_access_key=planted-secret"]
        launch("kuberay", spec_file(), overrides)


def test_variables_need_a_secret_on_kubernetes(spec_file):
    keys = {"access_key_id": "${MY_KEY}", "secret_access_key": "${MY_OTHER_KEY}"}
    with pytest.raises(SpecError, match=r"MY_KEY, MY_OTHER_KEY.*--env-secret"):
        launch("kuberay", spec_file(runtime={"storage": keys}))


@pytest.mark.parametrize(("kind", "output"), [("kuberay", "/data/out"), ("ray-up", "out"), ("slurm", "out")])
def test_data_must_be_where_the_job_runs(kind, output, spec_file):
    with pytest.raises(SpecError, match="output: the job runs on other machines"):
        launch(kind, spec_file(output=output))
    launch("slurm", spec_file(output="/data/out"))


# --- AWS ---


@pytest.mark.parametrize("variant", [{}, {"spot": False, "gpus": 0}, {"min_workers": 2, "gpu_type": "g5.12xlarge"}])
def test_ray_up_takes_it(variant, spec_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load(launch("ray-up", spec_file(), **variant))
    validate_config(prepare_config(cluster))
    head, worker = (cluster["available_node_types"][name]["node_config"] for name in ("head", "worker"))
    assert "InstanceMarketOptions" not in head
    assert ("InstanceMarketOptions" in worker) == variant.get("spot", True)
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["head_start_ray_commands"][-1].count("--dashboard-host=127.0.0.1") == 1


def test_rays_validator_would_notice(spec_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load(launch("ray-up", spec_file()))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(cluster | {"max_worker": 3}))


# --- Shell ---


def scripts() -> dict[str, str]:
    found = {"slurm/job.sh": example("slurm/job.sh")}
    for name in ("kuberay/rayjob.yaml", "kuberay/cronjob.yaml"):
        data = documents(example(name))["ConfigMap"]["data"]
        found |= {f"{name}:{key}": text for key, text in data.items() if key.endswith(".sh")}
    plain = CLUSTER / "job.yaml"
    found["slurm, scheduled"] = launch("slurm", str(plain), schedule="0 1 * * *", gpus=0)
    return found


@pytest.mark.parametrize("name", scripts())
def test_shellcheck_is_content(name, tmp_path):
    path = tmp_path / "script.sh"
    path.write_text(scripts()[name])
    done = subprocess.run([BIN / "shellcheck", "--norc", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_is_content():
    done = subprocess.run(
        [BIN / "hadolint", CLUSTER / "docker/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    bad = subprocess.run(
        [BIN / "hadolint", "-"], input="FROM x\nRUN cd /x && sudo ls\n", capture_output=True, text=True, check=False
    )
    assert bad.returncode != 0


@pytest.fixture
def commands(tmp_path):
    """A folder of stand-ins for commands; what they were called with is in its file `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name: str, body: str = "") -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{tmp_path}/calls\n{body}\n')
        path.chmod(0o755)

    add.environment = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(tmp_path), "FOLDER": str(tmp_path)}
    add.calls = (tmp_path / "calls").read_text
    return add


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 75])
@pytest.mark.parametrize("kind", ["kuberay", "kuberay-cron"])
def test_exit_codes_that_kuberay_sees(kind, code, spec_file, tmp_path, commands):
    commands("stereo-jobs", f"exit {code}")
    script = tmp_path / "run.sh"
    script.write_text(documents(launch(kind, spec_file()))["ConfigMap"]["data"]["run.sh"])
    done = subprocess.run(["sh", script], env=commands.environment, check=False)
    assert done.returncode == (0 if code == 5 and kind == "kuberay-cron" else code)
    assert "stereo-jobs run /etc/stereo-jobs/job.yaml" in commands.calls()
    assert "--set runtime.actors={min: 1, max: 4}" in commands.calls()


@pytest.mark.parametrize(
    ("kind", "seconds", "expected"),
    [("kuberay-cron", 2, 75), ("kuberay-cron", 6, 0), ("cronjob", 6, 0), ("kuberay", 6, 75)],
)
def test_a_night_that_runs_out_of_time_is_not_tried_again(kind, seconds, expected, spec_file, tmp_path, commands):
    # Ten seconds with a drain of five: interrupted after two, out of time after six.
    commands("stereo-jobs", f"sleep {seconds}; exit 75")
    text = launch(kind, spec_file(runtime={"drain_timeout_s": 5}), max_hours=10 / 3600)
    script = tmp_path / "run.sh"
    script.write_text(documents(text)["ConfigMap"]["data"]["run.sh"])
    assert subprocess.run(["sh", script], env=commands.environment, check=False).returncode == expected


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["Initializing/", "Running/RUNNING", "Retrying/FAILED", "gone", "Complete/SUCCEEDED"], 0),
        (["Running/RUNNING", "Failed/FAILED"], 1),
        (["Running/RUNNING", "Failed/"], 1),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_the_cronjob_creates_one_ray_job_and_waits(states, code, there, spec_file, tmp_path, commands):
    for name, text in documents(launch("cronjob", spec_file()))["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    if there:
        (tmp_path / "created").write_text("from an earlier pod")
    commands(
        "kubectl",
        """case "$*" in
  "get job "*) echo 1234-abcd ;;
  "create "*) [ -e "$FOLDER/created" ] && exit 1; cat >"$FOLDER/created" ;;
  *metadata.name*) [ -e "$FOLDER/created" ] ;;
  *reason*) echo because ;;
  *) head -n 1 "$FOLDER/states"; grep -q gone <(head -n 1 "$FOLDER/states") && bad=1
     sed -i 1d "$FOLDER/states"; exit "${bad:-0}" ;;
esac""",
    )
    environment = commands.environment | {"JOB_NAME": "stereo-jobs-29394060", "POLL_S": "0"}
    done = subprocess.run(["sh", tmp_path / "wait.sh"], env=environment, check=False, timeout=PATIENCE_S)
    assert done.returncode == code
    assert commands.calls().count("kubectl create") == (0 if there else 1)
    if not there:
        made = yaml.safe_load((tmp_path / "created").read_text())
        assert made["metadata"]["name"] == "stereo-jobs-29394060"
        assert made["metadata"]["ownerReferences"][0]["uid"] == "1234-abcd"
        check_kubernetes(made)


def slurm(tmp_path, commands, spec: str, body: str, elapsed_s: int = 0, **options) -> subprocess.Popen:
    """The batch script between stand-ins for Slurm, Ray and the run, so many seconds after it began."""
    script = tmp_path / "job.sh"
    script.write_text(launch("slurm", spec, **options))
    commands("scontrol", '[ "$1" = show ] && printf "node1\\nnode2\\n"; exit 0')
    commands("srun", 'echo "${RAY_AUTH_TOKEN:?} $RAY_AUTH_MODE" >>"$FOLDER/tokens"; exec sleep 60')
    commands("ray")
    commands("stereo-jobs", f'cp "$2" "$FOLDER/seen.yaml"\n{body}')
    environment = commands.environment | {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
        "SECONDS": str(elapsed_s),
    }
    return subprocess.Popen(["bash", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (3, 3), (5, 5), (75, 0)])
def test_slurm_runs_and_ends(code, expected, spec_file, tmp_path, commands):
    spec = spec_file()
    process = slurm(
        tmp_path, commands, spec, f'until [ "$(wc -l <"$FOLDER/tokens")" = 2 ]; do sleep 0.1; done; exit {code}'
    )
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == expected, said
    calls = commands.calls()
    assert calls.count("srun") == 2
    assert f"--address=node1:{20000 + 4711 * 2}" in calls
    assert (tmp_path / "seen.yaml").read_text() == Path(spec).read_text()
    assert ("scontrol requeue 4711" in calls) == (code == 75)
    tokens = set((tmp_path / "tokens").read_text().splitlines())
    assert len(tokens) == 1 and re.fullmatch(r"[0-9a-f]{64} token", tokens.pop())


def test_slurm_by_schedule_lets_a_held_output_be(spec_file, tmp_path, commands):
    process = slurm(tmp_path, commands, spec_file(), "exit 5", schedule="0 1 * * *")
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "--extend" in commands.calls()


@pytest.mark.parametrize(("minutes", "again"), [(11, True), (10, False)])
def test_slurm_by_schedule_leaves_the_rest_to_the_next_night(minutes, again, spec_file, tmp_path, commands):
    # 310 s after it began: an interruption of eleven minutes, the end of ten (SIGTERM comes 180 to 240 s before).
    options = {"schedule": "0 1 * * *", "max_hours": minutes / 60}
    process = slurm(tmp_path, commands, spec_file(), "exit 75", elapsed_s=310, **options)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert ("scontrol requeue 4711" in commands.calls(), b"the next scheduled run" in said) == (again, not again), said


def test_slurm_drains_when_its_time_is_over(spec_file, tmp_path, commands):
    body = """trap 'sleep 1; exit 75' TERM
touch "$FOLDER/running"
while true; do sleep 0.1; done"""
    process = slurm(tmp_path, commands, spec_file(), body)
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, b"queued again" in said) == (0, True), said


# --- Values that try to be more than values ---

NASTY = (
    "\nEND_OF_JOB_SPEC\ntouch PWNED\n",
    "END_OF_JOB_SPEC_\n",
    "$(touch PWNED)",
    "`touch PWNED`",
    "'; touch PWNED; '",
)
NASTY += (
    '"; touch PWNED; "',
    "\n- touch PWNED\n",
    "\n---\nkind: Pod\n",
    " #",
    ": ",
    "SPEC_FILE",
    "JOB_NAME",
    "{{ 7 }}",
    "$PATH",
)
letters = st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\n\t\x85")
nasty = st.lists(st.sampled_from(NASTY) | st.text(letters, max_size=8), max_size=6).map("".join)
nasty_line = nasty.map(lambda text: "".join(c for c in text if c.isprintable()))


@st.composite
def specs(draw):
    """Text of a spec that is valid, with anything in its fields, written in one of the ways people write."""
    spec = {"manifest": f"s3://bucket/{draw(nasty)}", "output": f"s3://bucket/{draw(nasty)}"}
    spec["recipe"] = {"negative_prompt": draw(nasty), "seed": 3}
    text = draw(st.sampled_from([json.dumps, yaml.safe_dump, partial(yaml.safe_dump, default_style="|")]))(spec)
    # Comments are part of the text, too.
    comment = "" if text.startswith("{") else "".join(f"# {line}\n" for line in draw(nasty).splitlines())
    text = draw(st.sampled_from([text, text.rstrip("\n")])) + "\n" * bool(comment) + comment
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_bytes(text.encode())
        try:
            load_spec(path)
        except SpecError:  # `${...}` in the recipe, or a line break of the comment in the middle of it
            assume(False)
    return text


def run_script(script: str, shell: str, text: str, overrides: list[str]) -> None:
    """Run a rendered script with stand-ins. Nothing else may happen, and the spec must arrive as it was written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in ("scontrol", "srun", "ray", "stereo-jobs"):
            (folder / command).write_text(
                {
                    "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo node1; exit 0\n',
                    "stereo-jobs": '#!/bin/sh\n[ -e "$2" ] && cp "$2" "$SEEN/spec"\n'
                    'printf "%s\\0" "$@" >"$SEEN/words"\n',
                }.get(command, "#!/bin/sh\nexit 0\n")
            )
            (folder / command).chmod(0o755)
        for each in ("work", "seen", "tmp"):
            (folder / each).mkdir()
        (folder / "script.sh").write_bytes(script.encode())
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1"}
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder / "tmp"), "SEEN": str(folder / "seen")}
        done = subprocess.run(
            [shell, folder / "script.sh"],
            env=environment | slurm | {"SLURM_CPUS_PER_TASK": "4"},
            cwd=folder / "work",
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        assert list((folder / "work").iterdir()) == []
        words = (folder / "seen/words").read_bytes().decode().split("\0")
        assert words[-1 - 2 * len(overrides) : -1] == [word for each in overrides for word in ("--set", each)]
        if shell == "bash":
            assert (folder / "seen/spec").read_bytes() == text.encode()


@pytest.mark.parametrize("kind", ["slurm", "kuberay", "cronjob", "ray-up"])
@given(text=specs(), value=nasty_line)
@settings(max_examples=12, deadline=None, database=None)
def test_no_value_of_a_spec_is_shell_or_structure(kind, text, value):
    override = f"recipe.negative_prompt={json.dumps(value, ensure_ascii=False)}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_bytes(text.encode())
        try:
            made = launch(kind, str(path), [override])
        except SpecError:  # the override has control characters, several lines or `${...}`
            assume(False)
    if kind == "slurm":
        run_script(made, "bash", text, [override])
    elif kind == "ray-up":
        [line] = [line for line in made.splitlines() if "ray exec FILE" in line]
        (command,) = shlex.split(line.removeprefix("#   ray exec FILE --tmux "))
        assert shlex.split(command)[-1] == override
        assert yaml.safe_load(made).keys() == yaml.safe_load(launch(kind, str(CLUSTER / "job.yaml"))).keys()
    else:
        found = documents(made)
        assert list(found) == list(documents(launch(kind, str(CLUSTER / "job.yaml"))))
        assert found["ConfigMap"]["data"]["job.yaml"] == text
        run_script(found["ConfigMap"]["data"]["run.sh"], "sh", text, [override])


FREE_TEXT = ["name", "image", "namespace", "schedule", "time_zone", "gpu_type", "service_account", "token_secret"]
FREE_TEXT += ["ray_version", "kubectl_image", "region", "instance_profile", "partition"]


@pytest.mark.parametrize("option", FREE_TEXT)
@given(value=nasty.filter(bool))
@settings(max_examples=40, deadline=None, database=None)
def test_an_option_is_plain_words_or_refused(option, value):
    try:
        chosen = make_options(**{"kind": "slurm", "image": IMAGE} | {option: value})
    except SpecError as error:
        assert f"--{option.replace('_', '-')}" in str(error) or option in str(error)
    else:
        assert re.fullmatch(r"[A-Za-z0-9._:/@+=,*? -]*", getattr(chosen, option))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("schedule", "0 1 * *\ntouch"),
        ("schedule", "0 1 * *\u0085touch"),
        ("image", "x;touch${IFS}PWNED"),
        ("kubectl_image", "$(touch)"),
        ("ray_version", "2.0\n# x"),
        ("instance_profile", "arn:aws:iam::1:x\ny: z"),
        ("setup", "source x\rtouch PWNED"),
        ("partition", "gpu\n"),
    ],
)
def test_an_option_that_is_more_than_a_word_is_refused(option, value):
    with pytest.raises(SpecError, match=f"--{option.replace('_', '-')}"):
        make_options(**{"kind": "slurm", "image": IMAGE} | {option: value})


@pytest.mark.parametrize("number", ["1e3", "0o17", "12", "1.5", "+1"])
def test_texts_that_look_like_numbers_are_quoted(number):
    assert to_yaml({"x": number}) == f"x: '{number}'\n"


# --- The files in cluster/ ---


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_current(name):
    assert (CLUSTER / name).read_text(encoding="utf-8") == example(name), "run python -m tests.launch.examples"


def test_the_policy_allows_no_more_than_the_job_does():
    policy = json.loads((CLUSTER / "iam-policy.json").read_text())
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert actions == {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
    assert all("*" not in action for action in actions)
    writes = [statement["Resource"] for statement in policy["Statement"] if "s3:PutObject" in statement["Action"]]
    assert writes == [["arn:aws:s3:::my-bucket/stereo/*"]]


def test_the_command_line_prints_it(capsys, monkeypatch, spec_file):
    from stereo_jobs import cli

    words = ["stereo-jobs", "render", "kuberay-cron", spec_file(), "--image", IMAGE, "--no-spot", "--schedule"]
    monkeypatch.setattr(sys, "argv", [*words, "30 2 * * 1-5"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    found = documents(capsys.readouterr().out)
    assert found["RayCronJob"]["spec"]["schedule"] == "30 2 * * 1-5"
    monkeypatch.setattr(sys, "argv", ["stereo-jobs", "render", "kuberay", spec_file(), "--image", IMAGE, "--name", "N"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, os.linesep in capsys.readouterr().err) == (2, True)
