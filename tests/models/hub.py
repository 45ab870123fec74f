"""A Hugging Face Hub on loopback that serves a folder as `owner/name`, for the real client."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(folder: Path, listing: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield the endpoint and the list of the files that were downloaded, which grows.

    Args:
        folder: what the repository holds.
        listing: whether it can be listed; without, a download finds the Hub failing.
    """
    downloaded: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in ("/api/models/owner/name", *(f"/api/models/owner/name/revision/{r}" for r in ("main", COMMIT))):
                names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
                info = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif path == f"/api/models/owner/name/tree/{COMMIT}":
                self._send_tree()
            elif path.startswith("/api/models/owner/gated"):
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/owner/name/revision/"):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith("/api/models/"):
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            else:
                self._send_file(path)

        do_HEAD = do_GET

        def _send_tree(self) -> None:
            if not listing:
                self._send(403, b"{}", {})  # an error that the client does not retry
                return
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            entries = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": _tag(file)}
                for file in files
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

        def _send_file(self, path: str) -> None:
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            if not (folder / name).is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = (folder / name).read_bytes()
            if self.command == "GET":
                downloaded.append(name)
            self._send(200, content, {"ETag": f'"{_tag(folder / name)}"', "X-Repo-Commit": COMMIT})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", downloaded
        server.shutdown()
