"""Jobs on an existing Ray cluster, with Ray's Jobs API: submit, follow, stop.

The unchanged spec is sent as the working directory of the job, and `${ENV}` is read on the cluster. The driver runs on
the head, so this machine may be switched off meanwhile. The id of a submission is made from output, recipe and
manifests: while such a job runs, a second submission joins it; afterwards, the next one resumes from the output.
"""

import asyncio
import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs.errors import ClusterError, InterruptedRunError, SpecError
from stereo_jobs.launch.portable import Portable, read_portable, run_command
from stereo_jobs.spec import digest

log = logging.getLogger(__name__)

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
MAX_RUNS = 1000
"""Largest number of runs of one job on one cluster."""
SPEC_FILE = "job.yaml"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
_ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
PATIENCE_S = 60.0
"""Seconds that a head may not answer, or not know the job, while the job is followed."""


class Ticket(NamedTuple):
    """A submitted job: its id, and whether it was already running."""

    id: str
    joined: bool


class End(NamedTuple):
    """End of a job: its status as Ray names it, the exit code of `stereo-jobs run`, and one line for people."""

    status: str
    exit_code: int
    message: str


@contextlib.contextmanager
def connect(address: str) -> Iterator["Cluster"]:
    """Connect to the cluster with this dashboard URL.

    The token is read from RAY_AUTH_TOKEN. Without it, and with RAY_AUTH_MODE=token, Ray looks for its token file.

    Raises:
        ClusterError: the cluster cannot be reached, or refuses access.
    """
    if not re.fullmatch(r"https?://[^\s/@]+/?", address):
        raise ClusterError(f"--address: write it as http://HOST:8265, the dashboard of the Ray head (got {address!r})")
    with _explained(address):
        yield Cluster(address)


class Cluster:
    """Jobs of one cluster. Use `connect` to make one: it turns Ray's exceptions into messages with a remedy."""

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        self.address = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        token = os.environ.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token.strip()}"} if token else None
        with _without(_ADDRESS_VARIABLES):  # Ray would prefer these to the address it is given.
            self._client: Any = JobSubmissionClient(address, headers=headers)
        # Jobs that the cluster has known: if it does not know one of them any more, it has lost it.
        self._seen: set[str] = set()

    def submit(
        self,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        job_id: str | None = None,
        extend: bool = False,
        max_hours: float | None = None,
    ) -> Ticket:
        """Submit a job spec, or join the same job if it is already running.

        Args:
            path: the spec.
            overrides: `--set` arguments of the run.
            job_id: id of the submission, instead of a generated one; a cluster accepts each id once.
            extend: also plan new manifest files.
            max_hours: maximum hours of the run, which ends with exit code 75 if work is left.

        Raises:
            SpecError: the spec is not valid, or cannot be sent to another machine.
            ClusterError: `job_id` was used before, by a job that has ended or by another job.
        """
        portable = read_portable(path, overrides, local_paths=True)
        mark = fingerprint(portable, extend=extend)
        if job_id is not None and not _ID.fullmatch(job_id):
            raise SpecError(f"--id: at most 128 characters of A-Z, a-z, 0-9, dot, - and _ (got {job_id!r})")
        command = run_command(portable, SPEC_FILE, extend=extend, max_hours=max_hours)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, SPEC_FILE).write_text(portable.text, encoding="utf-8", newline="")
            send = {
                "entrypoint": command,
                "runtime_env": {"working_dir": folder},
                "metadata": {"stereo_jobs": mark, "output": portable.spec.output},
            }
            return self._submit(send, mark, job_id)

    def follow(self, job_id: str, write: Callable[[str], None]) -> End:
        """Pass everything that the job prints to `write` until it ends; returns how it ended.

        Raises:
            ClusterError: there is no such job.
            InterruptedRunError: for `PATIENCE_S`, the head has not answered, or has not known the job any more.
        """
        if job_id not in self._seen:
            self._info(job_id)
        return _end(asyncio.run(self._follow(job_id, write)))

    def logs(self, job_id: str) -> str:
        """Return everything that the job has printed so far."""
        self._info(job_id)
        return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> bool:
        """Ask the job to drain and end; returns False if it had ended before."""
        self._info(job_id)
        return bool(self._client.stop_job(job_id))

    # --- Parts ---

    def _submit(self, send: dict[str, Any], mark: str, job_id: str | None) -> Ticket:
        known = {job.submission_id: job for job in self._client.list_jobs() if job.submission_id}
        self._seen.update(known)
        for run in range(1, MAX_RUNS):
            candidate = job_id or f"stereo-jobs-{mark}-{run}"
            before = known.get(candidate)
            if before is None:
                try:
                    self._client.submit_job(submission_id=candidate, **send)
                    self._seen.add(candidate)
                    return Ticket(candidate, False)
                except RuntimeError as error:
                    if "already exists" not in str(error):
                        raise
                before = self._info(candidate)  # another submission came first
            same = (before.metadata or {}).get("stereo_jobs") == mark
            if same and str(before.status) not in ENDED:
                return Ticket(candidate, True)
            if job_id:
                reason = f"a job that ended ({before.status})" if same else "another job"
                raise ClusterError(
                    f"--id {job_id}: this cluster has used it for {reason}, and Ray accepts an id once; give another "
                    "--id, or none to get a new one"
                )
        raise ClusterError(
            f"{self.address}: this job was run {MAX_RUNS} times here, so no generated id is left; give an --id"
        )

    def _info(self, job_id: str) -> Any:
        """Ask for a job. Raises ClusterError if there never was such a job, RuntimeError if the cluster has lost it."""
        try:
            info = self._client.get_job_info(job_id)
            self._seen.add(job_id)
            return info
        except RuntimeError as error:
            if job_id not in self._seen and ("404" in str(error) or "does not exist" in str(error)):
                raise ClusterError(f"{self.address}: no job {job_id}; is it the id that submit printed?") from None
            raise

    async def _follow(self, job_id: str, write: Callable[[str], None]) -> Any:
        """Follow a job until it ends; returns what the cluster then knows about it."""
        seen, silent_since = 0, None
        while True:
            try:
                at = 0  # a new connection sends the log from its beginning
                async for text in self._tail(job_id):
                    fresh = text[max(0, seen - at) :]
                    at += len(text)
                    seen = max(seen, at)
                    if fresh:
                        write(fresh)
                info = self._info(job_id)
                if str(info.status) in ENDED:
                    return info
                silent_since = None
            except (OSError, RuntimeError) as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() > silent_since + PATIENCE_S:
                    raise InterruptedRunError(
                        f"{self.address}: nothing was heard of {job_id} for {PATIENCE_S:g} s "
                        f"({_first_line(error)}); finished shards are kept: submit again, to this or to a new "
                        "cluster, to resume"
                    ) from None
                log.info("lost the log of %s, trying again: %s", job_id, _first_line(error))
            await asyncio.sleep(1.0)

    async def _tail(self, job_id: str) -> AsyncIterator[str]:
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error


def fingerprint(portable: Portable, *, extend: bool) -> str:
    """Return a mark of a job: same output, recipe and manifests give the same mark, whatever the runtime settings."""
    spec = portable.spec
    parts = {"output": spec.output, "recipe": spec.recipe.canonical(), "manifest": list(spec.manifests)}
    return digest(parts | {"extend": extend})[:12]


def _end(info: Any) -> End:
    """Find out how a job ended. Ray's command line turns every failure into exit code 1; its details have the code."""
    status, message = str(info.status), str(info.message or "")
    if status == "SUCCEEDED":
        return End(status, 0, "done")
    if status == "STOPPED":
        return End(status, InterruptedRunError.exit_code, "stopped; submit again to resume")
    code = getattr(info, "driver_exit_code", None)
    if code is None and (found := _EXIT_CODE.search(message)):
        code = int(found.group(1))
    if code is None:
        # The head has lost the job, or never started it.
        lost = "SUPERVISOR" in str(info.error_type or "").upper() or "died" in message
        what = "the cluster lost the job; submit again to resume" if lost else "the cluster could not start the job"
        return End(status, InterruptedRunError.exit_code if lost else 1, f"{what} ({_first_line(message)})")
    if code < 0:
        return End(status, 128 - code, f"killed by signal {-code}; submit again to resume")
    return End(status, code, f"ended with exit code {code}")


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn exceptions of Ray's client into one line with a remedy."""
    try:
        yield
    except ImportError as error:
        raise ClusterError(f"Ray's Jobs API is not installed ({error}): pip install 'ray[default]'") from None
    except Exception as error:
        name, text = type(error).__name__, str(error)
        if name == "AuthenticationError" or "status code 401" in text or "status code 403" in text:
            missing = not os.environ.get("RAY_AUTH_TOKEN")
            remedy = (
                "set RAY_AUTH_TOKEN to the token that the head was started with"
                if missing
                else "RAY_AUTH_TOKEN is not the token that the head was started with"
            )
            raise ClusterError(f"{address}: the cluster refuses access; {remedy}") from None
        if isinstance(error, ConnectionError) or name in ("ConnectTimeout", "ReadTimeout", "ConnectionError"):
            raise ClusterError(
                f"{address}: no Ray head answers there; is it up, is this its dashboard (port 8265), and is the "
                "tunnel or port-forward open?"
            ) from None
        if name == "JSONDecodeError" or "Version check" in text or name == "HTTPError":
            raise ClusterError(f"{address}: something answers there, but not a Ray dashboard") from None
        if isinstance(error, RuntimeError) and "Request failed" in text:
            raise ClusterError(f"{address}: the cluster refuses: {_first_line(text)}") from None
        raise


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Remove environment variables inside the `with` block."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
