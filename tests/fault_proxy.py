"""A proxy before an S3 server that can be away, slow, or ask for patience; on a loopback port of its own."""

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.waiting import PATIENCE_S

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultProxy:
    """What it does to requests may be changed at any time.

    Attributes:
        endpoint: its own URL.
        away: connections break off without an answer.
        delay_s: before each request is passed on.
        slow_down_share: of the requests, answered with 503 SlowDown.
        cut_share: of the answers with a body, broken off in the middle of it.
        altered_share: of the objects and ranges that are read, given back with one other byte.
        refused: how many requests got no proper answer so far.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.away = False
        self.delay_s = 0.0
        self.slow_down_share = 0.0
        self.cut_share = 0.0
        self.altered_share = 0.0
        self.refused = 0
        self._random = random.Random(seed)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def heal(self) -> None:
        """As if there were no proxy."""
        self.away, self.delay_s = False, 0.0
        self.slow_down_share = self.cut_share = self.altered_share = 0.0

    def asks_for_patience(self) -> bool:
        return self._random.random() < self.slow_down_share

    def cuts(self) -> bool:
        return self._random.random() < self.cut_share

    def altered(self, body: bytes) -> bytes:
        """The body, or one that differs in a byte."""
        if not body or self._random.random() >= self.altered_share:
            return body
        self.refused += 1
        place = self._random.randrange(len(body))
        return body[:place] + bytes([body[place] ^ self._random.randrange(1, 256)]) + body[place + 1 :]

    @contextlib.contextmanager
    def serving(self) -> Iterator["FaultProxy"]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        if self.proxy.away:
            self.proxy.refused += 1
            self.close_connection = True
            self.connection.close()
            return
        time.sleep(self.proxy.delay_s)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.proxy.asks_for_patience():
            self.proxy.refused += 1
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=PATIENCE_S)
        try:
            # The Host header stays the caller's: it is signed.
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
            if self.command == "GET" and answer.status < 300 and "list-type=" not in self.path:
                content = self.proxy.altered(content)
            self._answer(answer.status, answer.getheaders(), content)
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command == "GET" and body and self.proxy.cuts():
            self.proxy.refused += 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass
