"""Reads what lies below an output. None of it is trusted: a disk, a copy or a store may have damaged any object.

An object that is there and is not what its name says is a DamagedError, one line that names it. Callers rebuild a
cache (record, totals, ids) from the objects that it was made of; damage to a plan or a shard ends the command.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.errors import DamagedError

Model = TypeVar("Model", bound=BaseModel)
A = TypeVar("A")
B = TypeVar("B")

_WHAT_DAMAGE_RAISES = (
    *(ValueError, LookupError, TypeError, AttributeError, OSError, ArithmeticError, SyntaxError, RecursionError),
    pa.ArrowException,
)
AGAIN = "move it away and run again: it is then made again"
"""Remedy for a damaged shard, record, lease or other object that a run makes."""


def read_json(storage: Storage, key: str, model: type[Model], remedy: str = AGAIN) -> Model:
    """Read a JSON object as a model.

    Args:
        storage: the storage of the output.
        key: name of the object.
        model: what it must be.
        remedy: ends the message of the error.

    Raises:
        NotFoundError: there is no such object.
        DamagedError: it is not JSON, or not this model.
    """
    with intact(storage, key, remedy):
        return model.model_validate_json(storage.read(key))


@contextlib.contextmanager
def intact(storage: Storage, key: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn what reading a damaged object raises inside the `with` block into DamagedError."""
    try:
        yield
    except (NotFoundError, DamagedError):
        raise
    except _WHAT_DAMAGE_RAISES as error:
        raise DamagedError(f"{storage.locate(key)}: damaged ({describe(error)}); {remedy}") from None


def describe(error: Exception) -> str:
    """Say in one line what is wrong with an object, without quoting much of it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return " ".join(str(error).split())[:200] or type(error).__name__


def in_threads(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Return the results of `work` in the order of `items`. Few items wait at a time, so an interrupt ends it soon."""
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque(pool.submit(work, item) for item in itertools.islice(rest, 4 * threads))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
