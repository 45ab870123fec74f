"""Whole runs in this process with the stand-in generator: results, resume, drift, extend, retry."""

import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data.storage import LocalStorage, open_storage
from stereo_jobs.errors import (
    DeviceLostError,
    DriftError,
    InterruptedRunError,
    ManifestError,
    StorageUnavailableError,
    TooManyFailuresError,
)
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.output import layout, progress
from stereo_jobs.output.plan import load_job
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, StorageSpec
from stereo_jobs.workers import worker
from stereo_jobs.workers.worker import ShardWorker
from tests import standin
from tests.datasets import prepared, rows, verdict
from tests.output.test_lease import wait_for
from tests.run.processes import finish, start


def local(spec: JobSpec, **options):
    return run(spec, local=True, load=standin.load, **options)


def test_all_rows_are_made_once(make_spec):
    spec = make_spec()
    status = local(spec)
    assert (status.succeeded, status.failed, status.complete) == (8, 0, True)
    assert verdict(spec).ok
    assert list(rows(spec)) == [f"row-{i:04d}" for i in range(8)]
    storage = open_storage(spec.output)
    assert json.loads(storage.read(layout.success(0)))["pairs"] == 8
    assert b"8 stereo pairs of 8 planned" in storage.read(layout.CARD)


def test_a_finished_job_loads_nothing(make_spec):
    spec = make_spec()
    local(spec)

    def refuse(*args):
        raise AssertionError("models were loaded for nothing")

    assert run(spec, load=refuse).complete


def test_rows_do_not_depend_on_shards_or_order(make_spec, make_manifest, tmp_path):
    manifest = make_manifest(rows=10)
    one = make_spec(manifest, str(tmp_path / "a"), shard_rows=3, batch_size=2)
    other = make_spec(manifest, str(tmp_path / "b"), shard_rows=7, batch_size=5)
    local(one)
    local(other)
    assert rows(one) == rows(other)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ({"seed": 1}, "recipe.seed"),
        ({"scale_percent": 6}, "recipe.scale_percent"),
        ({"method": {"attention": "bi"}}, "recipe.method.attention"),
        ({"size": {"width": 64, "height": 128}}, "recipe.size.width"),
    ],
)
def test_another_recipe_is_refused_by_field(make_spec, recipe, field):
    spec = make_spec()
    local(spec)
    with pytest.raises(DriftError, match=field):
        local(make_spec(spec.manifest, recipe=recipe))


def test_another_model_revision_is_refused(make_spec, monkeypatch):
    from stereo_jobs.models import files

    spec = make_spec()
    local(spec)
    monkeypatch.setattr(files.FolderFiles, "revision", "sha256:other")
    with pytest.raises(DriftError, match=r"models\.depth\.revision"):
        local(spec)


def test_a_changed_manifest_is_refused(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=8))
    local(spec)
    make_manifest(rows=9)
    with pytest.raises(DriftError, match="content changed"):
        local(spec)


@pytest.mark.parametrize("shard_rows", [2, 100])
def test_a_manifest_overwritten_during_a_run_ends_it_and_mixes_nothing(
    make_spec, make_manifest, shard_rows, monkeypatch
):
    monkeypatch.setattr(worker, "CONFIRM_EVERY_S", 0)
    path = make_manifest(rows=8)
    before, data = path.stat(), path.read_bytes()
    made = []

    class Meanwhile(standin.StandIn):
        def generate(self, rows):
            if len(made) == 4:  # same size, same time of change
                with path.open("r+b") as file:
                    file.write(data.replace(b"a red circle", b"a RED circle"))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            made.extend(row.id for row in rows)
            return super().generate(rows)

    spec = make_spec(path, shard_rows=shard_rows)
    with pytest.raises(DriftError, match="its content changed since it was planned") as caught:
        run(spec, local=True, load=lambda recipe, device, size: Meanwhile(size))
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert len(made) <= 6
    there = rows(spec) if Path(spec.output, "data").exists() else {}
    assert all(row["prompt"].startswith("a red circle") for row in there.values())
    path.write_bytes(data)
    assert local(spec).complete
    assert all(row["prompt"].startswith("a red circle") for row in rows(spec).values())


@pytest.mark.parametrize("shard_rows", [1, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["local", "s3", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_process_whose_manifest_is_overwritten_ends_soon(
    make_spec, make_manifest, tmp_path, s3_server, where, shard_rows
):
    """Between two shards, and within one that would take minutes."""
    told, count = tmp_path / "told", 300
    path = make_manifest(count, prompt=[f"slow old told:{told}"] * count)
    old = path.read_bytes()
    new = old.replace(b"slow old", b"slow new")
    options = {"shard_rows": shard_rows, "actors": 1}
    if where == "s3":
        settings = StorageSpec(endpoint_url=s3_server)
        root = f"s3://jobs/{uuid.uuid4().hex}"
        manifest = open_storage(f"{root}/manifests", settings)
        manifest.create("m.parquet", old)
        spec = make_spec(f"{root}/manifests/m.parquet", f"{root}/out", storage=settings.model_dump(), **options)
    else:
        spec = make_spec(path, **options)
    process = start(spec, tmp_path, *["--ray"] * (where == "ray"))
    wait_for(told)
    if where == "s3":
        manifest.replace("m.parquet", new)
    else:
        path.write_bytes(new)
    code, said = finish(process)
    assert code == 2, said
    assert "its content changed since it was planned; restore it" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert len(told.read_text().splitlines()) < count
    made = rows(spec) if any(open_storage(spec.output, spec.runtime.storage).list(layout.DATA_PREFIX)) else {}
    assert all(row["prompt"].startswith("slow old") for row in made.values())


def test_odd_cells_fail_their_rows_alone_and_odd_carried_cells_none(make_spec, make_manifest):
    expires = pa.array([0, 253402300800000000, None, -(2**63)], pa.timestamp("us"))  # the second: year 10000
    day = pa.array([0, 2**30, -(2**30), 1], pa.date32())
    focal = pa.array([700, 2**53, None, 2**53 + 1], pa.int64())
    spec = make_spec(make_manifest(rows=4, expires=expires, day=day, focal_px=focal), max_failure_ratio=0.5)
    status = local(spec)
    assert (status.succeeded, status.failed) == (3, 1)
    (error,) = pq.ParquetFile(Path(spec.output, layout.errors((0, 1)))).read().to_pylist()
    assert (error["id"], error["error_type"]) == ("row-0003", "InvalidRow")
    assert error["error_message"].startswith("focal_px: a whole number must be from -2**53 to 2**53, got")
    table = pq.ParquetFile(Path(spec.output, layout.data((0, 0)))).read()
    assert table["src_expires"].cast(pa.int64()).to_pylist() == [0, 253402300800000000, None]
    assert table["src_day"].cast(pa.int32()).to_pylist() == [0, 2**30, -(2**30)]
    assert table["focal_px"].to_pylist() == [700.0, 2.0**53, None]


def test_a_finished_job_does_not_need_its_manifest(make_spec, caplog):
    spec = make_spec()
    local(spec)
    Path(spec.manifest).unlink()
    assert local(spec).complete
    assert "is gone; all its rows are done" in caplog.text


def test_an_unfinished_job_does_need_its_manifest(make_spec):
    spec = make_spec()
    local(spec)
    root = Path(spec.output)
    (root / layout.data((0, 1))).unlink()
    (root / layout.record((0, 1))).unlink()
    Path(spec.manifest).unlink()
    with pytest.raises(DriftError, match="still needed, but gone"):
        local(spec)


def test_runtime_may_change(make_spec):
    spec = make_spec()
    local(spec)
    assert local(make_spec(spec.manifest, shard_rows=100, batch_size=7, max_failure_ratio=0.5)).complete


def test_extend_adds_only_new_files(make_spec, make_manifest, caplog):
    first = make_manifest(rows=4)
    spec = make_spec(first.parent)
    local(spec)
    make_manifest(rows=3, first=4, name="second.parquet")
    assert local(spec).planned == 4
    assert "--extend" in caplog.text
    before = rows(spec)
    status = local(spec, extend=True)
    assert (status.planned, status.succeeded, status.generations) == (7, 7, 2)
    after = rows(spec)
    assert {key: after[key] for key in before} == before
    assert verdict(spec).ok


def test_extend_refuses_an_id_seen_before(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=4).parent)
    local(spec)
    make_manifest(rows=2, first=3, name="second.parquet")
    with pytest.raises(ManifestError, match=r"second.parquet row 0: id 'row-0003' was already planned"):
        local(spec, extend=True)


def test_failed_rows_are_listed_and_the_rest_goes_on(make_spec, make_manifest):
    prompts = ["fine", "boom", "fine", "", "nan here", "x" * 100_000, "fine", "fine"]
    spec = make_spec(make_manifest(prompt=prompts), max_failure_ratio=0.6)
    status = local(spec)
    assert (status.succeeded, status.failed) == (4, 4)
    found = verdict(spec)
    assert (found.ok, found.succeeded, found.failed) == (True, 4, 4)
    import pyarrow.parquet as pq

    storage = open_storage(spec.output)
    errors = {}
    for info in storage.list(layout.ERRORS_PREFIX):
        table = pq.read_table(storage.locate(info.key))
        assert table.column_names == ["id", "error_type", "error_message", "attempts"]
        errors |= {row["id"]: row for row in table.to_pylist()}
    assert errors["row-0001"]["error_type"] == "ValueError"
    assert errors["row-0001"]["attempts"] == 2
    assert errors["row-0003"]["error_message"] == "prompt: must not be empty"
    assert errors["row-0004"]["error_type"] == "NotFinite"
    assert "at most 2000 characters, got 100000" in errors["row-0005"]["error_message"]


def test_a_shard_without_a_success_is_still_a_commit(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=3, prompt=["boom"] * 3), max_failure_ratio=1.0)
    assert local(spec).failed == 3
    assert verdict(spec).ok


def test_retry_failed_makes_them_good(make_spec, make_manifest, tmp_path):
    prompts = ["fine", f"flaky:{tmp_path}/a", "fine", "boom", f"flaky:{tmp_path}/b"]
    manifest = make_manifest(rows=5, prompt=prompts)
    spec = make_spec(manifest, max_failure_ratio=1.0, row_attempts=1, batch_size=1)
    assert local(spec).failed == 3
    status = local(spec, retry=True)
    assert (status.planned, status.succeeded) == (5, 4)
    assert verdict(spec).failed == 1
    assert local(spec, retry=True).generations == 3
    assert local(spec).generations == 3
    assert verdict(spec).ok


def test_rows_that_fail_again_do_not_stop_a_retry(make_spec, make_manifest):
    prompts = ["boom" if i % 20 == 0 else "fine" for i in range(60)]
    spec = make_spec(make_manifest(rows=60, prompt=prompts), shard_rows=1)
    assert local(spec).failed == 3
    status = local(spec, retry=True)
    assert (status.failed, status.complete, status.generations) == (3, True, 2)


def test_a_failed_attempt_is_let_go_before_the_next(make_spec):
    """What the failed attempt held must be free when smaller batches are tried: on a GPU it is the memory."""
    import weakref

    class OutOfMemoryError(RuntimeError):
        pass

    class Tensor:
        pass

    class Hungry(standin.StandIn):
        held: ClassVar[list] = []
        alive: ClassVar[list] = []

        def generate(self, rows):
            self.alive.append(sum(ref() is not None for ref in self.held))
            tensor = Tensor()
            self.held.append(weakref.ref(tensor))
            if len(rows) > 1:
                raise OutOfMemoryError("CUDA out of memory")
            return super().generate(rows)

    assert run(make_spec(batch_size=4), local=True, load=lambda recipe, device, size: Hungry(size)).complete
    assert set(Hungry.alive) == {0}


def test_a_lost_gpu_fails_no_rows(make_spec):
    class Broken(standin.StandIn):
        def generate(self, rows):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    spec = make_spec()
    with pytest.raises(DeviceLostError, match="fails for good"):
        run(spec, local=True, load=lambda recipe, device, size: Broken(size))
    assert verdict(spec).failed == 0


def test_a_passing_storage_error_is_tried_again(make_spec, monkeypatch):
    from stereo_jobs.workers import worker

    real, calls = worker.commit, []

    def unsteady(*args):
        calls.append(args)
        if len(calls) == 1:
            raise StorageUnavailableError("s3://x: SlowDown")
        return real(*args)

    monkeypatch.setattr(worker, "commit", unsteady)
    assert local(make_spec()).complete
    assert len(calls) == 4


def test_a_run_ends_in_time_and_the_next_goes_on(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=60, prompt=["slow"] * 60))
    started = time.monotonic()
    with pytest.raises(InterruptedRunError, match="run again to go on") as end:
        local(spec, max_hours=4 / 3600)
    assert end.value.exit_code == 75
    assert 2 < time.monotonic() - started < 4 + 2, (
        "half of a short time is for dispatching; two seconds for a busy machine"
    )
    found = verdict(spec)
    assert found.missing > 0
    assert found.duplicated == found.failed == 0
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(standin.time, "sleep", lambda seconds: None)
        assert local(spec).succeeded == 60


def test_a_shard_that_would_take_longer_than_the_limit_is_left_in_time(make_spec, make_manifest):
    """Though `drain_timeout_s` alone would be more than the run may take."""
    spec = make_spec(make_manifest(rows=60, prompt=["slow"] * 60), shard_rows=60, drain_timeout_s=30)
    started = time.monotonic()
    with pytest.raises(InterruptedRunError):
        local(spec, max_hours=4 / 3600)
    assert time.monotonic() - started < 4 + 2


def test_a_shard_that_a_run_leaves_is_counted_as_wasted(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=60, prompt=["slow"] * 60), shard_rows=60, drain_timeout_s=0)
    with pytest.raises(InterruptedRunError):
        local(spec, max_hours=2 / 3600)
    storage = open_storage(spec.output)
    assert 0.5 < progress.totals(storage, load_job(storage)).wasted_seconds < 60


def test_a_worker_waits_for_a_store_that_is_away_when_it_begins(make_spec, monkeypatch):
    spec = make_spec()
    real, asked = LocalStorage.exists, []

    def unsteady(self, key):
        asked.append(key)
        if len(asked) <= 2:
            raise StorageUnavailableError("s3://x: SlowDown")
        return real(self, key)

    prepared(spec)
    monkeypatch.setattr(LocalStorage, "exists", unsteady)
    ShardWorker(spec, resolve_recipe(spec.recipe), standin.load)
    assert asked == [layout.plan(0)] * 3
    monkeypatch.setattr(LocalStorage, "exists", lambda self, key: unsteady(asked.clear(), key))
    brief = spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"start_timeout_s": 2.0})})
    with pytest.raises(StorageUnavailableError):
        ShardWorker(brief, resolve_recipe(spec.recipe), standin.load)


def test_too_many_failures_stop_early_and_keep_what_there_is(make_spec, make_manifest):
    prompts = ["fine"] * 3 + ["boom"] * 57
    spec = make_spec(make_manifest(rows=60, prompt=prompts), max_failure_ratio=0.1)
    with pytest.raises(TooManyFailuresError, match="max_failure_ratio"):
        local(spec)
    found = verdict(spec)
    assert found.succeeded == 3
    assert found.missing > 0


def test_variants_multiply_rows_and_share_the_left(make_spec, make_manifest):
    recipe = {"variants": {"seeds": 2, "scale_percent": [4, 8, 12]}}
    spec = make_spec(make_manifest(rows=3), recipe=recipe)
    assert local(spec).planned == 18
    made = rows(spec)
    assert verdict(spec).ok
    assert [made[f"row-0000~{k}"]["scale_percent"] for k in range(6)] == [4, 8, 12, 4, 8, 12]
    seeds = [made[f"row-0000~{k}"]["seed"] for k in range(6)]
    assert len(set(seeds[:3])) == len(set(seeds[3:])) == 1
    assert seeds[0] != seeds[3]
    assert made["row-0000~0"]["left"]["bytes"] == made["row-0000~2"]["left"]["bytes"]


def test_further_columns_are_carried_through(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=2, label=["x", None], tags=[["a"], ["b", "c"]], seed=[7, None]))
    local(spec)
    made = rows(spec)
    assert made["row-0001"]["src_tags"] == ["b", "c"]
    assert [row["src_label"] for row in made.values()] == ["x", None]
    assert made["row-0000"]["seed"] == 7


def test_gpu_memory_running_out_halves_the_batch(make_spec):
    class OutOfMemoryError(RuntimeError):
        pass

    class Hungry(standin.StandIn):
        def generate(self, rows):
            if len(rows) > 1:
                raise OutOfMemoryError("CUDA out of memory")
            return super().generate(rows)

    spec = make_spec(batch_size=4)
    assert run(spec, local=True, load=lambda recipe, device, size: Hungry(size)).succeeded == 8


def test_on_a_cpu_a_batch_size_of_auto_is_one(make_spec):
    class Counting(standin.StandIn):
        sizes: ClassVar[list] = []

        def generate(self, rows):
            self.sizes.append((self.batch_size, len(rows)))
            return super().generate(rows)

    spec = make_spec(batch_size="auto")
    assert run(spec, local=True, load=lambda recipe, device, size: Counting(size)).succeeded == 8
    assert Counting.sizes == [(1, 1)] * 8


@pytest.mark.parametrize("compiles", [True, False])
def test_networks_are_compiled_once_where_the_spec_asks_for_it(make_spec, compiles):
    compiled = []

    class Compiled(standin.StandIn):
        def compile(self):
            compiled.append(threading.current_thread().name)

    spec = make_spec(compile=compiles)
    assert run(spec, local=True, load=lambda recipe, device, size: Compiled(size)).succeeded == 8
    assert len(compiled) == compiles
    assert all(name.startswith("model") for name in compiled)


def test_a_batch_size_that_was_halved_grows_back(make_spec, make_manifest):
    """One batch finds no memory; soon others are as large again as the spec asks for."""

    class OutOfMemoryError(RuntimeError):
        pass

    class Hungry(standin.StandIn):
        sizes: ClassVar[list] = []

        def generate(self, rows):
            self.sizes.append(self.batch_size)
            if len(self.sizes) == 1:
                raise OutOfMemoryError("CUDA out of memory")
            return super().generate(rows)

    spec = make_spec(make_manifest(rows=40), batch_size=4, shard_rows=20)
    assert run(spec, local=True, load=lambda recipe, device, size: Hungry(size)).succeeded == 40
    assert Hungry.sizes == [4] + [2] * 8 + [4] * 6
