"""Shards: the columns of the contract, the footer, and what `datasets` makes of them."""

import dataclasses
import datetime
import decimal
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.data import card
from stereo_jobs.data.arrow_types import plain
from stereo_jobs.data.images import decode_disparity
from stereo_jobs.data.manifest import carried_schema
from stereo_jobs.data.manifest_files import ManifestFile
from stereo_jobs.data.manifest_reader import ManifestReader
from stereo_jobs.data.shards import encode_pair, hub_feature, read_footer, write_shard
from stereo_jobs.data.storage import LocalStorage
from stereo_jobs.records import DATASET_COLUMNS, IMAGE_COLUMNS, Row, RowError, ShardRecord
from stereo_jobs.spec import Recipe, StorageSpec
from tests import standin
from tests.columns import TYPES, bits, columns, write

# The table of the contract, in its order.
TABLE = """
id left right disparity disparity_requested disparity_of mask_nonocc_left mask_hole_right mask_border_right
width height seed scale_percent focal_px baseline doffs_px prompt negative_prompt mode preset model model_revision
depth_model depth_model_revision unet_evaluations left_psnr unsafe accepted reject_reason
qc_epe qc_bad_2 qc_d1 qc_density qc_fit_a qc_fit_b qc_lr_consistency qc_backwarp_psnr qc_backwarp_ssim
qc_backwarp_lpips qc_siou qc_identity qc_vertical_px qc_color_delta qc_hole_share qc_hole_sharpness qc_seam
qc_ghost qc_speckle qc_clip_left qc_clip_right qc_depth_confidence qc_depth_rank qc_control_bad_2
qc_raw_epe qc_raw_bad_2 qc_raw_backwarp_lpips
true_psnr true_psnr_nonocc true_psnr_occ true_ssim true_ssim_nonocc true_ssim_occ true_lpips true_lpips_nonocc
true_lpips_occ run_seconds run_attempt run_batch run_version run_device
"""
COLUMNS = TABLE.split()
NO_CARRIED = pa.schema([])
RECIPE = {"mode": "text", "seed": 0}


def record(**values):
    counts = {"generation": 1, "shard": 2, "fingerprint": "f", "planned": 3, "succeeded": 2, "failed": 1}
    return ShardRecord(**counts | {"seconds": 1.5} | values)


def pair(name, **changes):
    made = standin.pair(Row(name, "a circle", "", len(name), 8.0))
    return dataclasses.replace(made, **changes)


def table_of(data):
    return pq.read_table(io.BytesIO(data))


def test_the_schema_is_the_contract():
    data = write_shard([encode_pair(pair("a"))], NO_CARRIED, record(), [], RECIPE)
    schema = table_of(data).schema
    assert schema.names == COLUMNS == DATASET_COLUMNS.names
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert {name for name in COLUMNS if schema.field(name).type == image} == set(IMAGE_COLUMNS)
    expected = {"width": pa.int32(), "seed": pa.int64(), "scale_percent": pa.float64(), "accepted": pa.bool_()}
    expected |= {name: pa.float32() for name in COLUMNS if name.startswith(("qc_", "true_"))}
    assert {name: schema.field(name).type for name in expected} == expected


def test_a_pair_comes_back_as_it_went_in():
    made = pair("a-1", disparity_requested=np.full((16, 16), -2.5, np.float32))
    cells = encode_pair(made) | {"seed": 7, "scale_percent": 8.0, "qc_epe": 0.25}
    (row,) = table_of(write_shard([cells], NO_CARRIED, record(), [], RECIPE)).to_pylist()
    assert (row["id"], row["width"], row["height"], row["unet_evaluations"]) == ("a-1", 16, 16, 256)
    assert (row["seed"], row["scale_percent"], row["qc_epe"], row["disparity_of"]) == (7, 8.0, 0.25, "left")
    assert row["left"]["path"] == "a-1.left.png"
    np.testing.assert_array_equal(decode_disparity(row["disparity"]["bytes"]), made.disparity)
    np.testing.assert_array_equal(decode_disparity(row["disparity_requested"]["bytes"]), made.disparity_requested)
    assert row["accepted"] is row["reject_reason"] is row["left_psnr"] is row["focal_px"] is None


def test_a_shard_depends_on_its_content_alone():
    one, two = (write_shard([encode_pair(pair("a"))], NO_CARRIED, record(), [], RECIPE) for _ in range(2))
    assert one == two


def test_images_are_stored_plain_and_scalars_compressed_in_one_small_row_group():
    parquet = pq.ParquetFile(io.BytesIO(write_shard([encode_pair(pair("a"))], NO_CARRIED, record(), [], RECIPE)))
    group = parquet.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("left.bytes", "disparity.bytes", "mask_hole_right.bytes"):
        assert columns[name].compression == "UNCOMPRESSED"
        assert "PLAIN" in columns[name].encodings
        assert not any("DICTIONARY" in encoding for encoding in columns[name].encodings)
    assert columns["prompt"].compression == "ZSTD"
    assert columns["id"].has_offset_index


def test_large_rows_are_spread_over_row_groups(monkeypatch):
    monkeypatch.setattr("stereo_jobs.data.shards._ROW_GROUP_BYTES", 5000)
    cells = [encode_pair(pair(f"row-{i}")) for i in range(10)]
    data = write_shard(cells, NO_CARRIED, record(), [], RECIPE)
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups > 2
    assert table_of(data)["id"].to_pylist() == [f"row-{i}" for i in range(10)]


# --- The footer ---


def test_the_footer_holds_record_errors_and_recipe():
    errors = [RowError("b", "ValueError", "boom \u2026 \n second line", 2, 5), RowError("c", "NotFinite", "NaN")]
    data = write_shard([encode_pair(pair("a"))], NO_CARRIED, record(worker="w"), errors, RECIPE)
    footer = read_footer(data)
    assert footer == (record(worker="w"), errors, RECIPE)
    assert read_footer(pq.ParquetFile(io.BytesIO(data))) == footer


def test_a_shard_without_rows_still_has_schema_and_footer():
    errors = [RowError("a", "ValueError", "boom")]
    data = write_shard([], pa.schema([("note", pa.int8())]), record(succeeded=0), errors, RECIPE)
    table = table_of(data)
    assert (len(table), table.column_names) == (0, [*COLUMNS, "src_note"])
    assert read_footer(data).errors == errors


def foreign(metadata):
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}).replace_schema_metadata(metadata), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not readable as Parquet"),
        (b"garbage", "not readable as Parquet"),
        (b"PAR1" + bytes(100) + b"PAR1", "not readable as Parquet"),
        (foreign(None), "has no footer of stereo_jobs"),
        (foreign({"stereo_jobs": "{broken"}), "has no footer of stereo_jobs"),
        (foreign({"stereo_jobs": "[]"}), "has no footer of stereo_jobs"),
        (foreign({"stereo_jobs": '{"record": {}, "errors": [], "recipe": {}}'}), "has no footer of stereo_jobs"),
        (foreign({"stereo_jobs": '{"record": {}, "errors": [{"x": 1}]}'}), "has no footer of stereo_jobs"),
    ],
)
def test_garbage_and_foreign_parquet_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        read_footer(data)


def test_a_truncated_shard_is_refused():
    data = write_shard([encode_pair(pair("a"))], NO_CARRIED, record(), [], RECIPE)
    for length in (len(data) - 1, len(data) // 2, 3):
        with pytest.raises(ValueError, match="not readable as Parquet"):
            read_footer(data[:length])


# --- Carried columns ---


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_carried_cells_pass_bit_for_bit(tmp_path_factory, data):
    """Through the manifest, a shard without the rows that failed, and back; shared values and plain ones."""
    dtype = data.draw(TYPES)
    count = data.draw(st.integers(1, 8))
    table = pa.table({"id": [f"r{i}" for i in range(count)], "x": data.draw(columns(dtype, count))})
    path = tmp_path_factory.mktemp("carried") / "m.parquet"
    shared, group = data.draw(st.booleans()), data.draw(st.integers(1, 8))
    write(table, path, use_dictionary=shared, row_group_size=group)
    file = ManifestFile(uri=str(path), size=0, tag=LocalStorage(path.parent).content_tag(path.name), rows=count)
    kept = data.draw(st.lists(st.sampled_from(range(count)), unique=True).map(sorted))
    read = ManifestReader(StorageSpec()).read(file, kept)
    cells = [{"id": row["id"], "src_x": row["x"]} for row in read]
    schema = carried_schema(str(path), StorageSpec())
    written = table_of(write_shard(cells, schema, record(), [RowError("other", "ValueError", "boom")], RECIPE))
    before = bits(pq.ParquetFile(path).read()["x"])
    assert bits(table["x"]) == before
    assert written.schema.field("src_x").type == schema.field("x").type
    assert bits(written["src_x"]) == [before[i] for i in kept]


def test_nulls_inside_of_lists_are_carried(tmp_path):
    dtype = pa.map_(pa.string(), pa.list_(pa.struct([("f0", pa.null())])))
    column = pa.array([[("k", [{"f0": None}])], None], dtype)
    path = tmp_path / "m.parquet"
    write(pa.table({"id": ["r0", "r1"], "x": column}), path, use_dictionary=False, row_group_size=2)
    file = ManifestFile(uri=str(path), size=0, tag=LocalStorage(tmp_path).content_tag(path.name), rows=2)
    cells = [{"id": row["id"], "src_x": row["x"]} for row in ManifestReader(StorageSpec()).read(file, [0, 1])]
    written = table_of(write_shard(cells, carried_schema(str(path), StorageSpec()), record(), [], RECIPE))
    assert written["src_x"].to_pylist() == [[{"key": "k", "value": [{"f0": None}]}], None]


# --- What `datasets` makes of it ---

CARRIED = {
    "note": (pa.string(), "n\u00f6te"),
    "text": (pa.large_string(), "long"),
    "count": (pa.uint8(), 200),
    "ratio": (pa.float32(), 0.5),
    "half": (pa.float16(), 0.5),
    "flag": (pa.bool_(), True),
    "day": (pa.date32(), datetime.date(2024, 2, 29)),
    "day64": (pa.date64(), datetime.date(2024, 2, 29)),
    "when": (pa.timestamp("us", tz="UTC"), datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)),
    "raw": (pa.binary(), b"\x00\xff"),
    "tags": (pa.list_(pa.string()), ["a", "b"]),
    "many": (pa.large_list(pa.int64()), [1, 2]),
    "box": (pa.struct([("x", pa.int32()), ("names", pa.list_(pa.string()))]), {"x": 1, "names": ["a"]}),
    "none": (pa.string(), None),
    "null": (pa.null(), None),
    "wait": (pa.duration("us"), datetime.timedelta(seconds=5)),
    "time": (pa.time32("ms"), datetime.time(1, 2, 3)),
    "clock": (pa.time64("us"), datetime.time(1, 2, 3)),
    "price": (pa.decimal128(38, 2), decimal.Decimal("-1.25")),
    "huge": (pa.decimal256(76, 0), decimal.Decimal(10**75)),
    "uuid": (pa.binary(16), b"0123456789abcdef"),
    "point": (pa.list_(pa.float32(), 2), [0.5, None]),
    "pairs": (pa.list_(pa.struct([("key", pa.string()), ("value", pa.null())])), [{"key": "k", "value": None}]),
}


@pytest.fixture
def folder(tmp_path):
    """A small dataset: a shard of two rows between two empty ones, the card."""
    schema = pa.schema([(name, dtype) for name, (dtype, _) in CARRIED.items()])
    carried = {f"src_{name}": value for name, (_, value) in CARRIED.items()}
    cells = [encode_pair(pair(name)) | carried for name in ("a", "b")]
    (tmp_path / "data").mkdir()
    for shard, part in enumerate(([], cells, [])):
        data = write_shard(part, schema, record(), [], RECIPE)
        (tmp_path / f"data/train-0000-{shard:07d}.parquet").write_bytes(data)
    recipe = Recipe(size={"width": 64, "height": 64})
    (tmp_path / "README.md").write_bytes(card.render(recipe, planned=3, version="0", made=2, failed=1))
    return tmp_path


@pytest.mark.parametrize("from_card", [True, False])
def test_datasets_loads_images_disparities_and_nulls(folder, tmp_path_factory, from_card):
    from datasets import load_dataset

    cache = str(tmp_path_factory.mktemp("cache"))
    if from_card:
        loaded = load_dataset(str(folder), split="train", cache_dir=cache)
    else:
        files = f"{folder}/data/train-*.parquet"
        loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert loaded.column_names == [*COLUMNS, *(f"src_{name}" for name in CARRIED)]
    assert loaded["id"][:] == ["a", "b"]
    row, made = loaded[0], pair("a")
    np.testing.assert_array_equal(np.asarray(row["left"]), made.left)
    np.testing.assert_array_equal(np.asarray(row["right"]), made.right)
    assert row["disparity"].mode == "F"
    np.testing.assert_array_equal(np.asarray(row["disparity"], np.float32), made.disparity)
    np.testing.assert_array_equal(np.asarray(row["mask_hole_right"]), made.mask_hole_right)
    assert row["disparity_requested"] is row["accepted"] is row["qc_epe"] is row["focal_px"] is None
    assert row["unet_evaluations"] == 256
    for name in set(CARRIED) - {"day64", "when"}:
        assert row[f"src_{name}"] == CARRIED[name][1]


@given(TYPES)
@settings(deadline=None)
def test_datasets_reads_the_features_of_every_type_as_its_plain_type(dtype):
    from datasets import Features

    assert Features.from_dict({"x": hub_feature(plain(dtype))}).arrow_schema.field("x").type == plain(dtype)


@pytest.mark.parametrize(
    "dtype",
    [
        pa.map_(pa.string(), pa.int64()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.month_day_nano_interval(),
        pa.timestamp("s", "no zone"),
        pa.list_(pa.decimal32(5, 1)),
        pa.struct([("x", pa.uuid())]),
        pa.struct([pa.field("x", pa.int8()), pa.field("x", pa.int8())]),
    ],
)
def test_types_that_datasets_cannot_name_are_refused(dtype):
    with pytest.raises(TypeError, match=r"type|time zone|two fields"):
        hub_feature(dtype)


# --- The card ---


def test_the_card_counts_in_prose_only():
    recipe = Recipe(size={"width": 64, "height": 96})
    begun = card.render(recipe, planned=1_000_000, version="1.2").decode()
    assert "1,000,000 stereo pairs are planned; the job has not finished yet" in begun
    assert "at 64x96 pixels" in begun
    done = card.render(recipe, planned=1000, version="1.2", made=998, failed=2).decode()
    assert "998 stereo pairs of 1,000 planned; 2 rows failed" in done
    assert "dataset_info" not in done
    assert "path: data/train-*" in done.split("---")[1]


def test_the_card_names_the_models():
    recipe = Recipe(size={"width": 64, "height": 96}, models={"clip": {"path": "owner/clip", "revision": "abc"}})
    page = card.render(recipe, planned=1, version="1.2").decode()
    assert "|\n| CLIP scores | `owner/clip` | `abc` |\n\n## Loading" in page
    plain = card.render(Recipe(size=recipe.size), planned=1, version="1.2").decode()
    assert "| depth | `demo` | `None` |\n\n## Loading" in plain


def test_the_hub_features_name_every_column():
    data = write_shard([], NO_CARRIED, record(), [], RECIPE)
    features = json.loads(pq.ParquetFile(io.BytesIO(data)).schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == COLUMNS
    assert {name for name, feature in features.items() if feature == {"_type": "Image"}} == set(IMAGE_COLUMNS)
