"""What the command line prints with: text and tables on stdout, messages on stderr, nothing of them as markup."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from stereo_jobs import logs


class SafeConsole(Console):
    """Prints text as it is: never as markup or emoji, and with control characters escaped, wherever they come from."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; texts are escaped before rich drops some of their control characters."""
        super().print(*(logs.printable(each) if isinstance(each, str) else each for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything, also tables, live lines and logs; all that is printed passes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(logs.printable(segment.text), segment.style)


out = SafeConsole()
err = SafeConsole(stderr=True)


def print_facts(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print facts as a line of JSON, or lines of text that say the same."""
    if as_json:
        print(logs.json_line(facts))
    else:
        for line in lines:
            out.print(line)
