"""Manifests made from lines, tables and folders of images: ids, refusals, what is said."""

import gzip
import io
import json
import os
import re
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stereo_jobs.data.building.build import Options, build
from stereo_jobs.data.building.source import SourceFile
from stereo_jobs.data.manifest import inspect, stream_ids
from stereo_jobs.data.manifest_files import find
from stereo_jobs.data.row_groups import Cursor, RowGroups
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError, StorageError
from stereo_jobs.spec import Recipe, StorageSpec
from tests.data.building.helpers import LOCAL, build_and_plan, built


def test_lines_become_prompts_with_ids_of_the_file(tmp_path):
    source = tmp_path / "my prompts.txt"
    source.write_text("a red circle\n\n  a dünes Schiff \n", encoding="utf-8")
    assert built(source, tmp_path) == [
        {"id": "my_prompts-000000", "prompt": "a red circle"},
        {"id": "my_prompts-000001", "prompt": "a dünes Schiff"},
    ]


def test_a_built_manifest_passes_its_own_check(tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("one\ntwo\n")
    built(source, tmp_path)
    (uri,) = find([str(tmp_path)], LOCAL)
    file, carried = inspect(uri, Recipe(), LOCAL)
    assert (file.rows, len(carried)) == (2, 0)
    assert [i for ids in stream_ids(file, LOCAL) for i in ids.to_pylist()] == ["p-000000", "p-000001"]


def test_a_csv_keeps_its_columns_and_gets_text_ids(tmp_path):
    source = tmp_path / "p.csv"
    source.write_text('id,prompt,seed,scale_percent\n1,"a circle, red",7,4.5\n2,a square,8,6\n')
    assert built(source, tmp_path) == [
        {"id": "1", "prompt": "a circle, red", "seed": 7, "scale_percent": 4.5},
        {"id": "2", "prompt": "a square", "seed": 8, "scale_percent": 6.0},
    ]


def test_jsonl_without_ids_gets_some(tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_text("".join(json.dumps({"prompt": text, "n": i}) + "\n" for i, text in enumerate("ab")))
    assert built(source, tmp_path) == [
        {"id": "p-000000", "prompt": "a", "n": 0},
        {"id": "p-000001", "prompt": "b", "n": 1},
    ]


def test_a_folder_of_images_gives_clean_and_distinct_ids(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a b.png", "a?b.png", "a_b.jpg", ".hidden.png", "ü.png", "x" * 200 + ".png", "Ä.TIF"):
        Image.new("RGB", (2, 2)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    rows = built(folder, tmp_path)
    assert len(rows) == 6
    assert {"a_b", "a_b-2", "a_b-3", "x" * 150} <= {row["id"] for row in rows}
    assert all(Image.open(row["image"]).size == (2, 2) for row in rows)


def test_an_unknown_kind_is_refused(tmp_path):
    for name in ("p.xlsx", "p"):
        (tmp_path / name).write_text("x")
        with pytest.raises(ManifestError, match=r"must be a .txt, .csv, .tsv, .jsonl or .json file, .* or a folder"):
            build(tmp_path / name, f"{tmp_path}/out.parquet", LOCAL)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "has nothing in it"),
        ("p.txt", "\n  \n", "has nothing in it"),
        ("p.csv", "id,prompt\n", "has nothing in it"),
        ("p.csv", "", "cannot be read"),
        ("p.jsonl", "{broken", "cannot be read"),
        ("p.txt", b"\xff\xfe", "has nothing in it"),  # UTF-16
        ("p.txt", b"\xff\xfa", "line 1: not UTF-8"),
    ],
)
def test_an_empty_or_broken_source_is_refused(tmp_path, name, content, words):
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=words):
        build(source, f"{tmp_path}/out.parquet", LOCAL)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\na red circle\n", "neither a column 'prompt' nor 'image', but text; rename one"),
        (
            "Nr;Prompt;Note;\n1;a, b;x;\n",
            "but Nr, Prompt, Note; rename one, or name it with --prompt-column Prompt",
        ),
        ("Bild,IMAGE,text\na,b,c\n", "or name it with --image-column IMAGE"),
        ("key\tcaption\n1\ta\n", "but key, caption; rename one, or name it with --prompt-column or --image-column"),
        ("id,prompt\na,x\nb,y\na,z\n", "row 2: id 'a' appears twice; ids must differ"),
        ("id,prompt\na b,x\n", "row 0: id 'a b' must be"),
    ],
)
def test_a_table_no_plan_would_take_is_refused(tmp_path, content, words):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(ManifestError, match=re.escape(words)):
        build(tmp_path / "rows.csv", str(tmp_path / "rows.parquet"), LOCAL)
    assert not (tmp_path / "rows.parquet").exists()


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="has nothing in it"):
        build(tmp_path / "empty", f"{tmp_path}/out.parquet", LOCAL)
    with pytest.raises(ManifestError, match="no such file"):
        build(tmp_path / "gone.txt", f"{tmp_path}/out.parquet", LOCAL)


def test_an_existing_manifest_is_never_overwritten(tmp_path):
    source, target = tmp_path / "p.txt", tmp_path / "out.parquet"
    source.write_text("one\n")
    build(source, str(target), LOCAL)
    before = target.read_bytes()
    source.write_text("two\n")
    with pytest.raises(ManifestError, match="exists already; a planned manifest must not change, choose a new name"):
        build(source, str(target), LOCAL)
    assert target.read_bytes() == before


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "prompts.txt")
    with pytest.raises(ManifestError, match="not a regular file"):
        build(tmp_path / "prompts.txt", str(tmp_path / "m.parquet"), LOCAL)
    (tmp_path / "photos").mkdir()
    os.mkfifo(tmp_path / "photos/a.png")
    with pytest.raises(ManifestError, match=r"photos/a\.png: not a regular file"):
        build(tmp_path / "photos", str(tmp_path / "m.parquet"), LOCAL)


def test_column_names_stay_in_their_line(tmp_path):
    (tmp_path / "m.csv").write_text('"a\nerror: b",\x1b[31mc\n1,2\n')
    with pytest.raises(ManifestError) as caught:
        build(tmp_path / "m.csv", str(tmp_path / "m.parquet"), LOCAL)
    assert "but 'a\\nerror: b', '\\x1b[31mc'; rename one" in str(caught.value)


def test_names_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a\udcff.png").write_bytes(b"x")
    (tmp_path / "p.txt").write_text("a\n")
    for source, words in (("photos", "not UTF-8; rename it"), ("x" * 5000 + ".txt", "cannot be read")):
        with pytest.raises(ManifestError, match=words):
            build(tmp_path / source, str(tmp_path / "m.parquet"), LOCAL)
    for target in ("m\udcff.parquet", "x" * 5000, "~nobody-at-all/m.parquet", "file:m.parquet", "/proc/m.parquet"):
        with pytest.raises(StorageError):
            build(tmp_path / "p.txt", target, LOCAL)


def test_no_other_byte_of_its_rows_goes_unnoticed(tmp_path):
    """A store that alters bytes can give no other rows: each page of a built manifest has a checksum."""
    source = tmp_path / "p.csv"
    source.write_text("id,prompt\n" + "".join(f"row-{i},a red circle {i * 7919 % 1000}\n" for i in range(40)))
    build(source, str(tmp_path / "built.parquet"), LOCAL)
    content = (tmp_path / "built.parquet").read_bytes()

    def cells(data: bytes) -> list:
        file = RowGroups(pa.BufferReader(data))
        parts = [Cursor(file, 0, part).take(range(40)) for part in file.parts(0, ["id", "prompt"])]
        return [pa.Table.from_batches(part).to_pylist() for part in parts]

    whole = cells(content)
    assert len(whole[0]) == 40
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    noticed = 0
    for place in range(4, footer):
        try:
            assert cells(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]) == whole, place
        except (pa.ArrowException, OSError, ValueError):
            noticed += 1
    assert noticed > footer / 2


# --- Columns that are chosen, and ids that are made ---


def test_columns_of_other_names_are_chosen(tmp_path):
    (tmp_path / "p.csv").write_text("nr,text,note\n007,a red star,x\n008,a ball,y\n")
    assert built(tmp_path / "p.csv", tmp_path, id_from="nr", prompt_column="text") == [
        {"id": "007", "prompt": "a red star", "note": "x"},
        {"id": "008", "prompt": "a ball", "note": "y"},
    ]


def test_a_known_column_that_becomes_the_id_stays_what_it_is(tmp_path):
    (tmp_path / "p.csv").write_text("image,seed\na.png,4\nb.png,5\n")
    assert built(tmp_path / "p.csv", tmp_path, id_from="image") == [
        {"id": "a.png", "image": "a.png", "seed": 4},
        {"id": "b.png", "image": "b.png", "seed": 5},
    ]


def test_a_column_whose_place_another_takes_is_said(tmp_path):
    (tmp_path / "p.csv").write_text("id,key,prompt\nnot/valid,k1,a red star\n")
    made = build_and_plan(tmp_path / "p.csv", tmp_path / "m.parquet", id_from="key")
    assert [each.line() for each in made.left_out] == ["left out 1 column whose place another one was given: id"]


def test_a_chosen_column_that_is_not_there_is_named(tmp_path):
    (tmp_path / "p.csv").write_text("key,prompt\nk1,a red star\n")
    for options in ({"id_from": "kye"}, {"prompt_column": "kye"}, {"image_column": "kye"}):
        with pytest.raises(ManifestError, match="has no column 'kye', but key, prompt"):
            build(tmp_path / "p.csv", str(tmp_path / "m.parquet"), LOCAL, Options(**options))


def test_ids_from_content_follow_the_row_and_not_its_place(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\none\n")
    (tmp_path / "b.txt").write_text("zero\ntwo\none\none\n")
    first, second = (
        [(row["prompt"], row["id"]) for row in built(tmp_path / name, tmp_path, id_from="content")]
        for name in ("a.txt", "b.txt")
    )
    assert set(first) < set(second)
    ids = dict(first[:2])
    assert first[2][1] == ids["one"] + "-2"
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids.values())


def test_a_column_of_the_name_content_goes_first(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"content": "k1", "prompt": "a"}\n')
    assert built(tmp_path / "p.jsonl", tmp_path, id_from="content") == [{"id": "k1", "prompt": "a"}]


def test_numbers_of_ids_have_as_many_digits_as_the_last_one_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("stereo_jobs.data.building.rows.BATCH_ROWS", 3)
    (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(10)))
    assert [row["id"] for row in built(tmp_path / "p.txt", tmp_path)] == [f"p-{i:06d}" for i in range(10)]


def test_rows_that_will_fail_are_counted(tmp_path):
    (tmp_path / "p.csv").write_text(f"id,prompt\na,\nb, \nc,{'x' * 2001}\nd,fine\n")
    assert build_and_plan(tmp_path / "p.csv", tmp_path / "m.parquet").warnings == [
        "2 of 4 rows will fail: they have an empty prompt",
        "1 of 4 rows will fail: they have a prompt of more than 2000 characters",
    ]


# --- Files as systems and programs leave them ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["p.txt", "p.txt.gz"])
def test_text_of_any_system_is_read(tmp_path, end, encoding, name):
    data = end.join(["ein rotes Häus", "", "二つ"]).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert built(tmp_path / name, tmp_path) == [
        {"id": "p-000000", "prompt": "ein rotes Häus"},
        {"id": "p-000001", "prompt": "二つ"},
    ]


def test_the_line_that_is_no_text_is_named(tmp_path):
    for end in (b"\n", b"\r", b"\r\n"):
        (tmp_path / "p.txt").write_bytes(end.join([b"x" * 10_000, b"fine", b"un caf\xe9 rouge", b"fine"]))
        with pytest.raises(ManifestError, match=r"p\.txt line 3: not UTF-8; save the file as UTF-8"):
            built(tmp_path / "p.txt", tmp_path)


def test_a_damaged_gzip_is_one_line(tmp_path):
    whole = gzip.compress(b"one\ntwo\n" * 1000)
    for data in (b"one\n", whole[:-20], whole[:20] + b"\0\0\0\0" + whole[24:]):
        (tmp_path / "p.txt.gz").write_bytes(data)
        with pytest.raises(ManifestError, match=r"p\.txt\.gz: cannot be read"):
            built(tmp_path / "p.txt.gz", tmp_path)


def test_sources_on_s3_are_read_and_manifests_written_there(tmp_path, s3_server):
    place, settings = f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(endpoint_url=s3_server)
    storage = open_storage(place, settings)
    storage.create("p.csv", b"id,prompt\n01,a red star\n")
    storage.create("p.jsonl.gz", gzip.compress(b'{"prompt": "a"}'))
    pq.write_table(pa.table({"prompt": ["x"], "n": [1]}), tmp_path / "t.parquet")
    storage.create("tables/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for name in ("p.csv", "p.jsonl.gz", "tables/t.parquet", "tables", "tables/"):
        target = f"{place}/m/{name.replace('/', '-')}.parquet"
        assert build_and_plan(f"{place}/{name}", target, settings).rows == 1
        with pytest.raises(ManifestError, match="exists already"):
            build(f"{place}/{name}", target, settings)
    with pytest.raises(ManifestError, match="no such file"):
        build(f"{place}/gone.csv", f"{place}/m/gone.parquet", settings)


def test_text_on_s3_takes_few_requests(tmp_path, s3_server, monkeypatch):
    place, settings = f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(endpoint_url=s3_server)
    lines = "".join(f"prompt {i} {'x' * 1000}\n" for i in range(2000))
    open_storage(place, settings).create("p.txt", lines.encode())
    reads = []
    opened = SourceFile.open_for_arrow

    class Counted(io.RawIOBase):
        def __init__(self, file) -> None:
            self.file = file

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            reads.append(len(buffer))
            return self.file.readinto(buffer)

    monkeypatch.setattr(SourceFile, "open_for_arrow", lambda self: Counted(opened(self)))
    assert build(f"{place}/p.txt", str(tmp_path / "m.parquet"), settings).rows == 2000
    assert len(reads) <= 10
