"""Writes docs/spec.md from the models of the job spec; a test fails if that page is out of date.

python docs/make_reference.py
"""

import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stereo_jobs.spec import JobSpec

HEAD = """# The job spec

One YAML or JSON file describes a job. `stereo-jobs spec FILE` prints it with all defaults filled in, and
`stereo-jobs spec --schema` prints the JSON schema for editors. Any field can be set on the command line:
`stereo-jobs run job.yaml --set recipe.scale_percent=6 --set runtime.batch_size=16`.

`recipe` is everything that the rows depend on. It is stored with the dataset, and a run with another recipe on the same
output is refused with the names of the changed fields. `runtime` says how the job is run; it may change between runs.
`${NAME}` is replaced by an environment variable everywhere except in the recipe. Messages show such a value as it was
written, with `${NAME}`.

What a spec, a `--set` value or a `--sweep` value may be:

- A regular file of at most 1 MB, in UTF-8. Pipes, sockets and devices are refused, since they may never end.
- Texts, numbers, true, false, null, lists and mappings with text keys, nested at most 50 deep; each key once. Aliases
  (`*name`) and merges (`<<`) are allowed as long as what they stand for is at most 50,000 values in all, where every
  hundred characters of a text count as one more. Numbers are finite and have at most 100 characters. A date is refused:
  write it in quotes. Texts hold no control characters other than line breaks and tabs.
- Anything else is one message with the line, and exit code 2.

A place is `s3://bucket/prefix` or a local path, where `~` is the home folder. `file:///folder/name` and
`file://localhost/folder/name` are local paths, too; another host or a relative `file:` path is refused. Percent signs
stand for themselves in both kinds of URI. Behind a local path, only regular files are read, also for manifests and for
the images that they name.

*(made by `python docs/make_reference.py`)*
"""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the spec classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def name_of(annotation: Any) -> str:
    """Name a type as a reader of YAML would."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(name_of(part) for part in parts)
    if origin is tuple:
        return f"list of {name_of(parts[0])}"
    if str(origin) == "typing.Literal":
        return " or ".join(f"`{part}`" for part in parts)
    if parts:
        return name_of(parts[0])
    names = {type(None): "null", str: "text", int: "integer", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    return "secret text" if annotation.__name__ == "SecretStr" else "mapping"


def table(model: type[BaseModel], path: str) -> list[str]:
    """Make the rows of one class, then those of the classes in its fields."""
    lines, below = [], []
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        inner = models_in(field.annotation)
        kind = name_of(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is PydanticUndefined:
            shown = "**required**"
        elif isinstance(default, BaseModel):
            shown = ""
        else:
            shown = f"`{'null' if default is None else str(default).lower() if isinstance(default, bool) else default}`"
        lines.append(f"| `{here}` | {kind} | {shown} | {field.description} |")
        below += [(part, here) for part in inner]
    for part, here in below:
        lines += table(part, here)
    return lines


def reference() -> str:
    """Make the page."""
    rows = table(JobSpec, "")
    return HEAD + "\n| field | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("spec.md").write_text(reference(), encoding="utf-8")
