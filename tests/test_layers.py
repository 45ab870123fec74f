"""The rules of pyproject.toml about imports: they hold, they have no holes, and light verbs load nothing heavy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stereo_jobs.run.driver import run
from tests import standin
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "stereo_jobs"


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and report of import-linter on the copy of the package in a folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "400"}
    done = subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package's sources and of the rules."""
    shutil.copytree(PACKAGE, tmp_path / "stereo_jobs", ignore=lambda folder, names: not_sources(Path(folder), names))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def not_sources(folder: Path, names: list[str]) -> list[str]:
    return [n for n in names if n == "__pycache__" or not ((folder / n).is_dir() or n.endswith(".py"))]


def plant(copy: Path, file: str, line: str) -> str:
    """Append an import to a module of the copy; returns how a report names it."""
    path = copy / "stereo_jobs" / file
    assert path.exists(), file
    path.write_text(path.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
    parts = ["stereo_jobs", *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_package_keeps_its_rules(copy):
    code, report = lint(copy)
    assert code == 0, report


def test_ray_is_refused_in_every_root_module_and_wherever_it_does_not_belong(copy):
    roots = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert {"__init__.py", "__main__.py", "errors.py", "records.py"} <= set(roots)
    elsewhere = ["report/terminal.py", "run/demo.py", "run/driver.py", "workers/worker.py", "workers/local_pool.py"]
    elsewhere += ["output/verify.py", "launch/render.py", "evaluate/methods.py", "toyscapes/scenes.py"]
    planted = [plant(copy, file, "import ray") for file in [*roots, *elsewhere]]
    code, report = lint(copy)
    assert code != 0
    assert [name for name in planted if f"{name} -> ray " not in report] == []


def test_torch_is_refused_in_what_light_verbs_use(copy):
    light = [
        "__init__.py",
        "__main__.py",
        "cli/__init__.py",
        "cli/dataset.py",
        "errors.py",
        "logs.py",
        "records.py",
        "spec.py",
        "spec_reading.py",
        "version.py",
    ]
    light += ["data/manifest.py", "data/shards.py", "data/storage.py", "launch/render.py", "report/terminal.py"]
    light += ["output/verify.py", "output/watch.py", "output/progress.py", "run/prepare.py", "run/driver.py"]
    planted = [plant(copy, file, "def _later():\n    import torch") for file in light]
    code, report = lint(copy)
    assert code != 0
    assert [name for name in planted if f"{name} -> torch " not in report] == []


@pytest.mark.parametrize(
    ("file", "line", "imported"),
    [
        ("quality/config.py", "from torch import nn", "torch"),
        ("models/files.py", "from stereo_jobs.models import weights", "stereo_jobs.models.weights"),
    ],
)
def test_light_modules_reach_torch_by_no_way(copy, file, line, imported):
    name = plant(copy, file, line)
    code, report = lint(copy)
    assert code != 0
    assert f"{name} -> {imported} " in report


def test_no_arrow_points_back_up(copy):
    arrows = [
        ("data/storage.py", "stereo_jobs.run.driver"),
        ("data/images.py", "stereo_jobs.workers.ray.pool"),
        ("data/maps.py", "stereo_jobs.output.layout"),
        ("output/layout.py", "stereo_jobs.workers.task"),
        ("output/lease.py", "stereo_jobs.run.queue"),
        ("pipeline/batching.py", "stereo_jobs.notebook"),
        ("stereo/warp.py", "stereo_jobs.records"),
        ("quality/measure.py", "stereo_jobs.pipeline.pair"),
        ("records.py", "stereo_jobs.data.images"),
        ("report/columns.py", "stereo_jobs.evaluate.methods"),
    ]
    planted = [(plant(copy, file, f"import {target}"), target) for file, target in arrows]
    code, report = lint(copy)
    assert code != 0
    assert [f"{name} -> {target}" for name, target in planted if f"{name} -> {target} " not in report] == []


def test_a_new_module_needs_a_place_in_the_layers(copy):
    (copy / "stereo_jobs/attic.py").write_text('"""Belongs nowhere."""\n')
    (copy / "stereo_jobs/cellar").mkdir()
    (copy / "stereo_jobs/cellar/__init__.py").write_text('"""Belongs nowhere."""\n')
    code, report = lint(copy)
    assert code != 0
    assert "attic" in report
    assert "cellar" in report


def test_light_verbs_load_neither_torch_nor_ray(make_spec, tmp_path):
    """The real `status`, `verify`, `report` and `plan --dry-run`, one after the other in one process."""
    spec = make_spec()
    run(spec, local=True, load=standin.load)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    heavy = ("torch", "ray", "diffusers", "transformers")
    code = f"""
import sys
from stereo_jobs import cli
for words in (["status", {spec.output!r}], ["verify", {spec.output!r}], ["report", {spec.output!r}],
              ["plan", {str(job)!r}, "--dry-run"]):
    sys.argv = ["stereo-jobs", *words]
    try:
        cli.main()
    except SystemExit as end:
        print(words[0], end.code or 0, [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.endswith("]")]
    assert lines == [f"{verb} 0 []" for verb in ("status", "verify", "report", "plan")], done.stdout + done.stderr
