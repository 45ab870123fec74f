"""The command line: parse, call, print. Imports nothing heavy before a verb needs it."""

import json
import logging
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from stereo_jobs import logs
from stereo_jobs.errors import StereoJobsError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from stereo_jobs.data.storage import Storage
    from stereo_jobs.launch.submit import Cluster
    from stereo_jobs.output.plan import Job
    from stereo_jobs.output.progress import Status
    from stereo_jobs.run.estimate import Estimate
    from stereo_jobs.run.prepare import Prepared
    from stereo_jobs.spec import JobSpec, StorageSpec

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Stereo image pairs by the million with StereoDiffusion: from a Parquet manifest to a verified dataset.",
    epilog="Exit codes: 0 done; 1 internal error; 2 bad spec, manifest, model, storage or cluster; 3 too many failed "
    "rows; 4 verify not ok; 5 output held by another run; 75 interrupted, the store is away, or the cluster has no "
    "room: run again to go on.",
)
manifest_app = typer.Typer(no_args_is_help=True, help="Make manifests.")
app.add_typer(manifest_app, name="manifest")

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="Job spec, YAML or JSON.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or s3:// prefix of a dataset, or its job spec.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the spec; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray; the same dataset.")]
Address = Annotated[
    str, typer.Option(metavar="URL", envvar="STEREO_JOBS_ADDRESS", help="Dashboard of the Ray head: http://HOST:8265.")
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="text|json",
        envvar="STEREO_JOBS_LOG_FORMAT",
        help="json: every line of stderr an object with job, shard and row ids. Short for runtime.log_format.",
    ),
]
MaxHours = Annotated[float | None, typer.Option(min=0.001, help="End by then: drain, and exit 75 if work is left.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint-url", help="S3 server other than AWS.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what happens.")] = False,
) -> None:
    if version:
        from stereo_jobs.version import __version__

        print(__version__)
        raise typer.Exit
    logs.configure("text", verbose=verbose, handler=RichHandler(console=err, show_path=False, show_time=verbose))


# --- Making a dataset ---


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where the dataset goes.")] = "stereo-demo",
    rows: Annotated[int, typer.Option(min=1, max=16, help="How many pairs to make.")] = 16,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Make stereo pairs offline, with the small models inside the package."""
    from stereo_jobs.run.demo import demo_spec

    spec = demo_spec(output, rows)
    _run(spec, local=local, as_json=as_json)
    if not as_json:
        out.print(f"Look at them: stereo-jobs report {shlex.quote(output)}", markup=False)


@app.command()
def plan(
    spec: SpecPath,
    overrides: Set = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check spec, manifest and models; write nothing.")] = False,
    extend: Annotated[bool, typer.Option(help="Plan manifest files that are new, too.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Make a few pairs on one worker, say what all will take; write nothing.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to estimate for.")] = 1,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Dollars for one GPU, to estimate cost.")] = None,
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
    job = prepared.job
    facts: dict[str, Any] = {
        "planned": job.pairs,
        "generations": [
            {"generation": p.generation, "kind": p.kind, "pairs": p.pairs, "shards": p.shards} for p in job.plans
        ],
        "written": not dry_run,
    }
    lines = [
        f"generation {p.generation}: {p.pairs} pairs in {p.shards} shards of {p.shard_rows} ({p.kind})"
        for p in job.plans
    ]
    guess = _estimate(loaded, prepared, gpus, price_per_hour) if estimate else None
    facts |= {"estimate": guess.as_json()} if guess else {}
    _print(facts, [*lines, "nothing was written (dry run)" if dry_run else "planned"], as_json)
    if guess and not as_json:
        out.print(estimate_table(guess))


@app.command()
def run(
    spec: SpecPath,
    overrides: Set = None,
    *,
    local: Local = False,
    extend: Annotated[bool, typer.Option(help="Also make rows of manifest files that are new.")] = False,
    max_hours: MaxHours = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Run a job, or go on where it stopped."""
    from stereo_jobs.spec import load_spec

    loaded = load_spec(spec, _with(overrides, log_format))
    _run(loaded, local=local, extend=extend, max_hours=max_hours, as_json=as_json)


@app.command("retry-failed")
def retry_failed(
    spec: SpecPath, overrides: Set = None, local: Local = False, log_format: LogFormat = None, as_json: AsJson = False
) -> None:
    """Make the failed rows again, as a new generation of the plan."""
    from stereo_jobs.spec import load_spec

    _run(load_spec(spec, _with(overrides, log_format)), local=local, retry=True, as_json=as_json)


# --- Looking at one ---


@app.command()
def status(
    output: Output,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the job ends: exit 0 done, 75 not.")] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """How far a job is; works from anywhere, also while it runs."""
    from stereo_jobs.output import watch as watching
    from stereo_jobs.report import terminal as display

    _, storage, _ = _locate(output, endpoint_url)
    if not watch:
        sight = watching.look(storage)
        _print(sight.as_json(), display.snapshot_lines(sight), as_json)
        return
    with display.board(out) as show:
        for sight in watching.watch(storage, every_s=watching.EVERY_S, patience_s=watching.PATIENCE_S):
            if as_json:
                print(json.dumps(sight.as_json()), flush=True)
            else:
                show(sight)
    raise typer.Exit(sight.exit_code or 0)


@app.command()
def verify(output: Output, endpoint_url: Endpoint = None, as_json: AsJson = False) -> None:
    """Check that every planned row is there exactly once and every object whole; exit 4 if not."""
    from stereo_jobs.output.verify import verify as check

    settings, storage, job = _locate(output, endpoint_url)
    verdict = check(storage, job, settings)
    facts = verdict.as_json()
    head = "ok" if verdict.ok else "NOT OK"
    counts = ", ".join(
        f"{name} {facts[name]}"
        for name in ("planned", "succeeded", "failed", "rejected", "missing", "duplicated", "corrupt")
    )
    _print(facts, [f"{head}: {counts}", *(f"  {problem}" for problem in verdict.problems)], as_json)
    if not verdict.ok:
        raise typer.Exit(4)


@app.command()
def report(
    output: Output,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="How many pairs to show.")] = 48,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page, and JSON: distributions of all metrics, verdicts, worst, best and first pairs."""
    from stereo_jobs.output import progress
    from stereo_jobs.report.page import build

    _, storage, job = _locate(output, endpoint_url)
    page, data = build(storage, job, progress.status(job, progress.totals(storage, job)), pairs)
    _print({"report": page, "data": data}, [page], as_json)


# --- Measuring ---


@app.command()
def evaluate(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or s3:// prefix for jobs and tables.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of Middlebury 2014 or KITTI 2015 (training); repeatable.")
    ] = None,
    toyscapes: Annotated[int, typer.Option(min=0, help="How many rendered scenes.")] = 0,
    protocol: Annotated[
        list[str] | None, typer.Option(help="paper (min-max disparity) or metric (true pixels); left out: both.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="methods, techniques, switches, depth, cost; repeatable; default methods.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods of the tables; repeatable.")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=V,V,...", help="A switch at several values; of --method or best.")
    ] = None,
    folder: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Right views of another program, named by row id.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=64, help="Of the pictures; default 512, ToyScapes 128.")] = None,
    slow_scenes: Annotated[int, typer.Option(min=1, help="Scenes that null-text inversion and RePaint see.")] = 32,
    cost_pairs: Annotated[int, typer.Option(min=1, help="Pairs of each cell of the table cost.")] = 4,
    depth_model: Annotated[
        str | None, typer.Option(help="Depth-conditioned Stable Diffusion, for the table depth and that mode of cost.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Job spec whose models and runtime hold for all.")] = None,
    overrides: Set = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Score methods on scenes with truth, as the paper's tables do; goes on where it stopped."""
    from typing import cast

    from stereo_jobs.evaluate.evaluation import Options
    from stereo_jobs.evaluate.evaluation import evaluate as run_evaluation
    from stereo_jobs.evaluate.methods import PROTOCOLS, Protocol
    from stereo_jobs.evaluate.model_cache import KeptModels
    from stereo_jobs.evaluate.tables.formats import markdown
    from stereo_jobs.report.terminal import display
    from stereo_jobs.run.driver import run as run_job
    from stereo_jobs.spec import spec_data
    from stereo_jobs.workers.worker import load_pipeline

    options = Options(
        data=tuple(data or ()),
        toyscapes=toyscapes,
        protocols=tuple(cast(Protocol, _one_of("protocol", name, PROTOCOLS)) for name in protocol or PROTOCOLS),
        tables=tuple(table or (["methods"] if not sweep else ())),
        methods=tuple(method or ()),
        sweeps=tuple(sweep or ()),
        folders=tuple(folder or ()),
        size=size,
        slow_scenes=slow_scenes,
        cost_pairs=cost_pairs,
        depth_model=depth_model,
    )

    load = KeptModels() if local else load_pipeline

    def run_case(case: "JobSpec") -> None:
        err.print(case.output, style="dim", markup=False)
        with display(err, quiet=as_json) as watch:
            run_job(case, local=local, load=load, watch=watch)

    found = run_evaluation(output, spec_data(spec, overrides), options, run_case)
    problems = [
        {"of": key, "id": problem.id, "message": problem.message}
        for key, listed in found.problems.items()
        for problem in listed
    ]
    without = [f"without a score: {p['of']}: {p['id']}: {p['message']}" for p in problems]
    lines = [*map(markdown, found.tables), *without, found.files[-1]]
    _print({"files": found.files, "problems": problems}, lines, as_json)


# --- On a cluster ---


@app.command()
def render(
    kind: Annotated[str, typer.Argument(help="kuberay, kuberay-cron, cronjob, ray-up or slurm.")],
    spec: SpecPath,
    overrides: Set = None,
    *,
    image: Annotated[str | None, typer.Option(help="Container image with stereo-jobs; all but slurm need it.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the job or cluster.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes namespace.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Five cron fields; new manifest files are taken in.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Of the schedule.")] = None,
    provider: Annotated[str | None, typer.Option(help="eks, gke or generic: whose node labels.")] = None,
    gpu_type: Annotated[str | None, typer.Option(help="The label's value; for ray-up the AWS instance type.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per worker; 0: CPU only.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs per worker.")] = None,
    memory_gib: Annotated[int | None, typer.Option(help="Memory per worker.")] = None,
    min_workers: Annotated[int | None, typer.Option(help="Workers always there.")] = None,
    max_workers: Annotated[int | None, typer.Option(help="Never more workers; nodes, for slurm.")] = None,
    spot: Annotated[bool | None, typer.Option(help="Workers on spot machines.")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the pods.")] = None,
    env_secret: Annotated[
        list[str] | None, typer.Option(help="Secret whose keys become variables; repeatable.")
    ] = None,
    token_secret: Annotated[str | None, typer.Option(help="Secret with the cluster's token in auth_token.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="A run ends by then, in order.")] = None,
    retries: Annotated[int | None, typer.Option(help="Fresh starts after a failure or interruption.")] = None,
    ray_version: Annotated[str | None, typer.Option(help="In the image; as here if left out.")] = None,
    kubectl_image: Annotated[str | None, typer.Option(help="With sh and kubectl, for cronjob.")] = None,
    region: Annotated[str | None, typer.Option(help="AWS region, for ray-up.")] = None,
    instance_profile: Annotated[str | None, typer.Option(help="ARN of an IAM instance profile, for ray-up.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    setup: Annotated[str | None, typer.Option(help="Shell line that puts stereo-jobs on PATH, for slurm.")] = None,
) -> None:
    """Print a launch file that runs SPEC on a cluster."""
    options = {key: value for key, value in locals().items() if key not in ("spec", "overrides", "env_secret")}
    from stereo_jobs import launch

    chosen = launch.make_options(**options, env_secrets=env_secret)
    print(launch.render(str(spec), chosen, overrides or ()), end="")


@app.command()
def submit(
    spec: SpecPath,
    overrides: Set = None,
    *,
    address: Address,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Submission id; left out: made from what the job is.")
    ] = None,
    extend: Annotated[bool, typer.Option(help="Also make rows of manifest files that are new.")] = False,
    max_hours: MaxHours = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and come back at once.")] = False,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Run SPEC on a Ray cluster: follow its logs and exit as it does. A job that is under way is joined."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        ticket = cluster.submit(spec, _with(overrides, log_format), job_id=job_id, extend=extend, max_hours=max_hours)
        if detach:
            state = "already running" if ticket.joined else "submitted"
            _print({"id": ticket.id, "joined": ticket.joined}, [f"{ticket.id}: {state}"], as_json)
            return
        err.print(f"{'joining' if ticket.joined else 'submitted'} {ticket.id}", style="dim", markup=False)
        _follow(cluster, ticket.id, address, as_json)


@app.command()
def stop(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="As `submit` printed it.")],
    address: Address,
    as_json: AsJson = False,
) -> None:
    """Stop a submitted job: running shards finish, and the next submission goes on."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        stopped = cluster.stop(job_id)
    _print({"id": job_id, "stopped": stopped}, [f"{job_id}: {'stopping' if stopped else 'had ended before'}"], as_json)


@app.command("logs")
def print_logs(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="As `submit` printed it.")],
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; then exit as it did.")] = False,
) -> None:
    """Print the logs of a submitted job."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        if follow:
            _follow(cluster, job_id, address, as_json=False)
        print(cluster.logs(job_id), end="")


# --- Specs and manifests ---


@app.command()
def spec(
    path: Annotated[Path | None, typer.Argument(metavar="SPEC", help="Job spec to check and print.")] = None,
    overrides: Set = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a job spec.")] = False,
) -> None:
    """Check a job spec and print it with all defaults, or print the JSON schema."""
    import yaml

    from stereo_jobs.spec import JobSpec, load_spec

    if schema:
        print(json.dumps(JobSpec.model_json_schema(), indent=2))
    elif path is None:
        raise typer.BadParameter("give a SPEC or --schema")
    else:
        print(yaml.safe_dump(load_spec(path, overrides).model_dump(mode="json"), sort_keys=False), end="")


@manifest_app.command("build")
def manifest_build(
    source: Annotated[Path, typer.Argument(help=".txt, .csv, .jsonl, or a folder of images.")],
    target: Annotated[str, typer.Argument(help="Parquet file to write, local or s3://.")],
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Make a Parquet manifest."""
    from stereo_jobs.data.build import build
    from stereo_jobs.spec import parse_storage

    rows = build(source, target, parse_storage(endpoint_url=endpoint_url))
    _print({"manifest": target, "rows": rows}, [f"{target}: {rows} rows"], as_json)


@manifest_app.command("toyscapes")
def manifest_toyscapes(
    target: Annotated[str, typer.Argument(help="Parquet file to write, local or s3://.")],
    *,
    rows: Annotated[int, typer.Option(help="How many scenes.")] = 100,
    mode: Annotated[str, typer.Option(help="text, depth or image: which inputs the rows hold.")] = "image",
    split: Annotated[str, typer.Option(help="train or test; no caption is in both.")] = "test",
    level: Annotated[str | None, typer.Option(help="plain, structured or crowded; left out: a mix.")] = None,
    start: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the pictures.")] = "128x128",
    with_disparity: Annotated[
        bool, typer.Option("--with-disparity", help="Give the true disparity to the method, too (mode image).")
    ] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Render small stereo scenes with exact truth as a manifest."""
    from typing import cast

    from stereo_jobs.spec import parse_storage
    from stereo_jobs.toyscapes import manifest, scenes

    manifest.write_manifest(
        target,
        parse_storage(endpoint_url=endpoint_url),
        rows=rows,
        mode=cast(manifest.Mode, _one_of("mode", mode, manifest.MODES)),
        split=cast(scenes.Split, _one_of("split", split, scenes.SPLITS)),
        level=cast("scenes.Level | None", level and _one_of("level", level, scenes.LEVELS)),
        start=start,
        size=_size(size),
        with_disparity=with_disparity,
    )
    _print({"manifest": target, "rows": rows}, [f"{target}: {rows} rows"], as_json)


# --- Helpers ---


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}", param_hint=f"--{option}")
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if not match or min(size := (int(match[1]), int(match[2]))) < 32:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT of at least 32x32", param_hint="--size")
    return size


def main() -> None:
    """Entry point: the errors this package raises on purpose become one line and their exit code."""
    # A run has its own handlers while it deals shards; before and after, SIGTERM is what Ctrl-C is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except StereoJobsError as error:
        if logs.is_json():
            log.error("%s", error, extra={"exit_code": error.exit_code})
        else:
            err.print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)
    except Exception:
        if not logs.is_json():
            raise
        log.exception("internal error")
        sys.exit(StereoJobsError.exit_code)
    except KeyboardInterrupt:
        sys.exit(75)


def _print(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        for line in lines:
            out.print(line, markup=False)


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
        raise StorageError(f"{storage.uri}: no job was ever planned here")
    return settings, storage, job


def _follow(cluster: "Cluster", job_id: str, address: str, as_json: bool) -> None:
    """Print what the job prints, then exit as it did."""
    try:
        end = cluster.follow(job_id, lambda text: print(text, end="", flush=True, file=sys.stderr if as_json else None))
    except KeyboardInterrupt:
        err.print(f"the job goes on: stereo-jobs logs {job_id} --follow --address {address}", markup=False)
        raise
    if end.exit_code:
        err.print(f"{job_id}: {end.message}", style="red", markup=False)
    if as_json:
        print(json.dumps({"id": job_id, "status": end.status, "exit_code": end.exit_code}))
    raise typer.Exit(end.exit_code)


def _estimate(spec: "JobSpec", prepared: "Prepared", gpus: int, price_per_hour: float | None) -> "Estimate":
    from stereo_jobs.errors import SpecError
    from stereo_jobs.output import progress
    from stereo_jobs.run.estimate import estimate, measure_rows

    storage, job, recipe = prepared
    status = progress.status(job, progress.totals(storage, job))
    if status.complete:
        raise SpecError(f"{storage.uri}: every planned row is done, so there is nothing to estimate")
    newest = next(p for p in reversed(job.plans) if p.kind == "manifest")
    share = spec.runtime.gpus_per_actor
    measurement = measure_rows(spec, recipe, newest)
    return estimate(measurement, status, gpus=gpus, gpus_per_actor=share, price_per_hour=price_per_hour)


def _with(overrides: list[str] | None, log_format: str | None) -> list[str]:
    return [*(overrides or ()), *([f"runtime.log_format={log_format}"] if log_format else [])]


def _run(spec: "JobSpec", *, as_json: bool, **options: Any) -> None:
    from stereo_jobs.report.terminal import display
    from stereo_jobs.run.driver import run as run_job

    if spec.runtime.log_format == "json":
        logs.configure("json")
    with display(err, quiet=as_json) as watch:
        final = run_job(spec, watch=watch, **options)
    _print_status(final, as_json or logs.is_json())


def _print_status(status: "Status", as_json: bool) -> None:
    from stereo_jobs.report.terminal import status_lines

    _print(status.as_json(), status_lines(status), as_json)
