"""Signals: the first ends a command with exit code 75, or drains a run; Ctrl-C after it ends the process at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stereo_jobs import interrupts
from stereo_jobs.errors import InterruptedRunError
from stereo_jobs.run.driver import run
from tests import standin
from tests.conftest import REPOSITORY
from tests.output.test_lease import wait_for
from tests.run.processes import finish, start
from tests.waiting import PATIENCE_S

KINDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@pytest.mark.parametrize("number", KINDS)
def test_the_first_signal_raises_where_there_is_nothing_to_drain(number):
    with pytest.raises(SystemExit) as end, interrupts.handled():
        signal.raise_signal(number)
    assert end.value.code == 75


@pytest.mark.parametrize("number", KINDS)
def test_inside_draining_it_only_sets_the_event(number):
    stopped = threading.Event()
    with interrupts.handled(), interrupts.draining(stopped):
        signal.raise_signal(number)
        assert stopped.is_set()
        if number != signal.SIGINT:
            signal.raise_signal(number)  # a scheduler that repeats itself does not cut the drain short


def test_ctrl_c_after_another_signal_ends_at_once(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with interrupts.handled(), interrupts.draining(threading.Event()):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert ends == [75]


def test_nohup_is_respected():
    code = (
        "import signal\nfrom stereo_jobs import interrupts\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "interrupts.install()\nsignal.raise_signal(signal.SIGHUP)\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "goes on\n"


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in KINDS]
    with interrupts.handled():
        assert all(signal.getsignal(number) == interrupts._handle for number in KINDS)
    assert [signal.getsignal(number) for number in KINDS] == before


@pytest.mark.parametrize("number", KINDS)
@pytest.mark.parametrize("verb", ["run", "demo", "retry-failed"])
def test_a_verb_that_is_interrupted_while_it_imports_exits_75(tmp_path, verb, number):
    """A module that the verb imports first sends the signal."""
    (tmp_path / "job.yaml").write_text("manifest: x\noutput: y\n")
    words = [verb] if verb == "demo" else [verb, str(tmp_path / "job.yaml")]
    code = (
        f"import os, sys\nsys.argv = {['stereo-jobs', *words]!r}\n"
        "class Signal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'stereo_jobs.spec': os.kill(os.getpid(), {int(number)})\n"
        "from stereo_jobs import cli\nsys.meta_path.insert(0, Signal())\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (75, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_still_plans_ends_at_once(make_spec, monkeypatch):
    from stereo_jobs.run import prepare

    monkeypatch.setattr(prepare.plan, "load_job", lambda storage: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        run(make_spec(), local=True, load=standin.load)
    assert end.value.code == 75


SWALLOWED = """
try:
    signal.raise_signal(signal.SIGTERM)
except BaseException:  # as some libraries have it around their imports
    pass
"""


AGAIN = ["interrupts.install()", "interrupts.handled().__enter__()", "os.kill(os.getpid(), 15)"]


@pytest.mark.parametrize("then", AGAIN)
def test_a_signal_that_a_library_swallows_is_not_lost(then):
    begin = "import os, signal\nfrom stereo_jobs import interrupts\ninterrupts.install()\n"
    code = f"{begin}{SWALLOWED}\n{then}\nprint('on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (75, ""), done.stderr


def test_a_swallowed_signal_drains(make_spec):
    stopped = threading.Event()
    with interrupts.handled():
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with interrupts.draining(stopped):
            assert stopped.is_set()


def test_a_swallowed_signal_ends_planning(make_spec, monkeypatch):
    from stereo_jobs.run import prepare

    def resolve(recipe, resolve=prepare.resolve_recipe):
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        return resolve(recipe)

    monkeypatch.setattr(prepare, "resolve_recipe", resolve)
    spec = make_spec()
    with pytest.raises(InterruptedRunError, match="while the manifest was planned; run again"):
        run(spec, local=True, load=standin.load)
    assert not list(Path(spec.output).glob("_job/plan-*"))


def test_a_signal_that_is_repeated_does_not_cut_cleaning_up_short():
    cleaned = []
    with pytest.raises(SystemExit), interrupts.handled():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                raise ValueError
            except ValueError:
                signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)
    assert cleaned == [True]


def test_planning_a_huge_manifest_stops_on_sigterm(make_spec, tmp_path):
    """In a process of its own, with ids for a minute of planning."""
    ids = pa.table({"id": [f"row-{i}" for i in range(100_000)], "prompt": pa.nulls(100_000, pa.string())})
    path = tmp_path / "huge.parquet"
    with pq.ParquetWriter(path, ids.schema) as writer:
        for _ in range(200):
            writer.write_table(ids)
    spec = make_spec(path)
    process = start(spec, tmp_path)
    wait_for(tmp_path / "out/_job/lease.json")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75, said
    assert "Traceback" not in said
    assert not list(Path(spec.output).glob("_job/plan-*"))


def test_sighup_drains(make_spec, make_manifest, tmp_path):
    spec = make_spec(make_manifest(prompt=["slow"] * 8), shard_rows=1)
    process = start(spec, tmp_path)
    wait_for(tmp_path / "out/_job/commits")
    process.send_signal(signal.SIGHUP)
    code, said = finish(process)
    assert (code, "interrupted; run again to go on" in said) == (75, True)


@pytest.mark.parametrize("options", [[], pytest.param(["--ray"], marks=pytest.mark.slow)])
def test_a_second_ctrl_c_does_not_wait(make_spec, make_manifest, tmp_path, options):
    """Neither for the batch, which takes an hour, nor for actors."""
    spec = make_spec(make_manifest(prompt=["fine"] * 3 + ["hang"] * 5), shard_rows=1, drain_timeout_s=600)
    process = start(spec, tmp_path, *options, errors=subprocess.DEVNULL)
    wait_for(tmp_path / "out/_job/commits")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 75


def test_a_second_ctrl_c_does_not_wait_for_a_main_thread_that_runs_no_handler():
    """As Ray's calls do, this one takes minutes, and lets no handler run before it ends."""
    code = (
        "import hashlib, threading\nfrom stereo_jobs import interrupts\n"
        "with interrupts.handled(), interrupts.draining(threading.Event()):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout.readline() == b"ready\n"
    for _ in range(2):
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=PATIENCE_S) == 75
    finally:
        process.kill()


def test_a_forked_process_writes_nothing_into_the_pipe_of_its_parent():
    with interrupts.handled():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGCHLD)
            os._exit(signal.set_wakeup_fd(-1) + 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert signal.set_wakeup_fd(interrupts._state.wakeup) == interrupts._state.wakeup
    assert signal.set_wakeup_fd(-1) == -1


def test_a_drain_in_another_thread_is_nobodys_business():
    raised = []

    def work():
        with interrupts.handled(), interrupts.draining(threading.Event()):
            raised.append(signal.getsignal(signal.SIGTERM) is interrupts._handle)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [False]
