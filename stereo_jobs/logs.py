"""Logs: lines of text for people, or JSON objects for log collectors, with the ids of their job, shard and row.

Ids belong to the context, not to the single call: every line logged inside `about(shard=...)` carries them, even those
of the pipeline, which knows nothing about shards. `contextvars.copy_context().run` takes them into another thread.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_NAME = "stereo_jobs"
_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039  # never changed in place
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


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
        return json.dumps(line, default=str)


def configure(log_format: LogFormat, *, verbose: bool = False, handler: logging.Handler | None = None) -> None:
    """Set up logging for this process. A second call replaces the setup of the first.

    Args:
        log_format: `text` or `json`; JSON logs include level INFO, which has a line for each shard.
        verbose: include level INFO in text logs, too; otherwise they start at WARNING.
        handler: handler for text logs; standard error by default.
    """
    if log_format == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
    handler = handler or logging.StreamHandler()
    handler.name = _NAME
    root = logging.getLogger()
    root.handlers = [*(old for old in root.handlers if old.name != _NAME), handler]
    level = logging.INFO if verbose or log_format == "json" else logging.WARNING
    logging.getLogger(_NAME).setLevel(level)


def is_json() -> bool:
    """Return whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
