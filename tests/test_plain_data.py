"""YAML and JSON of people: plain data or a SpecError, soon, whatever is in it."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs import plain_data
from stereo_jobs.errors import SpecError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))

REFUSED = {
    "a date": ("a: 2024-02-30", "a date, which no field takes; put it in quotes"),
    "a real date": ("a: 2024-02-28", "a date"),
    "digits": (f"a: {'9' * 5000}", "a number of more than 100 characters at line 1"),
    "hexadecimal": (f"a: 0x{'f' * 5000}", "a number of more than 100"),
    "sexagesimal": (f"a: {'1:' * 5000}1", "a number of more than 100"),
    "digits in JSON": (json.dumps({"a": "X"}).replace('"X"', "9" * 200), "a number of more than 100"),
    "an empty number": ('a: !!int ""', "a value that is no int at line 1, column 4"),
    "a maybe": ("a: !!bool maybe", "a value that is no bool"),
    "infinity": ("a: .inf", "not finite"),
    "no number": ("a: .nan", "not finite"),
    "too large": ('{"a": 1e400}', "not finite"),
    "a mapping in itself": ("a: &a {b: *a}", "an alias inside of what it stands for"),
    "a list in itself": ("a: &a [*a]", "an alias inside of what it stands for"),
    "a merge of itself": ("a: &a {<<: *a}", "an alias inside of what it stands for"),
    "aliases of aliases": (BOMB, "more than 50000 values"),
    "merges of merges": (MERGE_BOMB, "more than 50000 values"),
    "a long text, often": (f"a: &a {'x' * 500_000}\nb: [{'*a, ' * 1000}]", "more than 50000 values"),
    "brackets": ("a: " + "[" * 3000 + "1" + "]" * 3000, "nested deeper than 50"),
    "braces": ('{"a": ' * 3000 + "1" + "}" * 3000, "nested deeper than 50"),
    "only brackets": ("[" * plain_data.MAX_BYTES, "nested deeper than 50"),
    "a key twice": ("a: 1\na: 2", "a key that the mapping has already; keep one of them at line 2"),
    "a key twice in JSON": ('{"a": 1, "a": 2}', "a key that the mapping has already"),
    "a list as key": ("? [a]\n: 1", "a key that is no text"),
    "a number as key": ("1: 2", "a key that is a number"),
    "a NUL": ("a: b\0c", "control characters are not allowed"),
    "bytes": ("a: '\udcff'", "not UTF-8"),
    "a Python object": ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "a set": ("a: !!set {x, y}", "a value of type set"),
    "binary": ("a: !!binary aGk=", "a value of type bytes"),
    "two documents": ("a: 1\n---\na: 2", "another document"),
    "a tab": ("a:\n\tb: 1", "found character that cannot start any token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_data_is_refused_in_one_line(name):
    text, words = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        plain_data.parse(text)
    said = str(caught.value)
    assert words in said
    assert len(said) < 300 and "\n" not in said


def test_aliases_and_merges_are_copied():
    found = plain_data.parse("a: &a {x: [1]}\nb: *a\nc:\n  <<: *a\n  y: 2\nd: &d {<<: *a, x: 3}\ne: {<<: *d}")
    assert found == {"a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [1], "y": 2}, "d": {"x": 3}, "e": {"x": 3}}
    assert found["a"] is not found["b"] and found["a"]["x"] is not found["c"]["x"]


def test_json_is_read_as_json():
    text = '{\n\t"a": "\\ud83d\\ude00 \\u2028\\u0085", "b": [1e3, true, null, "2024-02-30"]\n}'
    assert plain_data.parse(text) == json.loads(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        # Written as they are, YAML reads these as line breaks or not at all.
        | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_json_object_is_understood(value):
    assert plain_data.parse(json.dumps({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: '\xff'", "not UTF-8 at byte 4; save it as UTF-8"),
        ("a: 1".encode("utf-16"), "not UTF-8"),
        (b"#" * (plain_data.MAX_BYTES + 1), "more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, words):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words):
        plain_data.read_text(path)


def test_a_byte_order_mark_is_left_out_and_line_breaks_stay(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert plain_data.read_text(path) == "a: 1\r\n"


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "folder", "x" * 5000, "nul\0", "\udcff.yaml", "gone"])
def test_what_is_no_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        plain_data.read_text(tmp_path / name)
