"""Copies tables and pictures of evaluations into docs/benchmarks.md.

python docs/fill_benchmarks.py out/toyscapes out/switches [...]

A table stands between its `<!-- table OUT/NAME -->` and `<!-- end -->`, a picture between its
`<!-- picture OUT/NAME FILE: DESCRIPTION -->` and `<!-- end picture -->`. OUT is the name of an evaluation's folder,
NAME that of a table or picture in it, FILE the copy below docs/, whose colours are reduced.
"""

import re
import sys
from pathlib import Path

from PIL import Image

PAGE = Path(__file__).with_name("benchmarks.md")
_PLACE = re.compile(r"(<!-- table (\S+)/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PICTURE = re.compile(r"(<!-- picture (\S+)/(\S+) (\S+): (.*?) -->\n).*?(<!-- end picture -->)", re.DOTALL)
_COLOURS = 160


def filled(page: str, outputs: list[Path]) -> str:
    """The page with the tables and pictures that the evaluations have; others stay as they are. Copies pictures."""

    def table(place: re.Match[str]) -> str:
        for output in outputs:
            found = output / "tables" / f"{place[3]}.md"
            if output.name == place[2] and found.is_file():
                return f"{place[1]}{found.read_text(encoding='utf-8').strip()}\n{place[4]}"
        return place[0]

    def picture(place: re.Match[str]) -> str:
        for output in outputs:
            found = output / "pictures" / f"{place[3]}.png"
            if output.name == place[2] and found.is_file():
                Image.open(found).quantize(_COLOURS).save(PAGE.parent / place[4], optimize=True)
                return f"{place[1]}![{place[5]}]({place[4]})\n{place[6]}"
        return place[0]

    return _PICTURE.sub(picture, _PLACE.sub(table, page))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), [Path(each) for each in sys.argv[1:]]), encoding="utf-8")
