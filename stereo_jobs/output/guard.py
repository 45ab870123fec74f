"""Notices that the output of a run was removed, emptied or swapped for another one, before it is written to."""

import time

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.errors import DamagedError, OutputGoneError
from stereo_jobs.output import layout
from stereo_jobs.output.plan import Plan, load_plan

CONFIRM_S = 2.0
"""Seconds after which a plan that was not found is looked for once more: a store that starts may miss objects."""


class PlanGuard:
    """Compares the plan below the output with the one that is worked on. Usually that is one request without a body.

    Args:
        storage: the storage of the output.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._tags: dict[int, str] = {}
        """Content tags of the plans that have been read and found to be the right ones."""

    def check(self, plan: Plan) -> None:
        """Check that a plan is still there, unchanged.

        Raises:
            OutputGoneError: it is gone, or another one.
        """
        try:
            self._compare(plan)
        except NotFoundError:
            time.sleep(CONFIRM_S)
            try:
                self._compare(plan)
            except NotFoundError:
                raise OutputGoneError(_message(self._storage, plan.generation, "gone")) from None

    def _compare(self, plan: Plan) -> None:
        name = layout.plan(plan.generation)
        tag = self._storage.content_tag(name)
        if tag != self._tags.get(plan.generation):
            _read(self._storage, plan.generation, plan.fingerprint)
            self._tags[plan.generation] = tag


def planned(storage: Storage, generation: int, fingerprint: str) -> Plan:
    """Read the plan of this fingerprint. Raises OutputGoneError if it is gone, or another one."""
    try:
        return _read(storage, generation, fingerprint)
    except NotFoundError:
        raise OutputGoneError(_message(storage, generation, "gone")) from None


def _read(storage: Storage, generation: int, fingerprint: str) -> Plan:
    try:
        plan = load_plan(storage, generation)
    except DamagedError:
        raise OutputGoneError(_message(storage, generation, "overwritten")) from None
    if plan.fingerprint != fingerprint:
        raise OutputGoneError(_message(storage, generation, "another plan than the one of this run"))
    return plan


def _message(storage: Storage, generation: int, what: str) -> str:
    return (
        f"{storage.locate(layout.plan(generation))}: {what}; the output was removed or replaced during the run, which "
        "ends and writes nothing more: restore the output and run again, or choose another one"
    )
