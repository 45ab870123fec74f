"""Checks all rows of a manifest before a run: which will fail, and which prompts a model reads otherwise than meant.

Only columns without images are read. What is wrong with an image shows when its row is made.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stereo_jobs.data import manifest
from stereo_jobs.data.manifest_files import ManifestFile, split_uri
from stereo_jobs.data.manifest_reader import stream_cells
from stereo_jobs.data.reader import InputReader
from stereo_jobs.models.files import find
from stereo_jobs.models.tokens import PromptTokenizer
from stereo_jobs.output.plan import Job
from stereo_jobs.output.row_errors import ErrorSummary
from stereo_jobs.records import PromptNotes, Row
from stereo_jobs.spec import JobSpec, Recipe, StorageSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowChecks:
    """What is known of the rows of a manifest before any pair is made. A row counts once, whatever its variants.

    Attributes:
        rows: rows that were read.
        errors: the rows that will fail, by group.
        prompts: prompts that will be cut, or have attention weights.
        tokens: tokens of a prompt that the text encoder reads, start and end included.
    """

    rows: int
    errors: ErrorSummary
    prompts: PromptNotes
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "checked": self.rows,
            "will_fail": self.errors.failed,
            "errors": self.errors.as_json()["groups"],
            "prompts": self.prompts.model_dump(),
            "prompt_tokens": self.tokens,
        }


def check_rows(spec: JobSpec, recipe: Recipe, job: Job) -> RowChecks:
    """Read all rows of a job's manifest files, in bounded memory, and count those that will not be made as meant.

    Args:
        spec: the job; its storage settings are used.
        recipe: the resolved recipe.
        job: its plans list the files. Those that are gone are left out with a warning.

    Raises:
        ManifestError: a file cannot be read.
        ModelError: the tokenizer of the checkpoint cannot be read.
    """
    settings = spec.runtime.storage
    tokenizer = PromptTokenizer(find(recipe.models.stable_diffusion, recipe.mode))
    no_images = InputReader((), spec.runtime.max_image_bytes, settings, spec.runtime.max_image_pixels)
    errors, notes, count = ErrorSummary(), PromptNotes(), 0
    for file in _present(job, settings):
        for cells in stream_cells(file, settings):
            rows = [manifest.to_row(each, 0, recipe, (), no_images) for each in cells]
            count += len(rows)
            for row in rows:
                if row.error:
                    errors.add(row.error)
            notes = notes.merged(PromptNotes.of(_prompts(row, tokenizer) for row in rows if not row.error))
    return RowChecks(count, errors, notes, tokenizer.limit)


def _present(job: Job, settings: StorageSpec) -> Iterator[ManifestFile]:
    """Iterate over the manifest files of a job that still exist."""
    for file in (file for plan in job.plans if plan.kind == "manifest" for file in plan.files):
        storage, name = split_uri(file.uri, settings)
        if storage.exists(name):
            yield file
        else:
            log.warning("manifest %s is gone; its rows are not checked", file.uri)


def _prompts(row: Row, tokenizer: PromptTokenizer) -> dict[str, Any]:
    """What PromptNotes counts of a row."""
    prompts = {"prompt": row.prompt, "negative_prompt": row.negative_prompt}
    return {"id": row.id, **prompts, "prompt_cut": any(map(tokenizer.cut, prompts.values()))}
