"""Two nodes in two network namespaces, and a link between them that fails for a minute.

`unshare -rn python -m tests.cluster.partition FOLDER` runs FOLDER/spec.json; its output is on a disk that both see.
While the link is down packets vanish: nothing is refused, nothing answers. Prints the workers of the node that was
cut off, once it is back.
"""

import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stereo_jobs.spec_reading import parse_spec
from tests.cluster.nodes import SETTINGS, Nodes, comes_back, environment
from tests.run.processes import finish, start
from tests.waiting import wait_until

HERE, THERE = "10.77.1.1", "10.77.2.1"
"""On the loopback devices of the two sides: a side keeps its own address when the link fails."""


def do(command: str) -> None:
    subprocess.run(command.split(), check=True)


def link(there: str, up: bool) -> None:
    """Pull or plug the cable at the far side, so that this side sees no more than silence."""
    do(f"{there} ip link set veth1 {'up' if up else 'down'}")
    if up:
        do(f"{there} ip route replace {HERE} via 10.77.0.1 src {THERE}")


def main() -> int:
    folder = Path(sys.argv[1])
    spec = parse_spec(json.loads((folder / "spec.json").read_text()))
    far = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    there = f"nsenter -t {far.pid} -n"
    time.sleep(0.5)
    do("ip link set lo up")
    do(f"ip addr add {HERE}/32 dev lo")
    do(f"ip link add veth0 type veth peer name veth1 netns {far.pid}")
    do("ip addr add 10.77.0.1/24 dev veth0")
    do("ip link set veth0 up")
    do(f"{there} ip link set lo up")
    do(f"{there} ip addr add {THERE}/32 dev lo")
    do(f"{there} ip addr add 10.77.0.2/24 dev veth1")
    link(there, up=True)
    do(f"ip route add {THERE} via 10.77.0.2 src {HERE}")
    settings = SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-")}
    with environment(settings, without=("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")):
        nodes = Nodes(Path(settings["RAY_TMPDIR"]), HERE)
        try:
            nodes.add()
            cut_off = nodes.add(ip=THERE, within=there.split())
            with environment({"RAY_ADDRESS": nodes.address}):
                process = start(spec, folder, "--ray")
            commits = Path(spec.output, "_job/commits")
            wait_until(lambda: cut_off.actors() and len(list(commits.glob("*"))) >= 6, what="six commits")
            link(there, up=False)
            time.sleep(60)
            link(there, up=True)
            replaced = comes_back(cut_off, nodes, process, ip=THERE, within=there.split())
            code, said = finish(process)
        finally:
            nodes.end()
            far.kill()
    print(said, file=sys.stderr)
    print(json.dumps(sorted(replaced)))
    return code


if __name__ == "__main__":
    sys.exit(main())
