"""The table of modules in a package's docstring names every module of the folder, and no other."""

import importlib
import pkgutil
import re

import pytest


@pytest.mark.parametrize("name", ["data", "launch", "output"])
def test_the_table_names_every_module(name):
    package = importlib.import_module(f"stereo_jobs.{name}")
    rows = re.findall(r"^\| `(\w+)` \| \S.* \|$", package.__doc__ or "", re.MULTILINE)
    assert sorted(rows) == sorted(module.name for module in pkgutil.iter_modules(package.__path__))
