"""Before a run: an output that can be trusted, and plans in it that agree with the spec."""

import logging
from typing import NamedTuple

from stereo_jobs.data import card, manifest
from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.output import layout, plan
from stereo_jobs.output.commits import failed_rows, keys_with_errors, repair
from stereo_jobs.output.plan import Job
from stereo_jobs.records import REJECTED
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.version import __version__

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """An output whose plans agree with the spec."""

    storage: Storage
    job: Job
    recipe: Recipe


def open_output(spec: JobSpec) -> Storage:
    """The output's storage, proven to refuse what it must. Raises StorageError."""
    storage = open_storage(spec.output, spec.runtime.storage)
    storage.probe(layout.PROBE)
    return storage


def prepare(spec: JobSpec, storage: Storage, *, extend: bool = False, publish: bool = True) -> Prepared:
    """Check the spec against the output, and plan what is new.

    Args:
        spec: the job.
        storage: of its output.
        extend: make a new generation of manifest files that no plan lists yet.
        publish: False checks everything and writes nothing.

    Raises:
        StereoJobsError: see `errors`; nothing has been loaded or generated then.
    """
    recipe = resolve_recipe(spec.recipe)
    job = plan.load_job(storage)
    if job.plans:
        plan.refuse_drift(job, recipe)
    new = _unplanned(spec, job, extend)
    if new:
        made, hashes = plan.make_plan(spec, recipe, new, job, storage)
        if publish:
            if not job.plans:
                storage.replace(layout.CARD, card.render(recipe, planned=made.pairs, version=__version__))
            made = plan.publish(storage, made, hashes)
        job = Job((*job.plans, made))
    return Prepared(storage, job, recipe)


def _unplanned(spec: JobSpec, job: Job, extend: bool) -> list[str]:
    """Manifest files to make a plan of."""
    wanted = extend or not job.plans
    try:
        found = manifest.find(spec.manifests, spec.runtime.storage)
    except ManifestError:
        if wanted:
            raise
        found = []  # whether planned files are still needed, and there, is seen later
    listed = {file.uri for p in job.plans for file in p.files}
    new = [uri for uri in found if uri not in listed]
    if new and not wanted:
        log.warning("%d manifest file(s) not in the plan are ignored, first %s; --extend adds them", len(new), new[0])
    return new if wanted else []


def plan_retry(spec: JobSpec, storage: Storage, job: Job) -> Job:
    """Add a generation over all rows whose latest state is failed; the same job if there are none."""
    failed: dict[int, list[int]] = {}
    objects = repair(storage, job.plans)
    if any(key not in objects for key in job.shard_keys() if job.plans[key[0]].kind == "retry"):
        log.info("a retry is still unfinished; it goes on")
        return job
    with_errors = (key for key in keys_with_errors(storage) if key in objects)
    for (generation, shard), errors in failed_rows(storage, with_errors):
        first = shard * job.plans[generation].shard_rows
        again = [first + error.row for error in errors if error.error_type != REJECTED]
        failed.setdefault(generation, []).extend(again)
    made = plan.retry_plan(spec, job, failed)
    if made is None:
        return job
    return Job((*job.plans, plan.publish(storage, made)))
