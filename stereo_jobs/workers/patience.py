"""Waits for a store that does not answer."""

import logging

import tenacity

from stereo_jobs.errors import StorageUnavailableError

log = logging.getLogger(__name__)

STORE_PATIENCE_S = 600.0
"""Seconds that a finished shard waits for a store that does not answer, before the shard fails and is requeued."""


def patient(seconds: float | None = None) -> tenacity.Retrying:
    """Return a wrapper that retries a call while the store does not answer: generated results are expensive to lose.

    Args:
        seconds: how long to retry; None: `STORE_PATIENCE_S`.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StorageUnavailableError),
        wait=tenacity.wait_random_exponential(multiplier=1, max=20),
        stop=tenacity.stop_after_delay(STORE_PATIENCE_S if seconds is None else seconds),
        before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
