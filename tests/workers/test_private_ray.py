"""A private Ray: metrics by name and label, JSON logs of actors, a measurement, and what others may not see."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from stereo_jobs.errors import ModelError, TooManyFailuresError
from stereo_jobs.run import estimate
from stereo_jobs.run.driver import run
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.prometheus import METRICS, exported
from stereo_jobs.workers.ray.cluster import start_ray
from stereo_jobs.workers.timed_threads import usable_cores
from tests import standin
from tests.datasets import prepared
from tests.waiting import PATIENCE_S

PROMPTS = ["fine", "fine", "boom", "fine", "nan", "fine", "fine", "boom"]


@pytest.fixture(scope="module")
def ray():
    module, _ = start_ray(parse_spec({"manifest": "x", "output": "y", "runtime": {"actors": 2}}))
    yield module
    module.shutdown()


@pytest.fixture(scope="module")
def session(ray) -> Path:
    """Ray's folder for this run."""
    return Path(ray._private.worker._global_node.get_session_dir_path())


def samples(ray) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the metrics of this package at the node's endpoint: by name, labels and value."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in re.findall(r"^(ray_stereo_jobs_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return found


def test_the_endpoint_has_every_metric_and_the_counters_agree_with_the_dataset(ray, session, make_spec, make_manifest):
    spec = make_spec(make_manifest(prompt=PROMPTS), max_failure_ratio=1.0, log_format="json", lease_ttl_s=60)
    status = run(spec, load=standin.load)
    names = {exported(name): metric for name, metric in METRICS.items() if name != "stereo_jobs_rejected_pairs"}

    def total(name: str, **labels: str) -> float:
        return sum(value for given, value in found.get(name, []) if labels.items() <= given.items())

    deadline = time.monotonic() + PATIENCE_S
    while True:  # processes report every few seconds
        found = samples(ray)
        written = len(found.get("ray_stereo_jobs_stage_seconds_total", []))
        if found.keys() >= names.keys() and total("ray_stereo_jobs_shards_total") == 3 and written >= 4:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    for name, metric in names.items():
        for labels, _ in found[name]:
            assert labels["output"] == spec.output, name
            assert labels.keys() >= {*metric.labels, "WorkerId", "NodeAddress"}, name
    assert total("ray_stereo_jobs_pairs_total") == status.succeeded == 5
    assert total("ray_stereo_jobs_failed_rows_total", error_type="ValueError") == 2
    assert total("ray_stereo_jobs_failed_rows_total", error_type="NotFinite") == 1
    assert total("ray_stereo_jobs_written_bytes_total") == status.bytes
    assert total("ray_stereo_jobs_planned_pairs") == 8
    assert {labels["stage"] for labels, _ in found["ray_stereo_jobs_stage_seconds_total"]} == {
        "read",
        "generate",
        "encode",
        "write",
    }


def test_actors_log_as_json_too(session, make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=1, prompt=["boom"]), max_failure_ratio=1.0, log_format="json", lease_ttl_s=60)
    run(spec, load=standin.load)
    text = "\n".join(path.read_text() for path in session.glob("logs/worker-*.err"))
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]
    [failed] = [line for line in lines if line.get("job") == spec.output and "row" in line]
    assert (failed["shard"], failed["row"], failed["message"]) == (
        "0000-0000000",
        "row-0000",
        "row row-0000 failed: boom in row-0000",
    )


START = """
import json, os, sys
from stereo_jobs.workers.ray.cluster import start_ray
from stereo_jobs.spec_reading import parse_spec

ray, _ = start_ray(parse_spec({"manifest": "x", "output": "y", "runtime": {"actors": 1}}))
ray.get(ray.remote(lambda: None).remote())
folder = ray._private.worker._global_node.get_session_dir_path()
address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
print(json.dumps([folder, address, token]), flush=True)
sys.stdin.read()
ray.shutdown()
"""


def test_a_private_ray_listens_on_loopback_only_and_asks_for_a_token(tmp_path):
    # In a process whose environment says nothing about Ray, so that only the job can see to both.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean["HOME"] = str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", START], env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        session, address, token = json.loads(process.stdout.readline())
        own = [each for each in psutil.process_iter() if session in " ".join(try_or(each.cmdline, []))]
        own.append(psutil.Process(process.pid))
        family = {each.pid: each for one in own for each in [one, *try_or(partial(one.children, recursive=True))]}
        addresses = {ip for each in family.values() for ip in try_or(partial(listening, each))}
        assert len(family) >= 4
        assert addresses
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
        ask = [sys.executable, "-c", f"from ray._raylet import GcsClient; GcsClient({address!r})"]
        for environment, taken in (
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, True),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, False),
            ({}, False),
        ):
            done = subprocess.run(ask, env=clean | environment, capture_output=True, text=True, check=False)
            assert (done.returncode == 0, "AuthenticationError" in done.stderr) == (taken, not taken), done.stderr
        process.stdin.close()
    assert process.returncode == 0
    assert not list(tmp_path.rglob("*token*")), "the token outlived the run"


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process listens."""
    return {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}


def try_or(call, otherwise=()):
    """Return what `call` returns, or `otherwise` if the process has just ended."""
    try:
        return call()
    except psutil.NoSuchProcess:
        return otherwise


def load_in_an_actor(recipe, device, batch_size):
    import ray

    assert ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    return standin.StandIn(batch_size)


def test_a_measurement_runs_on_a_worker_of_the_cluster(ray, make_spec, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    spec = make_spec()
    _, job, recipe = prepared(spec, publish=False)
    assert estimate.measure_rows(spec, recipe, job.plans[0], load_in_an_actor).pairs == 6
    cpus = ray.cluster_resources()["CPU"]
    for each, actors in ((cpus, 1), (cpus / 4, 4)):  # a full node: its cores are counted once
        found = estimate.measure_rows(make_spec(cpus_per_actor=each), recipe, job.plans[0], load_in_an_actor)
        assert found.cores == max(1, usable_cores() // actors)
    with pytest.raises(ModelError, match="model nowhere: cannot be loaded"):
        estimate.measure_rows(spec, recipe, job.plans[0], load_badly)


def load_badly(recipe, device, batch_size):
    raise ModelError("model nowhere: cannot be loaded")


def test_no_file_of_the_session_holds_a_secret(session, make_spec, make_manifest):
    planted = [os.environ["RAY_AUTH_TOKEN"], secrets.token_hex(16), secrets.token_hex(16)]
    keys = {"access_key_id": planted[1], "secret_access_key": planted[2]}
    runtime = {"storage": keys, "log_format": "json", "lease_ttl_s": 60}
    manifest = make_manifest(prompt=PROMPTS)
    run(make_spec(manifest, **runtime, max_failure_ratio=1.0), load=standin.load)
    with pytest.raises(TooManyFailuresError):
        run(make_spec(manifest, f"{manifest}-failing", **runtime, max_failure_ratio=0), load=standin.load)
    files = [path for path in session.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in planted), path


LOSES_ITS_NODE = """
import os, sys, threading, time
import psutil
from stereo_jobs.errors import InterruptedRunError
from stereo_jobs.run.driver import run
from stereo_jobs.spec_reading import load_spec
from tests import standin


def strike():
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.1)
    [raylet] = [child for child in psutil.Process().children() if child.name() == "raylet"]
    raylet.kill()


threading.Thread(target=strike, daemon=True).start()
try:
    run(load_spec(sys.argv[1]), load=standin.load)
except InterruptedRunError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_run_whose_own_node_dies_ends_and_says_so(make_spec, make_manifest, tmp_path):
    told = tmp_path / "told"
    spec = make_spec(make_manifest(rows=4, prompt=[f"told:{told} hang"] * 4), shard_rows=1)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-c", LOSES_ITS_NODE, str(tmp_path / "spec.json"), str(told)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "Ray has ended on the machine of this run" in ended.stdout, ended
