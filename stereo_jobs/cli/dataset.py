"""Commands that make a dataset and look at it: demo, plan, run, retry-failed, status, verify, report."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stereo_jobs import interrupts, logs
from stereo_jobs.cli.console import err, out, print_facts
from stereo_jobs.cli.options import (
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
    from stereo_jobs.run.estimate import Estimate
    from stereo_jobs.run.prepare import Prepared
    from stereo_jobs.spec import JobSpec, StorageSpec


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
    _run(spec, local=local, as_json=as_json)
    if not as_json:
        out.print(f"Look at them: stereo-jobs report {shlex.quote(output)}")


def plan(
    spec: SpecPath,
    overrides: Set = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check spec, manifest and models; write nothing.")] = False,
    extend: Extend = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure a few pairs; print the job's time and cost; write nothing.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs to estimate for.")] = 1,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of one GPU-hour in dollars; the estimate then names the cost.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check spec, manifest, models and output, and write the plan."""
    from stereo_jobs.data.storage import open_storage
    from stereo_jobs.report.terminal import estimate_table
    from stereo_jobs.run.prepare import open_output, prepare
    from stereo_jobs.spec import load_spec

    loaded = load_spec(spec, overrides)
    dry_run = dry_run or estimate
    storage = open_storage(loaded.output, loaded.runtime.storage) if dry_run else open_output(loaded)
    prepared = prepare(loaded, storage, extend=extend, publish=not dry_run)
    plans = prepared.job.plans
    facts: dict[str, Any] = {
        "planned": prepared.job.pairs,
        "generations": [
            {"generation": p.generation, "kind": p.kind, "pairs": p.pairs, "shards": p.shards} for p in plans
        ],
        "written": not dry_run,
    }
    lines = [
        f"generation {p.generation}: {p.pairs} pairs in {p.shards} shards of {p.shard_rows} ({p.kind})" for p in plans
    ]
    found = _estimate(loaded, prepared, gpus, price_per_hour) if estimate else None
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
    from stereo_jobs.spec import load_spec

    loaded = load_spec(spec, with_log_format(overrides, log_format))
    _run(loaded, local=local, extend=extend, max_hours=max_hours, as_json=as_json)


def retry_failed(
    spec: SpecPath, overrides: Set = None, local: Local = False, log_format: LogFormat = None, as_json: AsJson = False
) -> None:
    """Retry the failed rows, as a new generation of the plan."""
    interrupts.install()
    from stereo_jobs.spec import load_spec

    _run(load_spec(spec, with_log_format(overrides, log_format)), local=local, retry=True, as_json=as_json)


def status(
    output: Output,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Watch until the job ends; exit 0 if it is done, 75 if not.")
    ] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a job; works on any machine, also while the job runs."""
    from stereo_jobs.output import watch as watching
    from stereo_jobs.report.terminal import snapshot_lines, watch_display

    _, storage, _ = _locate(output, endpoint_url)
    if not watch:
        snapshot = watching.look(storage)
        print_facts(snapshot.as_json(), snapshot_lines(snapshot), as_json)
        return
    with watch_display(out) as show:
        for snapshot in watching.watch(storage, every_s=watching.EVERY_S, patience_s=watching.PATIENCE_S):
            if as_json:
                print(logs.json_line(snapshot.as_json()), flush=True)
            else:
                show(snapshot)
    raise typer.Exit(snapshot.exit_code or 0)


def verify(output: Output, endpoint_url: Endpoint = None, as_json: AsJson = False) -> None:
    """Check completeness: every planned row exactly once and every object intact; exit 4 if not."""
    from stereo_jobs.errors import DamagedError
    from stereo_jobs.output.verify import damaged
    from stereo_jobs.output.verify import verify as check

    try:
        settings, storage, job = _locate(output, endpoint_url)
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


def _locate(output: str, endpoint_url: str | None) -> "tuple[StorageSpec, Storage, Job]":
    """Storage settings, storage and plans of an output that is given by its URI or by its job spec."""
    from stereo_jobs.data.storage import open_storage
    from stereo_jobs.errors import StorageError
    from stereo_jobs.output.plan import load_job
    from stereo_jobs.spec import load_spec, parse_storage

    settings = parse_storage(endpoint_url=endpoint_url)
    if output.endswith((".yaml", ".yml", ".json")):
        spec = load_spec(output)
        output, settings = spec.output, spec.runtime.storage
    storage = open_storage(output, settings)
    job = load_job(storage)
    if not job.plans:
        raise StorageError(
            f"{storage.uri}: no job was ever planned here; check the path, or begin one: stereo-jobs run"
        )
    return settings, storage, job


def _run(
    spec: "JobSpec",
    *,
    as_json: bool,
    local: bool,
    extend: bool = False,
    retry: bool = False,
    max_hours: float | None = None,
) -> None:
    """Run a job with its progress on stderr, then print its final status."""
    from stereo_jobs.report.terminal import progress_display, status_lines
    from stereo_jobs.run.driver import run as run_job

    if spec.runtime.log_format == "json":
        logs.configure("json")
    with progress_display(err, quiet=as_json) as watch:
        final = run_job(spec, local=local, extend=extend, retry=retry, max_hours=max_hours, watch=watch)
    print_facts(final.as_json(), status_lines(final), as_json or logs.is_json())


def _estimate(spec: "JobSpec", prepared: "Prepared", gpus: int, price_per_hour: float | None) -> "Estimate":
    from stereo_jobs.errors import SpecError
    from stereo_jobs.output import progress
    from stereo_jobs.run.estimate import estimate, measure_rows

    storage, job, recipe = prepared
    status = progress.status(job, progress.totals(storage, job))
    if status.complete:
        raise SpecError(f"{storage.uri}: every planned row is done, so there is nothing to estimate")
    newest = next(p for p in reversed(job.plans) if p.kind == "manifest")
    measurement = measure_rows(spec, recipe, newest)
    share = spec.runtime.gpus_per_actor
    return estimate(measurement, status, gpus=gpus, gpus_per_actor=share, price_per_hour=price_per_hour)
