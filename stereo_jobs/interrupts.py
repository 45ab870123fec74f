"""SIGTERM, SIGHUP and Ctrl-C end a command with exit code 75: running it again goes on where it stopped.

The first signal raises `Interrupt` in the main thread, wherever that is: reading plans, repairing, planning. Inside of
`draining` it only sets an event, so that shards in flight may end. Ctrl-C after any other signal ends the process at
once, without waiting for threads, actors or a cluster.

Code of others can swallow the exception: libraries have `except:` around some of their imports. A signal is therefore
remembered, and what takes long asks for it (`told`).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupt(SystemExit):
    """The first signal, where there is nothing to drain. `except Exception` does not catch it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _State:
    """What the handler knows; there is one handler in a process.

    Attributes:
        told: whether a signal has come.
        drain: the event to set instead of raising; None outside of `draining`.
        terminals: descriptors of output that were terminals at the start.
    """

    told = False
    drain: threading.Event | None = None
    terminals: tuple[int, ...] = ()


_state = _State()


def install(*, ctrl_c: bool = True) -> dict[int, Any]:
    """Handle the signals from here on; returns the former handlers.

    Args:
        ctrl_c: also handle Ctrl-C; without it, Ctrl-C raises KeyboardInterrupt as usual.

    Raises:
        Interrupt: the signals are handled already, and one has come.
    """
    if signal.getsignal(signal.SIGTERM) != _handle:
        _state.told = False
    if _state.told:
        raise Interrupt
    _state.terminals = tuple(fd for fd in (1, 2) if os.isatty(fd))
    return {
        number: signal.signal(number, _handle)
        for number in SIGNALS
        # `nohup` ignores SIGHUP, which then stays ignored.
        if (number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN)
        and (number != signal.SIGINT or ctrl_c)
    }


def restore(former: dict[int, Any]) -> None:
    """Give the signals back to the handlers that `install` returned."""
    for number, handler in former.items():
        signal.signal(number, handler)
    _state.told = False


def told() -> bool:
    """Return whether a signal has come."""
    return _state.told


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle the signals inside the `with` block. In another thread than the main one, nothing is done.

    Raises:
        Interrupt: the command line has had a signal already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if all(signal.getsignal(number) == _handle for number in (signal.SIGTERM, signal.SIGINT)):
        if _state.told:
            raise Interrupt
        yield  # the command line has installed them, and they stay until the end of the process
        return
    former = install()
    try:
        yield
    finally:
        restore(former)


@contextlib.contextmanager
def draining(stopped: threading.Event) -> Iterator[None]:
    """Inside the `with` block a signal sets `stopped`, and raises nothing; one that came before it sets it, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.drain = stopped
    if _state.told:
        stopped.set()
    try:
        yield
    finally:
        _state.drain = None


def _handle(number: int, frame: object) -> None:
    if number == signal.SIGHUP:
        _leave_terminals()
    if number == signal.SIGINT and _state.told:
        os._exit(EXIT_CODE)
    if _state.drain is not None:
        _state.told = True
        _state.drain.set()
    elif not _is_ending():
        _state.told = True
        raise Interrupt


def _is_ending() -> bool:
    """Whether the interrupted code cleans up after an earlier signal, which another one must not cut short."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupt):
        error = error.__context__
    return error is not None


def _leave_terminals() -> None:
    """Write to nowhere from now on: writing to a terminal that was closed fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _state.terminals:
        os.dup2(nowhere, descriptor)
