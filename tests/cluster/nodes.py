"""Ray clusters of several nodes on this machine, on loopback, to be killed and frozen."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S, wait_until

SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps everything on loopback
    "RAY_AUTH_MODE": "token",
    # A node that does not answer is dead after about ten seconds instead of a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "OMP_NUM_THREADS": "1",
}


class Node:
    """A process of `tests.cluster.node`, and all that came of it."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process, self.log = process, log

    def said(self) -> str:
        """Its cluster's address, once it is up."""
        return self.log.read_text().strip()

    def processes(self) -> list[psutil.Process]:
        """The node's processes: raylet, its workers, on the head also the control service."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def actors(self) -> list[psutil.Process]:
        """Processes that hold a generator; Ray names its processes after what they do."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ActorWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def workers(self) -> set[str]:
        """Its actors, as they are called in the records of their shards."""
        return {f"{socket.gethostname()}/{process.pid}" for process in self.actors()}

    def alive(self) -> bool:
        """Whether its raylet is: it ends itself when the head has given the node up."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the node at once."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """As if its plug were pulled; nobody is told."""
        self.signal(signal.SIGKILL)
        self.process.wait()


class Nodes:
    """A head without room for actors, and worker nodes."""

    def __init__(self, folder: Path, ip: str = "127.0.0.1") -> None:
        self._folder, self._ip = folder, ip
        self.all: list[Node] = []
        self.address = "head"
        self.head = self.add(cpus=0)
        self.address = self.head.said()

    def add(self, cpus: int = 1, gpus: int = 0, ip: str = "", within: Sequence[str] = ()) -> Node:
        """One more node, started by the command `within` if it is to be elsewhere.

        Ray gives a node 30 s to start, and a machine that stalls may need another try.
        """
        for _ in range(3):
            node = self._start([*within, sys.executable, "-m", "tests.cluster.node", self.address], cpus, gpus, ip)
            wait_until(lambda node=node: node.said() or node.process.poll() is not None, what="a node")
            if node.said():
                self.all.append(node)
                return node
        raise RuntimeError(node.log.with_suffix(".errors").read_text()[-2000:])

    def _start(self, command: Sequence[str], cpus: int, gpus: int, ip: str) -> Node:
        log = self._folder / f"node-{time.monotonic_ns()}.log"
        words = [*command, str(cpus), str(gpus), ip or self._ip]
        with log.open("w") as out, log.with_suffix(".errors").open("w") as errors:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, stderr=errors, cwd=REPOSITORY)
        return Node(process, log)

    def drain(self, node: Node, seconds: int) -> None:
        """What a hook on the machine does with a spot notice."""
        # The raylet was started with its id.
        words = [word for process in node.processes() for word in process.cmdline()]
        node_id = next(word.partition("=")[2] for word in words if word.startswith("--node_id="))
        options = [f"--address={self.address}", f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        options += ["--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        subprocess.run([Path(sys.executable).with_name("ray"), "drain-node", *options], check=True, timeout=PATIENCE_S)

    def end(self) -> None:
        """Kill what is left, and remove its sockets and logs."""
        for node in self.all:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(workers: int, cpus: int = 1, gpus: int = 0) -> Iterator[Nodes]:
    """A head and worker nodes; RAY_ADDRESS and what else their drivers need is in the environment meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray makes sockets in it
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder)}
    with environment(SETTINGS | token), environment({}, without=("RAY_ADDRESS",)):
        nodes = Nodes(folder)
        try:
            for _ in range(workers):
                nodes.add(cpus, gpus)
            with environment({"RAY_ADDRESS": nodes.address}):
                yield nodes
        finally:
            nodes.end()


def comes_back(node: Node, nodes: Nodes, driver: subprocess.Popen, **where: object) -> set[str]:
    """A node that was out of reach answers again while the job is still at work; returns the workers it has then.

    Ray takes no node back that it has given up: the raylet ends itself once it hears of it, with its actors, and
    whoever started it starts it again, as Kubernetes does.
    """
    assert driver.poll() is None, "the job was over before the node was back"
    wait_until(lambda: not node.alive() and not node.actors(), what="the end of what Ray gave up")
    again = nodes.add(**where)
    wait_until(again.workers, what="an actor on the node that is back")
    workers = again.workers()
    assert driver.poll() is None, "the job was over before the node could serve again"
    return workers


@contextlib.contextmanager
def environment(values: dict[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """Set and unset variables, and set them back."""
    before = {name: os.environ.get(name) for name in (*values, *without)}
    os.environ.update(values)
    for name in without:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
