"""Commands that make a dataset and look at it: demo, plan, run, retry-failed, status, errors, verify, report."""

import logging
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stereo_jobs import interrupts, logs
from stereo_jobs.cli.console import err, out, print_facts
from stereo_jobs.cli.options import (
    Anonymous,
    AsJson,
    Endpoint,
    Extend,
    Local,
    LogFormat,
    MaxHours,
    Output,
    Set,
    SpecPath,
    with_log_format,
)

if TYPE_CHECKING:
    from stereo_jobs.data.storage import Storage
    from stereo_jobs.output.plan import Job
    from stereo_jobs.output.progress import Status
    from stereo_jobs.run.estimate import Estimate
    from stereo_jobs.run.prepare import Prepared
    from stereo_jobs.spec import JobSpec, StorageSpec

log = logging.getLogger(__name__)


def demo(
    output: Annotated[str, typer.Option(help="Folder or s3:// prefix of the new dataset.")] = "stereo-demo",
    rows: Annotated[int, typer.Option(min=1, max=16, help="Number of pairs.")] = 16,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Make stereo pairs offline, with the small models inside the package."""
    interrupts.install()
    from stereo_jobs.run.demo import demo_spec

    spec = demo_spec(output, rows)
    _run(spec, local=local, as_json=as_json, named=output)


def plan(
    spec: SpecPath,
    overrides: Set = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check spec, models, and all rows; write nothing.")
    ] = False,
    extend: Extend = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure a few pairs; print the job's time and cost; write nothing.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs to estimate for.")] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="GPU to predict for, for example H100; else it is the measured one."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of one GPU-hour in dollars; the estimate then names the cost.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check spec, manifest, models and output, and write the plan."""
    from stereo_jobs.data.storage import open_storage
    from stereo_jobs.report.problems import check_lines, count_of
    from stereo_jobs.report.terminal import estimate_table
    from stereo_jobs.run.check_rows import check_rows
    from stereo_jobs.run.prepare import open_output, prepare, refuse_missing_gpu
    from stereo_jobs.spec_reading import load_spec

    loaded = load_spec(spec, overrides)
    refuse_missing_gpu(loaded)
    checks_rows, dry_run = dry_run, dry_run or estimate
    storage = open_storage(loaded.output, loaded.runtime.storage) if dry_run else open_output(loaded)
    prepared = prepare(loaded, storage, extend=extend, publish=not dry_run)
    _warn_of_toy_models(loaded)
    checks = check_rows(loaded, prepared.recipe, prepared.job) if checks_rows else None
    plans = prepared.job.plans
    facts: dict[str, Any] = {
        "planned": prepared.job.pairs,
        "generations": [
            {"generation": p.generation, "kind": p.kind, "pairs": p.pairs, "shards": p.shards} for p in plans
        ],
        "written": not dry_run,
    }
    lines = [
        f"generation {p.generation}: {count_of(p.pairs, 'pair')} in {count_of(p.shards, 'shard')} of {p.shard_rows} "
        f"({p.kind})"
        for p in plans
    ]
    if checks:
        facts["rows"] = checks.as_json()
        lines += check_lines(checks)
    found = _estimate(loaded, prepared, gpus, gpu, price_per_hour) if estimate else None
    facts |= {"estimate": found.as_json()} if found else {}
    print_facts(facts, [*lines, "nothing was written (dry run)" if dry_run else "planned"], as_json)
    if found and not as_json:
        out.print(estimate_table(found))


def run(
    spec: SpecPath,
    overrides: Set = None,
    *,
    local: Local = False,
    extend: Extend = False,
    max_hours: MaxHours = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Run a job, or resume it where it left off."""
    interrupts.install()
    from stereo_jobs.spec_reading import load_spec

    loaded = load_spec(spec, with_log_format(overrides, log_format))
    _run(loaded, local=local, extend=extend, max_hours=max_hours, as_json=as_json, named=_named(spec, overrides))


def retry_failed(
    spec: SpecPath, overrides: Set = None, local: Local = False, log_format: LogFormat = None, as_json: AsJson = False
) -> None:
    """Retry the failed rows, as a new generation of the plan."""
    interrupts.install()
    from stereo_jobs.spec_reading import load_spec

    _run(
        load_spec(spec, with_log_format(overrides, log_format)),
        local=local,
        retry=True,
        as_json=as_json,
        named=_named(spec, overrides),
    )


def status(
    output: Output,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Watch until the job ends; exit 0 if it is done, 75 if not.")
    ] = False,
    endpoint_url: Endpoint = None,
    anonymous: Anonymous = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a job; works on any machine, also while the job runs."""
    from stereo_jobs.output import watch as watching
    from stereo_jobs.report.terminal import snapshot_lines, watch_display

    _, storage, job = _locate(output, endpoint_url, anonymous)
    if not watch:
        snapshot = watching.look(storage)
        failed, lines = _failed(storage, job, snapshot.status, output)
        print_facts(snapshot.as_json() | failed, [*snapshot_lines(snapshot), *lines], as_json)
        return
    with watch_display(out) as show:
        for snapshot in watching.watch(storage, every_s=watching.EVERY_S, patience_s=watching.PATIENCE_S):
            if as_json:
                print(logs.json_line(snapshot.as_json()), flush=True)
            else:
                show(snapshot)
    raise typer.Exit(snapshot.exit_code or 0)


def errors(
    output: Output,
    *,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="Number of rows to list; all are counted.")] = 100,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="List only rows with this type of error.")
    ] = None,
    endpoint_url: Endpoint = None,
    anonymous: Anonymous = False,
    as_json: AsJson = False,
) -> None:
    """List the rows that failed and were not made since, with their errors; works also while the job runs."""
    from stereo_jobs.output.row_errors import ErrorSummary, FailedRow, failing
    from stereo_jobs.report.problems import count_of, error_lines, listed_lines

    _, storage, job = _locate(output, endpoint_url, anonymous)
    summary, matching = ErrorSummary(), 0
    listed: list[FailedRow] = []
    for row in failing(storage, job):
        summary.add(row.error)
        if type_ in (None, row.error.error_type):
            matching += 1
            if len(listed) < limit:
                listed.append(row)
    lines = [f"{count_of(summary.failed, 'row')} failed", *error_lines(summary), *listed_lines(listed)]
    if len(listed) < matching:
        lines.append(f"{matching - len(listed):,} more; --limit {matching} lists them, too")
    elif type_ and not matching:
        lines.append(f"none of type {type_}")
    print_facts(summary.as_json() | {"errors": [row.as_json() for row in listed]}, lines, as_json)


def verify(
    output: Output, endpoint_url: Endpoint = None, anonymous: Anonymous = False, as_json: AsJson = False
) -> None:
    """Check completeness: every planned row exactly once and every object intact; exit 4 if not."""
    from stereo_jobs.errors import DamagedError
    from stereo_jobs.output.verify import damaged
    from stereo_jobs.output.verify import verify as check

    try:
        settings, storage, job = _locate(output, endpoint_url, anonymous)
    except DamagedError as error:  # a plan, without which there is nothing to compare with
        found = damaged(error)
    else:
        found = check(storage, job, settings)
    facts = found.as_json()
    head = "ok" if found.ok else "NOT OK"
    counts = ", ".join(
        f"{name} {facts[name]}"
        for name in ("planned", "succeeded", "failed", "rejected", "missing", "duplicated", "corrupt")
    )
    print_facts(facts, [f"{head}: {counts}", *(f"  {problem}" for problem in found.problems)], as_json)
    if not found.ok:
        raise typer.Exit(found.exit_code)


def report(
    output: Output,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Number of pairs on the page, from the first on.")] = 48,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page and a JSON file: distributions of all metrics, verdicts, worst, best and first pairs."""
    from stereo_jobs.output import progress
    from stereo_jobs.report.page import build

    _, storage, job = _locate(output, endpoint_url)
    page, data = build(storage, job, progress.status(job, progress.totals(storage, job)), pairs)
    print_facts({"report": page, "data": data}, [page], as_json)


def _locate(output: str, endpoint_url: str | None, anonymous: bool = False) -> "tuple[StorageSpec, Storage, Job]":
    """Storage settings, storage and plans of an output that is given by its URI or by its job spec."""
    from stereo_jobs.data.storage import open_storage
    from stereo_jobs.errors import StorageError
    from stereo_jobs.output.plan import load_job
    from stereo_jobs.spec_reading import load_spec, parse_storage

    settings = parse_storage(endpoint_url=endpoint_url, anonymous=anonymous)
    if _is_spec(output):
        spec = load_spec(output)
        output, settings = spec.output, spec.runtime.storage
    storage = open_storage(output, settings)
    job = load_job(storage)
    if not job.plans:
        raise StorageError(
            f"{storage.uri}: no job was ever planned here; check the path, or begin one: stereo-jobs run"
        )
    return settings, storage, job


def _named(spec: "SpecPath", overrides: list[str] | None) -> str | None:
    """Name of a job for messages: the path of its spec, where nothing overrides what that says of the output."""
    return None if any(each.startswith(("output", "runtime.storage")) for each in overrides or ()) else str(spec)


def _is_spec(output: str) -> bool:
    """Whether an OUTPUT is given by its job spec."""
    return output.endswith((".yaml", ".yml", ".json"))


def _run(
    spec: "JobSpec",
    *,
    as_json: bool,
    local: bool,
    extend: bool = False,
    retry: bool = False,
    max_hours: float | None = None,
    named: str | None = None,
) -> None:
    """Run a job with its progress on stderr, then print status, failures and how to look; `named` as for `_failed`."""
    from stereo_jobs.data.storage import open_storage
    from stereo_jobs.errors import TooManyFailuresError
    from stereo_jobs.report.terminal import progress_display, status_lines
    from stereo_jobs.run.driver import run as run_job

    if spec.runtime.log_format == "json":
        logs.configure("json")
    as_json = as_json or logs.is_json()
    _warn_of_toy_models(spec)
    storage = open_storage(spec.output, spec.runtime.storage)
    try:
        with progress_display(err, quiet=as_json) as watch:
            final = run_job(spec, local=local, extend=extend, retry=retry, max_hours=max_hours, watch=watch)
    except TooManyFailuresError:
        if not as_json:
            for line in _failed(storage, None, None, named)[1]:
                err.print(line)
        raise
    failed, lines = _failed(storage, None, final, named)
    if final.succeeded:
        lines.append(f"Look at them: stereo-jobs report {shlex.quote(named or storage.uri)}")
    print_facts(final.as_json() | failed, [*status_lines(final), *lines], as_json)


def _failed(
    storage: "Storage", job: "Job | None", status: "Status | None", named: str | None = None
) -> "tuple[dict[str, Any], list[str]]":
    """What failed in a job, as facts and as lines: counts by group, and what to do. Few shards are read for it.

    Args:
        storage: the storage of the output.
        job: its plans; None: they are read if any row failed.
        status: how far it is; None where that is not known.
        named: output or spec, as the user named it, for the remedy; None: the URI of the output.
    """
    from stereo_jobs.output.plan import load_job
    from stereo_jobs.output.row_errors import FEW_SHARDS, ErrorSummary, summarise
    from stereo_jobs.report.problems import SHOWN_GROUPS, count_of, error_lines

    if status and not status.failed:
        return {"errors": ErrorSummary().as_json()}, []
    summary = summarise(storage, job or load_job(storage), FEW_SHARDS)
    output = shlex.quote(named or storage.uri)
    spec = output if _is_spec(output) else "SPEC"
    lines = [
        f"{count_of(status.failed if status else summary.failed, 'row')} failed:",
        *error_lines(summary, SHOWN_GROUPS),
        f"List them: stereo-jobs errors {output}",
        f"Retry them: stereo-jobs retry-failed {spec}",
        "A row that the manifest itself has wrong goes, mended and with a new id, into a new file: "
        f"stereo-jobs run {spec} --extend",
    ]
    return {"errors": summary.as_json()}, lines


def _warn_of_toy_models(spec: "JobSpec") -> None:
    from stereo_jobs.run.prepare import toy_model_warning

    if warning := toy_model_warning(spec):
        log.warning("%s", warning)


def _estimate(
    spec: "JobSpec", prepared: "Prepared", gpus: int, gpu: str | None, price_per_hour: float | None
) -> "Estimate":
    from stereo_jobs.errors import SpecError
    from stereo_jobs.output import progress
    from stereo_jobs.run.cost_model import known_gpu
    from stereo_jobs.run.estimate import estimate, measure_rows

    gpu = gpu and known_gpu(gpu)  # refused before minutes are spent on measuring

    storage, job, recipe = prepared
    status = progress.status(job, progress.totals(storage, job))
    if status.complete:
        raise SpecError(f"{storage.uri}: every planned row is done, so there is nothing to estimate")
    newest = next(p for p in reversed(job.plans) if p.kind == "manifest")
    measurement = measure_rows(spec, recipe, newest)
    share = spec.runtime.gpus_per_actor
    return estimate(measurement, status, gpus=gpus, gpus_per_actor=share, gpu=gpu, price_per_hour=price_per_hour)
