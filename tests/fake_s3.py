"""S3 servers that are not what they should be: objects in memory, no signature checked, on a loopback port."""

import contextlib
import datetime
import hashlib
import ipaddress
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class Manners:
    """What a server does wrong; by default nothing. May be changed while it serves.

    Attributes:
        conditions: whether IfNoneMatch and IfMatch are honoured.
        unframes: whether aws-chunked bodies are taken out of their frames.
        keep: what becomes of a body that is put.
        give: what becomes of a body that is read.
        etag: the ETag of a body that was put; by default its MD5.
        etag_read: the ETag that goes with a body that is read, made of the one that it was put with.
        refuse: the status and error code for a method and headers, with lower-case names; None lets it pass.
        puts: the headers of every PUT so far.
    """

    conditions: bool = True
    unframes: bool = True
    keep: Callable[[bytes], bytes] = bytes
    give: Callable[[bytes], bytes] = bytes
    etag: Callable[[bytes], str] = lambda body: f'"{hashlib.md5(body).hexdigest()}"'
    etag_read: Callable[[str], str] = str
    refuse: Callable[[str, dict[str, str]], tuple[int, str] | None] = lambda method, headers: None
    puts: list[dict[str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, str]]
    manners: Manners
    lock: threading.Lock

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.manners.puts.append(self._lower_headers())
        if self._refused():
            return
        if self.manners.unframes and "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _unchunked(body)
        with self.lock:
            if self.manners.conditions and self._condition_fails():
                self._fail(412, "PreconditionFailed")
                return
            etag = self.manners.etag(body)
            self.objects[self._path()] = self.manners.keep(body), etag
        self._answer(200, b"", ETag=etag)

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if self._refused():
            return
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        elif self._path() in self.objects:
            body, etag = self.objects[self._path()]
            self._answer(200, self.manners.give(body), ETag=self.manners.etag_read(etag))
        else:
            self._fail(404, "NoSuchKey")

    do_HEAD = do_GET

    def _condition_fails(self) -> bool:
        _, etag = self.objects.get(self._path(), (b"", None))
        wanted = self.headers.get("If-Match")
        return (self.headers.get("If-None-Match") == "*" and etag is not None) or (
            wanted is not None and wanted != etag
        )

    def _refused(self) -> bool:
        refusal = self.manners.refuse(self.command, self._lower_headers())
        if refusal:
            self._fail(*refusal)
        return refusal is not None

    def _lower_headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _list(self, prefix: str) -> None:
        bucket = self._path().strip("/") + "/"
        keys = sorted(path.removeprefix(bucket) for path in (p.lstrip("/") for p in self.objects))
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[f'/{bucket}{key}'][0])}</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._answer(200, listing.encode())

    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>In the store's\nwords.</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def _unchunked(body: bytes) -> bytes:
    """Content of an aws-chunked body: chunks with their size in hex before them, then trailers."""
    content = b""
    while True:
        head, _, body = body.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            return content
        content, body = content + body[:size], body[size + 2 :]


def make_certificate(path: Path) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, with its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@contextlib.contextmanager
def serve(manners: Manners, certificate: Path | None = None) -> Iterator[str]:
    """Start a server on a free loopback port; yields its endpoint. Every bucket exists.

    Args:
        manners: what it does wrong.
        certificate: speak TLS with this one. Only then do clients send checksums after bodies (aws-chunked).
    """
    handler = type("Handler", (_Handler,), {"objects": {}, "manners": manners, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_careless() -> contextlib.AbstractContextManager[str]:
    """Start a server that ignores IfNoneMatch and IfMatch."""
    return serve(Manners(conditions=False))
