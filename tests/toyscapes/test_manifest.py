"""Manifests of ToyScapes: what a row holds, that it is the truth, and what is refused."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs import cli
from stereo_jobs.data.images import decode_disparity, decode_rgb
from stereo_jobs.data.manifest import inspect, stream_ids
from stereo_jobs.data.manifest_files import find
from stereo_jobs.errors import ManifestError
from stereo_jobs.records import valid_id
from stereo_jobs.spec import Recipe, StorageSpec
from stereo_jobs.toyscapes.manifest import MAX_ROWS, MODES, write_manifest
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import LEVELS, draw_scene

LOCAL = StorageSpec()
COMMON = ["id", "prompt", "level"]
TRUTH = ["true_right", "true_disparity", "true_nonocc_left"]


@pytest.fixture
def written(tmp_path):
    """Writes a manifest and gives its table."""

    def write(name="toys.parquet", **options) -> pa.Table:
        write_manifest(str(tmp_path / name), LOCAL, **options)
        return pq.read_table(tmp_path / name)

    return write


@pytest.fixture
def toyscapes(monkeypatch, capsys, tmp_path):
    """Runs `stereo-jobs manifest toyscapes` in this process; returns exit code, output, errors."""

    def invoke(*words: object) -> tuple[int, str, str]:
        command = ["stereo-jobs", "manifest", "toyscapes", tmp_path / "toys.parquet", *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return invoke


# --- Rows ---


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"mode": "text"}, COMMON),
        ({"mode": "depth"}, [*COMMON, "depth", "depth_kind", "true_disparity"]),
        ({"mode": "image"}, [*COMMON, "image", *TRUTH]),
        ({"mode": "image", "with_disparity": True}, [*COMMON, "image", "disparity", *TRUTH]),
    ],
)
def test_each_mode_has_its_columns(written, options, columns):
    table = written(rows=2, **options)
    assert table.column_names == columns
    assert all(valid_id(i) for i in table["id"].to_pylist())
    assert table["prompt"].to_pylist() == [draw_scene(seed, "test").caption for seed in range(2)]
    assert table["level"].to_pylist() == [draw_scene(seed, "test").level for seed in range(2)]


@pytest.mark.parametrize("level", [None, *LEVELS])
@pytest.mark.parametrize("size", [(128, 128), (96, 64)])
def test_an_image_row_is_the_rendered_scene(written, level, size):
    rows = written(rows=3, level=level, size=size, split="train", with_disparity=True).to_pylist()
    for seed, row in enumerate(rows):
        view = render(draw_scene(seed, "train", level), *size)
        np.testing.assert_array_equal(decode_rgb(row["image"], 10**6), view.left)
        np.testing.assert_array_equal(decode_rgb(row["true_right"], 10**6), view.right)
        np.testing.assert_array_equal(decode_rgb(row["true_nonocc_left"], 10**6)[..., 0] > 0, view.nonocc_left)
        for column in ("disparity", "true_disparity"):
            np.testing.assert_array_equal(decode_disparity(row[column]), view.disparity)


def test_a_depth_row_gives_the_inverse_depth_of_its_truth(written):
    for seed, row in enumerate(written(rows=3, mode="depth").to_pylist()):
        view = render(draw_scene(seed, "test"))
        np.testing.assert_array_equal(decode_disparity(row["depth"]), view.disparity)
        np.testing.assert_array_equal(decode_disparity(row["true_disparity"]), view.disparity)
        assert row["depth_kind"] == "inverse"


@pytest.mark.parametrize("mode", MODES)
def test_a_later_start_goes_on_where_an_earlier_file_ended(written, mode):
    whole = written("whole.parquet", rows=5, mode=mode)
    parts = [written("a.parquet", rows=2, mode=mode), written("b.parquet", rows=3, mode=mode, start=2)]
    assert pa.concat_tables(parts).equals(whole)


def test_ids_tell_splits_levels_and_seeds_apart(written):
    files = [(split, level) for split in ("train", "test") for level in (None, *LEVELS)]
    tables = [written(f"{s}-{v}.parquet", rows=2, mode="text", split=s, level=v, start=9) for s, v in files]
    expected = [f"toyscapes-{s}-{v or 'mixed'}-{seed}" for s, v in files for seed in ("000009", "000010")]
    assert pa.concat_tables(tables)["id"].to_pylist() == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_job_accepts_it(written, tmp_path, mode):
    ids = written(rows=3, mode=mode)["id"].to_pylist()
    (uri,) = find([str(tmp_path)], LOCAL)
    file, _ = inspect(uri, Recipe(mode=mode), LOCAL)
    assert [i for batch in stream_ids(file, LOCAL) for i in batch.to_pylist()] == ids


# --- What is refused ---


def test_an_existing_manifest_is_never_overwritten(written, tmp_path):
    written(rows=1, mode="text")
    before = (tmp_path / "toys.parquet").read_bytes()
    with pytest.raises(ManifestError, match="exists already"):
        written(rows=2, mode="text")
    assert (tmp_path / "toys.parquet").read_bytes() == before


@pytest.mark.parametrize("rows", [-1, 0, MAX_ROWS + 1])
def test_too_few_and_too_many_rows_are_refused(written, tmp_path, rows):
    with pytest.raises(ManifestError, match=f"rows: must be 1 to 20000, got {rows}; write several files .* --start"):
        written(rows=rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["text", "depth"])
def test_only_images_take_a_disparity(written, mode):
    with pytest.raises(ManifestError, match=f"with-disparity: only mode image takes a disparity, not mode {mode}"):
        written(rows=1, mode=mode, with_disparity=True)


# --- The command ---


def test_the_command_writes_what_it_says(toyscapes, tmp_path):
    code, out, err = toyscapes("--rows", 2, "--level", "crowded", "--size", "64x48", "--start", 4, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"manifest": str(tmp_path / "toys.parquet"), "rows": 2}
    rows = pq.read_table(tmp_path / "toys.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["toyscapes-test-crowded-000004", "toyscapes-test-crowded-000005"]
    assert decode_rgb(rows[0]["image"], 10**6).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--level", "easy"], "'easy' is not one of 'plain', 'structured', 'crowded', 'hard'"),
        (["--mode", "video"], "'video' is not one of 'text', 'depth', 'image'"),
        (["--split", "val"], "'val' is not one of 'train', 'test'"),
        (["--size", "128"], "'128' is not WIDTHxHEIGHT of at least 32x32"),
        (["--size", "31x128"], "'31x128' is not WIDTHxHEIGHT of at least 32x32"),
        (["--size", "-64x64"], "'-64x64' is not WIDTHxHEIGHT of at least 32x32"),
        (["--size", "axb"], "'axb' is not WIDTHxHEIGHT of at least 32x32"),
        (["--size", "64x8²"], "'64x8²' is not WIDTHxHEIGHT of at least 32x32"),
        (["--start", "-1"], "greater than or equal to 0"),
        (["--rows", "0"], "rows: must be 1 to 20000, got 0"),
        (["--rows", "20001"], "write several files and tell them apart by --start"),
        (["--mode", "text", "--with-disparity"], "only mode image takes a disparity, not mode text"),
    ],
)
def test_wrong_options_exit_2_and_say_why(toyscapes, tmp_path, words, complaint):
    code, out, err = toyscapes(*words)
    assert (code, out) == (2, "")
    assert complaint in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
