"""A job spec that travels: its own text, checked here, read on the cluster.

`${ENV}` is left as it is, so that secrets stay where they are; a spec that holds one in clear is refused.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stereo_jobs.errors import SpecError
from stereo_jobs.spec import JobSpec, load_spec

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_FIELD = re.compile(r"secret|token|password|access_key|api_key", re.IGNORECASE)
_USER_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


class Portable(NamedTuple):
    """A spec that can be sent.

    Attributes:
        text: of the file, unchanged.
        spec: what it means, with placeholders for variables that are only set on the cluster.
        variables: names of the `${ENV}` it uses.
        overrides: `--set` arguments to be given where it runs.
    """

    text: str
    spec: JobSpec
    variables: tuple[str, ...]
    overrides: tuple[str, ...]


def read_portable(path: str | Path, overrides: Sequence[str] = (), *, local_paths: bool) -> Portable:
    """Check a spec that will run elsewhere.

    Args:
        path: of the spec, YAML or JSON.
        overrides: `a.b=c`; they travel beside the text.
        local_paths: whether absolute paths mean the same there (a file system that all nodes share).

    Raises:
        SpecError: it is not valid, holds a secret in clear, or names files that are only here.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path}: cannot be read ({error})") from error
    names = tuple(dict.fromkeys(_ENV.findall("\n".join([text, *overrides]))))
    spec = _load(path, overrides, names)
    _refuse_secrets(text, overrides)
    for field, value in [("output", spec.output), *(("manifest", pattern) for pattern in spec.manifests)]:
        _refuse_paths_of_here(field, value, local_paths)
    return Portable(text, spec, names, tuple(overrides))


def run_command(
    portable: Portable,
    where: str,
    extra: Sequence[str] = (),
    *,
    extend: bool = False,
    max_hours: float | None = None,
) -> str:
    """The shell command that runs it; `where` is the path of the spec there, `extra` are more `--set` arguments."""
    words = ["stereo-jobs", "run", where, *(["--extend"] if extend else [])]
    words += [f"--max-hours={max_hours:g}"] if max_hours else []
    for override in (*extra, *portable.overrides):
        words += ["--set", override]
    return shlex.join(words)


def _load(path: str | Path, overrides: Sequence[str], names: Sequence[str]) -> JobSpec:
    """Validate with placeholders for what is not set here."""
    missing = [name for name in names if name not in os.environ]
    try:
        # A URL passes every rule that a text of a runtime field may have.
        os.environ.update(dict.fromkeys(missing, "https://set-on-the-cluster"))
        return load_spec(path, list(overrides))
    finally:
        for name in missing:
            del os.environ[name]


def _refuse_secrets(text: str, overrides: Sequence[str]) -> None:
    fields = [*_leaves(yaml.safe_load(text), ""), *(tuple(item.split("=", 1)) for item in overrides)]
    for field, value in fields:
        if value and _SECRET_FIELD.search(field.rpartition(".")[2]) and not _ENV.fullmatch(str(value).strip()):
            raise SpecError(
                f"{field}: a secret in clear would travel with the spec; write ${{NAME}}, and set NAME on the cluster "
                "from a secret, or leave it out to use the machine's own role"
            )
        if _USER_IN_URL.search(str(value)):
            raise SpecError(f"{field}: the URL has a password in it, which would travel with the spec; use ${{NAME}}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _refuse_paths_of_here(field: str, value: str, local_paths: bool) -> None:
    if "://" in value or (local_paths and value.startswith("/")):
        return
    rule = "s3://, or an absolute path that every node sees" if local_paths else "s3://"
    raise SpecError(f"{field}: the job runs on other machines, so it must be {rule} (got {value!r})")
