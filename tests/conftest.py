"""Shared fixtures: small manifests, specs, a private home for Ray, a real S3 server."""

import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import parse_spec

# Nothing a test starts may ask the Hub, send usage statistics, or write into the home folder.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray gives its workers the lowest priority but four: beside other tests on the same cores they would hardly move.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
_HOME = tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True)
os.environ["HOME"] = _HOME.name
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
# Several test processes share the cores; threads that wait for each other would only take time from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `nohup` passes on that SIGHUP is ignored, and a signal that is ignored reaches no process that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A process decides once, at its first use of Ray, whether it speaks with a token and stays on loopback.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
# The same examples in every run, so that a change is judged by what it changes; `make test-all` draws new ones.
settings.load_profile("ci")
REPOSITORY = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = str(REPOSITORY)


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest of `rows` prompts, or of the given columns."""

    def make(rows: int = 8, name: str = "prompts.parquet", first: int = 0, **columns: list) -> Path:
        path = tmp_path / "manifests" / name
        path.parent.mkdir(exist_ok=True)
        table = {
            "id": [f"row-{i:04d}" for i in range(first, first + rows)],
            "prompt": [f"a red circle number {i}" for i in range(first, first + rows)],
        } | columns
        pq.write_table(pa.table(table), path)
        return path

    return make


@pytest.fixture
def make_spec(tmp_path: Path, make_manifest: Callable[..., Path]) -> Callable[..., JobSpec]:
    """A spec with small shards; makes an 8-row manifest unless one is given."""

    def make(manifest: object = None, output: str | None = None, recipe: dict | None = None, **runtime) -> JobSpec:
        return parse_spec(
            {
                "manifest": str(manifest or make_manifest()),
                "output": output or str(tmp_path / "out"),
                # What only moves rows about has no pictures worth measuring; who wants verdicts asks for them.
                "recipe": {"quality": {"enabled": False}} | (recipe or {}),
                "runtime": {"shard_rows": 3, "batch_size": 2, "lease_ttl_s": 20.0, "actors": 2} | runtime,
            }
        )

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: sums come in one order, and tiny tensors do not make more threads wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Takes back the handlers that a command has installed in this process: the next test begins without them."""
    from stereo_jobs import interrupts

    with _restored_signals():
        yield
    assert all(signal.getsignal(number) != interrupts._handle for number in interrupts.SIGNALS)


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    from stereo_jobs import interrupts

    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        yield
    finally:
        interrupts.restore(handlers)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `stereo-jobs` in this process: exit code, output, errors. `capture` is pytest's fixture that reads them."""
    from stereo_jobs import cli

    def invoke(capture: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stereo-jobs", *map(str, words)])
        capture.readouterr()
        with _restored_signals(), pytest.raises(SystemExit) as end:
            cli.main()
        said = capture.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return invoke


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of a SeaweedFS server on loopback, with a bucket `jobs`; credentials are in the environment."""
    from tests.seaweed import serve

    with serve() as endpoint:
        yield endpoint


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test has captured may hold half surrogates; the processes of pytest-xdist send only text that is UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


LONGEST_FIRST = (
    "workers/test_ray.py",
    "test_console_blocks.py",
    "cluster/test_chaos.py",
    "workers/test_ray_loading.py",
    "output/test_lease.py",
    "pipeline/test_modes.py",
    "run/test_kill.py",
    "pipeline/test_generator.py",
    "launch/test_submit.py",
    "test_secrets.py",
    "cluster/test_nodes.py",
    "workers/test_private_ray.py",
    "launch/test_launch.py",
    "test_cli.py",
    "test_packaging.py",
    "models/test_families.py",
    "run/test_real_models.py",
    "run/test_run.py",
    "test_notebook.py",
    "data/test_storage.py",
    "run/test_tables.py",
    "test_make.py",
    "stereo/test_sampler.py",
    "stereo/test_official.py",
    "evaluate/test_evaluation.py",
    "stereo/test_inversion.py",
    "test_fuzz.py",
    "workers/test_ray_gone.py",
    "toyscapes/test_training.py",
    "test_interrupts.py",
    "run/test_check_rows.py",
    "report/test_terminal.py",
    "data/building/test_delimited.py",
    "data/test_formats.py",
)
"""Files by the time they take: processes of pytest-xdist take whole files, and none is left alone with a long one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; tests marked `gpu` run where there is one."""
    order = {str(REPOSITORY / "tests" / name): place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
