"""A server in front of the emulator that passes requests on, or does worse."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Front(ThreadingHTTPServer):
    """Stands in front of the emulator (or, with none, in its place): passes requests on, unless `faults` has its way.

    A fault sees (method, path) and the answer's maker; it returns True when it has dealt with the request.
    """

    daemon_threads = True

    def __init__(self, behind: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Gate)
        self.behind = behind
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: list[Callable[[Gate], bool]] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up in these tests."""


class Gate(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def handle_one_method(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        for fault in list(self.server.faults):
            if fault(self):
                return
        self.answer(*self.ask())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one_method

    def ask(self, body: bytes | None = None, **other: str) -> tuple[int, dict[str, str], bytes]:
        behind = http.client.HTTPConnection(self.server.behind.removeprefix("http://"))
        headers = {name.title(): value for name, value in self.headers.items()}
        headers |= {name.replace("_", "-"): value for name, value in other.items()}
        del headers["Host"]
        headers.pop("Content-Length", None)
        behind.request(self.command, self.path, body=self.body if body is None else body, headers=headers)
        response = behind.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        behind.close()
        return answer

    def answer(self, status: int, headers: dict[str, str], body: bytes, *, only: int | None = None) -> None:
        """With `only`, no more than so many bytes of the body that the headers promise."""
        self.send_response(status)
        length = str(len(body))
        for name, value in headers.items():
            if name.title() == "Content-Length" and self.command == "HEAD":
                length = value  # of a body that is not sent
            if name.title() not in ("Date", "Content-Length", "Transfer-Encoding"):
                self.send_header(
                    name, value.replace(self.server.behind, self.server.url) if self.server.behind else value
                )
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body[:only])

    def reset(self) -> None:
        """Ends the connection so that the client is told by a reset, not by an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def served(front: Front) -> Iterator[Front]:
    with front:
        thread = threading.Thread(target=front.serve_forever, args=(0.01,))
        thread.start()
        yield front
        front.shutdown()
        thread.join()
