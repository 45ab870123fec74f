"""Long jobs, and what must hold of them whatever happens."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.output import layout, progress
from stereo_jobs.output.commits import read_records
from stereo_jobs.output.plan import load_job
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, StorageSpec
from tests import standin
from tests.datasets import rows, verdict
from tests.run.processes import finish, start


class LongJob:
    """A job of rows that take 0.4 s each; tells which rows were generated, and how often."""

    def __init__(self, spec: JobSpec, whole: JobSpec, told: Path, folder: Path) -> None:
        self.spec, self.whole, self.told, self.folder = spec, whole, told, folder
        self.told.touch()

    def storage(self) -> Storage:
        return open_storage(self.spec.output, self.spec.runtime.storage)

    def commits(self) -> int:
        return sum(1 for _ in self.storage().list(layout.RECORDS_PREFIX))

    def generated(self) -> list[str]:
        """Rows, each as often as it was generated."""
        return self.told.read_text().split()

    def workers(self) -> set[str]:
        """Processes that committed shards."""
        storage = self.storage()
        return {record.worker for record in read_records(storage, load_job(storage).shard_keys())}

    def start(self, *options: str):
        return start(self.spec, self.folder, "--ray", *options)

    def end(self, process) -> str:
        """Wait for a run that went on, or was interrupted: then run it again. Returns what was said."""
        code, said = finish(process)
        while code == 75:
            code, more = finish(self.start())
            said += more
        assert code == 0, said
        return said

    def check(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Everything is there once, and as an undisturbed run makes it; returns rows generated in vain."""
        found = verdict(self.spec)
        assert found.ok, found.problems
        assert found.failed == 0, "a lost machine or store is no row's fault"
        generated = Counter(self.generated())
        with monkeypatch.context() as quick:
            quick.setattr(standin.time, "sleep", lambda seconds: None)
            run(self.whole, local=True, load=standin.load)
        assert rows(self.spec) == rows(self.whole)
        return generated.total() - found.succeeded

    def wasted_seconds(self) -> float:
        """Return the wasted worker time, as `stereo-jobs status` reports it."""
        storage = self.storage()
        return progress.totals(storage, load_job(storage)).wasted_seconds


@pytest.fixture
def long_job(make_spec, make_manifest, tmp_path) -> Callable[..., LongJob]:
    """Makes a job of `count` slow rows; further arguments are fields of `runtime`.

    Manifest and output are on local disk, or on the S3 server that answers at `endpoint`.
    """

    def make(count: int = 40, endpoint: str | None = None, **runtime) -> LongJob:
        told = tmp_path / "told"
        path = make_manifest(rows=count, prompt=[f"slow told:{told}"] * count)
        options = {"lease_ttl_s": 30.0, "shard_rows": 2, "actors": None} | runtime
        whole = make_spec(path, str(tmp_path / "whole"))
        if not endpoint:
            return LongJob(make_spec(path, **options), whole, told, tmp_path)
        place, settings = f"s3://jobs/{tmp_path.name}-{os.urandom(4).hex()}", StorageSpec(endpoint_url=endpoint)
        open_storage(f"{place}/manifests", settings).create(path.name, path.read_bytes())
        spec = make_spec(f"{place}/manifests/{path.name}", f"{place}/out", **options, storage=settings.model_dump())
        return LongJob(spec, whole, told, tmp_path)

    return make
