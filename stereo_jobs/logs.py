"""Logs: lines for people, or JSON for collectors; either way each line knows its job, shard and row.

Ids belong to the context, not to each call: whatever is logged inside `about(shard=...)` carries them, also lines of
the pipeline, which knows of no shards. They follow work into another thread by `contextvars.copy_context().run`.
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
    """Put `job`, `shard` or `row` on all lines logged inside."""
    token = _ids.set(_ids.get() | ids)
    try:
        yield
    finally:
        _ids.reset(token)


def name_job(uri: str) -> None:
    """Put `job` on all further lines of this context: an error that ends the run is told after the run."""
    _ids.set(_ids.get() | {"job": uri})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, ids, what `extra` gives, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
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
    """Set up logging for this process; called again, it replaces what it set up before.

    Args:
        log_format: json also tells of every shard, as `verbose` does.
        verbose: from INFO on, instead of WARNING.
        handler: for text; standard error by default.
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
    """Whether this process logs as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
