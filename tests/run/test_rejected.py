"""Quality verdicts in a job: columns, records, status. Dropped pairs are not failures and are not retried."""

import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout, progress
from stereo_jobs.output.commits import read_records
from stereo_jobs.output.plan import load_job
from stereo_jobs.pipeline import scoring as curation
from stereo_jobs.records import QualitySummary
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import rows, verdict

BAD = ("row-0001", "row-0004", "row-0005")


@pytest.fixture
def fixed_verdicts(monkeypatch):
    """Three rows of eight are bad, whatever they look like."""

    def cells(pair, config):
        bad = pair.id in BAD
        return {"qc_epe": 5.0 if bad else 1.0, "accepted": not bad, "reject_reason": "matcher" if bad else None}

    monkeypatch.setattr(curation, "quality_cells", cells)


def local(spec, **options):
    return run(spec, local=True, load=standin.load, **options)


def quality(**options):
    return {"quality": {"enabled": True} | options}


def test_rejected_pairs_stay_marked(make_spec, fixed_verdicts):
    spec = make_spec(recipe=quality())
    status = local(spec)
    assert (status.succeeded, status.failed, status.rejected) == (8, 0, 0)
    made = rows(spec)
    assert {name for name, row in made.items() if not row["accepted"]} == set(BAD)
    assert made[BAD[0]]["reject_reason"] == "matcher"
    assert (status.quality.judged, status.quality.accepted, status.quality.reasons) == (8, 5, {"matcher": 3})
    assert status.quality.acceptance == 5 / 8
    assert status.quality.means["qc_epe"].mean == pytest.approx((5 * 1 + 3 * 5) / 8)
    found = verdict(spec)
    assert (found.ok, found.succeeded, found.rejected) == (True, 8, 0)


def test_dropped_pairs_are_listed_and_are_no_failures(make_spec, fixed_verdicts):
    spec = make_spec(recipe=quality(drop_rejected=True), max_failure_ratio=0.0)
    status = local(spec)
    assert (status.succeeded, status.failed, status.rejected, status.complete) == (5, 0, 3, True)
    assert set(rows(spec)).isdisjoint(BAD)
    assert status.quality.judged == 8
    found = verdict(spec)
    assert found.ok, found.problems
    assert (found.succeeded, found.failed, found.rejected, found.missing) == (5, 0, 3, 0)
    storage = open_storage(spec.output)
    records = list(read_records(storage, load_job(storage).shard_keys()))
    assert [(r.planned, r.succeeded, r.failed, r.rejected) for r in records] == [
        (3, 2, 0, 1),
        (3, 1, 0, 2),
        (2, 2, 0, 0),
    ]
    assert b"3 pairs were left out by quality control" in storage.read(layout.CARD)
    assert local(spec, retry=True).complete
    assert len(load_job(storage).plans) == 1, "nothing is worth a retry"
    assert progress.status(load_job(storage), progress.totals(storage, load_job(storage))) == status


def test_the_roll_up_keeps_the_verdicts(make_spec, fixed_verdicts):
    spec = make_spec(recipe=quality())
    status = local(spec)
    storage = open_storage(spec.output)
    job = load_job(storage)
    rolled_up = progress.status(job, progress.totals(storage, job))
    (storage.root / layout.PROGRESS).unlink()
    from_records = progress.status(job, progress.totals(storage, job))
    assert rolled_up == status
    assert from_records.quality.reasons == status.quality.reasons
    assert from_records.quality.means["qc_epe"].mean == pytest.approx(status.quality.means["qc_epe"].mean)


def test_a_retry_that_ends_in_a_rejection_settles_the_failure(make_spec, make_manifest, tmp_path, fixed_verdicts):
    manifest = make_manifest(rows=8, prompt=["a", f"flaky:{tmp_path}/x", *"abcdef"])
    spec = make_spec(manifest, recipe=quality(drop_rejected=True), row_attempts=1, batch_size=1, max_failure_ratio=0.5)
    assert (local(spec).failed, verdict(spec).failed) == (1, 1)
    status = local(spec, retry=True)
    assert (status.succeeded, status.failed, status.rejected) == (5, 0, 3)
    found = verdict(spec)
    assert (found.ok, found.succeeded, found.failed, found.rejected) == (True, 5, 0, 3)
    assert len(load_job(open_storage(spec.output)).plans) == 2
    local(spec, retry=True)
    assert len(load_job(open_storage(spec.output)).plans) == 2


def test_metrics_are_made_beside_any_generator(make_spec):
    """The stand-in draws noise: no matcher finds anything in it."""
    spec = make_spec(recipe=quality())
    status = local(spec)
    assert status.quality.accepted == 0
    for row in rows(spec).values():
        assert row["accepted"] is False
        assert row["reject_reason"]
        assert row["qc_hole_share"] > 0
        assert row["qc_backwarp_lpips"] is None, "too small for it"


def test_without_quality_control_nothing_is_judged(make_spec):
    spec = make_spec(recipe=quality(enabled=False))
    assert local(spec).quality == QualitySummary()
    assert all(row["accepted"] is None and row["qc_epe"] is None for row in rows(spec).values())


def test_thresholds_belong_to_the_recipe(make_spec, fixed_verdicts):
    from stereo_jobs.errors import DriftError

    spec = make_spec(recipe=quality())
    local(spec)
    with pytest.raises(DriftError, match=r"recipe\.quality\.max_seam"):
        local(make_spec(spec.manifest, recipe=quality(max_seam=None)))
