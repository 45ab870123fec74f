"""Plans: arithmetic, duplicates, immutability; the roll-up of progress."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_jobs.data.manifest_files import ManifestFile
from stereo_jobs.data.storage import LocalStorage, open_storage
from stereo_jobs.errors import DriftError, InterruptedRunError, ManifestError
from stereo_jobs.output import layout, progress
from stereo_jobs.output import plan as plan_module
from stereo_jobs.output.id_hashes import find_duplicate, hash_ids
from stereo_jobs.output.plan import Job, Plan, publish, refuse_drift, retry_plan
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.run.driver import run
from stereo_jobs.spec import Recipe
from tests import standin
from tests.datasets import prepared as prepare


def plan_of(*rows: int, variants: int = 1, shard_rows: int = 4, **fields) -> Plan:
    files = tuple(ManifestFile(uri=f"f{i}", size=1, tag="t", rows=n) for i, n in enumerate(rows))
    fields = {"generation": 0, "recipe": {}, "carried": {}} | fields
    return Plan(files=files, variants=variants, shard_rows=shard_rows, **fields)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_shards_cover_every_pair_once_in_order(rows, variants, shard_rows):
    plan = plan_of(*rows, variants=variants, shard_rows=shard_rows)
    refs = [ref for shard in range(plan.shards) for ref in plan.refs(shard)]
    expected = [(f"f{i}", row, variant) for i, n in enumerate(rows) for row in range(n) for variant in range(variants)]
    assert refs == expected
    assert sum(plan.pairs_in(shard) for shard in range(plan.shards)) == plan.pairs == len(expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 7))
def test_rows_by_file_are_those_of_the_refs(rows, variants, shard_rows):
    plan = plan_of(*rows, variants=variants, shard_rows=shard_rows)
    for shard in range(plan.shards):
        found = plan.rows_by_file(shard)
        assert all(indices == sorted(set(indices)) for _, indices in found)
        assert all(file in plan.files for file, _ in found)
        assert {(file.uri, row) for file, indices in found for row in indices} == {r[:2] for r in plan.refs(shard)}


def test_a_retry_points_at_the_rows_that_still_fail(make_spec):
    first = plan_of(5, 5)
    second = plan_of(3, generation=1)
    spec = make_spec(shard_rows=2)
    retry = retry_plan(spec, Job((first, second)), {0: [1, 7], 1: [2]})
    assert [ref[:2] for shard in range(retry.shards) for ref in retry.refs(shard)] == [
        ("f0", 1),
        ("f1", 2),
        ("f0", 2),
    ]
    again = retry_plan(spec, Job((first, second, retry)), {0: [1, 7], 1: [2], 2: [1]})
    assert again.retry == (retry.retry[1],)
    assert retry_plan(spec, Job((first, second, retry)), {0: [1, 7], 1: [2]}) is None


def test_the_fingerprint_changes_with_every_part():
    plan = plan_of(5)
    others = [plan_of(6), plan_of(5, variants=2), plan_of(5, shard_rows=5), plan_of(5, recipe={"seed": 1})]
    assert len({p.fingerprint for p in [plan, *others]}) == 5


@given(st.lists(st.text(max_size=4), max_size=30))
def test_find_duplicate_agrees_with_a_dictionary(ids):
    seen: dict[str, int] = {}
    expected = None
    for position, value in enumerate(ids):
        if value in seen:
            expected = position
            break
        seen[value] = position
    hit = find_duplicate(hash_ids(pa.array(ids, pa.string())))
    assert (hit[1] if hit else None) == expected
    if hit:
        assert ids[hit[0]] == ids[hit[1]]


def test_a_duplicate_id_is_named_with_both_places(make_spec, make_manifest):
    make_manifest(rows=5, name="a.parquet")
    folder = make_manifest(rows=5, name="b.parquet", first=3).parent
    with pytest.raises(
        ManifestError, match=r"b\.parquet row 0: id 'row-0003' appears twice, first in .*a\.parquet row 3"
    ):
        prepare(make_spec(folder))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("MAX_PAIRS", r"8 rows of 3 variants are 24 pairs, and at most 7 can be planned at once"),
        ("MAX_SHARDS", r"24 pairs in shards of 3 are 8 shards, and at most 7 can be planned at once; raise runtime"),
    ],
)
def test_a_plan_too_large_to_carry_out_is_refused_before_its_ids_are_read(make_spec, monkeypatch, limit, words):
    monkeypatch.setattr(plan_module, limit, 7)
    monkeypatch.setattr(plan_module.manifest, "stream_ids", lambda *args: pytest.fail("ids were read"))
    with pytest.raises(ManifestError, match=words):
        prepare(make_spec(recipe={"variants": {"seeds": 3}}), publish=False)


def test_planning_stops_when_the_run_is_told_to(make_spec, tmp_path):
    answers = iter([False, True])
    with pytest.raises(InterruptedRunError, match="interrupted while the manifest was planned"):
        prepare(make_spec(), ended=lambda: next(answers))
    assert not (tmp_path / "out" / layout.plan(0)).exists()


def test_a_dry_run_checks_everything_and_writes_nothing(make_spec, tmp_path):
    job = prepare(make_spec(), publish=False).job
    assert job.pairs == 8
    assert not (tmp_path / "out").exists()


def test_two_that_plan_at_once_agree_or_one_is_refused(make_spec, make_manifest):
    spec = make_spec()
    storage, job, _ = prepare(spec)
    assert publish(storage, job.plans[0]).fingerprint == job.plans[0].fingerprint
    with pytest.raises(DriftError, match="another run has just planned"):
        publish(storage, plan_of(3))


def test_a_plan_from_before_an_optional_field_is_the_same_recipe():
    recipe = Recipe()
    older = recipe.canonical()
    del older["models"]["clip"], older["quality"]["min_clip"]
    job = Job((plan_of(3, recipe=older),))
    refuse_drift(job, recipe)
    with pytest.raises(DriftError, match=r'recipe\.models\.clip: null then, \{"path": "elsewhere/clip".* now'):
        refuse_drift(job, Recipe(models={"clip": {"path": "elsewhere/clip"}}))


def test_a_plan_from_before_a_field_had_its_default():
    recipe, later = Recipe(), ("disparity_scale", "disparity_encoding", "disparity_unknown", "resize_maps")
    older = recipe.canonical()
    for name in later:
        del older[name]
    job = Job((plan_of(3, recipe=older),))
    for scale in (None, 256, 1):  # what 16-bit PNGs and other integers were read by
        refuse_drift(job, Recipe(disparity_scale=scale))
    for changed in ({"disparity_scale": 100}, {"disparity_encoding": "foundation_stereo"}, {"resize_maps": "linear"}):
        name, value = next(iter(changed.items()))
        with pytest.raises(DriftError, match=rf"recipe\.{name}: .* then, \"?{value}"):
            refuse_drift(job, Recipe(**changed))
    begun = Job((plan_of(3, recipe=recipe.canonical()),))
    with pytest.raises(DriftError, match=r"recipe\.disparity_scale: null then, 256"):
        refuse_drift(begun, Recipe(disparity_scale=256))


def test_ids_of_a_planner_that_lost_are_not_believed(make_spec, make_manifest, tmp_path):
    """A run that died between ids and plan leaves ids that belong to no plan."""
    first = make_manifest(rows=4)
    other = prepare(make_spec(make_manifest(rows=2, name="z.parquet", first=90), str(tmp_path / "other")))
    spec = make_spec(first.parent / "prompts.parquet")
    storage, _, _ = prepare(spec)
    storage.replace(layout.ids(0), other.storage.read(layout.ids(0)))
    make_manifest(rows=2, name="later.parquet", first=3)
    with pytest.raises(ManifestError, match="already planned"):
        prepare(make_spec(first.parent), extend=True)


def test_a_million_shards_roll_up_into_kilobytes(tmp_path):
    sums = progress.Totals(shards=ShardSet((0, i) for i in range(100_000)))
    storage = LocalStorage(tmp_path)
    progress.save(storage, sums)
    assert storage.size(layout.PROGRESS) < 5000


def test_status_reads_records_with_and_without_the_roll_up(make_spec):
    spec = make_spec()
    done = run(spec, local=True, load=standin.load)
    storage, job, _ = prepare(spec)
    assert progress.status(job, progress.totals(storage, job)) == done
    (storage.root / layout.PROGRESS).write_bytes(b"garbage")
    assert progress.status(job, progress.totals(storage, job)) == done
    assert open_storage(spec.output).exists(layout.success(0))


def test_hashes_of_ids_are_spread():
    hashes = hash_ids(pa.array([f"row-{i}" for i in range(1000)]))
    assert hashes.dtype == np.uint64
    assert len(np.unique(hashes[:, 0])) == len(np.unique(hashes[:, 1])) == 1000
