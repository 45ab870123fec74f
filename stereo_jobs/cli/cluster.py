"""Commands for clusters: render, submit, stop, logs."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stereo_jobs import logs
from stereo_jobs.cli.console import err, print_facts
from stereo_jobs.cli.options import (
    Address,
    AsJson,
    Extend,
    JobId,
    LogFormat,
    MaxHours,
    Set,
    SpecPath,
    finite_hours,
    with_log_format,
)

if TYPE_CHECKING:
    from stereo_jobs.launch.submit import Cluster

# Copies of the choices of launch, because `--help` imports nothing heavy; a test compares them.
LaunchKind = Literal["kuberay", "kuberay-cron", "cronjob", "ray-up", "slurm"]
Provider = Literal["eks", "gke", "generic"]


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
        typer.Option(callback=finite_hours, help="Time limit of a run in hours; running shards finish before it."),
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
        ticket = cluster.submit(
            spec, with_log_format(overrides, log_format), job_id=job_id, extend=extend, max_hours=max_hours
        )
        if detach:
            state = "already running" if ticket.joined else "submitted"
            print_facts({"id": ticket.id, "joined": ticket.joined}, [f"{ticket.id}: {state}"], as_json)
            return
        err.print(f"{'joining' if ticket.joined else 'submitted'} {ticket.id}", style="dim")
        _follow(cluster, ticket.id, address, as_json)


def stop(job_id: JobId, address: Address, as_json: AsJson = False) -> None:
    """Stop a submitted job: running shards finish; submit it again to resume."""
    from stereo_jobs.launch import submit as jobs

    with jobs.connect(address) as cluster:
        stopped = cluster.stop(job_id)
    print_facts(
        {"id": job_id, "stopped": stopped}, [f"{job_id}: {'stopping' if stopped else 'had ended before'}"], as_json
    )


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
