"""The package as others get it: a wheel and a source distribution, installed where nothing of this folder is seen."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S

USER_SCRIPT = """
from stereo_jobs import StereoPipeline

pipeline = StereoPipeline.from_pretrained()
pair = pipeline("a red star", seed=1)
reveal_type(pipeline)
reveal_type(pair.left)
pair.lefd
import stereo_jobs
stereo_jobs.StereoPipelin
"""

SKIPPED = ("torch", "diffusers", "transformers", "pyarrow", "boto3", "botocore", "skimage", "scipy", "huggingface_hub")


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that sees nothing of this folder."""
    hidden = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=hidden, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def build(source: Path, target: Path, *options: str) -> Path:
    """Build a distribution of the project in `source`; returns its file."""
    words = [sys.executable, "-m", "hatchling", "build", *options, "-d", str(target)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(REPOSITORY, tmp_path_factory.mktemp("wheel"), "-t", "wheel")


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory):
    return build(REPOSITORY, tmp_path_factory.mktemp("sdist"), "-t", "sdist")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment with the wheel; dependencies come from the tests' own environment."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    done = command(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin"


def metadata(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def package_files() -> set[str]:
    """Everything that an installation must have, data files included."""
    found = {path for path in (REPOSITORY / "stereo_jobs").rglob("*") if path.is_file()}
    names = {path.relative_to(REPOSITORY).as_posix() for path in found if "__pycache__" not in path.parts}
    return names | {f"stereo_jobs/manifests/{path.name}" for path in (REPOSITORY / "manifests").iterdir()}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == package_files()
    assert {"stereo_jobs/py.typed", "stereo_jobs/report/page.html.j2", "stereo_jobs/manifests/demo.parquet"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(source_distribution, wheel, tmp_path):
    with tarfile.open(source_distribution) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    again = build(source, tmp_path / "wheel", "-t", "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        for name in sorted({*one.namelist(), *other.namelist()}):
            assert one.read(name) == other.read(name), name
    for name in ("docs/spec.md", "tests/conftest.py", "constraints.txt", "cluster/job.yaml"):
        assert (source / name).is_file()


@pytest.mark.slow
def test_what_a_package_index_shows_is_true_and_leads_somewhere(wheel):
    facts = metadata(wheel)
    assert facts["Author"] == "The stereo_jobs authors"
    assert "Operating System :: POSIX" in facts.get_all("Classifier")
    assert not any("Windows" in line for line in facts.get_all("Classifier"))
    assert [url.partition(", ")[2] for url in facts.get_all("Project-URL")] == ["https://arxiv.org/abs/2403.04965"]
    page = facts.get_payload()
    assert page.startswith("# stereo-jobs\n")
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert "Six pairs of the demo" not in page
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^#+ .*", page, re.MULTILINE) == re.findall(r"^#+ .*", readme, re.MULTILINE)


@pytest.mark.slow
def test_the_installed_command_makes_a_pair(installed, tmp_path):
    said = command(installed / "stereo-jobs", "--version", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (0, f"{_version()}\n")
    made = command(installed / "stereo-jobs", "demo", "--rows", 1, "--local", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "done: 1 of 1 pairs" in made.stdout
    for verb in ("verify", "report", "status"):
        assert command(installed / "stereo-jobs", verb, "stereo-demo", cwd=tmp_path).returncode == 0, verb
    where = command(installed / "python", "-c", "import stereo_jobs; print(stereo_jobs.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
def test_the_installed_command_renders_launch_files(installed, tmp_path):
    (tmp_path / "job.yaml").write_text("manifest: s3://my-bucket/rows.parquet\noutput: s3://my-bucket/out\n")
    for kind, options in (("slurm", ["--gpus", "1"]), ("kuberay", ["--image", "IMAGE"]), ("ray-up", ["--image", "I"])):
        done = command(installed / "stereo-jobs", "render", kind, "job.yaml", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_type_checker_sees_the_notebooks_types(installed, tmp_path):
    (tmp_path / "user.py").write_text(USER_SCRIPT)
    # Checking these libraries as well takes minutes, and says nothing of ours.
    (tmp_path / "mypy.ini").write_text(f"[mypy-{','.join(f'{name}.*' for name in SKIPPED)}]\nfollow_imports = skip\n")
    words = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python", "user.py")
    said = command(*words, cwd=tmp_path).stdout
    assert 'Revealed type is "stereo_jobs.notebook.pipeline.StereoPipeline"' in said
    assert re.search(r'Revealed type is "PIL\.Image\.Image"', said)
    assert '"StereoImage" has no attribute "lefd"' in said
    assert 'Module has no attribute "StereoPipelin"' in said
    assert len(re.findall("error:", said)) == 2, said


def test_another_system_is_refused_in_one_sentence(tmp_path):
    program = "import os; os.name = 'nt'; import stereo_jobs.cli"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: stereo-jobs runs on Linux and macOS only")
    assert done.stderr.splitlines()[-1].endswith("on Windows use WSL")


def _version() -> str:
    from stereo_jobs.version import __version__

    return __version__
