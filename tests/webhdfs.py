"""A small HTTP server that speaks what WebHDFS documents of reading: for tests, without Hadoop.

GETFILESTATUS, OPEN with offset and length, and GETFILEBLOCKLOCATIONS, with the JSON of the WebHDFS
page of Hadoop 3.4. Blocks lie on three nodes in two racks, each block on two of them.
"""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["NODES", "WebHdfs"]

NODES = (
    ("dn1.example.org", "10.9.0.1", "/eu/r1"),
    ("dn2.example.org", "10.9.0.2", "/eu/r1"),
    ("dn3.example.org", "10.9.0.3", "/eu/r2"),
)


class WebHdfs:
    """Serves `files` (path → content) in blocks of `block_bytes` while it is entered."""

    def __init__(
        self, files: dict[str, bytes], block_bytes: int = 100, *, knows_blocks: bool = True
    ) -> None:
        self.files = files
        self.block_bytes = block_bytes
        self.knows_blocks = knows_blocks
        self.queries: list[dict[str, str]] = []
        self.answers_when = threading.Event()
        self.answers_when.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answers_when.wait(30)
                status, body = outer.answer(self.path)
                self.send_response(status)
                kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # whoever asked may have gone
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def url(self, path: str) -> str:
        """Of a file on it."""
        return f"webhdfs://127.0.0.1:{self.port}{path}"

    def answer(self, target: str) -> tuple[int, bytes | dict[str, object]]:
        """Status and body for one request."""
        split = urlsplit(target)
        path = unquote(split.path).removeprefix("/webhdfs/v1")
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        self.queries.append(query)
        op = query["op"]
        if op == "GETFILEBLOCKLOCATIONS" and not self.knows_blocks:
            return 400, remote_exception(
                "IllegalArgumentException", f'Invalid value for webhdfs parameter "op": {op}'
            )
        if path not in self.files:
            return 404, remote_exception("FileNotFoundException", f"File does not exist: {path}")
        content = self.files[path]
        if op == "GETFILESTATUS":
            return 200, {
                "FileStatus": {
                    "accessTime": 0,
                    "blockSize": self.block_bytes,
                    "group": "supergroup",
                    "length": len(content),
                    "modificationTime": 1320173277227,
                    "owner": "webuser",
                    "pathSuffix": "",
                    "permission": "777",
                    "replication": 2,
                    "type": "FILE",
                }
            }
        if op == "OPEN":
            start = int(query.get("offset", 0))
            return 200, content[start : start + int(query.get("length", len(content)))]
        assert op == "GETFILEBLOCKLOCATIONS", op
        blocks = [
            block_location(number, start, min(self.block_bytes, len(content) - start))
            for number, start in enumerate(range(0, len(content), self.block_bytes))
        ]
        return 200, {"BlockLocations": {"BlockLocation": blocks}}

    def __enter__(self) -> WebHdfs:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.answers_when.set()
        self._server.shutdown()
        self._server.server_close()


def block_location(number: int, offset: int, length: int) -> dict[str, object]:
    """Block `number` lies on the nodes `number` and `number + 1`, counted round."""
    nodes = [NODES[number % 3], NODES[(number + 1) % 3]]
    return {
        "cachedHosts": [],
        "corrupt": False,
        "hosts": [name for name, _, _ in nodes],
        "length": length,
        "names": [f"{address}:9866" for _, address, _ in nodes],
        "offset": offset,
        "storageTypes": ["DISK", "DISK"],
        "topologyPaths": [f"{rack}/{address}:9866" for _, address, rack in nodes],
    }


def remote_exception(kind: str, message: str) -> dict[str, object]:
    """The body of an error."""
    return {
        "RemoteException": {
            "exception": kind,
            "javaClassName": f"org.apache.hadoop.{kind}",
            "message": message,
        }
    }
