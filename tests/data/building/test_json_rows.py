"""JSON lines and arrays: text stays text, numbers stay numbers, known columns get the type that a plan needs."""

import gzip
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.errors import ManifestError
from tests.data.building.helpers import built


def read(tmp_path, content, name="p.jsonl"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return built(tmp_path / name, tmp_path)


def test_dates_and_numbers_stay_text_where_text_is_needed(tmp_path):
    content = '{"id": "2024-01-01", "prompt": "2024-01-02"}\n{"id": 1984, "prompt": 1e5}\n{"id": "x", "prompt": 2.50}'
    assert read(tmp_path, content) == [
        {"id": "2024-01-01", "prompt": "2024-01-02"},
        {"id": "1984", "prompt": "1e5"},
        {"id": "x", "prompt": "2.50"},
    ]


def test_columns_without_a_value_are_text(tmp_path):
    content = '{"prompt": "a", "negative_prompt": null, "seed": null, "x": null, "y": {"z": [null]}}\n'
    assert read(tmp_path, content * 2)[1]["y"] == {"z": [None]}
    schema = pq.read_schema(tmp_path / "built.parquet")
    assert [str(field.type) for field in schema] == [
        *["string"] * 3,
        *["int64", "string", "struct<z: list<element: string>>"],
    ]


def test_numbers_as_text_become_numbers_where_they_are_needed(tmp_path):
    rows = read(tmp_path, '{"prompt": "a", "seed": "7", "scale_percent": "4.5"}\n{"prompt": "b", "seed": 8.0}\n')
    assert [(row["seed"], row["scale_percent"]) for row in rows] == [(7, 4.5), (8, None)]


def test_carried_values_keep_their_kind(tmp_path):
    values = {"n": 7, "f": 1.5, "t": "007", "day": "2024-01-01", "b": True, "l": [1, 2], "o": {"a": "x"}}
    (row,) = read(tmp_path, json.dumps({"prompt": "a", **values}))
    assert row == {"id": "p-000000", "prompt": "a", **values}


def test_kinds_may_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr("stereo_jobs.data.building.json_rows.BATCH_ROWS", 2)
    content = [{"prompt": "a"}] * 3 + [{"prompt": "b", "n": 1}] * 3 + [{"prompt": "c", "n": 1.5, "late": "x"}]
    rows = read(tmp_path, "\n".join(map(json.dumps, content)))
    assert [(row["n"], row["late"]) for row in rows] == [(None, None)] * 3 + [(1.0, None)] * 3 + [(1.5, "x")]


@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "p.jsonl.gz", "p.ndjson", "p.jsonl"])
def test_arrays_and_lines_of_any_name_are_read(tmp_path, name):
    objects = [{"id": "1", "prompt": "a\nb"}, {"id": "2", "prompt": "ü"}]
    for text in (json.dumps(objects, indent=2), "\r\n".join(map(json.dumps, objects)), "\ufeff" + json.dumps(objects)):
        data = text.encode()
        assert read(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name) == objects


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n{broken', r"p\.jsonl line 2: cannot be read \(column 2: Expecting"),
        ('{"prompt": "a"}\n[1]\n', r"p\.jsonl line 2: must be an object"),
        ('[{"prompt": "a"}, 7]', r"p\.jsonl element 1: must be an object"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' appears twice in an object"),
        ('{"prompt": ["a"]}', r"line 1: prompt: must be text, not \['a'\]; put it in quotes"),
        ('{"prompt": "a"}\n{"prompt": true}', r"line 2: prompt: must be text, not True"),
        ('{"prompt": "a", "n": 1}\n{"prompt": "a", "n": "x"}', r"line 2: n: is string here, but int64 before; write"),
        ('{"prompt": "a", "n": 99999999999999999999}', r"line 1: n: cannot be held in a column"),
        (
            '{"prompt": "a", "n": 9007199254740993}\n{"prompt": "a", "n": 0.5}',
            r"line 1: n: cannot be held in a column \(Integer value",
        ),
        ('{"prompt": "a", "seed": 1.5}', r"line 1: seed: must be a whole number below 2\*\*63, got '1.5'"),
        ('{"prompt": "\\ud800"}', r"line 1: prompt: half of a character"),
        ('{"prompt": "a", "x": {}}', "column 'x' holds empty objects only; drop it"),
        ('[{"prompt": "a"},\n{"prompt": }]', r"line 2: cannot be read \(column 12: Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "1" * 5000 + "}", "line 1: cannot be read"),
        ("[]", "has nothing in it"),
        ("", "has nothing in it"),
        (b'{"prompt": "\xe9"}', "line 1: not UTF-8"),
    ],
)
def test_what_no_plan_would_take_is_refused_by_its_line(tmp_path, content, words):
    with pytest.raises(ManifestError, match=words):
        read(tmp_path, content)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
WHOLE = st.integers(-(2**53), 2**53)
COLUMNS = st.sampled_from(
    [
        TEXT,
        WHOLE,
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.lists(WHOLE, max_size=3),
        st.fixed_dictionaries({"a": TEXT, "b": st.none() | WHOLE}),
        st.none(),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(COLUMNS, max_size=3), st.booleans(), st.booleans())
def test_any_rows_come_back_as_they_were_written(tmp_path_factory, data, columns, is_array, escaped):
    row = st.fixed_dictionaries(
        {"prompt": TEXT, "seed": st.none() | st.integers(0, 2**63 - 1)},
        optional={f"x{i}": st.none() | column for i, column in enumerate(columns)},
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    lines = [json.dumps(each, ensure_ascii=escaped) for each in rows]
    folder = tmp_path_factory.mktemp("json")
    found = read(folder, f"[{', '.join(lines)}]" if is_array else "\n".join(lines))
    names = dict.fromkeys(name for each in rows for name in each)
    for made, wanted in zip(found, rows, strict=True):
        assert made.pop("id").startswith("p-00000")
        assert made == {name: wanted.get(name) for name in names} | {"prompt": wanted["prompt"] or None}
