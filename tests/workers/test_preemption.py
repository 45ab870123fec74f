"""Preemption notices, from stand-ins of the clouds' metadata services."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stereo_jobs.workers.ray import preemption


@pytest.fixture
def metadata():
    """A metadata service: its URL, and its answers by path, which a test may change."""
    said = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self._answer("a-token")

        def do_GET(self):
            wanted = {"X-aws-ec2-metadata-token": "a-token"} if "spot" in self.path else {"Metadata-Flavor": "Google"}
            assert all(self.headers[name] == value for name, value in wanted.items())
            self._answer(said.get(self.path))

        def _answer(self, text):
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", said
    server.shutdown()
    server.server_close()


def test_aws(metadata):
    url, said = metadata
    assert not preemption.is_announced("aws", aws=url)
    said["/meta-data/spot/instance-action"] = '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}'
    assert preemption.is_announced("aws", aws=url)


def test_gcp(metadata):
    url, said = metadata
    said["/preempted"] = "FALSE"
    assert not preemption.is_announced("gcp", gcp=f"{url}/preempted")
    said["/preempted"] = "TRUE"
    assert preemption.is_announced("gcp", gcp=f"{url}/preempted")


def test_a_service_that_does_not_answer_announces_nothing():
    assert not preemption.is_announced("aws", aws="http://127.0.0.1:9")
    assert not preemption.is_announced("gcp", gcp="http://127.0.0.1:9")


def test_a_service_that_answers_nonsense_announces_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not preemption.is_announced("aws", aws=url)
        assert not preemption.is_announced("gcp", gcp=url)
        thread.join()


def test_a_file_announces_it(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "POLL_EVERY_S", 0.05)
    told = threading.Event()
    preemption.watch(str(tmp_path / "notice"), told.set)
    assert not told.wait(0.3)
    (tmp_path / "notice").touch()
    assert told.wait(20)


def test_no_service_is_asked_by_default():
    before = threading.active_count()
    preemption.watch(None, lambda: None)
    assert threading.active_count() == before
