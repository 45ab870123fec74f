"""Work on rows in threads: deadlines, errors, and a bound on what waits."""

import gc
import subprocess
import sys
import threading

import pytest

from stereo_jobs.errors import StorageUnavailableError
from stereo_jobs.records import RowError
from stereo_jobs.workers.timed_threads import TIMED_OUT, TimedThreads
from tests.waiting import PATIENCE_S


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "MemoryError"),
        (Exception("OpenCV(4.12) error: (-4:Insufficient memory) Failed to allocate 9 bytes"), "MemoryError"),
        (ValueError("not a shape"), "ValueError"),
    ],
)
def test_an_error_costs_its_row_and_names_the_stage(error, kind):
    threads = TimedThreads(1, "test", 60)
    made = threads.submit("a", "scoring", raises(error)).result(10)
    assert isinstance(made, RowError)
    assert (made.id, made.error_type) == ("a", kind)
    assert made.error_message.startswith("scoring: ")
    assert threads.submit("b", "scoring", lambda: 7).result(10) == 7


def test_errors_of_the_job_are_not_the_rows():
    threads = TimedThreads(1, "test", 60)
    future = threads.submit("a", "reading", raises(StorageUnavailableError("no answer")))
    with pytest.raises(StorageUnavailableError):
        future.result(10)
    assert threads.submit("b", "reading", lambda: 7).result(10) == 7


def test_a_row_that_misses_its_deadline_is_an_error_and_the_rows_behind_it_are_made():
    threads, released = TimedThreads(1, "test", 0.2), threading.Event()
    late = threads.submit("late", "scoring", released.wait, size=100)
    behind = threads.submit("behind", "scoring", lambda: 7)
    error = late.result(10)
    assert (error.id, error.error_type) == ("late", TIMED_OUT)
    assert "took more than 0.2 s; raise runtime.batch_timeout_s" in error.error_message
    assert behind.result(10) == 7
    released.set()  # the thread that was given up ends; its result is not the row's any more
    assert threads.submit("last", "scoring", lambda: 8).result(10) == 8
    assert late.result() is error


def test_more_bytes_than_the_bound_wait_and_one_large_row_is_let_through():
    threads, released = TimedThreads(2, "test", 60, most_bytes=10), threading.Event()
    first = threads.submit("large", "scoring", released.wait, size=1000)
    second = []
    waiting = threading.Thread(target=lambda: second.append(threads.submit("b", "scoring", lambda: 7, size=1)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    released.set()
    assert first.result(10)
    waiting.join(10)
    assert second[0].result(10) == 7


def test_the_threads_end_with_their_owner():
    threads = TimedThreads(2, "ends-with-owner", 60)
    mine = [thread for thread in threading.enumerate() if thread.name == "ends-with-owner"]
    assert len(mine) == 2
    del threads
    gc.collect()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


EXIT = """
import atexit, threading, time, weakref
atexit.register(lambda: print([t.name for t in threading.enumerate() if t.name == "test"]))  # runs after those below
weakref.finalize(threading, print)  # whoever needs one first has all of them called last
from stereo_jobs.workers import timed_threads
threads = timed_threads.TimedThreads(3, "test", 60)
timed_threads.EXIT_PATIENCE_S = {patience}
{work}
"""


@pytest.mark.parametrize(
    ("work", "patience", "left"),
    [
        ("threads.submit('a', 'scoring', lambda: 7).result()", 60, 0),
        ("threads.submit('a', 'scoring', lambda: time.sleep(0.3))", 60, 0),
        ("threads.submit('a', 'scoring', lambda: time.sleep(3600))", 1, 1),
    ],
)
def test_no_thread_outlives_the_process_but_one_that_hangs(work, patience, left):
    """One that ends while Python does can abort it."""
    code = EXIT.format(work=work, patience=patience)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(["test"] * left)
