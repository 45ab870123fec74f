"""What a private Ray shows on its own machine: metrics by name and label, JSON logs; and to nobody else."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from stereo_jobs.job.driver import run
from stereo_jobs.job.metrics import METRICS, Metrics, exported
from stereo_jobs.job.pool import start_ray
from stereo_jobs.records import ShardRecord
from stereo_jobs.spec import parse_spec
from tests import standin

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
    """By name, what the node's endpoint says of this package: labels and value."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in re.findall(r"^(ray_stereo_jobs_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return found


def test_the_endpoint_has_every_metric_and_the_counters_agree_with_the_dataset(ray, session, make_spec, make_manifest):
    spec = make_spec(make_manifest(prompt=PROMPTS), max_failure_ratio=1.0, log_format="json")
    status = run(spec, load=standin.load)
    names = {exported(name): metric for name, metric in METRICS.items() if name != "stereo_jobs_rejected_pairs"}

    def total(name: str, **labels: str) -> float:
        return sum(value for given, value in found.get(name, []) if labels.items() <= given.items())

    deadline = time.monotonic() + 120
    while True:  # processes report every few seconds
        found = samples(ray)
        written = len(found.get("ray_stereo_jobs_stage_seconds_total", []))
        if found.keys() >= names.keys() and total("ray_stereo_jobs_shards_total") == 3 and written >= 4:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    for name, metric in names.items():
        for labels, _ in found[name]:
            assert labels["job"] == spec.output, name
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
    spec = make_spec(make_manifest(rows=1, prompt=["boom"]), max_failure_ratio=1.0, log_format="json")
    run(spec, load=standin.load)
    text = "\n".join(path.read_text() for path in session.glob("logs/worker-*.err"))
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]
    [failed] = [line for line in lines if line.get("job") == spec.output and "row" in line]
    assert (failed["shard"], failed["row"], failed["message"]) == (
        "0000-0000000",
        "row-0000",
        "row row-0000 failed: boom in row-0000",
    )


def test_a_private_ray_listens_on_loopback_only_and_asks_for_a_token(ray, session):
    def listening(process: psutil.Process) -> set[str]:
        return {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}

    own = [process for process in psutil.process_iter() if str(session) in " ".join(try_or(process.cmdline, []))]
    family = {process.pid: process for one in own for process in [one, *one.children(recursive=True)]}
    addresses = {ip for process in [psutil.Process(), *family.values()] for ip in try_or(partial(listening, process))}
    assert len(family) >= 3
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
    ask = f"from ray._raylet import GcsClient; GcsClient('{ray.get_runtime_context().gcs_address}')"
    for token, taken in ((os.environ["RAY_AUTH_TOKEN"], True), ("0" * 64, False)):
        words, own_token = [sys.executable, "-c", ask], {"RAY_AUTH_TOKEN": token}
        done = subprocess.run(words, env=os.environ | own_token, capture_output=True, text=True, check=False)
        assert (done.returncode == 0, "AuthenticationError" in done.stderr) == (taken, not taken), done.stderr


def try_or(call, otherwise=()):
    """What `call` returns, unless the process has just ended."""
    try:
        return call()
    except psutil.NoSuchProcess:
        return otherwise


def test_without_ray_numbers_cost_nothing_and_the_log_has_them(caplog):
    metrics = Metrics("out", on_ray=False)
    record = ShardRecord(
        generation=1, shard=2, fingerprint="f", planned=3, succeeded=2, failed=1, failures={"Boom": 1}, seconds=0.5
    )
    with caplog.at_level("INFO", logger="stereo_jobs"):
        metrics.shard(record)
        metrics.stage("read", 1.0)
        metrics.run(3, 0, 0, 0, 1)
    assert "_made" not in vars(metrics)
    [line] = caplog.records
    assert (line.shard, line.pairs, line.failed) == ("0001-0000002", 2, 1)
