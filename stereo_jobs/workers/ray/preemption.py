"""Notices of clouds that a spot machine is about to be taken away, minutes before it is."""

import http.client
import logging
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

POLL_EVERY_S = 5.0
_AWS = "http://169.254.169.254/latest"
_GCP = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"


def watch(source: str | None, told: Callable[[], object]) -> None:
    """Call `told` once the machine's end is announced.

    Args:
        source: `aws` or `gcp`, whose metadata service is asked; a path, announced when a file is there; or None.
        told: called in a thread of its own, once.
    """
    if source:
        threading.Thread(target=_wait, args=(source, told), name="notice", daemon=True).start()


def _wait(source: str, told: Callable[[], object]) -> None:
    never = threading.Event()
    while not is_announced(source):
        never.wait(POLL_EVERY_S)
    log.warning("this machine is about to be taken away (%s)", source)
    told()


def is_announced(source: str, aws: str = _AWS, gcp: str = _GCP) -> bool:
    """Whether the end of this machine is announced; a service that does not answer has announced nothing."""
    try:
        if source == "aws":
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            token = _ask(urllib.request.Request(f"{aws}/api/token", method="PUT", headers=headers))
            # 404 until the end is near.
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
