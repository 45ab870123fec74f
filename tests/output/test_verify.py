"""`verify` sees what is missing, doubled, broken or strange."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.output.verify import VerifyReport, _names
from stereo_jobs.run.driver import run
from tests import standin
from tests.datasets import rows, verdict


@pytest.fixture
def spec(make_spec):
    spec = make_spec()
    run(spec, local=True, load=standin.load)
    return spec


def test_a_whole_dataset_is_ok_even_without_its_manifest(spec):
    from pathlib import Path

    Path(spec.manifest).unlink()
    found = verdict(spec)
    assert found.as_json() == {
        "planned": 8,
        "succeeded": 8,
        "failed": 0,
        "rejected": 0,
        "missing": 0,
        "duplicated": 0,
        "corrupt": 0,
        "problems": [],
        "ok": True,
    }


def test_a_lost_ids_file_is_made_up_for_from_the_manifest(spec):
    (open_storage(spec.output).root / layout.ids(0)).unlink()
    assert verdict(spec).ok


def test_a_lost_object_is_missing(spec):
    (open_storage(spec.output).root / layout.data((0, 1))).unlink()
    found = verdict(spec)
    assert (found.ok, found.missing, found.corrupt) == (False, 3, 1)
    assert "recorded as committed, but gone" in found.problems[0]


def test_a_lost_object_is_made_again_and_its_record_follows(spec, make_spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).unlink()
    assert run(spec, local=True, load=standin.load).complete
    found = verdict(spec)
    assert found.ok, found.problems


def test_an_unfinished_job_is_not_ok(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).unlink()
    (root / layout.record((0, 1))).unlink()
    found = verdict(spec)
    assert (found.ok, found.missing, found.corrupt) == (False, 3, 0)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(spec, at):
    path = open_storage(spec.output).root / layout.data((0, 0))
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    assert verdict(spec).corrupt == 1


def test_a_truncated_object_is_found(spec):
    path = open_storage(spec.output).root / layout.data((0, 0))
    path.write_bytes(path.read_bytes()[:-100])
    found = verdict(spec)
    assert (found.corrupt, found.missing) == (1, 3)


def test_an_object_under_another_shards_name_is_found(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 1))).write_bytes((root / layout.data((0, 0))).read_bytes())
    assert verdict(spec).corrupt == 1


def test_an_object_that_no_plan_knows_is_found(spec):
    root = open_storage(spec.output).root
    (root / layout.data((0, 77))).write_bytes((root / layout.data((0, 0))).read_bytes())
    assert "no plan has this shard" in verdict(spec).problems[0]


# --- Each problem has a remedy, and it works ---


def change(spec, shard, *, ids=None, record=None, keep_record=False):
    """Write a shard anew with other ids, or another record in its footer; the object alone is valid."""
    root = open_storage(spec.output).root
    path = root / layout.data((0, shard))
    table = pq.read_table(path)
    if ids:
        table = table.set_column(0, "id", pa.array([ids.get(i, i) for i in table["id"].to_pylist()]))
    if record:
        metadata = dict(table.schema.metadata)
        footer = json.loads(metadata[b"stereo_jobs"])
        footer["record"].update(record)
        metadata[b"stereo_jobs"] = json.dumps(footer).encode()
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path)
    if not keep_record:
        (root / layout.record((0, shard))).unlink()


def cut(path, *, to):
    path.write_bytes(path.read_bytes()[:to])


DATA, RECORD = layout.data((0, 1)), layout.record((0, 1))
FIRST = layout.data((0, 0))
AGAIN = "move it away and run again: it is then made again"
PROBLEMS = {
    "shard gone": (
        lambda root, spec: (root / DATA).unlink(),
        rf"{DATA}: recorded as committed, but gone; restore it, or run again: it is then made again",
    ),
    "shard and record gone": (
        lambda root, spec: [(root / name).unlink() for name in (DATA, RECORD)],
        r"3 planned rows are neither in data/ nor among the failed rows; run again: they are then made",
    ),
    "shard empty": (lambda root, spec: cut(root / DATA, to=0), rf"{DATA}: damaged \(.*\); {AGAIN}"),
    "shard cut off": (lambda root, spec: cut(root / DATA, to=-100), rf"{DATA}: damaged \(.*\); {AGAIN}"),
    "shard under another name": (
        lambda root, spec: (root / DATA).write_bytes((root / FIRST).read_bytes()),
        rf"{DATA}: belongs to another plan; {AGAIN}",
    ),
    "shard of another plan": (
        lambda root, spec: change(spec, 1, record={"fingerprint": "0" * 64}),
        rf"{DATA}: belongs to another plan; {AGAIN}",
    ),
    "counts in the footer": (
        lambda root, spec: change(spec, 1, record={"succeeded": 2, "failed": 1}),
        rf"{DATA}: its rows differ from the counts in its footer; {AGAIN}",
    ),
    "other bytes": (
        lambda root, spec: change(spec, 1, ids={"none": "none"}, keep_record=True),
        rf"{DATA}: its checksum differs from the one in its record; {AGAIN}",
    ),
    "no id": (
        lambda root, spec: change(spec, 1, ids={"row-0003": "row-0003~x"}),
        rf"{DATA}: .*; {AGAIN}",
    ),
    "record damaged": (lambda root, spec: cut(root / RECORD, to=20), rf"{RECORD}: damaged \(.*\); {AGAIN}"),
    "record of another shard": (
        lambda root, spec: (root / RECORD).write_bytes((root / layout.record((0, 0))).read_bytes()),
        rf"{RECORD}: damaged \(it is of shard 0-0\); {AGAIN}",
    ),
    "unknown shard": (
        lambda root, spec: shutil.copy(root / FIRST, root / layout.data((0, 77))),
        rf"{layout.data((0, 77))}: no plan has this shard; move away what has its name",
    ),
    "unknown record": (
        lambda root, spec: shutil.copy(root / RECORD, root / layout.record((3, 1))),
        rf"{layout.record((3, 1))}: no plan has this shard; move away what has its name",
    ),
    "unknown shard with a record": (
        lambda root, spec: [
            shutil.copy(root / FIRST, root / layout.data((0, 77))),
            shutil.copy(root / RECORD, root / layout.record((0, 77))),
        ],
        rf"{layout.data((0, 77))} and {layout.record((0, 77))}: no plan has this shard; move away what has its name",
    ),
    "rows doubled": (
        lambda root, spec: change(spec, 1, ids={"row-0003": "row-0000"}),
        rf"1 rows are in data/ more than once, in {FIRST}, {DATA}; move all these objects away and run again: .*",
    ),
    "rows never planned": (
        lambda root, spec: change(spec, 1, ids={"row-0003": "stranger"}),
        rf"1 rows were never planned, in {DATA}; move all these objects away and run again: they are then made again",
    ),
}


def follow(spec, problems, backup):
    """Do what the problems say, and nothing else."""
    root = open_storage(spec.output).root
    text = "\n".join(problems)
    for problem in problems:
        named = re.findall(r"(?:data|_job)/[\w./-]+\.(?:parquet|json)", problem)
        assert re.search("; (move|restore|run|do first|rows of a retry)", problem), problem
        if "restore it from a backup" in problem:
            for name in named:
                shutil.copy(backup / name, root / name)
        elif "; move" in problem:
            for name in named:
                (root / name).unlink(missing_ok=True)
        for first, last in re.findall(r"every object of generations? (\d+)(?: to (\d+))?", problem):
            for path in [*root.glob("data/*"), *root.glob("_job/**/*")]:
                number = re.search(r"(?:^|-)(\d{4})(?=[-.]|$)", path.name)
                if number and first <= number[1] <= (last or first):
                    path.unlink()
    if "run again" in text or "restore" in text:
        run(spec, local=True, load=standin.load, extend="--extend" in text)
    if "retry-failed" in text:
        run(spec, local=True, load=standin.load, retry=True)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_problem_names_a_remedy_that_works(spec, kind, command_line, capsys):
    damage, words = PROBLEMS[kind]
    expected = rows(spec)
    damage(open_storage(spec.output).root, spec)
    found = verdict(spec)
    assert any(re.fullmatch(words, problem) for problem in found.problems), found.problems
    assert not found.ok
    code, said, _ = command_line(capsys, "verify", spec.output)
    assert (code, [line.strip() for line in said.splitlines()[1:]]) == (4, found.problems)
    assert json.loads(command_line(capsys, "verify", spec.output, "--json")[1])["problems"] == found.problems
    follow(spec, found.problems, None)
    again = verdict(spec)
    assert again.ok, again.problems
    assert rows(spec) == expected


def test_the_remedy_of_a_damaged_plan_works(spec, command_line, capsys, tmp_path):
    root = open_storage(spec.output).root
    shutil.copytree(root, tmp_path / "backup")
    cut(root / layout.plan(0), to=30)
    code, said, _ = command_line(capsys, "verify", spec.output)
    assert code == 4
    [problem] = said.splitlines()[1:]
    assert problem.endswith("; restore it from a backup, or choose another output")
    follow(spec, [problem.strip()], tmp_path / "backup")
    assert verdict(spec).ok


@pytest.mark.parametrize("later", [False, True])
def test_the_remedy_of_rows_that_a_retry_and_a_shard_made_again_both_have_works(make_spec, make_manifest, later):
    """The first shard had a failed row, which a retry made; then the shard was lost, and made again without failure."""
    flag = make_manifest().parent / "flag"
    make_manifest(1, "prompts.parquet", prompt=[f"flaky:{flag} a star"])
    spec = make_spec(str(flag.parent), row_attempts=1, max_failure_ratio=1.0)
    run(spec, local=True, load=standin.load)
    run(spec, local=True, load=standin.load, retry=True)
    if later:
        make_manifest(3, "more.parquet", first=50)
        run(spec, local=True, load=standin.load, extend=True)
    root = open_storage(spec.output).root
    (root / FIRST).unlink()
    run(spec, local=True, load=standin.load)
    found = verdict(spec)
    assert (found.duplicated, found.missing) == (1, 0)
    [problem] = found.problems
    assert problem.startswith(f"1 rows are in data/ more than once, in {FIRST}, {layout.data((1, 0))}; rows of a retry")
    assert ("every object of generations 0001 to 0002, in" if later else "object of generation 0001, in") in problem
    follow(spec, found.problems, None)
    assert verdict(spec).ok
    assert len(rows(spec)) == 1 + 3 * later


def test_a_hundred_objects_are_listed_and_then_the_rows():
    report = VerifyReport()
    for number in range(150):
        report.add_corrupt(f"object {number}")
    report.add_problem("rows")
    assert (report.corrupt, report.problems) == (150, [*(f"object {number}" for number in range(100)), "rows"])


def test_many_shards_are_not_all_named(spec):
    names = _names([(0, shard) for shard in range(9)])
    assert names.endswith(f"{layout.data((0, 4))} and 4 more")


def test_rows_doubled_across_shards_are_counted(spec):
    """Two objects that are valid in themselves, with one id in both: made here by hand."""
    import io
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    root = open_storage(spec.output).root
    first, second = (pq.read_table(root / layout.data((0, shard))) for shard in (0, 1))
    ids = second["id"].to_pylist()
    ids[0] = first["id"][0].as_py()
    doubled = second.set_column(0, "id", pa.array(ids))
    buffer = io.BytesIO()
    pq.write_table(doubled, buffer)
    (root / layout.data((0, 1))).write_bytes(buffer.getvalue())
    (root / layout.record((0, 1))).unlink()
    found = verdict(spec)
    assert (found.duplicated, found.missing) == (1, 1)
    assert json.dumps(found.as_json())
