"""The benchmark for a fresh GPU machine works the first time: tiny sections, and what becomes of bad ones."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu
from tests.conftest import REPOSITORY

FACTS = {
    "machine": [
        {"device": "Some GPU", "gpu_bytes": 24e9, "cores": 8, "torch": "2.13.0", "cuda": "12.9"},
        {"matmul_float16": 9.5e13},
    ],
    "sd15": [
        {"network": "sd15", "unet_flops": 8e11},
        {
            "network": "sd15",
            "dtype": "float16",
            "batch": 8,
            "evaluations_per_s": 40.0,
            "share": 0.34,
            "peak_bytes": 4e9,
        },
        {"network": "sd15", "dtype": "float16", "batch": 32, "error": "out of memory"},
    ],
    "tests": [{"tests": {"PASSED": 30, "FAILED": 1}}],
    "job": [
        {"checkpoint_s": 9.0},
        {"batches": 9, "busy": 0.97, "batch_s": 8.0, "batch": 8, "dtype": "float16", "gpu_utilisation": 0.9},
    ],
    "compile": [
        {"compile": "off", "evaluations_per_s": 40.0, "first_s": 1.5},
        {"compile": "default", "error": "RuntimeError: no compiler"},
    ],
}


def test_the_page_has_what_is_known():
    page = gpu.markdown([gpu.Section(name, "done", 7.0, facts) for name, facts in FACTS.items()])
    for line in (
        "Some GPU, 24 GB, 8 cores, PyTorch 2.13.0, CUDA 12.9. Large matrix products: float16 95 TFLOP/s.",
        "| sd15 | float16 | 8 | 40.0 | 0.34 | 4.0 |",
        "| sd15 | float16 | 32 | out of memory | | |",
        "models busy 0.97 of the time, GPU utilisation 0.90, 1.000 s a pair in the models.",
        "| default | RuntimeError: no compiler |  |",
        "Tests that need a GPU: 30 passed, 1 failed.",
        "| job | done | 7 |",
    ):
        assert line in page
    assert "Job: not measured." in gpu.markdown([])


def test_a_section_that_hangs_or_fails_costs_no_other(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(
        """
import json, sys, time
name, into = sys.argv[1:3]
with open(into, "a") as file:
    print(json.dumps({"network": name, "found": 1}), file=file, flush=True)
    file.write('{"half a li')
if name == "tests":
    time.sleep(600)
if name == "job":
    sys.exit("no models here")
"""
    )
    monkeypatch.setattr(gpu, "PROGRAM", [sys.executable, str(program)])
    monkeypatch.setattr(gpu, "LIMITS", {"sd15": 60, "tests": 3, "job": 60})
    began = time.monotonic()
    sections = gpu.measure(tmp_path, ["sd15", "tests", "job"], 200, tiny=False)
    assert time.monotonic() - began < 100
    assert [section.state for section in sections] == ["done", "cut after 3 s", "failed: no models here"]
    assert [section.facts for section in sections] == [
        [{"network": name, "found": 1}] for name in ("sd15", "tests", "job")
    ]
    assert json.loads((tmp_path / "gpu.json").read_text())["tests"]["state"] == "cut after 3 s"
    late = gpu.measure(tmp_path, ["sd15"], gpu.RESERVE_S, tiny=False)
    assert late[0].state == "skipped: no time left"


@pytest.mark.usefixtures("one_thread")
def test_a_network_is_measured(monkeypatch):
    from benchmarks import gpu_sections

    monkeypatch.setattr(gpu_sections, "MEASURE_S", 0.01)
    monkeypatch.setattr(gpu_sections, "DTYPES", ("float32",))
    plan = gpu_sections.Plan(tiny=True, until=time.time() + 1000)
    for kind in ("sd15", "sdxl"):
        head, *found = gpu_sections.unet(plan, kind)
        assert head["unet_flops"] > 1e6
        assert [fact["batch"] for fact in found] == [1, 2]
        assert all(fact["evaluations_per_s"] > 0 and 0 < fact["share"] < 1 for fact in found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_from_one_command(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    wheels = tmp_path / "wheels"  # none are needed: the environment of the tests has all
    wheels.mkdir()
    command = ["bash", "benchmarks/gpu.sh", str(wheels), "--tiny", "--out", str(tmp_path), "--seconds", "1000"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: section["state"] for name, section in found.items()} == dict.fromkeys(gpu.LIMITS, "done")
    facts = {name: gpu.merged(section["facts"]) for name, section in found.items()}
    assert (facts["job"]["pairs"], facts["job"]["failed"]) == (4, 0)
    assert 0 < facts["job"]["busy"] <= 1
    assert facts["machine"]["matmul_float16"] > 1e6
    assert facts["tests"]["tests"]["SKIPPED"] + facts["tests"]["tests"]["PASSED"] > 20
    assert [fact["compile"] for fact in found["compile"]["facts"]][:2] == ["off", "default"]
    assert done.stdout.strip() == (tmp_path / "gpu.md").read_text().strip()
