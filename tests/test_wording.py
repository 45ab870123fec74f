"""The house rule of the prose: each text makes sense alone, in `--help`, an IDE tooltip or the JSON schema.

What begins with one of these words leans on a sentence before it, which its reader may not see.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stereo_jobs.spec import JobSpec
from tests.conftest import REPOSITORY

LEANING = ("of", "that", "by", "as", "so", "and")
PLACES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "manifests/*.md", "cluster/**/*.md", "tests/fixtures/*.md")
PAGES = sorted(page for place in PLACES for page in REPOSITORY.glob(place))
SOURCES = sorted((REPOSITORY / "stereo_jobs").rglob("*.py"))
TEXT_ARGUMENTS = ("help", "description", "epilog", "short_help", "reason", "title")
LOGGING = ("debug", "info", "warning", "error", "exception", "critical")
_SECTION = re.compile(r"^\s*(Args|Attributes|Returns|Raises|Yields):\s*$")
_ENTRY = re.compile(r"^(\s*)[\w*`][\w*`, ]*: (\S.*)$")


def leans(text: str) -> bool:
    """Whether a text begins with a word that refers to something before it."""
    first = re.match(r"\W*(\w+)", text)
    return first is not None and first[1].lower() in LEANING


def literal(node: ast.AST | None) -> str | None:
    """The text of a string literal, or the beginning of an f-string; None for anything else."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return literal(node.values[0])
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def entries(docstring: str) -> Iterator[str]:
    """What is said of each argument, attribute or exception in a docstring's sections."""
    inside, indent = False, None
    for line in docstring.splitlines():
        if _SECTION.match(line):
            inside, indent = True, None
        elif inside and (found := _ENTRY.match(line)):
            if indent is None:
                indent = len(found[1])
            if len(found[1]) == indent:
                yield found[2]
        elif line and not line[0].isspace():
            inside = False


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Docstrings, their entries, attribute docstrings, help and description arguments, messages: line and text."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            for child in getattr(node, field, None) or [] if isinstance(getattr(node, field, None), list) else []:
                if isinstance(child, ast.Expr) and (text := literal(child.value)):
                    yield child.lineno, text
                    yield from ((child.lineno, entry) for entry in entries(text))
        raised = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(raised, ast.Call) and raised.args and (text := literal(raised.args[0])):
            yield raised.lineno, text
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in TEXT_ARGUMENTS and (text := literal(keyword.value)):
                    yield node.lineno, text
            logs = isinstance(node.func, ast.Attribute) and node.func.attr in LOGGING
            if logs and node.args and (text := literal(node.args[0])):
                yield node.lineno, text


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_text_of_the_package_leans_on_another(source: Path) -> None:
    found = texts(ast.parse(source.read_text(encoding="utf-8")))
    assert [f"{source.name}:{line}: {text.strip().splitlines()[0]}" for line, text in found if leans(text)] == []


def test_no_field_description_leans_on_another() -> None:
    def described(schema: object) -> Iterator[str]:
        if isinstance(schema, dict):
            if isinstance(text := schema.get("description"), str):
                yield text
            for value in schema.values():
                yield from described(value)
        elif isinstance(schema, list):
            for value in schema:
                yield from described(value)

    assert [text for text in described(JobSpec.model_json_schema()) if leans(text)] == []


def standing_alone(markdown: str) -> Iterator[str]:
    """Headings, cells of tables and list items of a page, without its code blocks."""
    for line in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL).splitlines():
        if line.startswith("|"):
            yield from (cell.strip() for cell in line.strip("|").split("|"))
        elif found := re.match(r"(?:#+|\s*[-*]|\s*\d+\.) (.+)", line):
            yield found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_heading_cell_or_list_item_leans_on_another(page: Path) -> None:
    assert [text for text in standing_alone(page.read_text(encoding="utf-8")) if leans(text)] == []


def test_the_rule_sees_what_a_page_says() -> None:
    page = "# As it was\n| a | of b |\n- **So** it is\n1. and more\nAs a rule, text may.\n```\n# by code\n```\n"
    assert [text for text in standing_alone(page) if leans(text)] == ["As it was", "of b", "**So** it is", "and more"]


def test_the_rule_sees_what_it_must() -> None:
    planted = '''
"""As it was."""
class A:
    """Fine.

    Attributes:
        size: of the picture.
        good: a size.
    """
    x: int = 1
    """That counts."""
    y = Field(description="By name.")
    def f(self):
        log.warning("so it goes")
        raise ValueError(f"and {self.x}")
'''
    found = sorted(text for _, text in texts(ast.parse(planted)) if leans(text))
    assert found == ["As it was.", "By name.", "That counts.", "and ", "of the picture.", "so it goes"]
