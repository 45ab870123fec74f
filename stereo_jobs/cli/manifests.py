"""Commands for specs and manifests: spec, manifest build, manifest toyscapes."""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stereo_jobs.cli.console import err, print_facts
from stereo_jobs.cli.options import AsJson, Endpoint, Set, Target

# Copies of the choices of toyscapes, because `--help` imports nothing heavy; a test compares them.
ToyScapesMode = Literal["text", "depth", "image"]
ToyScapesSplit = Literal["train", "test"]
ToyScapesLevel = Literal["plain", "structured", "crowded", "hard"]


def spec(
    path: Annotated[Path | None, typer.Argument(metavar="SPEC", help="Job spec to check and print.")] = None,
    overrides: Set = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a job spec.")] = False,
) -> None:
    """Check a job spec and print it with all defaults, or print the JSON schema."""
    import yaml

    from stereo_jobs.spec import JobSpec
    from stereo_jobs.spec_reading import load_spec

    if schema:
        print(json.dumps(JobSpec.model_json_schema(), indent=2))
    elif path is None:
        raise typer.BadParameter("give a SPEC or --schema")
    else:
        print(yaml.safe_dump(load_spec(path, overrides).model_dump(mode="json"), sort_keys=False), end="")


def manifest_build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Text, CSV, TSV, JSON, Parquet or Arrow file, or a folder of images or tables; local or s3://.",
        ),
    ],
    target: Target,
    *,
    id_from: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column that becomes id; content: a hash of prompt and image."),
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that becomes prompt.")] = None,
    image_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that becomes image.")] = None,
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Separator of a CSV file, or tab; default: what its names show.")
    ] = None,
    endpoint_url: Endpoint = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Read SOURCE from a public bucket, without credentials.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a Parquet manifest from a text file, a table or a folder of images."""
    import yaml

    from stereo_jobs.data.building.build import Options, build
    from stereo_jobs.spec_reading import parse_storage

    delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise typer.BadParameter(
            f"{delimiter!r} is not one character that can separate cells", param_hint="--delimiter"
        )
    options = Options(id_from, prompt_column, image_column, delimiter)
    public = (source.removeprefix("s3://").partition("/")[0],) if anonymous and source.startswith("s3://") else ()
    built = build(source, target, parse_storage(endpoint_url=endpoint_url, anonymous=public), options)
    left_out = [{"what": each.what, "count": each.count, "first": each.first} for each in built.left_out]
    print_facts(
        {"manifest": target, "rows": built.rows, "left_out": left_out, "warnings": built.warnings},
        [f"{target}: {built.rows} rows", *(each.line() for each in built.left_out), *built.warnings],
        as_json,
    )
    if not as_json:
        begun: dict[str, Any] = {"manifest": target, "output": "FOLDER", "recipe": {"mode": built.mode}}
        begun |= {"runtime": {"allowed_prefixes": [built.outside]}} if built.outside else {}
        spec = yaml.safe_dump(begun, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
        err.print(f"next: a job spec, a YAML file that may begin as {spec.strip()}")


def manifest_toyscapes(
    target: Target,
    *,
    rows: Annotated[int, typer.Option(help="Number of scenes.")] = 100,
    mode: Annotated[ToyScapesMode, typer.Option(help="Mode whose inputs the rows hold.")] = "image",
    split: Annotated[ToyScapesSplit, typer.Option(help="Split of the scenes; no caption is in both.")] = "test",
    level: Annotated[
        ToyScapesLevel | None, typer.Option(help="Level of the scenes; default: a mix of all but hard.")
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the images.")] = "128x128",
    with_disparity: Annotated[
        bool, typer.Option("--with-disparity", help="Give the true disparity to the method, too (mode image).")
    ] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Render small stereo scenes with exact truth as a manifest."""
    from stereo_jobs.spec_reading import parse_storage
    from stereo_jobs.toyscapes.manifest import write_manifest

    write_manifest(
        target,
        parse_storage(endpoint_url=endpoint_url),
        rows=rows,
        mode=mode,
        split=split,
        level=level,
        start=start,
        size=_size(size),
        with_disparity=with_disparity,
    )
    print_facts({"manifest": target, "rows": rows}, [f"{target}: {rows} rows"], as_json)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if not match or min(size := (int(match[1]), int(match[2]))) < 32:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT of at least 32x32", param_hint="--size")
    return size
