"""Preemption notices: a cloud announces, minutes before, that it takes a spot machine away."""

import http.client
import logging
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

POLL_EVERY_S = 5.0
"""Seconds between two looks for a notice."""
_AWS = "http://169.254.169.254/latest"
_GCP = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"


def watch(source: str | None, on_notice: Callable[[], object]) -> None:
    """Start a thread that calls `on_notice` once this machine's preemption is announced.

    Args:
        source: where notices appear: `aws` or `gcp` for that cloud's metadata service; a path, where a file appears
            then; None for nowhere.
        on_notice: called in that thread, at most once.
    """
    if source:
        threading.Thread(target=_wait, args=(source, on_notice), name="preemption", daemon=True).start()


def _wait(source: str, on_notice: Callable[[], object]) -> None:
    never = threading.Event()
    while not is_announced(source):
        never.wait(POLL_EVERY_S)
    log.warning("this machine is about to be taken away (%s)", source)
    on_notice()


def is_announced(source: str, aws: str = _AWS, gcp: str = _GCP) -> bool:
    """Whether this machine's preemption is announced. A service that does not answer announces nothing.

    Args:
        source: `aws`, `gcp`, or a path.
        aws: base URL of the AWS metadata service.
        gcp: URL of the GCP metadata value.
    """
    try:
        if source == "aws":
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            token = _ask(urllib.request.Request(f"{aws}/api/token", method="PUT", headers=headers))
            # The service answers 404 until a preemption is announced.
            url = f"{aws}/meta-data/spot/instance-action"
            return bool(_ask(urllib.request.Request(url, headers={"X-aws-ec2-metadata-token": token})))
        if source == "gcp":
            return _ask(urllib.request.Request(gcp, headers={"Metadata-Flavor": "Google"})) == "TRUE"
    except (OSError, http.client.HTTPException):
        return False
    return Path(source).exists()


def _ask(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=2) as answer:
        return str(answer.read().decode(errors="replace")).strip()
