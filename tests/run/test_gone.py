"""An output that is removed, emptied or swapped while a run works on it: the run ends, and nothing is mixed."""

import os
import shutil
from functools import partial
from pathlib import Path

import boto3
import pytest

from stereo_jobs.data.storage import LocalStorage, open_storage
from stereo_jobs.errors import OutputGoneError, StorageError
from stereo_jobs.output import guard, layout
from stereo_jobs.run import driver
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import prepared
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(driver, "LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(guard, "CONFIRM_S", 0.1)


@pytest.fixture
def slow(make_spec, make_manifest, tmp_path):
    """A spec whose shards take 0.4 s each, for more than a minute."""

    def make(output: str | None = None, **runtime):
        return make_spec(make_manifest(rows=200, prompt=["slow"] * 200), output, shard_rows=1, **runtime)

    return make


def strike_when_begun(act):
    """A `watch` of a run that acts once, when the first pair is made."""
    done = []

    def watch(state):
        if state.made and not done:
            done.append(True)
            act()

    return watch


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def remove(gone: Path) -> None:
    """Remove a folder or a file of an output, also while somebody writes into it."""

    def removed() -> bool:
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)
        return not gone.exists()

    wait_until(removed)


@pytest.mark.parametrize("what", ["", "_job", "_job/plan-0000.json"])
def test_a_folder_that_is_removed_ends_the_run(slow, what):
    spec = slow()
    gone = Path(spec.output, what)

    with pytest.raises(StorageError, match=r"(gone|removed)") as end:
        run(spec, local=True, load=standin.load, watch=strike_when_begun(partial(remove, gone)))
    assert end.value.exit_code == 2
    assert "\n" not in str(end.value)
    assert not gone.exists(), "nothing of it is created again"


def test_a_folder_swapped_for_an_empty_one_stays_empty(slow, tmp_path):
    spec = slow()
    away = tmp_path / "away"

    def swap():
        Path(spec.output).rename(away)
        Path(spec.output).mkdir()

    with pytest.raises(OutputGoneError, match="restore the output and run again"):
        run(spec, local=True, load=standin.load, watch=strike_when_begun(swap))
    assert [name for name in files(Path(spec.output)) if not name.startswith((".", "_job/."))] == []


def swapped(spec, other_spec, **how) -> tuple[list[str], list[str]]:
    """Run a job whose output is swapped for another's in the middle: files of that other one before, and after."""
    prepared(other_spec)
    other = Path(other_spec.output)
    before = files(other)

    def swap():
        Path(spec.output).rename(other.with_name("away"))
        other.rename(spec.output)

    with pytest.raises((OutputGoneError, StorageError)):
        run(spec, watch=strike_when_begun(swap), **how)
    return before, files(Path(spec.output))


def test_an_output_swapped_for_another_jobs_gets_nothing(slow, make_spec, make_manifest, tmp_path):
    other = make_spec(make_manifest(rows=5, name="other.parquet"), str(tmp_path / "other"))
    before, after = swapped(slow(), other, local=True, load=standin.load)
    assert after == before


def test_a_prefix_that_is_emptied_stays_empty(slow, s3_server):
    name = f"gone-{os.urandom(4).hex()}"
    spec = slow(f"s3://jobs/{name}", storage={"endpoint_url": s3_server})
    bucket = boto3.resource("s3", endpoint_url=s3_server, region_name="us-east-1").Bucket("jobs")
    with pytest.raises(OutputGoneError, match=r"plan-0000\.json: gone; the output was removed"):
        run(
            spec,
            local=True,
            load=standin.load,
            watch=strike_when_begun(lambda: bucket.objects.filter(Prefix=f"{name}/").delete()),
        )
    assert list(open_storage(spec.output, spec.runtime.storage).list()) == []


def test_a_finished_run_writes_no_marks_into_an_output_that_is_gone(make_spec):
    spec = make_spec()

    def remove(state):
        if state.left == 0:
            shutil.rmtree(spec.output)

    with pytest.raises(StorageError):
        run(spec, local=True, load=standin.load, watch=remove)
    assert not Path(spec.output).exists()


def test_a_held_folder_is_never_created_again(tmp_path):
    storage = LocalStorage(tmp_path / "out")
    storage.create("data/a", b"1")
    storage.hold()
    storage.create("deep/er/b", b"2")
    assert storage.read("deep/er/b") == b"2"
    shutil.rmtree(tmp_path / "out")
    for write in (storage.create, storage.replace):
        for key in ("data/c", layout.PROGRESS, "top"):
            with pytest.raises(StorageError, match="its folder is gone"):
                write(key, b"3")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_a_held_one_is_never_created_again(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.create("_job/commits/a", b"1")
    storage.hold()
    storage.create("data/b", b"2")
    for folder in ("_job", "data"):
        shutil.rmtree(tmp_path / folder)
    for key in ("_job/commits/c", "_job/d", "data/e"):
        with pytest.raises(StorageError, match="its folder is gone"):
            storage.create(key, b"3")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_is_missed_once_is_looked_for_again(make_spec, monkeypatch):
    from stereo_jobs.data.storage import NotFoundError

    ready = prepared(make_spec())
    real, asked = LocalStorage.content_tag, []

    def unsteady(self, key):
        asked.append(key)
        if len(asked) == 1:
            raise NotFoundError(key)
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "content_tag", unsteady)
    watcher = guard.PlanGuard(ready.storage)
    watcher.check(ready.job.plans[0])
    watcher.check(ready.job.plans[0])
    assert len(asked) == 3
