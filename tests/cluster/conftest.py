"""Jobs that take a while, and what must hold of them whatever happens."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.job import progress
from stereo_jobs.job.driver import run
from stereo_jobs.job.plan import load_job
from stereo_jobs.spec import JobSpec
from tests import standin
from tests.datasets import rows, verdict
from tests.job.processes import finish, start


class LongJob:
    """A job of rows that take 0.4 s each; tells which rows were generated, and how often."""

    def __init__(self, spec: JobSpec, whole: JobSpec, told: Path, folder: Path) -> None:
        self.spec, self.whole, self.told, self.folder = spec, whole, told, folder

    def commits(self) -> int:
        return len(list(Path(self.spec.output, "_job/commits").glob("*.json")))

    def start(self, *options: str):
        return start(self.spec, self.folder, "--ray", *options)

    def end(self, process, timeout: float = 240) -> str:
        """Wait for a run that went on, or was interrupted: then run it again. Returns what was said."""
        code, said = finish(process, timeout)
        while code == 75:
            code, more = finish(self.start(), timeout)
            said += more
        assert code == 0, said
        return said

    def check(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Everything is there once, and as an undisturbed run makes it; returns rows generated in vain."""
        found = verdict(self.spec)
        assert found.ok, found.problems
        assert found.failed == 0, "a lost machine is no row's fault"
        generated = Counter(self.told.read_text().split())
        with monkeypatch.context() as quick:
            quick.setattr(standin.time, "sleep", lambda seconds: None)
            run(self.whole, local=True, load=standin.load)
        assert rows(self.spec) == rows(self.whole)
        return generated.total() - found.succeeded

    def wasted_seconds(self) -> float:
        """As `stereo-jobs status` reports it."""
        storage = open_storage(self.spec.output, self.spec.runtime.storage)
        return progress.totals(storage, load_job(storage)).wasted_seconds


@pytest.fixture
def long_job(make_spec, make_manifest, tmp_path) -> Callable[..., LongJob]:
    """Makes a job of `rows` slow rows; further arguments are fields of `runtime`."""

    def make(count: int = 40, **runtime) -> LongJob:
        told = tmp_path / "told"
        manifest = make_manifest(rows=count, prompt=[f"slow told:{told}"] * count)
        options = {"lease_ttl_s": 30.0, "shard_rows": 2, "actors": None} | runtime
        whole = make_spec(manifest, str(tmp_path / "whole"))
        return LongJob(make_spec(manifest, **options), whole, told, tmp_path)

    return make
