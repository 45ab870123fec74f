"""Manifests as other tools write them, through whole runs: odd types, unequal files, folders, outputs inside them."""

import io
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stereo_jobs.data.arrow_types import named, plain
from stereo_jobs.data.storage import Storage, open_storage
from stereo_jobs.errors import ManifestError, StorageError
from stereo_jobs.output import layout
from stereo_jobs.output.plan import load_job
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, StorageSpec
from tests import standin
from tests.columns import TYPES, bits, columns, write
from tests.datasets import verdict


def local(spec: JobSpec, **options):
    return run(spec, local=True, load=standin.load, **options)


def dataset(spec: JobSpec) -> pa.Table:
    """All rows by id; shards must have one schema."""
    storage = open_storage(spec.output, spec.runtime.storage)
    shards = [storage.read(info.key) for info in storage.list(layout.DATA_PREFIX)]
    tables = [pq.ParquetFile(io.BytesIO(data)).read() for data in shards]
    assert len({str(table.schema.remove_metadata()) for table in tables}) == 1
    return pa.concat_tables(tables).sort_by("id") if tables else pa.table({})


def carried(spec: JobSpec) -> dict[str, list]:
    """Carried columns of a dataset, as plain values by name, in the order of ids."""
    table = dataset(spec)
    return {name[4:]: table[name].to_pylist() for name in table.column_names if name.startswith("src_")}


@pytest.fixture
def parts(tmp_path):
    """Writes files below one folder; ids and prompts are added to what they hold."""
    made: list[int] = []

    def write(name: str, table: dict | None = None, rows: int = 1) -> Path:
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"r{len(made) + i}" for i in range(rows)]
        made.extend(range(rows))
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "prompt": ids, **(table or {})}), path)
        return path

    return write


# --- Types ---


@given(st.data())
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # whole runs are too slow to shrink
)
def test_carried_cells_of_any_type_are_those_of_the_manifest(make_spec, tmp_path, data):
    """Two files, the second in another order and without some columns; a row that fails; shards across both."""
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    types = {f"c{i}": data.draw(TYPES) for i in range(5)}
    expected: dict[str, list] = {name: [] for name in types}
    for part, lacking in enumerate((set(), data.draw(st.sets(st.sampled_from(sorted(types)))))):
        ids = [f"r{part}-{i}" for i in range(4)]
        table = {"id": ids, "prompt": ["fine", "boom", "fine", "fine"]}
        for name, dtype in types.items():
            column = pa.nulls(4, plain(dtype)) if name in lacking else data.draw(columns(dtype, 4))
            expected[name] += [cell for i, cell in enumerate(bits(column)) if i != 1]
            if name not in lacking:
                table[name] = column
        names = sorted(table, reverse=bool(part))
        write(pa.table({name: table[name] for name in names}), folder / f"{part}.parquet")
    spec = make_spec(folder, output=str(folder / "out"), max_failure_ratio=0.5)
    status = local(spec)
    assert (status.succeeded, status.failed) == (6, 2)
    made = dataset(spec)
    assert {name: bits(made[f"src_{name}"]) for name in types} == expected
    assert {name: made.schema.field(f"src_{name}").type for name in types} == {
        name: plain(pq.ParquetFile(folder / "0.parquet").schema_arrow.field(name).type) for name in types
    }


# --- Unequal files ---


def test_files_may_differ_in_order_width_and_columns(make_spec, parts):
    first = parts("a.parquet", {"n": pa.array([1], pa.int8()), "note": pa.nulls(1), "box": [{"x": 1}]})
    parts("b.parquet", {"seed": [7], "note": pa.array(["b"]).dictionary_encode(), "n": [2**40], "only_b": [True]})
    parts("c.parquet", {"note": pa.array(["c"], pa.string_view()), "box": [{"y": "why", "x": 2}]})
    spec = make_spec(first.parent)
    assert local(spec).complete
    assert verdict(spec).ok
    assert carried(spec) == {
        "n": [1, 2**40, None],
        "note": [None, "b", "c"],
        "box": [{"x": 1, "y": None}, None, {"x": 2, "y": "why"}],
        "only_b": [None, True, None],
    }
    (plan,) = load_job(open_storage(spec.output)).plans
    assert plan.carried == named(plan.arrow_schema)
    assert plan.carried["n"] == "int64"


def test_a_conflict_names_both_files_the_column_and_the_types(make_spec, parts):
    first = parts("a.parquet", {"note": ["text"]})
    second = parts("b.parquet", {"note": [1]})
    words = f"manifest {second}: column 'note' is int64, but string in {first}; .* cast or drop it in one of them"
    with pytest.raises(ManifestError, match=words):
        local(make_spec(first.parent))


def test_an_extension_keeps_the_columns_of_the_dataset(make_spec, parts, caplog):
    spec = make_spec(parts("a.parquet", {"n": [1], "note": ["a"]}).parent)
    local(spec)
    parts("b.parquet", {"extra": [0.5], "n": pa.array([2], pa.int8())})
    assert local(spec, extend=True).complete
    assert f"column 'extra' of {spec.manifest}/b.parquet is left out" in caplog.text
    assert carried(spec) == {"n": [1, 2], "note": ["a", None]}
    wrong = parts("c.parquet", {"note": [3]})
    with pytest.raises(ManifestError, match=f"{wrong}: column 'note' is int64, and the dataset has it as string"):
        local(spec, extend=True)


@pytest.mark.parametrize("kept", [True, False])
def test_a_plan_of_an_older_version_is_extended(make_spec, parts, kept):
    """Such a plan has no schema: it is that of its first file, or, if that is gone, must be met to the letter."""
    first = parts("a.parquet", {"n": [1]})
    spec = make_spec(first.parent)
    local(spec)
    path = Path(spec.output, layout.plan(0))
    older = load_job(open_storage(spec.output)).plans[0].model_copy(update={"carried_schema": None})
    path.write_text(older.model_dump_json(exclude={"carried_schema"}))
    if not kept:
        first.unlink()
    second = parts("b.parquet", {"n": pa.array([2], pa.int64() if not kept else pa.int8())})
    assert local(spec, extend=True).complete
    assert carried(spec) == {"n": [1, 2]}
    parts("c.parquet", {"n": pa.array([3], pa.int8())})
    assert local(spec, extend=True).complete
    if not kept:
        older = load_job(open_storage(spec.output)).plans
        assert [plan.arrow_schema is None for plan in older] == [True, False, False]
    assert second.exists()


def test_a_damaged_schema_in_a_plan_is_refused(make_spec, parts):
    spec = make_spec(parts("a.parquet", {"n": [1]}).parent)
    local(spec)
    path = Path(spec.output, layout.plan(0))
    plan = load_job(open_storage(spec.output)).plans[0]
    for text in ("%", "AAAA", plan.carried_schema[:-8]):
        path.write_text(plan.model_copy(update={"carried_schema": text}).model_dump_json())
        with pytest.raises(StorageError, match="plan-0000"):
            load_job(open_storage(spec.output))
    path.write_text(plan.model_copy(update={"carried": {"n": "string"}}).model_dump_json())
    with pytest.raises(StorageError, match="carried_schema must have the columns and types of carried"):
        load_job(open_storage(spec.output))


# --- Folders ---


def test_folders_are_columns(make_spec, parts):
    folder = parts("split=train/day=1/a.parquet", {"n": [1]}).parents[2]
    parts("split=a%2Fb/day=__HIVE_DEFAULT_PARTITION__/b.parquet", {"n": [2]})
    parts("c.parquet", {"n": [3], "day": ["from the file"]})
    spec = make_spec(folder)
    assert local(spec).complete
    by_id = dict(zip(dataset(spec)["id"].to_pylist(), zip(*carried(spec).values(), strict=True), strict=True))
    assert list(carried(spec)) == ["n", "day", "split"]
    assert by_id == {"r0": (1, "1", "train"), "r1": (2, None, "a/b"), "r2": (3, "from the file", None)}
    (plan,) = load_job(open_storage(spec.output)).plans
    assert [file.partitions for file in plan.files] == [
        {},
        {"split": "a/b", "day": None},
        {"split": "train", "day": "1"},
    ]
    assert verdict(spec).ok


def test_a_plan_without_folders_has_the_form_and_fingerprint_of_before(make_spec):
    spec = make_spec()
    local(spec)
    (plan,) = load_job(open_storage(spec.output)).plans
    assert set(plan.model_dump()["files"][0]) == {"uri", "size", "tag", "rows"}
    without = plan.model_copy(update={"carried_schema": None})
    assert type(plan).model_validate(without.model_dump()).fingerprint == plan.fingerprint


def test_parts_without_rows_are_skipped(make_spec, parts, caplog):
    folder = parts("part-0.parquet", {"odd": pa.nulls(0)}, rows=0).parent
    with pytest.raises(ManifestError, match=r"part-0\.parquet: has no rows; add some, or leave the file out"):
        local(make_spec(folder))
    parts("part-1.parquet", {"note": ["x"]})
    spec = make_spec(folder)
    assert local(spec).succeeded == 1
    assert local(spec).complete
    assert carried(spec) == {"note": ["x"]}
    assert "--extend" not in caplog.text
    parts("part-2.parquet", rows=0)
    status = local(spec, extend=True)
    assert (status.complete, status.generations) == (True, 1)
    assert "part-2.parquet: has no rows; add some, or leave the file out; nothing is added to the job" in caplog.text


# --- Outputs inside the folder of a manifest ---


@pytest.fixture(params=["local", "s3"])
def shop(request, tmp_path) -> tuple[Storage, dict]:
    """A folder for everything, and the `runtime` with which it is read."""
    if request.param == "local":
        return open_storage(str(tmp_path / "all")), {}
    access = {"endpoint_url": request.getfixturevalue("s3_server")}
    return open_storage(f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(**access)), {"storage": access}


def manifest_bytes(*ids: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "prompt": list(ids)}), sink)
    return sink.getvalue()


@pytest.mark.parametrize("inside", ["out", "deep/out", "", "_out"])
def test_an_output_is_no_part_of_the_manifest_in_whose_folder_it_lies(make_spec, shop, caplog, inside):
    storage, runtime = shop
    storage.create("m.parquet", manifest_bytes("a", "b"))
    spec = make_spec(storage.uri, output=f"{storage.uri}/{inside}".rstrip("/"), **runtime)
    assert local(spec).succeeded == 2
    assert local(spec).complete
    assert caplog.text == ""
    storage.create("more.parquet", manifest_bytes("c"))
    other = make_spec(f"{storage.uri}/m.parquet", output=f"{storage.uri}/other", **runtime)
    assert local(other).succeeded == 2
    status = local(spec, extend=True)
    assert (status.planned, status.succeeded, status.generations) == (3, 3, 2)
    assert [
        [file.rows for file in plan.files] for plan in load_job(open_storage(spec.output, spec.runtime.storage)).plans
    ] == [[2], [1]]
    assert verdict(spec).ok
