"""The launch files in cluster/, made from cluster/job.yaml. `python -m tests.launch.examples` makes them anew."""

from stereo_jobs.launch import make_options, render
from tests.conftest import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
IMAGE = "registry.example.com/stereo-jobs:0.1.0"

EXAMPLES = {
    "kuberay/rayjob.yaml": {
        "kind": "kuberay",
        "image": IMAGE,
        "namespace": "stereo",
        "provider": "eks",
        "gpu_type": "l4",
        "max_workers": 8,
        "service_account": "stereo-jobs",
    },
    "kuberay/raycronjob.yaml": {
        "kind": "kuberay-cron",
        "name": "stereo-nightly",
        "image": IMAGE,
        "namespace": "stereo",
        "provider": "gke",
        "gpu_type": "nvidia-l4",
        "max_workers": 8,
        "service_account": "stereo-jobs",
        "schedule": "0 1 * * *",
        "max_hours": 20,
    },
    "kuberay/cronjob.yaml": {
        "kind": "cronjob",
        "name": "stereo-nightly",
        "image": IMAGE,
        "namespace": "stereo",
        "provider": "eks",
        "gpu_type": "l4",
        "max_workers": 8,
        "service_account": "stereo-jobs",
        "schedule": "0 1 * * *",
        "max_hours": 20,
    },
    "ray-up/aws-spot.yaml": {
        "kind": "ray-up",
        "image": IMAGE,
        "region": "us-east-1",
        "gpu_type": "g6.xlarge",
        "max_workers": 8,
        "instance_profile": "arn:aws:iam::123456789012:instance-profile/stereo-jobs",
    },
    "slurm/job.sh": {
        "kind": "slurm",
        "partition": "gpu",
        "gpus": 4,
        "cpus": 32,
        "memory_gib": 128,
        "max_workers": 2,
        "max_hours": 12,
        "setup": 'source "$HOME/stereo-jobs/.venv/bin/activate"',
    },
}


def example(name: str) -> str:
    """What the file must be."""
    text = render(str(CLUSTER / "job.yaml"), make_options(**EXAMPLES[name]))
    return text.replace(str(CLUSTER / "job.yaml"), "cluster/job.yaml")


if __name__ == "__main__":
    for name in EXAMPLES:
        (CLUSTER / name).parent.mkdir(parents=True, exist_ok=True)
        (CLUSTER / name).write_text(example(name), encoding="utf-8")
