"""A repository of Hugging Face on loopback: what `huggingface_hub` asks to list a folder and to read ranges of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.front import Gate

REPOSITORY = "org/repo"
_API, _FILES = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/main/"


class HubService:
    """A fault of a `Front` without a server behind it, which deals with every request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, gate: Gate) -> bool:
        address = urlsplit(gate.path)
        path = unquote(address.path)
        if path.startswith(_FILES):
            self._file(gate, self.folder / path.removeprefix(_FILES))
        elif path.startswith(f"{_API}/tree/main"):
            recursive = parse_qs(address.query).get("recursive", [""])[0].lower() == "true"
            self._tree(gate, self.folder / path.removeprefix(f"{_API}/tree/main").strip("/"), recursive)
        elif path in (_API, f"{_API}/revision/main"):
            self._json(gate, {"id": REPOSITORY, "sha": "a" * 40, "siblings": [], "tags": []})
        else:
            self._missing(gate, "RepoNotFound")
        return True

    def _tree(self, gate: Gate, folder: Path, recursive: bool) -> None:
        if not folder.is_dir():
            self._missing(gate, "EntryNotFound")
            return
        self._json(gate, [self._entry(path) for path in sorted(folder.rglob("*") if recursive else folder.iterdir())])

    def _entry(self, path: Path) -> dict[str, Any]:
        name, data = str(path.relative_to(self.folder)), path.read_bytes() if path.is_file() else b""
        kind = "file" if path.is_file() else "directory"
        return {"type": kind, "path": name, "size": len(data), "oid": hashlib.sha1(data or name.encode()).hexdigest()}

    def _file(self, gate: Gate, path: Path) -> None:
        if not path.is_file():
            self._missing(gate, "EntryNotFound")
            return
        data, status, headers = path.read_bytes(), 200, {"ETag": f'"{self._entry(path)["oid"]}"'}
        if asked := gate.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{end}/{len(data)}"
            data = data[int(first) : end + 1]
        gate.answer(status, headers, data)

    def _json(self, gate: Gate, value: Any) -> None:
        gate.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _missing(self, gate: Gate, code: str) -> None:
        gate.answer(404, {"X-Error-Code": code, "X-Error-Message": "not there"}, b"{}")
