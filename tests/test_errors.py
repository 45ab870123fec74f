"""The exception tree in the documentation is the one of the code, with the same exit codes."""

import inspect
import re

import pytest

from stereo_jobs import errors
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.output.verify import VerifyReport

_LINE = re.compile(r"^( *)[*+-] (\w+) \((\d+)\): \S")


def documented() -> dict[str, tuple[str, int]]:
    """Name of each class in the docstring -> its parent's name and its exit code."""
    tree: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := _LINE.match(line):
            depth = len(found[1]) // 2
            above[depth:] = [found[2]]
            tree[found[2]] = (above[depth - 1] if depth else "Exception", int(found[3]))
    return tree


def test_the_tree_in_the_docstring_is_the_one_of_the_classes():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert documented() == {kind.__name__: (kind.__base__.__name__, kind.exit_code) for kind in kinds}
    assert all(issubclass(kind, StereoJobsError) for kind in kinds)


@pytest.mark.parametrize(("report", "code"), [(VerifyReport(), 0), (VerifyReport(missing=1), 4)])
def test_verify_has_an_exit_code_of_its_own(report, code):
    assert report.exit_code == code
    assert code not in {exit_code for _, exit_code in documented().values()}
