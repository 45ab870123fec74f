"""A real S3 server for tests: SeaweedFS from PyPI, on loopback ports of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3

from tests.waiting import PATIENCE_S

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-do-not-print"
ADMIN_KEY, ADMIN_SECRET = "admin", "admin-secret"
BUCKET = "jobs"
PUBLIC_BUCKET = "public"
"""A bucket that everybody may read and list without credentials, and that only the administrator writes."""


def _free_port() -> int:
    """A port that is free together with the one 10000 above it, which SeaweedFS takes for gRPC."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port + 10_000 > 65_000:
                continue
            with contextlib.suppress(OSError):
                high.bind(("127.0.0.1", port + 10_000))
                return int(port)


def _free_ports(*names: str) -> dict[str, int]:
    """One port for each name; none of them is the one that SeaweedFS takes for another's gRPC."""
    while True:
        ports = {name: _free_port() for name in names}
        if len({*ports.values(), *(port + 10_000 for port in ports.values())}) == 2 * len(names):
            return ports


def as_admin(endpoint: str):
    """boto3's S3 resource for the server, with the right to make and remove buckets."""
    keys = {"aws_access_key_id": ADMIN_KEY, "aws_secret_access_key": ADMIN_SECRET}
    return boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed") or "weed"


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Start a server with the buckets `jobs` and `public`; yields its endpoint, sets AWS_* in the environment."""
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    # The tests' own identity is no administrator: for one, the server would make missing buckets on the fly.
    identities = [
        {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Read", "Write", "List"],
        },
        {
            "name": "admin",
            "credentials": [{"accessKey": ADMIN_KEY, "secretKey": ADMIN_SECRET}],
            "actions": ["Admin"],
        },
        {"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = _free_ports("s3", "master", "volume", "filer", "admin")
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            _weed(),
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in ports.items()),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
        ],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    before = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_REGION="us-east-1")
    try:
        client = as_admin(endpoint).meta.client
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
                client.create_bucket(Bucket=PUBLIC_BUCKET)
                client.put_object(Bucket=BUCKET, Key="started", Body=b"")
                break
            except Exception:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError((folder / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.2)
        yield endpoint
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
