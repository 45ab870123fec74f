"""Hostile input in a job: only its own row fails. Secrets reach neither the output nor a message."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from stereo_jobs.data.shards import read_footer
from stereo_jobs.data.storage import open_storage
from stereo_jobs.output import layout
from stereo_jobs.run.driver import run
from stereo_jobs.spec_reading import parse_spec
from tests import standin
from tests.datasets import verdict
from tests.seaweed import ACCESS_KEY, SECRET_KEY


def png(size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int = 10_000) -> bytes:
    """A PNG of a few bytes that claims to be `side` pixels wide and high."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_bad_images_cost_only_their_own_rows(make_spec, make_manifest, tmp_path):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "manifests/good.png").write_bytes(png())
    (tmp_path / "manifests/bomb.png").write_bytes(bomb())
    (tmp_path / "manifests/broken.png").write_bytes(b"not an image")
    folder = tmp_path / "manifests"
    images = [
        f"{folder}/good.png",
        f"{tmp_path}/secret.png",
        f"{folder}/../secret.png",
        "/etc/passwd",
        f"{folder}/bomb.png",
        f"{folder}/broken.png",
        None,
        f"{folder}/good.png",
    ]
    spec = make_spec(make_manifest(image=images), recipe={"mode": "image"}, max_failure_ratio=1.0)
    status = run(spec, local=True, load=standin.load_with_images)
    assert (status.succeeded, status.failed) == (2, 6)
    assert verdict(spec).ok
    storage = open_storage(spec.output)
    footers = [read_footer(storage.read(info.key)) for info in storage.list(layout.DATA_PREFIX)]
    said = {error.id: error.error_message for footer in footers for error in footer.errors}
    for row in ("row-0001", "row-0002", "row-0003"):
        assert "outside the allowed prefixes" in said[row]
    assert "10000x10000 pixels, more than max_image_pixels" in said["row-0004"]
    assert "not a readable image" in said["row-0005"]
    assert "must be bytes" in said["row-0006"]


def test_secrets_reach_neither_the_output_nor_a_message(make_manifest, s3_server, caplog):
    spec = parse_spec(
        {
            "manifest": str(make_manifest(prompt=["boom"] * 8)),
            "output": f"s3://jobs/secrets-{os.urandom(6).hex()}",
            "runtime": {
                "max_failure_ratio": 1.0,
                "lease_ttl_s": 0,
                "storage": {
                    "endpoint_url": s3_server,
                    "access_key_id": "${AWS_ACCESS_KEY_ID}",
                    "secret_access_key": "${AWS_SECRET_ACCESS_KEY}",
                },
            },
        }
    )
    with caplog.at_level("DEBUG", logger="stereo_jobs"):
        run(spec, local=True, load=standin.load)
    storage = open_storage(spec.output, spec.runtime.storage)
    written = b"".join(storage.read(info.key) for info in storage.list())
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert secret not in caplog.text + repr(spec) + str(spec) + spec.model_dump_json()
        assert secret.encode() not in written
