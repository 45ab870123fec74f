"""Reads YAML and JSON that people write (specs, `--set` values, options), and shows values of them in messages.

A text becomes plain data (mappings with text keys, lists, texts, numbers, true, false, null) or a SpecError, soon,
whatever is in it: the parser's events are counted before anything is built from them. Aliases count as often as they
are used, and what they stand for is copied, so that no two fields share a value.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from stereo_jobs.errors import SpecError
from stereo_jobs.local_files import refuse_special

MAX_BYTES = 1024**2
"""Largest size of a file."""
MAX_NODES = 50_000
"""Largest number of values and keys in a text, with those that its aliases repeat."""
LONG_TEXT = 100
"""Number of characters of a text that count as another value."""
MAX_DEPTH = 50
"""Deepest nesting of mappings and lists."""
MAX_DIGITS = 100
"""Longest number in characters; no field takes more than 19 digits."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DATE = "tag:yaml.org,2002:timestamp"
# The C library reads a megabyte in the time in which the Python code of the same package reads some kilobytes.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Problem(yaml.MarkedYAMLError):
    """A rule of this module is broken."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(_Base):  # type: ignore[misc]
    """Builds plain data. Whatever fails while a value is made becomes a YAMLError with its place."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag == _DATE:
            raise _Problem("a date, which no field takes; put it in quotes if it is a text", node.start_mark)
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise _Problem(f"a number of more than {MAX_DIGITS} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # ValueError, KeyError, IndexError and others, from `!!int ""` or `!!bool maybe`
            raise _Problem(f"a value that is no {node.tag.rpartition(':')[2]}", node.start_mark) from None


def read_text(path: str | Path) -> str:
    """Read a text file of at most `MAX_BYTES`, without its byte order mark. Raises SpecError."""
    try:
        refuse_special(Path(path))
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes; name folders or globs instead of many files")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"spec {path}: cannot be read (no such file; check the path)") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"spec {path}: cannot be read (not UTF-8 at byte {error.start}; save it as UTF-8)") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"spec {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def parse(text: str) -> Any:
    """Turn YAML or JSON into plain data.

    Raises:
        SpecError: it is neither, or it breaks a rule of this module; the message says what and where, without quoting
            the text, which may hold secrets.
    """
    try:
        try:
            data = _from_json(text)
        except (ValueError, RecursionError):  # it is YAML, or the YAML parser says what is wrong with it
            _Counter().count(yaml.parse(text, Loader=_Loader))
            data = yaml.load(text, Loader=_Loader)
        return _plain(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise SpecError(f"not valid YAML or JSON ({str(reason)[:100]}{where})") from None
    except UnicodeEncodeError:
        raise SpecError("not valid YAML or JSON (text that is not UTF-8)") from None


def _from_json(text: str) -> Any:
    """Read JSON, whose tabs and pairs of surrogates YAML does not take. Raises ValueError or RecursionError."""
    if not text.lstrip().startswith("{"):
        raise ValueError("no JSON object")
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping. Raises ValueError if a key comes twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return found


class _Open:
    """A mapping or list whose end has not come yet: its anchor, the nodes in it, and the keys of a mapping."""

    def __init__(self, event: Any) -> None:
        self.anchor = event.anchor
        self.size = 1
        self.children = 0
        self.keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None

    def expect(self, event: Any) -> None:
        """Note the next child. Raises YAMLError if it stands where a new key must."""
        self.children += 1
        if self.keys is None or self.children % 2 == 0:
            return
        if not isinstance(event, yaml.ScalarEvent):
            raise _Problem("a key that is no text", event.start_mark)
        if event.value in self.keys:
            raise _Problem("a key that the mapping has already; keep one of them", event.start_mark)
        self.keys.add(event.value)


class _Counter:
    """Counts what the events of a parser stand for, and refuses too much of it with a YAMLError."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._sizes: dict[str, int | None] = {}  # of what anchors name; None while it is open

    def count(self, events: Iterable[Any]) -> None:
        """Check depth, size, aliases and keys."""
        for event in events:
            if isinstance(event, yaml.NodeEvent) and self._open:
                self._open[-1].expect(event)
            if isinstance(event, yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                closed = self._open.pop()
                self._end(closed.anchor, closed.size, event)
            elif isinstance(event, yaml.AliasEvent):
                size = self._sizes.get(str(event.anchor), 1)  # an unknown one is refused when data is built
                if size is None:
                    raise _Problem("an alias inside of what it stands for", event.start_mark)
                self._end(None, size, event)
            elif isinstance(event, yaml.ScalarEvent):
                self._end(event.anchor, 1 + len(event.value) // LONG_TEXT, event)

    def _begin(self, event: Any) -> None:
        if len(self._open) == MAX_DEPTH:
            raise _Problem(f"nested deeper than {MAX_DEPTH}", event.start_mark)
        self._open.append(_Open(event))
        if event.anchor:
            self._sizes[event.anchor] = None

    def _end(self, anchor: str | None, size: int, event: Any) -> None:
        if anchor:
            self._sizes[anchor] = size
        if self._open:
            self._open[-1].size += size
        if size > MAX_NODES or (self._open and self._open[-1].size > MAX_NODES):
            raise _Problem(f"more than {MAX_NODES} values, counting those that aliases repeat", event.start_mark)


def _plain(value: Any, depth: int = 0) -> Any:
    """Copy plain data, without shared parts. Raises YAMLError if it is not plain."""
    if depth > MAX_DEPTH:
        raise _Problem(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise _Problem("a key that is a number, true, false or null; put it in quotes")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise _Problem("a number that is not finite")
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise _Problem(f"a number of more than {MAX_DIGITS} characters")
    if value is None or isinstance(value, str | int | float):
        return value
    raise _Problem(f"a value of type {type(value).__name__}; use texts, numbers, lists and mappings")


# --- Values in messages ---

MAX_SHOWN = 200
"""Largest number of characters of a value that a message shows."""
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters and broken Unicode."""


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = ascii(value) if isinstance(value, str) and CONTROL.search(value) else repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
