"""Writes the text of a launch file, from a job spec and options."""

import functools
import math
import re
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import jinja2
import yaml

from stereo_jobs.errors import SpecError
from stereo_jobs.launch import kubernetes
from stereo_jobs.launch.options import ON_KUBERNETES, LaunchOptions
from stereo_jobs.launch.portable import Portable, read_portable, run_command
from stereo_jobs.spec import JobSpec

MOUNTED = "/etc/stereo-jobs"
"""Folder of the ConfigMap in the container of the head."""
ON_AWS = "/home/ray/job.yaml"
"""Path of the job spec on the head, for ray-up."""

START_TIMEOUT_S = 3600
"""Seconds to wait for the first actors: spot machines, and the first pull of a large image, take long."""
SLURM_NOTICE_S = 180
"""Seconds between Slurm's SIGTERM and the end of the time limit; Slurm may send it a minute earlier."""


def render(path: str, options: LaunchOptions, overrides: Sequence[str] = ()) -> str:
    """Return the launch file for a job spec.

    Args:
        path: the job spec, YAML or JSON.
        options: options of the launch file.
        overrides: `--set` arguments of the run.

    Raises:
        SpecError: the spec is not valid, or cannot be sent to another machine.
    """
    portable = read_portable(path, overrides, local_paths=options.kind == "slurm")
    if options.kind in ON_KUBERNETES:
        return _kubernetes(portable, options)
    if options.kind == "ray-up":
        return _ray_up(path, portable, options)
    return _slurm(portable, options)


def _placement(spec: JobSpec, options: LaunchOptions) -> list[str]:
    """Return `--set` arguments that adapt the run to the cluster: device, number of actors, time to wait for them."""
    low, high = options.actors
    share = spec.runtime.gpus_per_actor if options.gpus else 1.0
    actors = [max(1, math.floor(count / share)) for count in (low, high)]
    timeout_s = max(START_TIMEOUT_S, round(spec.runtime.start_timeout_s))
    return [
        # A cluster that the spec names is not this one.
        *(["runtime.ray_address=null"] if spec.runtime.ray_address and options.kind != "ray-up" else []),
        f"runtime.device={'cuda' if options.gpus else 'cpu'}",
        f"runtime.actors={{min: {actors[0]}, max: {actors[1]}}}",
        f"runtime.start_timeout_s={timeout_s}",
        *_spot_notice(spec, options),
    ]


def _spot_notice(spec: JobSpec, options: LaunchOptions) -> list[str]:
    """Return the `--set` argument with the source of preemption notices, unless the spec names one."""
    source = {"ray-up": "aws", "slurm": None}.get(options.kind, kubernetes.SPOT_NOTICE.get(options.provider))
    wanted = source and options.spot and not spec.runtime.spot_notice
    return [f"runtime.spot_notice={source}"] if wanted else []


def _time_is_over_s(spec: JobSpec, options: LaunchOptions) -> int:
    """Return the seconds after which exit code 75 of a run means that its time was over, not an interruption."""
    if options.kind == "slurm":  # counted from the start of the batch script, which may be a minute late
        return _slurm_seconds(options) - SLURM_NOTICE_S - 120
    limit_s = options.max_seconds
    return max(0, math.floor(limit_s - min(spec.runtime.drain_timeout_s, limit_s / 2)) - 1)


# --- Kubernetes ---


def _kubernetes(portable: Portable, options: LaunchOptions) -> str:
    if portable.variables and not options.env_secrets:
        raise SpecError(
            f"the spec reads {', '.join(portable.variables)} from the environment: name the Kubernetes Secret that "
            "has them as keys with --env-secret"
        )
    command = run_command(
        portable,
        f"{MOUNTED}/job.yaml",
        _placement(portable.spec, options),
        extend=options.scheduled,
        max_hours=options.max_hours,
    )
    over_s = _time_is_over_s(portable.spec, options)
    files = {
        "job.yaml": portable.text,
        "run.sh": template("run.sh.j2").render(command=command, scheduled=options.scheduled, over_s=over_s),
    }
    documents: list[dict[str, Any]]
    if options.kind == "kuberay":
        documents = [kubernetes.config_map(options, files), kubernetes.ray_job(options, options.name)]
    elif options.kind == "kuberay-cron":
        documents = [kubernetes.config_map(options, files), kubernetes.ray_cron_job(options)]
    else:
        files["wait.sh"] = template("wait.sh.j2").render()
        files["rayjob.yaml"] = to_yaml(kubernetes.ray_job(options, "JOB_NAME", owner="JOB_UID"))
        documents = [kubernetes.config_map(options, files), *kubernetes.cron_job(options)]
    head = template(f"{options.kind}.head.j2").render(options=options, variables=portable.variables)
    return head + "---\n".join(to_yaml(document) for document in documents)


# --- AWS and Slurm ---


def _ray_up(path: str, portable: Portable, options: LaunchOptions) -> str:
    extra = ["runtime.ray_address=auto", *_placement(portable.spec, options)]
    command = run_command(portable, ON_AWS, extra, max_hours=options.max_hours)
    head = template("ray-up.head.j2").render(options=options, command=command, variables=portable.variables)
    return head + to_yaml(_aws_cluster(path, options))


def _aws_cluster(path: str, options: LaunchOptions) -> dict[str, Any]:
    """Return the configuration of Ray's cluster launcher on AWS; the spec at `path` is copied to all nodes."""
    machine: dict[str, Any] = {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 200}}]}
    if options.instance_profile:
        machine["IamInstanceProfile"] = {"Arn": options.instance_profile}
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if options.spot else {}
    worker = {"InstanceType": options.gpu_type or "g6.xlarge", **market, **machine}
    start = "ulimit -n 65536; ray start"
    return {
        "cluster_name": options.name,
        "max_workers": options.max_workers,
        "idle_timeout_minutes": 5,
        "provider": {"type": "aws", "region": options.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": options.image,
            "container_name": "stereo-jobs",
            "pull_before_run": True,
            "run_options": [
                "--ulimit nofile=65536:65536",
                "--env RAY_AUTH_MODE=token",
                "--env RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token",
                "--env RAY_USAGE_STATS_ENABLED=0",
                "--env RAY_JOB_STOP_WAIT_TIME_S=60",
            ],
            "worker_run_options": ["--gpus all"] if options.gpus else [],
        },
        "file_mounts": {"/home/ray/.ray/auth_token": "~/.ray/auth_token", ON_AWS: path},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {"InstanceType": "m6i.xlarge", **machine}},
            "worker": {
                "min_workers": options.min_workers,
                "max_workers": options.max_workers,
                "resources": {},
                "node_config": worker,
            },
        },
        "head_node_type": "head",
        "setup_commands": ["chmod 600 /home/ray/.ray/auth_token"],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _slurm(portable: Portable, options: LaunchOptions) -> str:
    extra = _placement(portable.spec, options)
    end = "END_OF_JOB_SPEC"
    while end in portable.text:  # a line of the spec must not end it
        end += "_"
    return template("slurm.sh.j2").render(
        options=options,
        spec_text=portable.text,
        end=end,
        command=run_command(portable, '"$folder/job.yaml"', extra, extend=options.scheduled),
        variables=portable.variables,
        time=_slurm_time(_slurm_seconds(options)),
        notice_s=SLURM_NOTICE_S,
        over_s=_time_is_over_s(portable.spec, options),
    )


def _slurm_seconds(options: LaunchOptions) -> int:
    return max(options.max_seconds, 600)


def _slurm_time(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


# --- Text ---


@functools.cache
def template(name: str) -> jinja2.Template:
    """Load a template of this package.

    Nothing is escaped in it: options that a template names are checked to be plain words, and values of the spec come
    as words that are quoted for the shell. Undefined variables are errors.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["shell"] = shlex.quote
    return environment.from_string((resources.files(__package__) / "templates" / name).read_text(encoding="utf-8"))


class _Dumper(yaml.SafeDumper):
    """Writes YAML as people do: without aliases, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


# Texts that YAML 1.2, which Kubernetes reads, takes for numbers, and PyYAML, which writes YAML 1.1, does not.
_NUMBER = re.compile(r"[-+]?(0o[0-7]+|(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)")


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_represent: Callable[..., None] = _Dumper.add_representer
_represent(str, _text)


def to_yaml(document: dict[str, Any]) -> str:
    """Write one YAML document."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110)
