"""Folders of pictures, as cameras, phones and archives leave them."""

import uuid

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stereo_jobs.data.building.build import build
from stereo_jobs.data.building.pictures import Distinct, Pictures
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.records import valid_id
from stereo_jobs.spec import StorageSpec
from tests.data.building.helpers import LOCAL, build_and_plan, built

FROM_A_PHONE = (
    "IMG_1.jpg",
    "IMG_2.JPG",
    "._IMG_1.jpg",
    "IMG_3.XYZ",
    "IMG_5.MPO",
    "IMG_6.jfif",
    "sub/x.png",
    "sub/deeper/x.png",
    "__MACOSX/IMG_1.jpg",
    "Thumbs.db",
    ".thumbnails/a.png",
)
SAID = [
    "left out 4 files with a hidden name: ._IMG_1.jpg, Thumbs.db, .thumbnails/a.png, __MACOSX/IMG_1.jpg",
    "left out 1 file whose name does not end as that of a picture that can be read: IMG_3.XYZ",
]
IDS = ["IMG_1", "IMG_2", "IMG_5", "IMG_6", "sub_x", "sub_deeper_x"]


def test_a_folder_is_searched_with_all_folders_inside_it(tmp_path):
    for name in FROM_A_PHONE:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    made = build_and_plan(tmp_path / "photos", tmp_path / "m.parquet")
    rows = pq.ParquetFile(tmp_path / "m.parquet").read().to_pylist()
    assert [row["id"] for row in rows] == IDS
    assert rows[4]["image"] == str(tmp_path / "photos/sub/x.png")
    assert [each.line() for each in made.left_out] == SAID


def test_a_folder_on_s3_becomes_uris(tmp_path, s3_server):
    place, there = f"s3://jobs/{uuid.uuid4().hex}", StorageSpec(endpoint_url=s3_server)
    storage = open_storage(place, there)
    for name in FROM_A_PHONE:
        storage.create(f"photos/{name}", b"x")
    for source in (f"{place}/photos", f"{place}/photos/"):
        target = tmp_path / f"{len(source)}.parquet"
        made = build(source, str(target), there)
        rows = pq.ParquetFile(target).read().to_pylist()
        assert [row["id"] for row in rows] == IDS
        assert rows[5]["image"] == f"{place}/photos/sub/deeper/x.png"
        assert [each.line() for each in made.left_out] == SAID
    with pytest.raises(ManifestError, match="no such file"):
        build(f"{place}/nothing", f"{place}/nothing.parquet", there)


def test_ids_of_a_folder_stay_when_folders_come_into_it(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("b_a.png", "b a.png", "c.png"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    before = built(tmp_path / "photos", tmp_path)
    (tmp_path / "photos/b").mkdir()
    (tmp_path / "photos/b/a.png").write_bytes(b"x")
    assert built(tmp_path / "photos", tmp_path)[:3] == before


def test_a_link_to_a_folder_is_said_and_not_followed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    (tmp_path / "photos/up").symlink_to(tmp_path)
    made = build_and_plan(tmp_path / "photos", tmp_path / "m.parquet")
    assert (made.rows, [each.line() for each in made.left_out]) == (1, ["left out 1 folder behind a link: up"])


def test_a_folder_without_a_picture_says_what_it_has(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.xyz").write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"nothing in it that could become a row; left out 1 file whose .*: a\.xyz"):
        build(tmp_path / "photos", str(tmp_path / "m.parquet"), LOCAL)


def test_a_file_whose_codec_is_not_read_here_is_left_out_and_said(tmp_path):
    """The suffix of the HEIF family does not tell the codec inside."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "photos/a.avif")
    (tmp_path / "photos/b.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(90))
    made = build_and_plan(tmp_path / "photos", tmp_path / "m.parquet")
    said = ["left out 1 file that no decoder here reads: b.avif"]
    assert (made.rows, [each.line() for each in made.left_out]) == (1, said)


def test_what_is_left_out_is_named_up_to_a_few(tmp_path):
    made = Pictures("s3://b/p", [f"{i}.xyz" for i in range(1000)], StorageSpec())
    assert made.left_out[2].line().endswith("read: 0.xyz, 1.xyz, 10.xyz, 100.xyz, 101.xyz, ...")


NAME = st.text("ab ._-/é", min_size=1, max_size=6).filter(lambda name: name.strip("/") == name and "//" not in name)


@settings(max_examples=200, deadline=None)
@given(st.lists(NAME, unique=True, max_size=12))
def test_every_picture_has_an_id_of_its_own(names):
    made = Pictures("s3://bucket/photos", [f"{name}.png" for name in names], StorageSpec(region="x"))
    chosen = {"id": "id", "image": "image"}
    rows = [row for table in made.tables(chosen, made.schema(chosen)) for row in table.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) == made.count() == len(names) - made.left_out[0].count
    assert all(valid_id(row["id"]) for row in rows)


@given(st.lists(st.sampled_from(["a", "a-2", "a-3", "b", "a-2-2"]), max_size=30))
def test_numbers_are_given_as_the_plain_rule_says(names):
    distinct, seen = Distinct(), []
    for name in names:
        unique, count = name, 1
        while unique in seen:
            count += 1
            unique = f"{name}-{count}"
        seen.append(unique)
        assert distinct(name) == unique
