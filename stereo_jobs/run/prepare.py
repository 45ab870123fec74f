"""Prepare a run: check that the output works and that its plans agree with the spec, and plan what is new."""

import logging
from typing import NamedTuple

from stereo_jobs.data import card, manifest_files
from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import ManifestError, StereoJobsError
from stereo_jobs.models import device
from stereo_jobs.models.resolve import DEPTH_EXAMPLE, ESTIMATOR_EXAMPLE, PLAIN_EXAMPLE, resolve_recipe
from stereo_jobs.output import layout, plan
from stereo_jobs.output.commits import failed_rows, keys_with_errors
from stereo_jobs.output.plan import Job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import REJECTED
from stereo_jobs.spec import DEMO, JobSpec, Recipe
from stereo_jobs.version import __version__
from stereo_jobs.workers.ray.cluster import named_cluster

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """An output whose plans agree with the spec.

    Attributes:
        storage: the storage of the output.
        job: the plans of the output, a new one included.
        recipe: the resolved recipe.
    """

    storage: Storage
    job: Job
    recipe: Recipe


def open_output(spec: JobSpec) -> Storage:
    """Open the storage of the output and prove that it creates each object only once.

    Raises:
        StorageError: the storage does not work, or replaces objects that exist.
    """
    storage = open_storage(spec.output, spec.runtime.storage)
    storage.probe(layout.PROBE)
    return storage


def refuse_missing_gpu(spec: JobSpec, *, local: bool = False) -> None:
    """Refuse a spec that asks for a GPU where its workers run on this machine, and it has none.

    Args:
        spec: the job.
        local: whether the run is to use this process, whatever cluster is named.

    Raises:
        SpecError: there is no GPU here. What a named cluster has is asked when the run has connected to it.
    """
    if local or not named_cluster(spec.runtime):
        device.refuse_missing_gpu(spec.runtime.device)


def toy_model_warning(spec: JobSpec) -> str | None:
    """Return a warning where photos would go through embedded models, which never saw any; None where none would."""
    models, mode = spec.recipe.models, spec.recipe.mode
    fields = [name for name in ("stable_diffusion", "depth") if getattr(models, name).path == DEMO]
    # In mode depth, depth is estimated on the images of rows that lack a map.
    if not fields or mode == "text" or (mode == "depth" and "image" not in _columns(spec)):
        return None
    examples = {"stable_diffusion": DEPTH_EXAMPLE if mode == "depth" else PLAIN_EXAMPLE, "depth": ESTIMATOR_EXAMPLE}
    names = " and ".join(f"recipe.models.{name} (for example {examples[name]})" for name in fields)
    return (
        "the embedded models (demo) were trained on ToyScapes only and never saw a photo; for any other pictures than "
        f"ToyScapes set {names}"
    )


def _columns(spec: JobSpec) -> list[str]:
    """Return the columns of the first manifest file; none if it cannot be read, which planning then explains."""
    settings = spec.runtime.storage
    try:
        first, *_ = manifest_files.find(spec.manifests, settings)
        return list(manifest_files.open_file(first, settings).schema.names)
    except StereoJobsError:
        return []


def prepare(
    spec: JobSpec,
    storage: Storage,
    *,
    extend: bool = False,
    publish: bool = True,
    ended: plan.Ended = lambda: False,
) -> Prepared:
    """Check the spec against the output, and plan what is new.

    Args:
        spec: the job.
        storage: the storage of its output.
        extend: plan manifest files that no plan lists yet, as a new generation.
        publish: write the new plan. With False everything is checked and nothing is written.
        ended: tells whether the run was told to stop.

    Raises:
        InterruptedRunError: the run was told to stop.
        StereoJobsError: see `errors`. No model has been loaded and no pair generated then.
    """
    recipe = resolve_recipe(spec.recipe)
    job = plan.load_job(storage)
    if job.plans:
        plan.refuse_drift(job, recipe)
    new = _unplanned(spec, job, extend)
    if not new:
        return Prepared(storage, job, recipe)
    try:
        made, hashes = plan.make_plan(spec, recipe, new, job, storage, ended=ended)
    except plan.EmptyManifestError as error:
        if not job.plans:
            raise
        log.warning("%s; nothing is added to the job", error)
        return Prepared(storage, job, recipe)
    if publish:
        if not job.plans:
            storage.replace(layout.CARD, card.render(recipe, planned=made.pairs, version=__version__))
        made = plan.publish(storage, made, hashes)
    return Prepared(storage, Job((*job.plans, made)), recipe)


def _unplanned(spec: JobSpec, job: Job, extend: bool) -> list[str]:
    """Return the manifest files to plan now."""
    wanted = extend or not job.plans
    try:
        found = manifest_files.find(spec.manifests, spec.runtime.storage)
    except ManifestError:
        if wanted:
            raise
        found = []  # whether planned files are still needed and still exist is checked later
    listed = {file.uri for p in job.plans for file in p.files}
    new = [uri for uri in found if uri not in listed]
    if new and not wanted:
        log.warning("%d new manifest file(s) are ignored, first %s; --extend adds them to the job", len(new), new[0])
    return new if wanted else []


def plan_retry(spec: JobSpec, storage: Storage, job: Job, done: ShardSet) -> Job:
    """Plan all rows whose latest state is failed as a new generation, and publish it.

    Args:
        spec: the job.
        storage: the storage of its output.
        job: its plans.
        done: its committed shards.

    Returns:
        The job with that generation; the same job if no row is failed, or an earlier retry is unfinished.
    """
    failed: dict[int, list[int]] = {}
    if any(done.count(plan.generation) < plan.shards for plan in job.plans if plan.kind == "retry"):
        log.info("an earlier retry is unfinished; it is resumed")
        return job
    with_errors = (key for key in keys_with_errors(storage) if key in done)
    for (generation, shard), errors in failed_rows(storage, with_errors):
        first = shard * job.plans[generation].shard_rows
        again = [first + error.row for error in errors if error.error_type != REJECTED]
        failed.setdefault(generation, []).extend(again)
    made = plan.retry_plan(spec, job, failed)
    if made is None:
        return job
    return Job((*job.plans, plan.publish(storage, made)))
