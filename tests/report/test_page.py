"""The report of a small dataset: page and JSON agree with its columns, and no image is read for its figures."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stereo_jobs.data.images import decode_disparity, encode_png
from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout, progress
from stereo_jobs.output.plan import load_job
from stereo_jobs.records import IMAGE_COLUMNS
from stereo_jobs.report import page
from stereo_jobs.report.columns import POSITION, SHARD, read_errors, read_rows, read_scalars
from stereo_jobs.run import driver
from stereo_jobs.spec_reading import parse_spec
from tests import standin
from tests.datasets import rows


class Tags(HTMLParser):
    """Counts tags, and refuses those that are closed wrongly."""

    VOID = frozenset({"meta", "img", "rect", "line"})
    LOOSE = frozenset({"html", "p"})

    def __init__(self):
        super().__init__()
        self.count, self.open = {}, []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID | self.LOOSE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.LOOSE | self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Six pairs in three shards, and a row that failed."""
    folder = tmp_path_factory.mktemp("report")
    prompts = ["boom", "<b>bold</b>", *["fine"] * 5]
    pq.write_table(pa.table({"id": [f"row-{i:04d}" for i in range(7)], "prompt": prompts}), folder / "m.parquet")
    return made(folder, str(folder / "m.parquet"), {"enabled": True})


def made(folder, manifest, quality):
    """A dataset of the stand-in, in shards of three."""
    runtime = {"shard_rows": 3, "batch_size": 2, "lease_ttl_s": 0, "max_failure_ratio": 1.0}
    parts = {"manifest": manifest, "output": str(folder / "out"), "recipe": {"quality": quality}, "runtime": runtime}
    spec = parse_spec(parts)
    driver.run(spec, local=True, load=standin.load)
    return spec


def report(spec, pairs=4):
    storage = open_storage(spec.output)
    job = load_job(storage)
    uris = page.build(storage, job, progress.status(job, progress.totals(storage, job)), pairs)
    text, data = (Path(uri).read_text() for uri in uris)
    tags = Tags()
    tags.feed(text)
    return text, json.loads(data), tags


def test_the_page_is_well_formed_and_shows_what_the_json_says(spec):
    text, facts, tags = report(spec)
    assert tags.open == []
    plots = len(facts["distributions"]) + 1  # of disparities
    assert tags.count["svg"] == plots
    shown = 4 + len(facts["worst"]) + len(facts["best"])
    assert tags.count["article"] == shown
    assert text.count("data:image/png;base64,") == 5 * shown
    assert "&lt;b&gt;bold" in text
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text)  # nothing is fetched


@pytest.mark.parametrize(
    ("shape", "shown"), [((512, 300), (300, 512)), ((1024, 600), (300, 512)), ((3, 1000), (512, 2))]
)
def test_large_pictures_are_shrunk_on_the_page(shape, shown):
    for pixels in (np.zeros((*shape, 3), np.uint8), np.ones(shape, bool)):
        png = encode_png(pixels)
        inlined = base64.b64decode(page._inline(png).partition(",")[2])
        with Image.open(io.BytesIO(inlined)) as picture:
            assert picture.size == shown
            assert np.asarray(picture).max() == pixels.max()
        assert (inlined == png) == (max(shape) <= 512)


def test_distributions_are_those_of_the_columns(spec):
    _, facts, _ = report(spec)
    data = rows(spec)
    assert (facts["status"]["succeeded"], facts["status"]["failed"], facts["read_pairs"]) == (6, 1, 6)
    for each in facts["distributions"]:
        if each["name"] in ("run_seconds", "hole_share"):
            continue
        values = [row[each["name"]] for row in data.values() if row[each["name"]] is not None]
        assert (each["count"], sum(each["bins"])) == (len(values), len(values)), each["name"]
        assert each["mean"] == pytest.approx(np.mean(values)), each["name"]
    pixels = np.concatenate([decode_disparity(row["disparity"]["bytes"]).ravel() for row in data.values()])
    assert facts["disparity_px"]["mean"] == pytest.approx(pixels.mean())
    rejected = {reason: found["count"] for reason, found in facts["rejected"].items()}
    assert rejected == facts["status"]["quality"]["reasons"]


def test_worst_and_best_are_apart_and_in_order(spec):
    _, facts, _ = report(spec)
    by, worst, best = facts["ranked_by"], facts["worst"], facts["best"]
    assert by == "qc_siou"  # 16 x 16 pixels are too few for LPIPS
    values = [pair[by] for pair in [*worst, *reversed(best)]]
    assert values == sorted(values)
    assert len({pair["id"] for pair in [*worst, *best]}) == len(worst) + len(best) == 6


def test_without_quality_control_holes_are_decoded_and_nothing_is_ranked(tmp_path, make_manifest):
    spec = made(tmp_path, str(make_manifest(rows=3)), {"enabled": False})
    _, facts, tags = report(spec, pairs=2)
    assert facts["ranked_by"] is None
    assert tags.count["article"] == 2
    [holes] = [each for each in facts["distributions"] if each["name"] == "hole_share"]
    assert 0.3 < holes["mean"] < 0.7  # the stand-in's masks are noise


def test_measured_holes_are_read_from_their_column(spec, monkeypatch):
    asked = []
    real = read_rows
    monkeypatch.setattr(
        page, "read_rows", lambda storage, places, columns: asked.append(columns) or real(storage, places, columns)
    )
    report(spec)
    assert asked[0] == ("disparity",)


def test_an_output_without_pairs_has_a_page(tmp_path, make_manifest):
    manifest = make_manifest(rows=2, prompt=["boom", "boom"])
    _, facts, tags = report(made(tmp_path, str(manifest), {"enabled": False}))
    assert facts["distributions"] == []
    assert "article" not in tags.count


def test_scalars_are_read_without_images(spec, monkeypatch):
    asked = []
    real = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns: asked.append(set(columns)) or real(self, columns=columns)
    )
    table = read_scalars(open_storage(spec.output))
    assert len(table) == 6
    assert not set(IMAGE_COLUMNS) & (set(table.column_names) | set().union(*asked))


def test_rows_are_found_by_shard_and_position(spec):
    storage = open_storage(spec.output)
    table = read_scalars(storage).to_pylist()
    backwards = [(row[SHARD], row[POSITION]) for row in reversed(table)]
    found = list(read_rows(storage, backwards, ("id", "left")))
    assert [row["id"] for row in found] == [row["id"] for row in reversed(table)]
    assert all(row["left"]["bytes"].startswith(b"\x89PNG") for row in found)


def test_large_datasets_are_sampled_by_shards(spec):
    storage = open_storage(spec.output)
    assert len(list(storage.list(layout.DATA_PREFIX))) == 3
    assert set(read_scalars(storage, most_rows=5)[SHARD].to_pylist()) == {0, 2}


def test_failed_rows_are_read_with_their_messages(spec):
    assert [(error.id, error.error_message) for error in read_errors(open_storage(spec.output))] == [
        ("row-0000", "boom in row-0000")
    ]


def test_what_hides_or_reorders_text_is_escaped_on_the_page():
    environment = page._template().environment
    text = environment.from_string("{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(name) }}").render(
        name="\u202e<\x1b"
    )
    assert text == "<b>\\u202e&lt;\\x1b</b>"
