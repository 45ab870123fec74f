"""Files of a manifest: what counts in a folder, and which columns folders give."""

import fnmatch
import urllib.parse
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.data.manifest_files import find, partitions
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import StorageSpec

LOCAL = StorageSpec()
NAMES = {
    "a.parquet": True,
    "split=train/b.parquet": True,
    "sub/deep/c.parquet": True,
    "_metadata.parquet": False,
    ".hidden.parquet": False,
    "_delta_log/00000000000000000010.checkpoint.parquet": False,
    "_temporary/0/part-0.parquet": False,
    "sub/.tmp/d.parquet": False,
    "sub/_SUCCESS": False,
    "sub/part.txt": False,
    "under_score/e_.parquet": True,
    "out/_job/ids-0000.parquet": False,
    "out/_job/errors/0000-0000000.parquet": False,
    "out/data/train-0000-0000000.parquet": False,
    "out/data/train-0001-0000000.parquet": False,
    "out/data/mine.parquet": True,
    "data/train-0000-0000000.parquet": True,  # no output: there is no _job/ beside data/
    "_runs/out/_job/plan-0000.json": False,
}


@pytest.fixture(params=["local", "file", "s3"])
def place(request, tmp_path):
    """URI of a folder with these names in it, and the settings to read it."""
    settings = LOCAL
    uri = {"local": f"{tmp_path}/m", "file": f"file://{tmp_path}/m"}.get(request.param)
    if uri is None:
        settings = StorageSpec(endpoint_url=request.getfixturevalue("s3_server"))
        uri = f"s3://jobs/{uuid.uuid4().hex}/m"
    storage = open_storage(uri, settings)
    for name in NAMES:
        storage.create(name, b"")
    return uri, settings


def found(place, pattern):
    uri, settings = place
    base = open_storage(uri, settings).uri
    return [path.removeprefix(base + "/") for path in find([f"{uri}/{pattern}".rstrip("/")], settings)]


def test_a_folder_is_read_as_data_tools_do(place):
    assert found(place, "") == sorted(name for name, counts in NAMES.items() if counts)
    assert found(place, "out") == ["out/data/mine.parquet"]


def test_what_is_named_outright_counts_whatever_its_name(place):
    assert found(place, "_metadata.parquet") == ["_metadata.parquet"]
    assert found(place, "_temporary") == ["_temporary/0/part-0.parquet"]
    assert found(place, "out/data") == [
        f"out/data/{name}"
        for name in (
            "mine.parquet",
            "train-0000-0000000.parquet",
            "train-0001-0000000.parquet",
        )
    ]


def test_a_glob_finds_a_hidden_name_by_its_first_character(place):
    assert found(place, "*.parquet") == ["a.parquet"]
    assert found(place, "_m*.parquet") == ["_metadata.parquet"]
    assert found(place, "_temporary/*/*.parquet") == ["_temporary/0/part-0.parquet"]
    assert found(place, "*/data/*.parquet") == ["out/data/mine.parquet"]
    assert found(place, "sub/*/*.parquet") == ["sub/deep/c.parquet"]
    with pytest.raises(ManifestError, match=r"names that begin with _ or \. and the shards of an output do not count"):
        found(place, "*/*/part-*.parquet")


PARTS = st.text("ab_.=", min_size=1, max_size=3).filter(lambda part: part.strip("."))


@given(
    st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=4), st.text("ab_*?", min_size=1, max_size=3)
)
@settings(max_examples=40, deadline=None)
def test_folders_and_globs_equal_their_rules(tmp_path_factory, paths, pattern):
    folder = tmp_path_factory.mktemp("m")
    keys = set()
    for named in paths:
        parts = [*(f"{part}_" for part in named[:-1]), named[-1] + ".parquet"]
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        keys.add("/".join(parts))
    visible = {key for key in keys if not any(part[0] in "_." for part in key.split("/"))}
    assert expect(folder, "") == visible
    matching = {key for key in keys if "/" not in key and fnmatch.fnmatchcase(key, f"{pattern}.parquet")}
    assert expect(folder, f"/{pattern}.parquet") == {
        key for key in matching if key[0] not in "_." or (key[0] == pattern[0] and key[0] == "_")
    }


def expect(folder: Path, pattern: str) -> set[str]:
    try:
        return {path.removeprefix(f"{folder}/") for path in find([f"{folder}{pattern}"], LOCAL)}
    except ManifestError:
        return set()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("part.parquet", {}),
        ("split=train/part.parquet", {"split": "train"}),
        ("split=train/day=2024-01-01/part.parquet", {"split": "train", "day": "2024-01-01"}),
        ("name=a%20b%2Fc%C3%A9/x.parquet", {"name": "a b/c\u00e9"}),
        ("a%3Db=c/x.parquet", {"a=b": "c"}),
        ("k=a=b/x.parquet", {"k": "a=b"}),
        ("k=/x.parquet", {"k": ""}),
        ("=v/plain/x.parquet", {}),
        ("k=__HIVE_DEFAULT_PARTITION__/x.parquet", {"k": None}),
        ("k=1/k=2/x.parquet", {"k": "2"}),
        ("x=1.parquet", {}),
    ],
)
@pytest.mark.parametrize("base", ["/in/data", "s3://bucket/in/v=1"])
def test_folders_named_as_columns(base, path, expected):
    uri = f"{base}/{path}"
    assert partitions(uri, [base]) == partitions(uri, [f"{base}/", "/other", f"{base}/split=train"]) == expected
    assert partitions(uri, [uri]) == partitions(uri, [f"{base}/*/*.parquet"]) == {}
    assert partitions(uri, [f"file://{base}"] if base.startswith("/") else [base]) == expected


def test_a_folder_that_is_not_utf8_behind_percent_signs_is_refused():
    with pytest.raises(ManifestError, match=r"/in/k=%FF/x\.parquet: a folder in its name is not UTF-8"):
        partitions("/in/k=%FF/x.parquet", ["/in"])


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.none() | st.text(max_size=6), max_size=3))
def test_partitions_are_those_that_were_written(columns):
    values = {key: value for key, value in columns.items() if value != "__HIVE_DEFAULT_PARTITION__"}
    folders = [
        f"{urllib.parse.quote(key, safe='')}="
        + ("__HIVE_DEFAULT_PARTITION__" if value is None else urllib.parse.quote(value, safe=""))
        for key, value in values.items()
    ]
    assert partitions("/".join(["/in", *folders, "x.parquet"]), ["/in"]) == values
