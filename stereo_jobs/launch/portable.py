"""Job specs that are sent to another machine: their text is checked here, and read there.

`${ENV}` is not substituted here, so that secrets never leave their machine; a spec with a secret in plain text is
refused.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs import plain_data
from stereo_jobs.errors import SpecError
from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import parse_spec, spec_data

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_FIELD = re.compile(r"secret|token|password|access_key|api_key", re.IGNORECASE)
_USER_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


class Portable(NamedTuple):
    """A job spec that can be sent to another machine.

    Attributes:
        text: the text of its file, unchanged but for a byte order mark.
        spec: the validated spec, with placeholders for variables that are only set on the cluster.
        variables: names of the environment variables it uses.
        overrides: `--set` arguments for the command that runs it.
    """

    text: str
    spec: JobSpec
    variables: tuple[str, ...]
    overrides: tuple[str, ...]


def read_portable(path: str | Path, overrides: Sequence[str] = (), *, local_paths: bool) -> Portable:
    """Read and check a spec that will run on another machine.

    Args:
        path: the spec, YAML or JSON.
        overrides: `a.b=c` arguments that will be sent along.
        local_paths: whether absolute paths are allowed, because the machines share a file system.

    Raises:
        SpecError: the spec is not valid, has a secret in plain text, or names files that only exist here.
    """
    text = plain_data.read_text(path)
    for override in overrides:
        if not override.isprintable():
            field = override.partition("=")[0][:200]
            raise SpecError(f"--set {field!a}: must be one line of printable text here; write the value into the spec")
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
    """Return the shell command that runs a spec; it is one line, and no value is more than a word of it.

    Args:
        portable: the spec.
        where: path of the spec on the machine that runs it, as a word of shell.
        extra: further `--set` arguments; those of `portable` come last and win.
        extend: also plan new manifest files.
        max_hours: maximum hours of the run.
    """
    words = ["--extend"] if extend else []
    words += [f"--max-hours={max_hours:g}"] if max_hours else []
    for override in (*extra, *portable.overrides):
        words += ["--set", override]
    return " ".join(["stereo-jobs run", where, *map(shlex.quote, words)])


def _load(path: str | Path, overrides: Sequence[str], names: Sequence[str]) -> JobSpec:
    """Validate a spec, with placeholders for the variables that are not set here."""
    data = spec_data(path, list(overrides))
    # Each placeholder passes the rules of the fields it stands in: one takes a URL, the others a place or any text.
    urls = _ENV.findall(str(_field(data, "runtime", "storage", "endpoint_url")))
    missing = [name for name in names if name not in os.environ]
    try:
        for name in missing:
            os.environ[name] = f"{'https' if name in urls else 's3'}://set-on-the-cluster"
        return parse_spec(data)
    finally:
        for name in missing:
            del os.environ[name]


def _field(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _refuse_secrets(text: str, overrides: Sequence[str]) -> None:
    """Check that no field holds a secret in plain text. Raises SpecError without showing it."""
    fields = [*_leaves(plain_data.parse(text), ""), *(tuple(item.split("=", 1)) for item in overrides)]
    for field, value in fields:
        if value and _SECRET_FIELD.search(field.rpartition(".")[2]) and not _ENV.fullmatch(str(value).strip()):
            raise SpecError(
                f"{field}: a secret in plain text would be sent with the spec; write ${{NAME}} and set NAME on the "
                "cluster from a secret, or leave the field out to use the role of the machine"
            )
        if _USER_IN_URL.search(str(value)):
            raise SpecError(f"{field}: the URL has a password in it, which would be sent with the spec; use ${{NAME}}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Iterate over all single values of nested data, with their paths."""
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
    rule = "s3://, or an absolute path on a file system that all nodes share" if local_paths else "s3://"
    raise SpecError(f"{field}: the job runs on other machines, so it must be {rule} (got {value!r})")
