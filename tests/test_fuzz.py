"""A short form of `python -m tests.fuzz`: mutated inputs end in a result or a message, whatever they are."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.fuzz import images, manifests, specs
from tests.fuzz.cases import random_of
from tests.fuzz.planted import FAULTS
from tests.waiting import PATIENCE_S


def fuzz(*words: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "tests.fuzz", "--json", *words]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=PATIENCE_S, check=False)
    assert ended.stdout, ended.stderr.decode()
    return ended.returncode, json.loads(ended.stdout)


# Seeds with many different faults among the first cases, and without the large pictures, which take seconds each.
@pytest.mark.parametrize(("kind", "count", "seed"), [("manifests", 25, 70), ("specs", 40, 107), ("images", 150, 55)])
def test_mutated_inputs_are_used_or_refused_with_a_message(kind, count, seed):
    code, report = fuzz(f"--{kind}", str(count), "--seed", str(seed))
    assert report["cases"] == {kind: count}
    found = [f"{each['count']} {each['what']}: {each['cause']}: {each['first']}" for each in report["groups"]]
    assert found == []
    assert code == 0


def test_every_fault_that_is_looked_for_is_found():
    code, report = fuzz("--planted", "30", "--seed", "6", "--timeout", "1", "--memory-mib", "200")
    assert code == 1
    firsts = {group["what"]: group["first"]["made"] for group in report["groups"]}
    assert set(firsts) == set(FAULTS)
    assert all(made == what for what, made in firsts.items())
    assert report["findings"] < 30


@pytest.mark.parametrize("number", [0, 3, 17])
def test_a_case_is_a_function_of_seed_kind_and_number(number):
    def made(seed):
        return (
            specs.make(random_of(seed, "specs", number)),
            manifests.make(random_of(seed, "manifests", number))[1],
            images.make(random_of(seed, "images", number))[0].data,
        )

    assert made(5) == made(5)
    assert made(5) != made(6)


@pytest.mark.parametrize("number", [231, 254])
def test_cells_that_are_no_text_or_not_utf8_may_be_changed_as_text(number):
    assert manifests.make(random_of(201, "manifests", number))[1]
