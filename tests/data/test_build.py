"""Manifests made from lines, tables and folders of images."""

import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stereo_jobs.data.build import build
from stereo_jobs.data.manifest import find, inspect, stream_ids
from stereo_jobs.data.row_groups import Cursor, RowGroups
from stereo_jobs.errors import ManifestError, StorageError
from stereo_jobs.records import valid_id
from stereo_jobs.spec import Recipe, StorageSpec

LOCAL = StorageSpec()


def built(source, tmp_path):
    target = tmp_path / "built.parquet"
    count = build(source, str(target), LOCAL)
    rows = pq.read_table(target).to_pylist()
    assert count == len(rows)
    assert all(valid_id(row["id"]) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    return rows


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
    assert len(rows) == 7
    assert {"a_b", "a_b-2", "a_b-3", "hidden", "x" * 150} <= {row["id"] for row in rows}
    assert all(Image.open(row["image"]).size == (2, 2) for row in rows)


def test_an_unknown_kind_is_refused(tmp_path):
    for name in ("p.xlsx", "p"):
        (tmp_path / name).write_text("x")
        with pytest.raises(ManifestError, match=r"must be a .txt, .csv or .jsonl file, or a folder of images"):
            build(tmp_path / name, f"{tmp_path}/out.parquet", LOCAL)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "has nothing in it"),
        ("p.txt", "\n  \n", "has nothing in it"),
        ("p.csv", "id,prompt\n", "has nothing in it"),
        ("p.csv", "", "cannot be read"),
        ("p.jsonl", "{broken", "cannot be read"),
        ("p.txt", b"\xff\xfe", "cannot be read"),
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
