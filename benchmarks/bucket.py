"""A bucket on loopback, with a bucket's habits: time to the first byte, a rate per connection, a rate for all of them.

Speaks what reading needs of GCS's JSON API (https://cloud.google.com/storage/docs/json_api/v1/objects): list, get, and get
with alt=media, generations and ranges. `STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT` leads Google's clients to it.
`python -m benchmarks.bucket FOLDER` serves the files below the folder as gs://bench/…, from memory, and prints the port.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

NAME = "bench"
_SENT_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Habits:
    """`latency_s` before each answer's first byte; rates in bytes per second, 0 for as fast as it goes."""

    latency_s: float = 0.0
    connection_rate: float = 0.0
    total_rate: float = 0.0


@dataclass(frozen=True)
class _Object:
    name: str
    memory: int
    size: int
    crc32c: str

    def metadata(self) -> dict[str, str]:
        return {
            "kind": "storage#object",
            "bucket": NAME,
            "name": self.name,
            "size": str(self.size),
            "generation": "1",
            "crc32c": self.crc32c,
        }


class Bucket:
    def __init__(self, folder: str, names: Sequence[str], habits: Habits) -> None:
        self._habits = habits
        self._objects = {item.name: item for item in _load(folder, names)}
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.media_bytes = self.media_requests = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=self._converse, args=(peer,), daemon=True).start()

    def _converse(self, peer: socket.socket) -> None:
        pending = b""
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with peer:
                while True:
                    while b"\r\n\r\n" not in pending:
                        received = peer.recv(1 << 16)
                        if not received:
                            return
                        pending += received
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    self._answer(peer, head.decode("latin-1"))
        except ConnectionError:
            return

    def _answer(self, peer: socket.socket, head: str) -> None:
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        url = urlsplit(target)
        asked = re.fullmatch(rf"(/download)?/storage/v1/b/{NAME}/o(?:/(.+))?", url.path)
        time.sleep(self._habits.latency_s)
        if url.path == "/counts":
            _say(peer, 200, {"media_bytes": self.media_bytes, "media_requests": self.media_requests})
        elif method != "GET" or not asked:
            _say(peer, 404, _error(404, f"no {method} {url.path} here"))
        elif asked[2] is None:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            items = [self._objects[name].metadata() for name in sorted(self._objects) if name.startswith(prefix)]
            _say(peer, 200, {"kind": "storage#objects", "items": items})
        elif (found := self._objects.get(unquote(asked[2]))) is None:
            _say(peer, 404, _error(404, "No such object"))
        elif not asked[1]:
            _say(peer, 200, found.metadata())
        elif parse_qs(url.query).get("generation", ["1"]) != ["1"]:
            _say(peer, 404, _error(404, "No such generation"))
        else:
            self._send(peer, found, re.search(r"\r\nrange: bytes=(\d+)-(\d+)", head, re.IGNORECASE))

    def _send(self, peer: socket.socket, found: _Object, span: re.Match[str] | None) -> None:
        first, end = (int(span[1]), min(int(span[2]) + 1, found.size)) if span else (0, found.size)
        status = "206 Partial Content" if span else "200 OK"
        headers = [f"Content-Length: {end - first}", "X-Goog-Generation: 1", "Content-Type: application/octet-stream"]
        if span:
            headers.append(f"Content-Range: bytes {first}-{end - 1}/{found.size}")
        peer.sendall("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())
        start, sent = time.perf_counter(), 0
        while sent < end - first:
            count = os.sendfile(peer.fileno(), found.memory, first + sent, min(_SENT_AT_ONCE, end - first - sent))
            sent += count
            until = start + sent / self._habits.connection_rate if self._habits.connection_rate else 0.0
            with self._lock:
                self.media_bytes += count
                if self._habits.total_rate:
                    self._free_at = max(self._free_at, time.perf_counter()) + count / self._habits.total_rate
                    until = max(until, self._free_at)
            if (ahead := until - time.perf_counter()) > 0:
                time.sleep(ahead)
        with self._lock:
            self.media_requests += 1


def _load(folder: str, wanted: Sequence[str]) -> list[_Object]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if wanted and os.path.relpath(path, folder).split(os.sep)[0] not in wanted:
                continue
            memory, crc = os.memfd_create("object"), 0
            with open(path, "rb") as file:
                while data := file.read(1 << 24):
                    os.write(memory, data)
                    crc = google_crc32c.extend(crc, data)
            checksum = base64.b64encode(crc.to_bytes(4, "big")).decode()
            found.append(_Object(os.path.relpath(path, folder), memory, os.path.getsize(path), checksum))
    return found


def _say(peer: socket.socket, status: int, answer: object) -> None:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    peer.sendall(head.encode() + body)


def _error(code: int, message: str) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "errors": [{"message": message}]}}


def media_path(name: str) -> str:
    return f"/download/storage/v1/b/{NAME}/o/{quote(name, safe='')}?alt=media&generation=1"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bucket", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", help="what to serve of it (default: everything)")
    parser.add_argument("--latency_ms", type=float, default=0.0)
    parser.add_argument("--connection_mb_s", type=float, default=0.0, help="0: no limit (default: %(default)s)")
    parser.add_argument("--total_mb_s", type=float, default=0.0, help="0: no limit (default: %(default)s)")
    asked = parser.parse_args(argv)
    habits = Habits(asked.latency_ms / 1e3, asked.connection_mb_s * 1e6, asked.total_mb_s * 1e6)
    bucket = Bucket(asked.folder, asked.names, habits)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=bucket.serve, args=(listener,), daemon=True).start()
    # Whoever started this holds the other end: when it dies, so does the bucket.
    sys.stdin.read()


if __name__ == "__main__":
    main()
