"""Options of a launch file: everything that it needs besides the job spec."""

import importlib.metadata
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from stereo_jobs.errors import SpecError

Kind = Literal["kuberay", "kuberay-cron", "cronjob", "ray-up", "slurm"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCHEDULED: tuple[Kind, ...] = ("kuberay-cron", "cronjob")
ON_KUBERNETES: tuple[Kind, ...] = ("kuberay", *SCHEDULED)

MAX_RAYJOB_NAME = 47
MAX_CRON_NAME = 36
"""Limits of KubeRay, in characters: it appends to these names, and Kubernetes allows 63."""
NIGHTLY = "0 1 * * *"
"""Schedule of scheduled jobs that name none."""

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?-]+")

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$", max_length=1000)]


class LaunchOptions(BaseModel):
    """Options of one launch file. All have defaults except `kind` and, for every kind but slurm, `image`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(description="Kind of launch file.")
    name: str = Field("stereo-jobs", description="Name of the job or cluster: a-z, 0-9 and -, starting with a letter.")
    image: Image | None = Field(None, description="Container image with stereo-jobs.")
    namespace: KubernetesName = Field("default", description="Kubernetes namespace.")
    schedule: str | None = Field(None, description="Schedule as five cron fields; for kuberay-cron, cronjob and slurm.")
    time_zone: str = Field(
        "Etc/UTC", pattern=r"^[A-Za-z]+(/[A-Za-z0-9_+-]+)*$", description="Time zone of the schedule."
    )
    provider: Literal["eks", "gke", "generic"] = Field("generic", description="Provider whose node labels are used.")
    gpu_type: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Name of the GPU in node labels, or AWS instance type for ray-up.",
    )
    gpus: int = Field(1, ge=0, le=64, description="GPUs per worker; 0 for CPU only.")
    cpus: PositiveInt = Field(4, description="CPUs per worker.")
    memory_gib: PositiveInt = Field(24, description="Memory per worker in GiB.")
    min_workers: int = Field(0, ge=0, description="Smallest number of workers; with 0, work starts when there is one.")
    max_workers: PositiveInt = Field(4, description="Largest number of workers.")
    spot: bool = Field(True, description="Run workers on spot machines; the head always runs on demand.")
    service_account: KubernetesName | None = Field(
        None, description="Service account of head and workers; it must exist."
    )
    env_secrets: tuple[KubernetesName, ...] = Field((), description="Secrets whose keys become environment variables.")
    token_secret: KubernetesName | None = Field(
        None,
        description="Secret that holds the token of the cluster in `auth_token`; null: KubeRay makes one per cluster.",
    )
    max_hours: float = Field(
        24.0, ge=0.001, le=24 * 30, description="Maximum hours of a run; it then drains and ends normally."
    )
    retries: int = Field(2, ge=0, le=20, description="Restarts on a new cluster after a failure or an interruption.")
    kubectl_image: Image = Field(
        "alpine/kubectl:1.34.1", description="Container image with sh and kubectl, for cronjob."
    )
    ray_version: str = Field(
        default_factory=lambda: importlib.metadata.version("ray"),
        pattern=r"^[0-9][0-9A-Za-z.+-]*$",
        description="Ray version in the image.",
    )
    region: str = Field("us-east-1", pattern=r"^[a-z0-9-]+$", description="AWS region, for ray-up.")
    instance_profile: str | None = Field(
        None, pattern=r"^arn:[A-Za-z0-9:/+=,.@_-]+$", description="IAM instance profile (ARN), for ray-up."
    )
    partition: str | None = Field(None, pattern=r"^[A-Za-z0-9_,.-]+$", description="Slurm partition.")
    setup: str | None = Field(None, description="Line of shell that puts stereo-jobs on PATH, for slurm.")

    @field_validator("schedule")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        fields = (value or "* * * * *").split(" ")
        fields = [field for field in fields if field]
        if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(field) for field in fields):
            raise ValueError('needs five cron fields, for example "0 1 * * *" for every night at one')
        return value

    @field_validator("setup")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value and not value.isprintable():
            raise ValueError("must be one line of printable text")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        limit = MAX_CRON_NAME if self.kind in SCHEDULED else MAX_RAYJOB_NAME
        if len(self.name) > limit or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be at most {limit} characters of a-z, 0-9 and -, start with a letter and end with a letter "
                f"or digit; got {self.name!r} with {len(self.name)}"
            )
        if self.min_workers > self.max_workers:
            raise ValueError(f"needs min_workers <= max_workers, got {self.min_workers} and {self.max_workers}")
        if self.kind not in (*SCHEDULED, "slurm") and self.schedule:
            raise ValueError(f"schedule is for kuberay-cron, cronjob and slurm, not for {self.kind}")
        if self.kind != "slurm" and not self.image:
            raise ValueError(f"{self.kind} needs image; build one with cluster/docker/Dockerfile")
        return self

    @property
    def actors(self) -> tuple[int, int]:
        """Smallest and largest number of actors, with one actor per GPU, or per worker without GPUs."""
        return max(1, self.min_workers) * max(1, self.gpus), self.max_workers * max(1, self.gpus)

    @property
    def max_seconds(self) -> int:
        """Maximum seconds of one run."""
        return round(self.max_hours * 3600)

    @property
    def scheduled(self) -> bool:
        """Whether the job runs on a schedule: then it adds new manifest files, and an output in use is no failure."""
        return self.kind in SCHEDULED or self.schedule is not None


def make_options(**values: Any) -> LaunchOptions:
    """Make options from plain values; None means the default. Raises SpecError, naming rule and value."""
    try:
        return LaunchOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            option = "--" + "-".join(str(part) for part in item["loc"][:1]).replace("_", "-") if item["loc"] else ""
            shown = f" (got {str(item['input'])[:200]!r})" if item["loc"] else ""
            lines.append(f"{option} {item['msg'].removeprefix('Value error, ')}{shown}".strip())
        raise SpecError("the launch file cannot be made: " + "; ".join(lines)) from None
