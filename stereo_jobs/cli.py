"""The command line: parse, call, print. Imports nothing heavy before a verb needs it."""

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment

from stereo_jobs import interrupts, logs
from stereo_jobs.errors import StereoJobsError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from stereo_jobs.data.storage import Storage
    from stereo_jobs.evaluate.evaluation import Evaluation
    from stereo_jobs.launch.submit import Cluster
    from stereo_jobs.output.plan import Job
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


class SafeConsole(Console):
    """Prints text as it is: never as markup or emoji, and with control characters escaped, wherever they come from."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; texts are escaped before rich drops some of their control characters."""
        super().print(*(logs.printable(each) if isinstance(each, str) else each for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything, also tables, live lines and logs; all that is printed passes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(logs.printable(segment.text), segment.style)


out = SafeConsole()
err = SafeConsole(stderr=True)

_LONGEST_HOURS = 100_000.0

# Copies of the choices of launch and toyscapes, because `--help` imports nothing heavy; a test compares them.
LaunchKind = Literal["kuberay", "kuberay-cron", "cronjob", "ray-up", "slurm"]
Provider = Literal["eks", "gke", "generic"]
ToyScapesMode = Literal["text", "depth", "image"]
ToyScapesSplit = Literal["train", "test"]
ToyScapesLevel = Literal["plain", "structured", "crowded"]

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


def _finite(value: float | None) -> float | None:
    if value is not None and not value <= _LONGEST_HOURS:
        raise typer.BadParameter(f"{value:g} is not a number of hours up to {_LONGEST_HOURS:g}")
    return value


MaxHours = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        callback=_finite,
        help="Time limit in hours: running shards finish before it; exit 75 if work is left.",
    ),
]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Parquet file to write, local or s3://.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint-url", help="URL of an S3 server other than AWS.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Verbose logging.")] = False,
) -> None:
    if version:
        from stereo_jobs.version import __version__

        print(__version__)
        raise typer.Exit
    logs.configure("text", verbose=verbose, handler=RichHandler(console=err, show_path=False, show_time=verbose))


# --- Making a dataset ---


@app.command()
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


@app.command()
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
    _print(facts, [*lines, "nothing was written (dry run)" if dry_run else "planned"], as_json)
    if found and not as_json:
        out.print(estimate_table(found))


@app.command()
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

    loaded = load_spec(spec, _with(overrides, log_format))
    _run(loaded, local=local, extend=extend, max_hours=max_hours, as_json=as_json)


@app.command("retry-failed")
def retry_failed(
    spec: SpecPath, overrides: Set = None, local: Local = False, log_format: LogFormat = None, as_json: AsJson = False
) -> None:
    """Retry the failed rows, as a new generation of the plan."""
    interrupts.install()
    from stereo_jobs.spec import load_spec

    _run(load_spec(spec, _with(overrides, log_format)), local=local, retry=True, as_json=as_json)


# --- Looking at one ---


@app.command()
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
        _print(snapshot.as_json(), snapshot_lines(snapshot), as_json)
        return
    with watch_display(out) as show:
        for snapshot in watching.watch(storage, every_s=watching.EVERY_S, patience_s=watching.PATIENCE_S):
            if as_json:
                print(logs.json_line(snapshot.as_json()), flush=True)
            else:
                show(snapshot)
    raise typer.Exit(snapshot.exit_code or 0)


@app.command()
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
    _print(facts, [f"{head}: {counts}", *(f"  {problem}" for problem in found.problems)], as_json)
    if not found.ok:
        raise typer.Exit(found.exit_code)


@app.command()
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
    _print({"report": page, "data": data}, [page], as_json)


# --- Measuring ---


@app.command()
def evaluate(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or s3:// prefix for jobs and tables.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of Middlebury 2014 or KITTI 2015 (training); repeatable.")
    ] = None,
    toyscapes: Annotated[int, typer.Option(min=0, help="Number of rendered scenes.")] = 0,
    protocol: Annotated[
        list[str] | None, typer.Option(help="paper (min-max disparity) or metric (true pixels); default both.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="methods, techniques, switches, depth, cost; repeatable; default methods.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods of the tables; repeatable.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=V,V,...", help="Compare values of a switch, on top of each --method or of best."),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Folder of another program's right views, files named by row id."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=64, help="Width and height of the images; default 512, ToyScapes 128.")
    ] = None,
    slow_scenes: Annotated[int, typer.Option(min=1, help="Number of scenes for null-text inversion and RePaint.")] = 32,
    cost_pairs: Annotated[int, typer.Option(min=1, help="Number of pairs for each cell of the table cost.")] = 4,
    depth_model: Annotated[
        str | None, typer.Option(help="Depth-conditioned Stable Diffusion, for the table depth and that mode of cost.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Job spec; its models and runtime apply to all jobs.")] = None,
    overrides: Set = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Score methods on scenes with truth, as the paper's tables do; resumes where it left off."""
    interrupts.install()
    from stereo_jobs.evaluate.evaluation import Options
    from stereo_jobs.evaluate.evaluation import evaluate as run_evaluation
    from stereo_jobs.evaluate.methods import PROTOCOLS, protocol_by_name
    from stereo_jobs.spec import spec_data

    options = Options(
        data=tuple(data or ()),
        toyscapes=toyscapes,
        protocols=tuple(protocol_by_name(name) for name in protocol or PROTOCOLS),
        tables=tuple(table or (["methods"] if not sweep else ())),
        methods=tuple(method or ()),
        sweeps=tuple(sweep or ()),
        folders=tuple(folder or ()),
        size=size,
        slow_scenes=slow_scenes,
        cost_pairs=cost_pairs,
        depth_model=depth_model,
    )
    base = spec_data(spec, overrides)
    _print_evaluation(run_evaluation(output, base, options, _case_runner(local, quiet=as_json)), as_json)


# --- On a cluster ---


@app.command()
def render(
    kind: Annotated[LaunchKind, typer.Argument(metavar="KIND", help="Kind of launch file.")],
    spec: SpecPath,
    overrides: Set = None,
    *,
    image: Annotated[str | None, typer.Option(help="Container image with stereo-jobs; all but slurm need it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job or cluster.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes namespace.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Five cron fields; each scheduled run adds new manifest files.")
    ] = None,
    time_zone: Annotated[str | None, typer.Option(help="Time zone of the schedule.")] = None,
    provider: Annotated[Provider | None, typer.Option(help="Cloud whose node labels select GPUs.")] = None,
    gpu_type: Annotated[
        str | None, typer.Option(help="Value of the GPU's node label; AWS instance type for ray-up.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per worker; 0: CPU only.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs per worker.")] = None,
    memory_gib: Annotated[int | None, typer.Option(help="Memory per worker in GiB.")] = None,
    min_workers: Annotated[int | None, typer.Option(help="Minimum number of workers.")] = None,
    max_workers: Annotated[int | None, typer.Option(help="Maximum number of workers; of nodes for slurm.")] = None,
    spot: Annotated[bool | None, typer.Option(help="Run workers on spot machines.")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the pods.")] = None,
    env_secret: Annotated[
        list[str] | None, typer.Option(help="Kubernetes secret whose keys become environment variables; repeatable.")
    ] = None,
    token_secret: Annotated[
        str | None, typer.Option(help="Kubernetes secret with the cluster's token in auth_token.")
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(callback=_finite, help="Time limit of a run in hours; running shards finish before it."),
    ] = None,
    retries: Annotated[int | None, typer.Option(help="Restarts after a failure or an interruption.")] = None,
    ray_version: Annotated[str | None, typer.Option(help="Ray version in the image; default: the one here.")] = None,
    kubectl_image: Annotated[str | None, typer.Option(help="Image with sh and kubectl, for cronjob.")] = None,
    region: Annotated[str | None, typer.Option(help="AWS region, for ray-up.")] = None,
    instance_profile: Annotated[str | None, typer.Option(help="ARN of an IAM instance profile, for ray-up.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    setup: Annotated[str | None, typer.Option(help="Shell line that puts stereo-jobs on PATH, for slurm.")] = None,
) -> None:
    """Print a launch file that runs SPEC on a cluster."""
    from stereo_jobs import launch

    options = launch.make_options(
        kind=kind,
        image=image,
        name=name,
        namespace=namespace,
        schedule=schedule,
        time_zone=time_zone,
        provider=provider,
        gpu_type=gpu_type,
        gpus=gpus,
        cpus=cpus,
        memory_gib=memory_gib,
        min_workers=min_workers,
        max_workers=max_workers,
        spot=spot,
        service_account=service_account,
        env_secrets=env_secret,
        token_secret=token_secret,
        max_hours=max_hours,
        retries=retries,
        ray_version=ray_version,
        kubectl_image=kubectl_image,
        region=region,
        instance_profile=instance_profile,
        partition=partition,
        setup=setup,
    )
    print(launch.render(str(spec), options, overrides or ()), end="")


@app.command()
def submit(
    spec: SpecPath,
    overrides: Set = None,
    *,
    address: Address,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Submission id; default: derived from the job, so that it runs once.")
    ] = None,
    extend: Extend = False,
    max_hours: MaxHours = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and return at once.")] = False,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Run SPEC on an existing Ray cluster, or join it if it already runs; exit with the job's exit code."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        ticket = cluster.submit(spec, _with(overrides, log_format), job_id=job_id, extend=extend, max_hours=max_hours)
        if detach:
            state = "already running" if ticket.joined else "submitted"
            _print({"id": ticket.id, "joined": ticket.joined}, [f"{ticket.id}: {state}"], as_json)
            return
        err.print(f"{'joining' if ticket.joined else 'submitted'} {ticket.id}", style="dim")
        _follow(cluster, ticket.id, address, as_json)


@app.command()
def stop(job_id: JobId, address: Address, as_json: AsJson = False) -> None:
    """Stop a submitted job: running shards finish; submit it again to resume."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        stopped = cluster.stop(job_id)
    _print({"id": job_id, "stopped": stopped}, [f"{job_id}: {'stopping' if stopped else 'had ended before'}"], as_json)


@app.command("logs")
def print_logs(
    job_id: JobId,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the job ends; exit with its exit code.")
    ] = False,
) -> None:
    """Print the logs of a submitted job."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        if follow:
            _follow(cluster, job_id, address, as_json=False)
        print(_as_text(cluster.logs(job_id)), end="")


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
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="File .txt, .csv or .jsonl, or a folder of images.")],
    target: Target,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Make a Parquet manifest from a text file, a table or a folder of images."""
    from stereo_jobs.data.build import build
    from stereo_jobs.spec import parse_storage

    rows = build(source, target, parse_storage(endpoint_url=endpoint_url))
    _print({"manifest": target, "rows": rows}, [f"{target}: {rows} rows"], as_json)


@manifest_app.command("toyscapes")
def manifest_toyscapes(
    target: Target,
    *,
    rows: Annotated[int, typer.Option(help="Number of scenes.")] = 100,
    mode: Annotated[ToyScapesMode, typer.Option(help="Mode whose inputs the rows hold.")] = "image",
    split: Annotated[ToyScapesSplit, typer.Option(help="Split of the scenes; no caption is in both.")] = "test",
    level: Annotated[ToyScapesLevel | None, typer.Option(help="Level of the scenes; default: a mix of all.")] = None,
    start: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the images.")] = "128x128",
    with_disparity: Annotated[
        bool, typer.Option("--with-disparity", help="Give the true disparity to the method, too (mode image).")
    ] = False,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Render small stereo scenes with exact truth as a manifest."""
    from stereo_jobs.spec import parse_storage
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
    _print({"manifest": target, "rows": rows}, [f"{target}: {rows} rows"], as_json)


# --- Helpers ---


def main() -> None:
    """Entry point: an error that this package raises on purpose becomes one line and its exit code."""
    interrupts.install(ctrl_c=False)
    try:
        app()
    except StereoJobsError as error:
        if logs.is_json():
            log.error("%s", error, extra={"exit_code": error.exit_code})
        else:
            err.print(f"error: {error}", style="red")
        _exit(error.exit_code)
    except Exception:
        if not logs.is_json():
            raise
        log.exception("internal error")
        sys.exit(StereoJobsError.exit_code)
    except interrupts.Interrupt:
        err.print("error: interrupted; run again to go on", style="red", markup=False)
        raise
    except KeyboardInterrupt:
        sys.exit(interrupts.EXIT_CODE)


def _exit(code: int) -> None:
    """End the process without waiting for the threads of a shard that a run has abandoned in the middle of a batch."""
    pool = sys.modules.get("stereo_jobs.workers.local_pool")  # loaded, if there is such a thread
    if pool and pool.is_busy(patience_s=3.0):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if not match or min(size := (int(match[1]), int(match[2]))) < 32:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT of at least 32x32", param_hint="--size")
    return size


def _with(overrides: list[str] | None, log_format: str | None) -> list[str]:
    """Overrides of the spec, with --log-format as the last of them."""
    return [*(overrides or ()), *([f"runtime.log_format={log_format}"] if log_format else [])]


def _print(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        print(logs.json_line(facts))
    else:
        for line in lines:
            out.print(line)


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
    _print(final.as_json(), status_lines(final), as_json or logs.is_json())


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


def _case_runner(local: bool, quiet: bool) -> "Callable[[JobSpec], None]":
    """A function that runs one job of an evaluation, with its progress on stderr."""
    from stereo_jobs.evaluate.model_cache import ModelCache
    from stereo_jobs.report.terminal import progress_display
    from stereo_jobs.run.driver import run as run_job
    from stereo_jobs.workers.worker import load_generator

    load = ModelCache() if local else load_generator

    def run_case(case: "JobSpec") -> None:
        err.print(case.output, style="dim")
        with progress_display(err, quiet=quiet) as watch:
            run_job(case, local=local, load=load, watch=watch)

    return run_case


def _print_evaluation(found: "Evaluation", as_json: bool) -> None:
    """All tables, the scenes without a score, and where the summary is."""
    from stereo_jobs.evaluate.tables.formats import markdown

    problems = [
        {"of": key, "id": problem.id, "message": problem.message}
        for key, listed in found.problems.items()
        for problem in listed
    ]
    unscored = [f"without a score: {p['of']}: {p['id']}: {p['message']}" for p in problems]
    lines = [*map(markdown, found.tables), *unscored, found.files[-1]]
    _print({"files": found.files, "problems": problems}, lines, as_json)


def _as_text(log_text: str) -> str:
    """Return what a job printed, without the colours that Ray adds and with control characters escaped."""
    return logs.printable(re.sub(r"\x1b\[[0-9;]*m", "", log_text).replace("\r\n", "\n"))


def _follow(cluster: "Cluster", job_id: str, address: str, as_json: bool) -> None:
    """Print what the job prints, then exit with its exit code."""

    def write(text: str) -> None:
        print(_as_text(text), end="", flush=True, file=sys.stderr if as_json else None)

    try:
        end = cluster.follow(job_id, write)
    except KeyboardInterrupt:
        err.print(f"the job still runs: stereo-jobs logs {job_id} --follow --address {address}")
        raise
    if end.exit_code:
        err.print(f"{job_id}: {end.message}", style="red")
    if as_json:
        print(logs.json_line({"id": job_id, "status": end.status, "exit_code": end.exit_code}))
    raise typer.Exit(end.exit_code)
