"""The short form of `python -m tests.chaos`."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_random_faults():
    command = [sys.executable, "-m", "tests.chaos", "--faults", "6", "--seed", "7", "--rows", "60"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert sum(report["faults"].values()) == 6
    assert report["rows"] + report["rows_failed"] == report["jobs"] * 60
