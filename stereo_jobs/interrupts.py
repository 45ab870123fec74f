"""SIGTERM, SIGHUP and Ctrl-C end a command with exit code 75: running it again goes on where it stopped.

The first signal raises `Interrupt` in the main thread, wherever that is: reading plans, repairing, planning. Inside of
`draining` it only sets an event, so that shards in flight may end. Ctrl-C after any other signal ends the process at
once, without waiting for threads, actors or a cluster.

Python calls a handler in the main thread, between two instructions of its own, and only once for signals that came
while Ray kept that thread. A thread therefore counts the signals as they come, and ends the process for a main thread
that does not.

Code of others can swallow the exception: libraries have `except:` around some of their imports. A signal is therefore
remembered, and what takes long asks for it (`told`).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MAIN_THREAD_S = 1.0
"""Seconds that the main thread has to end the process itself."""


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
        came: how many signals the thread has counted.
        wakeup: the end of a pipe to which Python writes the number of each signal; None if it is nobody's.
    """

    told = False
    came = 0
    wakeup: int | None = None
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
        _forget()
    if _state.told:
        raise Interrupt
    _state.terminals = tuple(fd for fd in (1, 2) if os.isatty(fd))
    if _state.wakeup is None and ctrl_c:
        _count_in_a_thread()
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
    _forget()
    if _state.wakeup is not None:
        signal.set_wakeup_fd(-1)
        os.close(_state.wakeup)  # the thread ends
        _state.wakeup = None


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


def _forget() -> None:
    """Begin anew: the next signal is the first."""
    _state.told, _state.came = False, 0


def _count_in_a_thread() -> None:
    """Count signals in a thread, which ends the process on Ctrl-C after another one if the main thread does not."""
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    _state.wakeup = sink

    def count() -> None:
        while number := os.read(source, 1):
            if number[0] in SIGNALS:
                _state.came += 1
            if number[0] == signal.SIGINT and _state.came > 1:
                time.sleep(MAIN_THREAD_S)
                if _state.came > 1:  # the signals still count
                    os._exit(EXIT_CODE)
        os.close(source)

    threading.Thread(target=count, name="signals", daemon=True).start()


def _leave_pipe() -> None:
    """Write nothing into the pipe of the process that this one was forked from."""
    if _state.wakeup is not None:
        signal.set_wakeup_fd(-1)
        os.close(_state.wakeup)
        _state.wakeup = None


os.register_at_fork(after_in_child=_leave_pipe)


def _leave_terminals() -> None:
    """Write to nowhere from now on: writing to a terminal that was closed fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _state.terminals:
        os.dup2(nowhere, descriptor)
