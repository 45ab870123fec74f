"""Logs: lines of text for people, or JSON objects for log collectors, with the ids of their job, shard and row.

Ids belong to the context, not to the single call: every line logged inside `about(shard=...)` carries them, even those
of the pipeline, which knows nothing about shards. `contextvars.copy_context().run` takes them into another thread.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_NAME = "stereo_jobs"
_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039  # never changed in place
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

# What a terminal obeys, or what hides or reorders text: control characters but \n and \t, soft hyphens, zero-width and
# bidirectional marks, line separators, surrogates (bytes of a name that are not UTF-8), language tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Return text in which what a terminal or a page would obey or hide is escaped, as `\x1b`; lines and tabs stay."""
    return _HIDDEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def names_shown(names: Iterable[str]) -> str:
    """List names of columns or files in one line of a message, whatever is in them."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names)


def json_line(value: Any) -> str:
    """Return one line of JSON, in ASCII without control characters."""
    return json.dumps(value, default=str).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """Add ids (`job`, `shard`, `row`) to all lines that are logged inside the `with` block."""
    token = _ids.set(_ids.get() | ids)
    try:
        yield
    finally:
        _ids.reset(token)


def name_job(uri: str) -> None:
    """Add `job` to all further lines of this context, also to the error that ends a run, which is logged after it."""
    _ids.set(_ids.get() | {"job": uri})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, logger, message, ids, fields of `extra`, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _ids.get()
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)


class TextFormatter(logging.Formatter):
    """Formats a record as text for people, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message, and its exception below it."""
        return printable(super().format(record))


def configure(log_format: LogFormat, *, verbose: bool = False, handler: logging.Handler | None = None) -> None:
    """Set up logging for this process. A second call replaces the setup of the first.

    Args:
        log_format: `text` or `json`; JSON logs include level INFO, which has a line for each shard.
        verbose: include level INFO in text logs, too; otherwise they start at WARNING.
        handler: handler for text logs; standard error by default.
    """
    if log_format == "json" or handler is None:
        handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.name = _NAME
    root = logging.getLogger()
    root.handlers = [*(old for old in root.handlers if old.name != _NAME), handler]
    level = logging.INFO if verbose or log_format == "json" else logging.WARNING
    logging.getLogger(_NAME).setLevel(level)


def is_json() -> bool:
    """Return whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
