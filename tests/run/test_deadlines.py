"""A row that is slow, or runs out of memory, at any stage costs itself: its shard is made, and the run ends well."""

import time

import pytest

from stereo_jobs.run.driver import run
from stereo_jobs.workers import reading, worker
from stereo_jobs.workers.timed_threads import TIMED_OUT
from tests import standin
from tests.datasets import failures, rows, verdict

CULPRIT = "row-0001"
TEXT = ("reading", "scoring and encoding")


def misbehaving(monkeypatch, stage, misbehave):
    """Let the culprit's reading or encoding misbehave."""
    if stage == "reading":
        plain = reading.to_row

        def to_row(cells, variant, recipe, wanted, inputs):
            if cells["id"] == CULPRIT and wanted:
                misbehave()
            return plain(cells, variant, recipe, (), inputs)

        monkeypatch.setattr(reading, "to_row", to_row)
        return standin.load_with_images
    encode = worker.encode

    def encode_unless_culprit(row, made, recipe):
        if row.id == CULPRIT:
            misbehave()
        return encode(row, made, recipe)

    monkeypatch.setattr(worker, "encode", encode_unless_culprit)
    return standin.load


def out_of_memory():
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 32000000000 bytes")


@pytest.mark.parametrize("stage", TEXT)
@pytest.mark.parametrize(
    ("misbehave", "kind"), [(lambda: time.sleep(60), TIMED_OUT), (out_of_memory, "MemoryError")], ids=["slow", "memory"]
)
def test_a_row_that_misbehaves_beside_the_models_costs_itself_alone(make_spec, monkeypatch, stage, misbehave, kind):
    spec = make_spec(batch_timeout_s=6.0, max_failure_ratio=0.5)
    load = misbehaving(monkeypatch, stage, misbehave)
    status = run(spec, local=True, load=load)
    assert (status.succeeded, status.failed, status.complete) == (7, 1, True)
    assert failures(spec) == {CULPRIT: kind}
    assert CULPRIT not in rows(spec)
    assert verdict(spec).ok
