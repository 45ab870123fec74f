"""Lines of text about rows that failed or will fail, and about prompts that are not read as meant."""

from typing import TYPE_CHECKING

from stereo_jobs.output.row_errors import ErrorSummary, FailedRow
from stereo_jobs.records import PromptNotes

if TYPE_CHECKING:
    from stereo_jobs.run.check_rows import RowChecks

SHOWN_GROUPS = 5
"""Groups of errors that are shown where they are not the point."""
_LONGEST_MESSAGE = 160


def error_lines(summary: ErrorSummary, most_groups: int | None = None) -> list[str]:
    """Lines that say how many rows failed of which type, each with an example; no lines without an error.

    Args:
        summary: the errors, by group.
        most_groups: only so many of the largest groups are shown; None: all.
    """
    groups = summary.groups
    shown = groups if most_groups is None else groups[:most_groups]
    lines = [f"  {group.count:,} {group.type}, e.g. {group.id}: {_short(group.message)}" for group in shown]
    if len(shown) < len(groups):
        rest = summary.failed - sum(group.count for group in shown)
        lines.append(f"  {rest:,} of {len(groups) - len(shown)} other kinds")
    if not summary.complete:
        lines.append(f"  (counted in {summary.shards:,} of the {summary.of_shards:,} shards with errors)")
    return lines


def listed_lines(rows: list[FailedRow]) -> list[str]:
    """Failed rows as lines: id, type, shard, message."""
    return [f"{e.id}  {e.error_type}  {shard}  {_short(e.error_message, None)}" for shard, e in rows]


def prompt_lines(prompts: PromptNotes, noun: str = "pair") -> list[str]:
    """Lines about the prompts that the model does not read as they are meant; none where there are none.

    Args:
        prompts: the counts.
        noun: what is counted, in the singular.
    """
    lines = []
    if prompts.cut:
        lines.append(
            f"prompts cut: {count_of(prompts.cut, noun)}, e.g. {prompts.cut_example}; the model reads only their "
            "beginning"
        )
    if prompts.weighted:
        lines.append(
            f"attention weights: {count_of(prompts.weighted, noun)}, e.g. {prompts.weighted_example}; weights such as "
            "(red:1.4) are not honoured, and are read as text"
        )
    return lines


def check_lines(checks: "RowChecks") -> list[str]:
    """Lines about the rows of a manifest, before any pair is made."""
    errors = checks.errors
    failing = f"{errors.failed:,} will fail" if errors.failed else "none will fail"
    return [
        f"checked {count_of(checks.rows, 'row')} without opening images: {failing}",
        *error_lines(errors),
        *prompt_lines(checks.prompts, "row"),
        *([f"the model reads {checks.tokens} tokens of a prompt"] if checks.prompts.cut else []),
    ]


def count_of(count: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def _short(message: str, most: int | None = _LONGEST_MESSAGE) -> str:
    """A message on one line, cut after `most` characters."""
    line = " ".join(message.split())
    return line if most is None or len(line) <= most else line[: most - 3] + "..."
