"""Estimates: measured on the job's own rows, checked against arithmetic by hand, and nothing is written."""

import json
import time
from functools import partial

import pytest
import yaml

from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import SpecError, StereoJobsError
from stereo_jobs.output import progress
from stereo_jobs.output.plan import load_job
from stereo_jobs.run import estimate
from stereo_jobs.run.cost_model import Arithmetic
from stereo_jobs.run.driver import run
from stereo_jobs.run.estimate import Measurement, measure
from tests import standin
from tests.datasets import prepared

MEASURED = Measurement(
    device="Some GPU",
    batch_size=4,
    pairs=10,
    failures={},
    threads=2,
    load_s=100.0,
    warm_up_s=0.0,
    stages={"read": 1.0, "generate": 20.0, "encode": 5.0, "write": 1.0},
    slowest_batch_s=9.0,
    fastest_batch_s=7.0,
    cores=4,
    cpu_s=30.0,
    arithmetic=None,
    bytes=5_000_000,
    gpu_bytes=6_000_000_000,
    gpu_total_bytes=24_000_000_000,
    rss_bytes=3_000_000_000,
)


class Recorder(standin.StandIn):
    """Remembers which rows it was given; a pair takes a hundredth of a second."""

    seen: list[list[str]] = []  # noqa: RUF012

    def generate(self, rows):
        self.seen.append([row.id for row in rows])
        time.sleep(0.01 * len(rows))
        return super().generate(rows)


@pytest.fixture
def seen():
    Recorder.seen.clear()
    return Recorder.seen


def load_recorder(recipe, device, batch_size):
    return Recorder(batch_size)


def measured(spec, load=load_recorder) -> Measurement:
    _, job, recipe = prepared(spec, publish=False)
    return measure(spec, recipe, job.plans[0], load)


def status_of(spec, **options) -> progress.Status:
    storage, job, _ = prepared(spec, **options)
    return progress.status(job, progress.totals(storage, job))


# --- Measuring ---


def test_a_few_rows_from_all_over_the_job_and_the_output_untouched(make_spec, make_manifest, seen, tmp_path):
    spec = make_spec(make_manifest(rows=60), batch_size=2)
    found = measured(spec)
    assert seen == [
        ["row-0015", "row-0045"],
        ["row-0005", "row-0015"],
        ["row-0025", "row-0035"],
        ["row-0045", "row-0055"],
    ]
    assert (found.pairs, found.batch_size, found.device, found.gpu_bytes) == (6, 2, "cpu", None)
    assert found.stages.keys() == {"read", "generate", "encode", "write"}
    assert min(found.stages.values()) > 0
    assert found.stages["generate"] >= 0.06
    assert found.fastest_batch_s <= found.slowest_batch_s
    assert found.rss_bytes > 50e6
    assert not (tmp_path / "out").exists()


def test_bytes_are_those_of_the_real_run(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=48), batch_size=16, shard_rows=48)
    found = measured(spec, standin.load)
    assert found.pairs == 48
    assert found.bytes == pytest.approx(run(spec, local=True, load=standin.load).bytes, rel=0.01)


def test_scales_of_one_left_image_stay_together(make_spec, make_manifest, seen):
    scales = {"variants": {"seeds": 2, "scale_percent": [4, 6, 8]}}
    measured(make_spec(make_manifest(rows=9), batch_size=2, recipe=scales))
    assert [len(batch) for batch in seen] == [6, 6, 6, 6]
    for batch in seen:
        starts = [int(name.partition("~")[2] or 0) for name in batch]
        assert starts[1:3] == [starts[0] + 1, starts[0] + 2] and starts[0] % 3 == 0


def test_a_job_smaller_than_the_sample(make_spec, make_manifest, seen):
    assert measured(make_spec(make_manifest(rows=1), batch_size=4)).pairs == 1
    assert seen == [["row-0000"], ["row-0000"]]


def test_failed_rows_are_counted_by_type(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=6, prompt=["boom", "nan", "fine"] * 2), batch_size=2)
    found = measured(spec, standin.load)
    assert (found.pairs, found.failures) == (2, {"ValueError": 2, "NotFinite": 2})
    with pytest.raises(StereoJobsError, match=r"none of 6 rows could be made \(ValueError\).*row-\d+: boom in row"):
        measured(make_spec(make_manifest(rows=6, prompt=["boom"] * 6), batch_size=2), standin.load)


@pytest.mark.slow
def test_the_real_models(make_spec, make_manifest, one_thread):
    small = {"method": {"steps": 4}, "size": {"width": 64, "height": 64}}
    spec = make_spec(make_manifest(rows=8), recipe=small, device="cpu")
    _, job, recipe = prepared(spec, publish=False)
    found = estimate.measure_rows(spec, recipe, job.plans[0])
    assert found.pairs == 6
    assert found.stages["generate"] > found.stages["encode"] > 0
    # Four steps of a left view, with and without the prompt, and of the right view after the shift; a VAE pass or more.
    assert found.arithmetic.flops > 8 * found.arithmetic.unet_flops > 1e6
    assert 0 < found.arithmetic.share < 1


# --- Arithmetic ---


def test_hours_bytes_and_dollars(make_spec, make_manifest):
    status = status_of(make_spec(make_manifest(rows=1000), shard_rows=10), publish=False)
    found = estimate.estimate(MEASURED, status, gpus=4, gpus_per_actor=1.0, price_per_hour=1.8)
    # 100 shards of 10 pairs at 2 s on 4 GPUs: 25 rounds of 20 s after 100 s of loading.
    assert (found.pairs, found.shards, found.slowest) == (1000, 100, "generate")
    # The last four pairs, half a second each on two threads, and the write of their shard: 2 s.
    assert found.wall_s == pytest.approx(602)
    assert found.pairs_per_s == pytest.approx(2.0)
    assert found.gpu_hours == pytest.approx(4 * 602 / 3600)
    assert found.dollars == pytest.approx(4 * 602 / 3600 * 1.8)
    assert found.dollars_per_1000_pairs == found.dollars
    assert found.bytes == 500_000_000


def test_more_gpus_than_shards_cost_without_helping(make_spec, make_manifest):
    status = status_of(make_spec(make_manifest(rows=8), shard_rows=4), publish=False)
    two, eight = (estimate.estimate(MEASURED, status, gpus=n, gpus_per_actor=1.0) for n in (2, 8))
    assert eight.wall_s == two.wall_s == pytest.approx(110)
    assert eight.gpu_hours == pytest.approx(4 * two.gpu_hours)
    assert eight.pairs_per_s == two.pairs_per_s
    assert two.dollars is None


@pytest.mark.parametrize(("share", "wall_s"), [(0.5, 602), (1.0, 602), (2.0, 1102)])
def test_workers_that_share_a_gpu_gain_nothing(make_spec, make_manifest, share, wall_s):
    status = status_of(make_spec(make_manifest(rows=1000), shard_rows=10), publish=False)
    assert estimate.estimate(MEASURED, status, gpus=4, gpus_per_actor=share).wall_s == pytest.approx(wall_s)
    with pytest.raises(SpecError, match=r"a worker takes runtime\.gpus_per_actor = 8 of them, got 4"):
        estimate.estimate(MEASURED, status, gpus=4, gpus_per_actor=8)


@pytest.mark.parametrize(
    ("stage", "seconds", "slowest", "pair_s"),
    [("encode", 60.0, "encode", 3.0), ("write", 60.0, "read and write", 4.05), ("read", 5.0, "generate", 2.0)],
)
def test_the_slowest_stage_decides(stage, seconds, slowest, pair_s):
    found = Measurement(**vars(MEASURED) | {"stages": MEASURED.stages | {stage: seconds}})
    assert found.pair_s == pytest.approx(pair_s)
    assert max(found.bounds, key=found.bounds.get) == slowest


def test_all_threads_together_may_keep_the_cores_busy():
    one_core = Measurement(**vars(MEASURED) | {"cores": 1})
    assert one_core.pair_s == pytest.approx(3.0)
    assert (one_core.slowest, MEASURED.slowest) == ("processor", "generate")


def test_warming_up_and_the_last_pairs_are_paid_once(make_spec, make_manifest):
    status = status_of(make_spec(make_manifest(rows=1000), shard_rows=10), publish=False)
    slow = Measurement(**vars(MEASURED) | {"warm_up_s": 60.0, "stages": MEASURED.stages | {"write": 5.0}})
    assert slow.end_s == pytest.approx(6.0)
    assert estimate.estimate(slow, status, gpus=4, gpus_per_actor=1.0).wall_s == pytest.approx(600 + 66)


def test_another_gpu(make_spec, make_manifest):
    status = status_of(make_spec(make_manifest(rows=1000), shard_rows=10), publish=False)
    arithmetic = Arithmetic(flops=50e12, unet_flops=0.8e12, dtype="float16", peak=100e12, share=0.25)
    measured_here = Measurement(**vars(MEASURED) | {"arithmetic": arithmetic})
    found = estimate.estimate(measured_here, status, gpus=1, gpus_per_actor=1.0, gpu="A100")
    assert found.prediction.pair_s == pytest.approx(50 / 312 / 0.25)
    # Its models take 0.64 s a pair, the four cores for all of their work 0.75.
    assert (found.slowest, found.pairs_per_s) == ("processor", pytest.approx(4 / 3))
    on_a_cpu = Measurement(**vars(measured_here) | {"device": "cpu"})
    found = estimate.estimate(on_a_cpu, status, gpus=1, gpus_per_actor=1.0, gpu="A100")
    # The cores no longer run the models: 10 s of 30 are left, 0.25 a pair; the models take 0.48.
    assert (found.slowest, found.pairs_per_s) == ("generate", pytest.approx(312 / 150))
    with pytest.raises(SpecError, match=r"--gpu: the measured pairs ran neither U-Net nor VAE"):
        estimate.estimate(MEASURED, status, gpus=1, gpus_per_actor=1.0, gpu="A100")


def test_committed_shards_are_not_in_the_estimate(make_spec, make_manifest):
    spec = make_spec(make_manifest(rows=9), lease_ttl_s=0)
    run(spec, local=True, load=standin.load)
    make_manifest(rows=6, name="more.parquet", first=100)
    spec = spec.model_copy(update={"manifest": spec.manifest.rpartition("/")[0]})
    found = estimate.estimate(MEASURED, status_of(spec, extend=True, publish=False), gpus=1, gpus_per_actor=1.0)
    assert (found.pairs, found.shards) == (6, 2)


# --- The command line ---


@pytest.fixture
def stereo_jobs(command_line, capsys, monkeypatch):
    real = estimate.measure_rows
    monkeypatch.setattr(estimate, "measure_rows", lambda *parts: real(*parts, standin.load))
    return partial(command_line, capsys)


def test_plan_estimate(stereo_jobs, make_manifest, tmp_path):
    path = tmp_path / "job.yaml"
    spec = {"manifest": str(make_manifest(rows=64)), "output": str(tmp_path / "out"), "runtime": {"shard_rows": 8}}
    spec["recipe"] = {"quality": {"enabled": False}}
    path.write_text(yaml.safe_dump(spec))
    words = ["plan", path, "--estimate", "--gpus", 2, "--price-per-hour", 0.5]
    code, out, _ = stereo_jobs(*words)
    assert code == 0
    for text in ("nothing was written", "12 pairs", "64 pairs in 8 shards", "on 2 GPUs", "at $0.5 a GPU-hour"):
        assert text in out
    facts = json.loads(stereo_jobs(*words, "--json")[1])
    assert facts["written"] is False
    assert (facts["estimate"]["gpus"], facts["estimate"]["pairs"]) == (2, 64)
    assert facts["estimate"]["rehearsal"]["pairs"] == 12
    assert facts["estimate"]["dollars"] == pytest.approx(facts["estimate"]["gpu_hours"] * 0.5)
    assert not (tmp_path / "out").exists()


def test_plan_estimate_for_a_named_gpu(stereo_jobs, make_manifest, tmp_path, monkeypatch):
    arithmetic = Arithmetic(flops=50e12, unet_flops=0.8e12, dtype="float16", peak=9e10, share=0.8)
    monkeypatch.setattr(estimate, "_arithmetic", lambda *parts: arithmetic)
    path = tmp_path / "job.yaml"
    spec = {"manifest": str(make_manifest(rows=8)), "output": str(tmp_path / "out")}
    path.write_text(yaml.safe_dump(spec | {"recipe": {"quality": {"enabled": False}}}))
    code, out, _ = stereo_jobs("plan", path, "--estimate", "--gpu", "h100")
    words = " ".join(out.split())
    assert code == 0
    assert "50 TFLOP a pair, 800 GFLOP a U-Net evaluation, at 80% of the 90 GFLOP/s" in words
    assert "H100 0.152 s a pair in the models: 989 TFLOP/s published for float16, 33% of it (an assumption" in words
    facts = json.loads(stereo_jobs("plan", path, "--estimate", "--gpu", "h100", "--json")[1])["estimate"]
    assert facts["prediction"]["gpu"] == "H100"
    assert facts["pairs_per_s"] == pytest.approx(989 / 150)
    assert facts["rehearsal"]["arithmetic"]["flops"] == 50e12
    code, _, err = stereo_jobs("plan", path, "--estimate", "--gpu", "H900")
    assert (code, "the peak of 'H900' is not known; give one of T4" in err) == (2, True)


def test_a_finished_job_has_no_price(stereo_jobs, make_spec, tmp_path):
    spec = make_spec(lease_ttl_s=0)
    run(spec, local=True, load=standin.load)
    before = {info.key for info in open_storage(spec.output).list()}
    path = tmp_path / "job.json"
    path.write_text(spec.model_dump_json())
    code, _, err = stereo_jobs("plan", path, "--estimate")
    assert (code, "every planned row is done, so there is nothing to estimate" in err) == (2, True)
    assert {info.key for info in open_storage(spec.output).list()} == before
    assert len(load_job(open_storage(spec.output)).plans) == 1
