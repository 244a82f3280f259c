"""Pins for the image: `python templates/flex/hashes.py REPORT [BASE]` reads what `pip install --dry-run --report` wrote, and
prints each package with its version and the SHA-256 of the file that pip chose; not those of the report BASE.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def pins(report: str) -> set[str]:
    found = set()
    for package in json.loads(Path(report).read_text("utf-8"))["install"]:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        hashes = package["download_info"].get("archive_info", {}).get("hashes")
        if hashes:  # headrace itself is a folder
            found.add(f"{name}=={version} --hash=sha256:{hashes['sha256']}")
    return found


def main(reports: Sequence[str]) -> int:
    chosen = pins(reports[0]).difference(*map(pins, reports[1:]))
    about = "# The files that are tested, for amd64 and Python 3.11: made by `make hashes`, used by the Dockerfile."
    sys.stdout.write("\n".join([about, *sorted(chosen, key=str.lower), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
