"""Figures as the paper prints them, and the three forms of a table."""

import csv
import io
import math

import numpy as np
import pytest
from rich.console import Console

from stereo_jobs.evaluate.tables.formats import Figure, Table, comma_separated, figure, latex, markdown, on_terminal


def table(cells, metric="psnr", **fields):
    given = {"name": "t", "title": "T", "labels": ("method",), "rows": [("leave_blank",), ("best",)]}
    return Table(**given | fields, columns=[("ToyScapes", metric)], cells=cells)


def test_offsets_point_to_the_best_and_the_worst_scene():
    up = figure({"a": 10.0, "b": 20.0, "c": 24.0}, "psnr", offsets=True)
    assert (up.mean, up.best, up.worst, up.count) == (18, 6, -8, 3)
    down = figure({"a": 0.1, "b": 0.2, "c": 0.6}, "lpips", offsets=True)
    assert (round(down.mean, 9), round(down.best, 9), round(down.worst, 9)) == (0.3, -0.2, 0.3)


def test_the_paper_prints_it_so():
    cells = {(0, 0): Figure(15.4561, 9, best=2.669, worst=-3.313, paper=15.456)}
    assert "| leave_blank | $15.456^{+2.669}_{-3.313}$ [15.456] |" in markdown(table(cells))
    cells = {(0, 0): Figure(0.231, 9, best=-0.088, worst=0.096)}
    assert "$0.231^{-0.088}_{+0.096}$" in markdown(table(cells, "lpips"))


def test_unknown_values_do_not_count_and_nothing_is_no_figure():
    assert figure({"a": math.nan, "b": 2.0}, "psnr", offsets=True) == Figure(2.0, 1)
    assert figure({"a": math.nan}, "psnr") is None
    assert figure({}, "psnr") is None


def test_the_interval_is_of_paired_differences():
    values = {str(i): float(i) for i in range(50)}
    reference = {str(i): i + 0.5 for i in range(40)} | {"x": 3.0, "0": math.nan}
    assert figure(values, "psnr", reference=reference).interval == pytest.approx(0)
    rng = np.random.default_rng(0)
    noisy = {scene: value + float(d) for (scene, value), d in zip(values.items(), rng.normal(size=50), strict=True)}
    differences = [noisy[s] - v for s, v in values.items()]
    wanted = 1.96 * np.std(differences, ddof=1) / np.sqrt(50)
    assert figure(noisy, "psnr", reference=values).interval == pytest.approx(wanted)


def test_empty_cells_stay_empty_in_every_form():
    one = table({(1, 0): Figure(20.0, 2)}, notes=["a note"])
    assert "| leave_blank |  |\n| best | 20.000 |" in markdown(one)
    assert "leave\\_blank &  \\\\\nbest & 20.000 \\\\" in latex(one)
    assert "a note" in markdown(one)


def test_latex_is_whole():
    text = latex(table({(0, 0): Figure(1.0, 2, interval=0.5)}, labels=("100 %",), rows=[("✓",), ("a & b",)]))
    assert text.count("\\begin{tabular}{lr}") == text.count("\\end{tabular}") == 1
    for part in (r"100 \%", r"$\checkmark$", r"a \& b", r"PSNR $\uparrow$", r"\toprule", r"\bottomrule", r"\,$\pm$\,"):
        assert part in text


def test_names_are_escaped_for_latex_and_its_packages_named():
    text = latex(table({}, rows=[(r"a_b #1 $x^2$ {y} ~z \q 5 %",), ("✓",)]))
    escaped = r"a\_b \#1 \$x\textasciicircum{}2\$ \{y\} \textasciitilde{}z \textbackslash{}q 5 \% "
    assert escaped in text
    assert text.startswith("% needs \\usepackage{booktabs} and \\usepackage{amssymb}\n")


def test_the_csv_has_every_figure_in_full():
    one = table({(0, 0): Figure(1 / 3, 5, best=0.1, worst=-0.2), (1, 0): Figure(2.0, 4, interval=0.5)})
    rows = list(csv.DictReader(io.StringIO(comma_separated(one))))
    assert [(row["method"], row["of"], row["metric"]) for row in rows] == [
        ("leave_blank", "ToyScapes", "psnr"),
        ("best", "ToyScapes", "psnr"),
    ]
    assert float(rows[0]["mean"]) == 1 / 3
    assert (rows[0]["interval"], rows[1]["interval"], rows[1]["count"]) == ("", "0.5", "4")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_shows_all_figures_in_plain_text(width):
    groups = ("Middlebury", "KITTI", "ToyScapes")
    columns = [(group, metric) for group in groups for metric in ("psnr", "ssim", "lpips")]
    cells = {(0, j): Figure(15 + j, 9, best=2.669, worst=-3.313, paper=15.456) for j in range(9)}
    one = Table(
        "t", "Methods", ("method",), [("leave_blank",), ("best, estimated disparity",)], columns, cells, ["9 scenes."]
    )
    said = io.StringIO()
    Console(file=said, width=width, markup=False).print(on_terminal(one))
    text = said.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert not set("${}^\\") & set(text)
    if width >= 80:
        words = text.split()
        for j in range(9):
            assert f"{15 + j:.3f}" in words
        assert words.count("+2.669") == words.count("[15.456]") == 9
    assert [f"Methods: {group}" in text for group in groups] == [True] * 3
    assert "9 scenes." in text
