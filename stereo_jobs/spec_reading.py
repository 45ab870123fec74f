"""Reads a spec from a file, arguments and the environment, and explains what is wrong with one."""

import difflib
import os
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from stereo_jobs import plain_data
from stereo_jobs.errors import SpecError
from stereo_jobs.spec import JobSpec, Recipe, StorageSpec

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_spec(path: str | Path | None, overrides: list[str] | None = None, **fields: Any) -> JobSpec:
    """Read a job spec from YAML or JSON, apply `a.b=c` overrides, substitute `${ENV}`.

    Args:
        path: the file; None for specs that consist of overrides and `fields` only.
        overrides: `--set` arguments; values are YAML (`runtime.batch_size=8`, `recipe.size=null`).
        fields: top-level fields; they take precedence over file and overrides.

    Raises:
        SpecError: the spec is not valid; the message names field, rule and value.
    """
    return parse_spec(spec_data(path, overrides) | fields)


def spec_data(path: str | Path | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a job spec as plain data, with overrides applied; only its form is checked.

    Raises:
        SpecError: the file cannot be read or is no mapping, or an override is malformed.
    """
    data: Any = {} if path is None else read_data(path)
    if not isinstance(data, dict):
        raise SpecError(f"spec {path}: must be a mapping with manifest, output, recipe and runtime")
    for override in overrides or []:
        _apply(data, override)
    return data


def read_data(path: str | Path) -> Any:
    """Read a YAML or JSON file as plain data. Raises SpecError, naming the file and the place in it."""
    text = plain_data.read_text(path)
    try:
        return plain_data.parse(text)
    except SpecError as error:
        raise SpecError(f"spec {path}: {error}") from None


def parse_spec(data: dict[str, Any]) -> JobSpec:
    """Substitute `${ENV}` and validate plain data. Raises SpecError, naming field, rule and value."""
    _refuse_env_in_recipe(data.get("recipe"), "recipe")
    data = {key: value if key == "recipe" else _substitute(value, key) for key, value in data.items()}
    _check_texts(data, "")
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError("the job spec is not valid:\n" + "\n".join(_explain(error))) from None


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """Validate plain data as a recipe. Raises SpecError, naming field, rule and value."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise SpecError("the recipe is not valid:\n" + "\n".join(_explain(error, Recipe))) from None


def parse_storage(**fields: Any) -> StorageSpec:
    """Validate single fields of the storage settings. Raises SpecError, naming field and rule."""
    try:
        return StorageSpec.model_validate(fields)
    except ValidationError as error:
        raise SpecError("; ".join(line.strip() for line in _explain(error))) from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Set the field that a `--set` argument names, in place."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys) or len(keys) > plain_data.MAX_DEPTH:
        raise SpecError(f"--set {path[:200]!r}: write it as path.to.field=value")
    try:
        value = plain_data.parse(text)
    except SpecError as error:
        raise SpecError(f"--set {path}: the value is {error}") from None
    node = data
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise SpecError(f"--set {path}: {key} is a single value, which has no fields")
        node = child
    node[keys[-1]] = value


class _FromEnvironment(str):
    """Text with the value of an environment variable in it. Messages show it as it was written, with `${NAME}`."""

    def __new__(cls, value: str, written: str) -> Self:
        """Make the text `value`, which shows as `written`."""
        text = super().__new__(cls, value)
        text.written = written
        return text

    written: str

    def __repr__(self) -> str:
        return repr(self.written)


def _substitute(value: Any, path: str) -> Any:
    """Replace `${NAME}` in all texts of `value` by environment variables; `path` is for messages."""
    if isinstance(value, dict):
        return {key: _substitute(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str) or not _ENV.search(value):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise SpecError(f"{path}: the environment variable {name} is not set")
        return os.environ[name]

    return _FromEnvironment(_ENV.sub(lookup, value), value)


def _refuse_env_in_recipe(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_env_in_recipe(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_env_in_recipe(item, f"{path}[{i}]")
    elif isinstance(value, str) and _ENV.search(value):
        raise SpecError(
            f"{path}: ${{...}} is not allowed in the recipe, which is stored with the dataset; got "
            f"{plain_data.shown(value)}"
        )


def _check_texts(value: Any, path: str) -> None:
    """Check that no text holds control characters or broken Unicode. Raises SpecError, without showing the text."""
    if isinstance(value, dict):
        for key, item in value.items():
            if plain_data.CONTROL.search(str(key)) or "\n" in str(key):
                raise SpecError(
                    f"{path or 'spec'}: the name {plain_data.shown(key)} has control characters in it; remove it"
                )
            _check_texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_texts(item, f"{path}[{i}]")
    elif isinstance(value, str) and plain_data.CONTROL.search(value):
        raise SpecError(f"{path}: has control characters or broken Unicode in it; remove them")


def _explain(error: ValidationError, model: type[BaseModel] = JobSpec) -> list[str]:
    """Make one line per broken rule. For a union, only the alternative that the value was meant for is shown."""
    paths: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if not _UNION_TAG.search(str(part)))
        message = item["msg"].removeprefix("Value error, ")
        # Never show credentials, nor a mapping that may hold them.
        hidden = _SECRET.search(path) or isinstance(item["input"], dict)
        shown = "" if hidden else f" (got {plain_data.shown(item['input'])})"
        if item["type"] == "extra_forbidden":
            message = "unknown field" + _suggestion(item["loc"], model)
        elif item["type"] == "missing":
            message, shown = "required, but missing", ""
        line = f"  {path or 'spec'}: {message}{shown}"
        kind = "wrong type" if item["type"].endswith("_type") else "rule"
        paths.setdefault(path, []).insert(0 if kind == "rule" else len(paths.get(path, [])), line)
    return [lines[0] for path, lines in paths.items() if not any(other.startswith(f"{path}.") for other in paths)]


# pydantic adds the tried alternative of a union to the location; the user did not write it.
_UNION_TAG = re.compile(r"^(float|int|str|constrained-int|[A-Z]\w*)$|[\[(]")


_SECRET = re.compile(r"secret|key|token|password|credential|storage|pass|auth")


def _suggestion(location: tuple[int | str, ...], model: Any) -> str:
    """Name the field of `model` closest to an unknown one, or all that are known at its place."""
    for part in location[:-1]:
        if _UNION_TAG.search(str(part)):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((o for o in options if hasattr(o, "model_fields")), None)
        if model is None:
            return ""
    close = difflib.get_close_matches(str(location[-1]), list(model.model_fields), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(model.model_fields)}"
