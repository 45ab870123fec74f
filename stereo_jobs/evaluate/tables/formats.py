"""Figures and tables of them, printed like the paper's, in Markdown, CSV and LaTeX, and on the terminal."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text


class Metric(NamedTuple):
    """How a column of figures is titled, printed and read.

    Attributes:
        title: heading of the column.
        larger_is_better: whether larger values are better; None if neither direction is.
        digits: number of decimals.
    """

    title: str
    larger_is_better: bool | None = None
    digits: int = 3

    @property
    def head(self) -> str:
        """The title with an arrow up or down, towards better values."""
        return self.title + {True: " ↑", False: " ↓", None: ""}[self.larger_is_better]


METRICS = {
    "psnr": Metric("PSNR", True),
    "ssim": Metric("SSIM", True),
    "lpips": Metric("LPIPS", False),
    "psnr_nonocc": Metric("PSNR visible", True, 2),
    "ssim_nonocc": Metric("SSIM visible", True),
    "lpips_nonocc": Metric("LPIPS visible", False),
    "psnr_occ": Metric("PSNR holes", True, 2),
    "ssim_occ": Metric("SSIM holes", True),
    "lpips_occ": Metric("LPIPS holes", False),
    "sharpness": Metric("sharpness"),
    "change": Metric("change", None, 1),
    "bad_1": Metric("bad 1 px", False),
    "raw_bad_2": Metric("raw bad 2 px", False),
    "raw_epe": Metric("raw error px", False),
    "raw_backwarp_lpips": Metric("raw LPIPS", False),
    "siou": Metric("SIoU", True),
    "seam": Metric("seam", None, 2),
    "hole_sharpness": Metric("hole sharpness"),
    "depth_rank": Metric("depth rank", True),
    "accepted": Metric("accepted", True, 2),
    "left_psnr": Metric("left PSNR", True, 2),
    "scale_percent": Metric("scale %", None, 1),
    "seconds": Metric("seconds", False, 2),
    "evaluations": Metric("U-Net evaluations", False, 0),
}


@dataclass(frozen=True)
class Figure:
    """One cell of a table.

    Attributes:
        mean: mean (for costs: median) over `count` scenes.
        count: number of scenes.
        best: signed offset of the best scene from the mean.
        worst: signed offset of the worst scene from the mean.
        interval: half the 95 % interval of the paired difference to the table's reference.
        beyond: the part of the cost beyond the left view.
        paper: the published figure.
    """

    mean: float
    count: int
    best: float | None = None
    worst: float | None = None
    interval: float | None = None
    beyond: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        name: name of its files, without suffix.
        title: title, one line.
        labels: headings of the label columns.
        rows: labels of each row.
        columns: group (a data set, a mode) and metric of each column.
        cells: figures by row and column; a missing one stays empty.
        notes: lines below the table.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: list[tuple[str, str]]
    cells: dict[tuple[int, int], Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def has_paper(self) -> bool:
        """Whether any figure has one of the paper beside it."""
        return any(cell.paper is not None for cell in self.cells.values())


def figure(
    values: Mapping[str, float],
    metric: str,
    *,
    reference: Mapping[str, float] | None = None,
    offsets: bool = False,
    paper: float | None = None,
) -> Figure | None:
    """The figure of the values of some scenes; None if there are none.

    Args:
        values: values by scene; NaN does not count.
        metric: a name of `METRICS`.
        reference: values by scene of the method to compare with; adds the interval of the paired differences.
        offsets: whether to add the offsets of the best and worst scene, as the paper does; not for a single scene.
        paper: the paper's own figure.
    """
    known = {scene: value for scene, value in values.items() if not math.isnan(value)}
    if not known:
        return None
    numbers = np.array(list(known.values()), np.float64)
    mean = float(numbers.mean())
    best, worst = float(numbers.max()) - mean, float(numbers.min()) - mean
    if METRICS[metric].larger_is_better is False:
        best, worst = worst, best
    offsets = offsets and len(known) > 1
    interval = None
    if reference is not None:
        pairs = [value - reference[s] for s, value in known.items() if not math.isnan(reference.get(s, math.nan))]
        if len(pairs) > 1:
            interval = 1.96 * float(np.std(pairs, ddof=1)) / len(pairs) ** 0.5
    return Figure(
        mean, len(known), best if offsets else None, worst if offsets else None, interval=interval, paper=paper
    )


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and notes."""
    heads = [*table.labels, *(_head(table, group, metric) for group, metric in table.columns)]
    lines = [f"### {table.title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for i, labels in enumerate(table.rows):
        cells = [_text(table.cells.get((i, j)), metric) for j, (_, metric) in enumerate(table.columns)]
        lines.append(f"| {' | '.join([*labels, *cells])} |")
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes), ""])


def on_terminal(table: Table) -> Group:
    """The table as a terminal shows it: plain text, one part for each group of columns, so that 80 columns are enough.

    Cells that are wider than the terminal leaves room for are wrapped between their figures.
    """
    parts: list[RenderableType] = []
    for group in dict.fromkeys(group for group, _ in table.columns):
        columns = [(j, metric) for j, (other, metric) in enumerate(table.columns) if other == group]
        part = RichTable(
            *(Column(label, overflow="fold", min_width=12) for label in table.labels),
            *(Column(METRICS[metric].head, justify="right", overflow="fold", min_width=7) for _, metric in columns),
            title=f"{table.title}: {group}" if group else table.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for i, labels in enumerate(table.rows):
            part.add_row(*labels, *(_plain(table.cells.get((i, j)), metric) for j, metric in columns))
        parts.append(part)
    return Group(*parts, *(Text(note) for note in table.notes), "")


def latex(table: Table) -> str:
    """The table in LaTeX: a `tabular` that needs the packages booktabs and, for check marks, amssymb."""
    groups = [group for group, _ in table.columns]
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{amssymb}",
        f"\\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * len(table.columns)}}}",
        "\\toprule",
    ]
    spans = [(group, sum(1 for g in groups if g == group)) for group in dict.fromkeys(groups)]
    if any(group for group, _ in spans):
        wide = [f"\\multicolumn{{{count}}}{{c}}{{{_escaped(group)}}}" for group, count in spans]
        lines.append(" & ".join([*[""] * len(table.labels), *wide]) + r" \\")
    heads = [*table.labels, *(METRICS[metric].head for _, metric in table.columns)]
    lines += [" & ".join(_escaped(head) for head in heads) + r" \\", "\\midrule"]
    for i, labels in enumerate(table.rows):
        cells = [_text(table.cells.get((i, j)), metric) for j, (_, metric) in enumerate(table.columns)]
        lines.append(" & ".join([*map(_escaped, labels), *(_tex(cell) for cell in cells)]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in table.notes), ""])


def comma_separated(table: Table) -> str:
    """The table in CSV: one line for each figure, with all of its fields."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*table.labels, "of", "metric", *Figure.__dataclass_fields__])
    for (i, j), cell in sorted(table.cells.items()):
        values = ["" if value is None else value for value in vars(cell).values()]
        writer.writerow([*table.rows[i], *table.columns[j], *values])
    return buffer.getvalue()


FORMATS = {"md": markdown, "csv": comma_separated, "tex": latex}
"""Formats by the suffix of their files."""


def counts(table: Table) -> Iterator[str]:
    """A note on the number of scenes: one number, or one for each row if they differ."""
    rows = [0] * len(table.rows)
    for (i, _), cell in table.cells.items():
        rows[i] = max(rows[i], cell.count)
    if len(set(rows)) == 1:
        yield f"{rows[0]} {'scene' if rows[0] == 1 else 'scenes'}."
    else:
        yield "Scenes, row by row: " + ", ".join(map(str, rows)) + "."


def _head(table: Table, group: str, metric: str) -> str:
    several = len({group for group, _ in table.columns}) > 1
    return f"{group} {METRICS[metric].head}" if several else METRICS[metric].head


def _text(cell: Figure | None, metric: str) -> str:
    """A figure as the paper prints it: the mean, offsets as super- and subscript, the paper's own in brackets."""
    return _with_offsets(cell, metric, lambda mean, best, worst: f"${mean}^{{{best}}}_{{{worst}}}$")


def _plain(cell: Figure | None, metric: str) -> str:
    """A figure in plain text: the mean, offsets of the best and the worst scene, the paper's own in brackets."""
    return _with_offsets(cell, metric, lambda mean, best, worst: f"{mean} {best} {worst}")


def _with_offsets(cell: Figure | None, metric: str, combined: Callable[[str, str, str], str]) -> str:
    """A figure with its offsets, which `combined` writes beside the mean; empty without a figure."""
    if cell is None:
        return ""
    digits = METRICS[metric].digits
    text = f"{cell.mean:.{digits}f}"
    if cell.best is not None and cell.worst is not None:
        text = combined(text, f"{cell.best:+.{digits}f}", f"{cell.worst:+.{digits}f}")
    if cell.interval is not None:
        text += f" ±{cell.interval:.{digits}f}"
    if cell.beyond is not None:
        text += f" ({cell.beyond:.{digits}f})"
    return text if cell.paper is None else f"{text} [{cell.paper:.{digits}f}]"


def _tex(cell: str) -> str:
    return cell.replace("±", r"\,$\pm$\,")


_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "✓": r"$\checkmark$",
    }
)


def _escaped(text: str) -> str:
    return text.translate(_SPECIAL)
