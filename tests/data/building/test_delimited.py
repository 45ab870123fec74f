"""CSV and TSV in all their dialects: what is built has the cells that the file has."""

import csv
import io

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.errors import ManifestError
from tests.data.building.helpers import build_and_plan, built


def table(tmp_path, content, name="p.csv", **options):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    return built(tmp_path / name, tmp_path, **options)


def refused(tmp_path, content, words, name="p.csv"):
    with pytest.raises(ManifestError, match=words):
        table(tmp_path, content, name)


# --- Text is text as it is written ---


@pytest.mark.parametrize("value", ["000123", "1e5", "01", "1", "2024-01-01", "1.0", "true", "NaN", "null", "0x1F"])
def test_text_keeps_its_characters(tmp_path, value):
    rows = table(tmp_path, f"id,prompt,negative_prompt,image,zip\n{value},{value},{value},{value},{value}\n")
    assert rows == [dict.fromkeys(("id", "prompt", "negative_prompt", "image", "zip"), value)]


def test_ids_that_are_one_number_are_two_texts(tmp_path):
    rows = table(tmp_path, "id,prompt,zip\n01,a red star,00501\n1,a blue ball,10001\n")
    assert [(row["id"], row["zip"]) for row in rows] == [("01", "00501"), ("1", "10001")]


def test_number_columns_are_numbers_with_nulls(tmp_path):
    rows = table(tmp_path, "id,prompt,seed,scale_percent,baseline\na,x,1,4.5,\nb,y,,NA,1e-3\nc,z,2.0,6, 7 \n")
    assert [tuple(row.values())[2:] for row in rows] == [(1, 4.5, None), (None, None, 0.001), (2, 6.0, 7.0)]


def test_columns_without_a_cell_have_the_type_that_a_plan_needs(tmp_path):
    table(tmp_path, "id,prompt,negative_prompt,note,seed,focal_px,mask\na,a red star,,,,,\nb,a ball,,,,,\n")
    schema = pq.read_schema(tmp_path / "built.parquet")
    assert [str(field.type) for field in schema] == ["string"] * 4 + ["int64", "double", "string"]
    cells = pq.ParquetFile(tmp_path / "built.parquet").read()
    assert (cells["negative_prompt"].null_count, cells["mask"].null_count) == (2, 2)


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("seed", "x", r"p\.csv line 3: seed: must be a number, got 'x'"),
        ("seed", "1.5", r"line 3: seed: must be a whole number below 2\*\*63, got '1.5'"),
        ("seed", "1e99", r"line 3: seed: must be a whole number"),
        ("seed", "1e999999999", r"line 3: seed: must be a whole number"),
        ("seed", "1_000", r"line 3: seed: must be a number"),
        ("scale_percent", '"4,5"', r"line 3: scale_percent: must be a number, got '4,5'; write it with a point"),
        ("focal_px", "inf", r"line 3: focal_px: must be a finite number"),
        ("focal_px", "1e999", r"line 3: focal_px: must be a finite number"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, column, cell, words):
    refused(tmp_path, f"prompt,{column}\na,1\nb,{cell}\n", words)


# --- Dialects ---


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_names_tell_the_separator(tmp_path, name, delimiter):
    content = f'prompt{delimiter}"no, te"\n"a; red, star|\t"{delimiter}"1,5"\n'
    if name == "p.tsv" and delimiter != "\t":
        return
    assert table(tmp_path, content, name) == [{"id": "p-000000", "prompt": "a; red, star|\t", "no, te": "1,5"}]


def test_excel_says_the_separator_in_a_line_before(tmp_path):
    assert table(tmp_path, "\ufeffsep=;\r\nid;prompt\r\n1;a, b\r\n") == [{"id": "1", "prompt": "a, b"}]
    refused(tmp_path, "sep=;\nid;prompt\n1;x\n2;y;z\n", "line 4: has 3 cells")


def test_the_separator_may_be_given(tmp_path):
    assert table(tmp_path, "id:prompt\n1:a\n", delimiter=":") == [{"id": "1", "prompt": "a"}]


def test_one_column_may_hold_any_separator_in_quotes(tmp_path):
    rows = table(tmp_path, 'prompt\n"a, b; c"\n')
    assert [row["prompt"] for row in rows] == ["a, b; c"]


def test_a_cell_may_be_large_and_have_lines(tmp_path):
    long = 'a line, of "text"\r\n' * 200_000
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("id", "prompt", "note"), ("a", "x", long), ("b", "y", "z")])
    rows = table(tmp_path, buffer.getvalue())
    assert [row["note"] for row in rows] == [long, "z"]


def test_nameless_columns_and_rows_without_a_cell_are_left_out_and_said(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt,,\na,a red star,,\n,,,\n\nb,a ball,,\n")
    made = build_and_plan(tmp_path / "p.csv", tmp_path / "m.parquet")
    assert [each.line() for each in made.left_out] == [
        "left out 2 columns without a name or a cell: column 3, column 4",
        "left out 1 row with no cell filled: line 3",
    ]
    assert pq.ParquetFile(tmp_path / "m.parquet").read().to_pylist() == [
        {"id": "a", "prompt": "a red star"},
        {"id": "b", "prompt": "a ball"},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,prompt,prompt\na,x,y\n", "column 'prompt' appears twice; rename or drop one"),
        ("id,prompt\na,x\nb,y,z\n", r"p\.csv line 3: has 3 cells, but the first row names 2 columns"),
        ('id,prompt\na,"x\ny"\nb\n', r"line 4: has 1 cells, but"),
        (b"id,prompt\na,un caf\xe9 rouge\n", r"line 2: not UTF-8; save the file as UTF-8"),
        ('id,prompt\na,x\nb,"y\nc,z\n', r"line 3: a quoted cell begins in this row and never ends"),
        ('id,prompt\na,"x"y\n', r"line 2: text follows the end of a quoted cell"),
        ("id,prompt,\na,x,y\n", r"line 2: column 3 has a cell, 'y', but no name"),
        ("\n\n", "it is empty; its first row must name the columns"),
    ],
)
def test_a_table_that_is_no_table_is_refused_by_its_line(tmp_path, content, words):
    refused(tmp_path, content, words)


CELL = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"', '""', "\n", "\r\n", ";", ",\t|", "01"]
)
ENDS, ENCODINGS = st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(",;\t|"), ENDS, ENCODINGS, st.booleans())
def test_any_dialect_gives_the_cells_that_were_written(tmp_path_factory, data, delimiter, end, encoding, quote_all):
    """The writer here is the rule itself: quotes are doubled, and what needs quotes has them."""
    names = ["id", "prompt", "negative_prompt", "note", "a,b;c"]
    texts = data.draw(st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=1, max_size=5))
    cells = [(f"0{i}", *rest) for i, rest in enumerate(texts)]

    def written(cell: str) -> str:
        needs = quote_all or cell != cell.strip() or any(each in cell for each in '",;\t|\r\n')
        return '"' + cell.replace('"', '""') + '"' if needs else cell

    content = end.join(delimiter.join(map(written, row)) for row in [names, *cells]) + end
    folder = tmp_path_factory.mktemp("csv")
    rows = table(folder, content.encode(encoding), "p.tsv" if delimiter == "\t" else "p.csv")
    assert [tuple(row.values()) for row in rows] == [(i, p or None, n or None, *rest) for i, p, n, *rest in cells]


def test_memory_holds_no_more_than_a_part_of_a_table(tmp_path, monkeypatch):
    """Rows become row groups as they are read."""
    monkeypatch.setattr("stereo_jobs.data.building.rows.BATCH_BYTES", 1000)
    rows = table(tmp_path, "id,prompt\n" + "".join(f"{i},{'x' * 100}\n" for i in range(100)))
    metadata = pq.read_metadata(tmp_path / "built.parquet")
    assert len(rows) == 100
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) <= 10
