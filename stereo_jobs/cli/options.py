"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from stereo_jobs import logs

_LONGEST_HOURS = 100_000.0

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="Job spec, YAML or JSON.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or s3:// prefix of a dataset, or its job spec.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the spec; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray; makes the same dataset.")]
Extend = Annotated[bool, typer.Option(help="Also plan the rows of new manifest files.")]
Address = Annotated[
    str, typer.Option(metavar="URL", envvar="STEREO_JOBS_ADDRESS", help="Dashboard of the Ray head: http://HOST:8265.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Submission id, printed by `submit`.")]
LogFormat = Annotated[
    logs.LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="STEREO_JOBS_LOG_FORMAT",
        help="Format of stderr; json: one object a line with job, shard and row ids. Sets runtime.log_format.",
    ),
]


def finite_hours(value: float | None) -> float | None:
    """Refuse a number of hours that no clock holds."""
    if value is not None and not value <= _LONGEST_HOURS:
        raise typer.BadParameter(f"{value:g} is not a number of hours up to {_LONGEST_HOURS:g}")
    return value


MaxHours = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        callback=finite_hours,
        help="Time limit in hours: running shards finish before it; exit 75 if work is left.",
    ),
]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Parquet file to write, local or s3://.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint-url", help="URL of an S3 server other than AWS.")]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Read a public bucket, without credentials.")]


def with_log_format(overrides: list[str] | None, log_format: str | None) -> list[str]:
    """Return the overrides of the spec, with --log-format as the last of them."""
    return [*(overrides or ()), *([f"runtime.log_format={log_format}"] if log_format else [])]
