"""KubeRay resources (ray.io/v1), and a CronJob that can replace a RayCronJob, as plain dictionaries."""

from typing import Any

from stereo_jobs.launch.options import NIGHTLY, LaunchOptions

CONFIG = "job"
MOUNT = {"name": CONFIG, "mountPath": "/etc/stereo-jobs", "readOnly": True}
USER = 1000
"""User id in the container image."""

METRICS_PORT = 8080
"""Port where KubeRay lets every node of a cluster export Ray's metrics; a PodMonitor finds it by its name."""

WAIT_FOR_MACHINES_S = 3600
GRACE_S = 300
KEEP_FINISHED_S = 600

SPOT_LABEL = {
    "gke": ("cloud.google.com/gke-spot", "true"),
    "eks": ("karpenter.sh/capacity-type", "spot"),
    "generic": ("node.kubernetes.io/lifecycle", "spot"),
}
SPOT_NOTICE = {"gke": "gcp", "eks": "aws"}
"""Providers whose metadata service announces preemption and can be reached from pods."""
GPU_LABEL = {
    "gke": "cloud.google.com/gke-accelerator",
    "eks": "karpenter.k8s.aws/instance-gpu-name",
    "generic": "nvidia.com/gpu.product",
}


def config_map(options: LaunchOptions, files: dict[str, str]) -> dict[str, Any]:
    """Return a ConfigMap with the spec and the scripts. Secrets are never in it; pods refer to them by name."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(options), "data": files}


def ray_job(options: LaunchOptions, name: str, owner: str | None = None) -> dict[str, Any]:
    """Return a RayJob: it creates a cluster, runs the job on it, and deletes the cluster.

    Args:
        options: options of the launch file.
        name: name of the resource.
        owner: uid of the Kubernetes Job of the same name; the RayJob is deleted together with it.
    """
    metadata = _metadata(options) | {"name": name}
    if owner:
        metadata["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner}]
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": _ray_job_spec(options)}


def ray_cron_job(options: LaunchOptions) -> dict[str, Any]:
    """Return a RayCronJob. It has no concurrencyPolicy; the lease of the output ends the second of two runs."""
    spec = {
        "schedule": options.schedule or NIGHTLY,
        "timeZone": options.time_zone,
        "jobTemplate": _ray_job_spec(options),
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": _metadata(options), "spec": spec}


def cron_job(options: LaunchOptions) -> list[dict[str, Any]]:
    """Return a plain CronJob that creates the RayJob and waits for it, with the permissions it needs."""
    account = f"{options.name}-cron"
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]
    spec = {
        "schedule": options.schedule or NIGHTLY,
        "timeZone": options.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": _waiting_job_spec(options, account)},
    }
    metadata = _metadata(options) | {"name": account}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": options.namespace}],
        },
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": _metadata(options), "spec": spec},
    ]


# --- Parts ---


def _waiting_job_spec(options: LaunchOptions, account: str) -> dict[str, Any]:
    """Return the spec of the Job that creates a RayJob and waits for its end, run as the service account."""
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    container = {
        "name": "wait",
        "image": options.kubectl_image,
        "command": ["sh", f"{MOUNT['mountPath']}/wait.sh"],
        "env": [{"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": label}}}],
        "resources": _resources("100m", "128Mi"),
        "securityContext": _confined(),
        "volumeMounts": [MOUNT],
    }
    pod = {
        "serviceAccountName": account,
        "restartPolicy": "Never",
        "securityContext": _pod_security(),
        "containers": [container],
        "volumes": [_volume(options)],
    }
    # The longest time of the RayJob with all its retries, and an hour.
    seconds = _deadline_s(options) * (options.retries + 1) + 3600
    # Exit code 1 means that the RayJob failed after its own retries. A lost pod is replaced, and continues to wait.
    policy = {
        "rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": "wait", "operator": "In", "values": [1]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    return {
        "backoffLimit": 6,
        "activeDeadlineSeconds": seconds,
        "podFailurePolicy": policy,
        "template": {"metadata": {"labels": _labels(options)}, "spec": pod},
    }


def _ray_job_spec(options: LaunchOptions) -> dict[str, Any]:
    return {
        "entrypoint": f"sh {MOUNT['mountPath']}/run.sh",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
        "backoffLimit": options.retries,
        "preRunningDeadlineSeconds": WAIT_FOR_MACHINES_S,
        "activeDeadlineSeconds": _deadline_s(options),
        "rayClusterSpec": _ray_cluster(options),
    }


def _deadline_s(options: LaunchOptions) -> int:
    """Return the seconds after which KubeRay kills an attempt. A run ends earlier (`--max-hours`) unless it hangs."""
    return WAIT_FOR_MACHINES_S + options.max_seconds + GRACE_S


def _ray_cluster(options: LaunchOptions) -> dict[str, Any]:
    auth = {"mode": "token"} | ({"secretName": options.token_secret} if options.token_secret else {})
    head: dict[str, Any] = _pod(options, _resources("2", "8Gi"), worker=False)
    head["containers"][0]["volumeMounts"] = [MOUNT]
    head["containers"][0]["ports"] += [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    head["volumes"] = [_volume(options)]
    worker_resources = _resources(str(options.cpus), f"{options.memory_gib}Gi")
    if options.gpus:
        worker_resources["limits"]["nvidia.com/gpu"] = str(options.gpus)
        worker_resources["requests"]["nvidia.com/gpu"] = str(options.gpus)
    return {
        "rayVersion": options.ray_version,
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
        "headGroupSpec": {
            # No actor may run on the head: it is small, and the driver runs there.
            "rayStartParams": {"num-cpus": "0"},
            "template": {"metadata": {"labels": _labels(options), "annotations": _stay()}, "spec": head},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": options.min_workers,
                "minReplicas": options.min_workers,
                "maxReplicas": options.max_workers,
                "rayStartParams": {},
                "template": {
                    "metadata": {"labels": _labels(options)},
                    "spec": _pod(options, worker_resources, worker=True),
                },
            }
        ],
    }


def _pod(options: LaunchOptions, resources: dict[str, Any], *, worker: bool) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "ray-worker" if worker else "ray-head",
        "image": options.image,
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            # Seconds that a stopped job has to drain; with Ray's default of 3 s no shard would finish.
            {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "60"},
        ],
        "resources": resources,
        "securityContext": _confined(),
    }
    if options.env_secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in options.env_secrets]
    spec: dict[str, Any] = {}
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    spec |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 60, "securityContext": _pod_security()}
    if worker:
        spec |= _worker_placement(options)
    else:
        label, value = SPOT_LABEL[options.provider]
        term = {"matchExpressions": [{"key": label, "operator": "NotIn", "values": [value]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        spec["affinity"] = {"nodeAffinity": required}
    return spec | {"containers": [container]}


def _worker_placement(options: LaunchOptions) -> dict[str, Any]:
    """Return node selectors and tolerations, with the labels of the provider."""
    selector: dict[str, str] = {}
    tolerations: list[dict[str, str]] = []
    if options.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if options.gpu_type:
            selector[GPU_LABEL[options.provider]] = options.gpu_type
    if options.spot:
        label, value = SPOT_LABEL[options.provider]
        selector[label] = value
        tolerations.append({"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    elif options.provider == "eks":
        selector["karpenter.sh/capacity-type"] = "on-demand"
    placement: dict[str, Any] = {}
    if selector:
        placement["nodeSelector"] = selector
    if tolerations:
        placement["tolerations"] = tolerations
    return placement


def _stay() -> dict[str, str]:
    """Return annotations that keep node autoscalers from moving the head."""
    return {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def _resources(cpu: str, memory: str) -> dict[str, Any]:
    return {"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}}


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _volume(options: LaunchOptions) -> dict[str, Any]:
    return {"name": CONFIG, "configMap": {"name": options.name}}


def _labels(options: LaunchOptions) -> dict[str, str]:
    return {"app.kubernetes.io/name": "stereo-jobs", "app.kubernetes.io/instance": options.name}


def _metadata(options: LaunchOptions) -> dict[str, Any]:
    return {"name": options.name, "namespace": options.namespace, "labels": _labels(options)}
