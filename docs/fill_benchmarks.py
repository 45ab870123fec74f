"""Copies tables of evaluations into docs/benchmarks.md, each between its `<!-- table OUT/NAME -->` and `<!-- end -->`.

python docs/fill_benchmarks.py out/toyscapes out/switches [...]

OUT is the name of an evaluation's folder, NAME that of a table in it.
"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("benchmarks.md")
_PLACE = re.compile(r"(<!-- table (\S+)/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, outputs: list[Path]) -> str:
    """The page with the tables that the evaluations have; other tables stay as they are."""

    def table(place: re.Match[str]) -> str:
        for output in outputs:
            found = output / "tables" / f"{place[3]}.md"
            if output.name == place[2] and found.is_file():
                return f"{place[1]}{found.read_text(encoding='utf-8').strip()}\n{place[4]}"
        return place[0]

    return _PLACE.sub(table, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), [Path(each) for each in sys.argv[1:]]), encoding="utf-8")
