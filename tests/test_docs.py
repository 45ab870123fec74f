"""The prose keeps up: every verb, field, column and exit code is documented, and the examples are real."""

import ast
import importlib.util
import re
import tomllib
import types
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.main import get_command

from stereo_jobs import cli, errors
from stereo_jobs.evaluate.methods import METHODS, TABLES
from stereo_jobs.evaluate.protocols import PROTOCOLS
from stereo_jobs.evaluate.tables.formats import METRICS as SCORES
from stereo_jobs.output.verify import VerifyReport
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.records import DATASET_COLUMNS, ERROR_COLUMNS, QUALITY_PREFIX
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.prometheus import METRICS, exported
from tests.conftest import REPOSITORY

_PLACES = ("*.md", "docs/*.md", "manifests/*.md", "cluster/**/*.md", "tests/fixtures/*.md")
PAGES = sorted(page for place in _PLACES for page in REPOSITORY.glob(place))
PACKAGES = sorted(path.parent for path in (REPOSITORY / "stereo_jobs").rglob("__init__.py"))
_PATH = re.compile(r"`((?:stereo_jobs|tests|benchmarks|docs)/[\w./]+)`")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def load(name: str) -> types.ModuleType:
    """A script of the docs as a module."""
    loader = importlib.util.spec_from_file_location(Path(name).stem, REPOSITORY / name)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def test_every_verb_is_in_the_readme():
    readme = read("README.md")
    for verb in get_command(cli.app).commands:
        assert re.search(rf"`{verb} [^`]*`|`{verb}`", readme), verb


def test_the_spec_reference_is_current():
    assert read("docs/spec.md") == load("docs/make_reference.py").reference(), "run python docs/make_reference.py"


def test_every_column_is_documented():
    page = read("docs/dataset.md")
    for name in [*DATASET_COLUMNS.names, *ERROR_COLUMNS.names]:
        assert f"`{name}`" in page, name


def test_every_rule_and_metric_is_explained():
    page = read("docs/quality.md")
    rules = [field.description or "" for field in QualityConfig.model_fields.values()]
    for name in {name for text in rules for name in re.findall(r"`([a-z_]+)`[:,]", text)}:
        assert f"`{name}`" in page, name
    for name in DATASET_COLUMNS.names:
        assert not name.startswith(QUALITY_PREFIX) or f"`{name}`" in page, name


def test_every_metric_is_documented():
    page = read("docs/cluster.md")
    for name, metric in METRICS.items():
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        assert f"`{exported(name)}{labels}`" in page, name


def test_everything_that_is_compared_is_explained():
    page = read("docs/benchmarks.md")
    for name in [*TABLES, *PROTOCOLS, *(method.name for method in METHODS if method.disparity == "true")]:
        assert f"`{name}`" in page, name
    for metric in SCORES.values():
        assert metric.title.split()[0] in page, metric.title


def test_tables_of_the_docs_are_filled_from_evaluations(tmp_path):
    module = load("docs/fill_benchmarks.py")
    page = read("docs/benchmarks.md")
    places = re.findall("<!-- table (.*) -->", page)
    assert len(places) == len(set(places)) == page.count("<!-- end -->") > 0
    output, table = tmp_path / places[1].split("/")[0], places[1].split("/")[1]
    (output / "tables").mkdir(parents=True)
    (output / f"tables/{table}.md").write_text("### New\n")
    filled = module.filled(page, [output])
    assert f"<!-- table {places[1]} -->\n### New\n<!-- end -->" in filled
    assert re.findall("<!-- table (.*) -->", filled) == places
    assert module.filled(page, []) == page


def test_pictures_of_the_docs_are_copied_from_evaluations(tmp_path, monkeypatch):
    module = load("docs/fill_benchmarks.py")
    page = read("docs/benchmarks.md")
    places = re.findall(r"<!-- picture (\S+)/(\S+) (\S+): (.*) -->", page)
    assert len(places) == len({file for _, _, file, _ in places}) == page.count("<!-- end picture -->") > 0
    output, name, file, description = places[0]
    (tmp_path / output / "pictures").mkdir(parents=True)
    Image.effect_noise((64, 64), 99).convert("RGB").save(tmp_path / output / f"pictures/{name}.png")
    monkeypatch.setattr(module, "PAGE", tmp_path / "benchmarks.md")
    (tmp_path / "images").mkdir()
    filled = module.filled(page, [tmp_path / output])
    assert f"-->\n![{description}]({file})\n<!-- end picture -->" in filled
    assert Image.open(tmp_path / file).size == (64, 64)
    assert module.filled(page, []) == page


def test_every_exit_code_is_in_readme_and_help():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for text in (read("README.md").partition("Exit codes:")[2], cli.app.info.epilog):
        for code in {kind.exit_code for kind in kinds} | {VerifyReport(missing=1).exit_code}:
            assert re.search(rf"\b{code} [a-z]", text), code


def test_the_jobs_on_the_pages_are_valid():
    pages = ("README.md", "docs/tutorial.md")
    examples = [text for page in pages for text in re.findall(r"```yaml\n(# \w+\.yaml\n.*?)```", read(page), re.DOTALL)]
    specs = [parse_spec(yaml.safe_load(text)) for text in examples]
    assert [spec.recipe.mode for spec in specs] == ["image", "text", "image", "text"]
    assert specs[1].runtime.batch_size == 8
    # Lines that the pages say to add.
    [models] = re.findall(r"```yaml\n(  models:\n.*?)```", read("docs/tutorial.md"), re.DOTALL)
    hidden = re.sub(r"^  # ( *)(\w)", r"  \1\2", examples[0], flags=re.MULTILINE)
    for text in (examples[2].replace("recipe:\n", f"recipe:\n{models}"), hidden):
        assert parse_spec(yaml.safe_load(text)).recipe.models.depth.path == "depth-anything/Depth-Anything-V2-Small-hf"


def test_the_example_specs_are_valid():
    for path in (REPOSITORY / "manifests").glob("*.yaml"):
        parse_spec(yaml.safe_load(path.read_text()))


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


# --- The layout: tables and pages against contracts and files ---


def contracts() -> dict[str, dict]:
    """The import rules of pyproject.toml by id."""
    return {rule["id"]: rule for rule in tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]}


def test_the_layout_table_is_that_of_the_contracts():
    rules = contracts()
    lines = [re.split(r" \| ", line) for line in rules["layers"]["layers"]]
    allowed: dict[str, set[str]] = {}
    for rule in (rules["ray"], rules["torch"]):
        for exemption in rule["ignore_imports"]:
            module, library = exemption.split(" -> ")
            allowed.setdefault(module.split(".")[1], set()).add("ray" if library == "ray" else "torch")
    expected = [(name, allowed.get(name, set())) for line in lines for name in line]
    table = read("CONTRIBUTING.md").partition("<!-- layers -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ?([\w, ]*) ?\|$", table, re.MULTILINE)
    assert [(name, {word for word in re.split(r"\W+", heavy) if word}) for name, heavy in rows] == expected


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_table_of_a_package_lists_its_modules(package):
    """Every module and nothing else; `__main__` and packages inside may be listed."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    inside = {path.parent.name for path in package.glob("*/__init__.py")}
    cells = re.findall(r"^\| (`[^|]*) \|", docstring, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(listed) == len(set(listed))
    if listed:
        assert modules <= set(listed) <= modules | inside | {"__main__"}
    else:
        assert len(modules) <= 3 or package.name == "stereo_jobs", f"{package.name}: its docstring needs a table"


def test_a_row_makes_at_most_eight_stops_none_twice():
    stops = re.findall(r"^(\d)\. \*\*`(stereo_jobs/[\w/]+\.py)`\*\*", read("docs/architecture.md"), re.MULTILINE)
    assert [int(number) for number, _ in stops] == list(range(1, len(stops) + 1))
    assert 0 < len(stops) <= 8
    files = [file for _, file in stops]
    assert len(set(files)) == len(files)
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []


def test_a_newcomers_questions_lead_to_files():
    section = read("CONTRIBUTING.md").partition("## Where is it?")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| .+\? \| (.+) \|$", section, re.MULTILINE)
    assert len(answers) >= 10
    for answer in answers:
        files = _PATH.findall(answer)
        assert files, answer
        assert [file for file in files if not (REPOSITORY / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_that_a_page_names_exist(page):
    if page.name == "CHANGELOG.md":  # which also tells what was replaced
        return
    assert [name for name in _PATH.findall(page.read_text(encoding="utf-8")) if not (REPOSITORY / name).exists()] == []


def test_every_term_is_explained_once():
    names = re.findall(r"^\| ([a-z][\w, -]*) \| ", read("docs/glossary.md").replace("| term |", ""), re.MULTILINE)
    terms = [term for name in names for term in name.split(", ")]
    assert len(terms) == len(set(terms))
    needed = {"row", "pair", "shard", "generation", "plan", "task", "dispatch", "requeue", "commit", "record", "lease"}
    needed |= {"recipe", "runtime", "hole", "disparity requested", "disparity applied", "letterbox", "blocklist"}
    assert needed | {"heartbeats", "preemption", "throughput"} <= set(terms)
