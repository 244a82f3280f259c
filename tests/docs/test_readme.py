"""What the README and the pages in docs/ say, done.

Fenced blocks marked ```sh test and ```python test are run, in the order in which they stand, in one empty folder, with
`python` and `headrace` on the PATH and a bucket: gs://bucket holds models/digits (a SavedModel), models/digits.keras and
in/*.parquet with `id`, `pixels` and `label`. Each must end with exit code 0. The python blocks of a page in docs/ are one
program. The README's commands are processes of their own, as a newcomer's are; programs, and the commands of pages in docs/,
are forks of a process that has imported what they need.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.pipeline import demo
from headrace.transforms.storage import open_store
from tests.support.warm import python, shared

ROOT = Path(__file__).resolve().parents[2]


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each block to be run."""
    return re.findall(r"^```(sh|python) test\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The environment of somebody who has the bucket."""
    before = dict(os.environ)
    with demo.emulated_bucket("bucket"):
        demo.fill(open_store("gs://bucket"), "gs://bucket")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    os.environ.clear()
    os.environ.update(before)


def test_every_marked_block_runs(bucket: dict[str, str], tmp_path: Path) -> None:
    marked = blocks(readme())
    assert {language for language, _ in marked} == {"sh", "python"}, "the README has no example that is run"
    for language, content in marked:
        run(language, content, bucket, tmp_path)


def run(language: str, content: str, environment: dict[str, str], folder: Path) -> None:
    if language == "python":
        python(content, folder=str(folder))  # in the bucket's environment, which is this process's own
        return
    command = ["bash", "-euo", "pipefail", "-c", content]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
    )
    assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"


# What `headrace` on the PATH is for a page: it hands its arguments over, and prints what the fork has printed.
SHIM = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as ours:
    ours.connect({address!r})
    with ours.makefile("rw") as lines:
        print(json.dumps([sys.argv[1:], os.getcwd()]), file=lines, flush=True)
        ended, out, log = json.loads(lines.readline())
sys.stdout.write(out)
sys.stderr.write(log)
sys.exit(ended)
"""


@contextmanager
def forks(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment with a `headrace` on its PATH whose runs are forks."""
    address = f"{tempfile.mkdtemp(dir='/tmp')}/socket"  # a socket's path may have a hundred letters
    (folder / "headrace").write_text(SHIM.format(python=sys.executable, address=address))
    (folder / "headrace").chmod(0o755)

    def serve() -> None:
        while True:
            try:
                theirs, _ = server.accept()
            except OSError:  # closed below
                return
            with theirs, theirs.makefile("rw") as lines:
                argv, where = json.loads(lines.readline())
                out, log = folder / "out.txt", folder / "log.txt"
                ended = shared().wait(shared().start(argv, str(log), environment, where, str(out)))
                print(json.dumps([ended, out.read_text(), log.read_text()]), file=lines, flush=True)
                out.unlink()
                log.unlink()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
        server.shutdown(socket.SHUT_RDWR)
    thread.join(60)
    shutil.rmtree(Path(address).parent)


PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if blocks(page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_marked_block_of_a_page_runs(page: Path, bucket: dict[str, str], tmp_path: Path) -> None:
    marked = blocks(page.read_text("utf-8"))
    programs = [block for block in marked if block[0] == "sh"]
    if one := "\n".join(content for language, content in marked if language == "python"):
        programs.append(("python", one))
    own, empty = tmp_path / "own", tmp_path / "empty"
    own.mkdir()
    empty.mkdir()
    with forks(own, bucket) as environment:
        for language, content in programs:
            run(language, content, environment, empty)


def test_a_help_example_is_among_them() -> None:
    assert any("--help" in content for language, content in blocks(readme()) if language == "sh")


def test_only_marked_blocks_are_found() -> None:
    text = "```sh test\nls\n```\n\n```sh\nrm -rf x\n```\n\n```python test\na = 1\nb = 2\n```\n"
    assert blocks(text) == [("sh", "ls\n"), ("python", "a = 1\nb = 2\n")]
