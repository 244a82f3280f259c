from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.transforms.errors import InvalidRequest, ObjectChanged, ObjectNotFound, StorageError
from headrace.transforms.storage import Store, open_store
from headrace.transforms.storage.local import _as_storage_error
from tests.support.store_contract import LARGE, StoreContract, noise


class LocalValues(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"{tmp_path}/in"

    @pytest.fixture
    def store(self, root: str) -> Iterator[Store]:
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        yield open_store(root)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before

    def put(self, uri: str, data: bytes) -> None:
        path = Path(uri.removeprefix("file://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def get(self, uri: str) -> bytes | None:
        path = Path(uri.removeprefix("file://"))
        return path.read_bytes() if path.is_file() else None


class TestPlainPaths(LocalValues):
    pass


class TestFileUris(LocalValues):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/in"


class TestWithoutNamelessFiles(LocalValues):
    """As on file systems that have no O_TMPFILE."""

    @pytest.fixture(autouse=True)
    def no_nameless_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "O_TMPFILE")

    def test_the_hidden_file_is_gone_after_each_end(self, store: Store, root: str) -> None:
        for name, end in (("x", "commit"), ("y", "abort"), ("z", "__del__")):
            writer = store.create(f"{root}/{name}")
            writer.write(b"abc")
            assert len([entry for entry in os.listdir(root) if entry.startswith(".headrace-")]) == 1
            getattr(writer, end)()
            assert not [entry for entry in os.listdir(root) if entry.startswith(".headrace-")]

    def test_killing_leaves_only_what_list_passes_over(self, store: Store, root: str) -> None:
        kill_a_writer(root, "del os.O_TMPFILE")
        assert [entry[:10] for entry in os.listdir(root)] == [".headrace-"]
        assert list(store.list(root)) == []


def kill_a_writer(root: str, before: str = "") -> None:
    script = f"""
import os, signal
{before}
from headrace.transforms.storage import open_store
writer = open_store({root!r}).create({root!r} + "/x")
writer.write(bytes(1 << 20))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL


def test_killing_a_writer_leaves_nothing(tmp_path: Path) -> None:
    kill_a_writer(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_relative_paths_keep_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("x")
    for name in ("in/x.parquet", "y.parquet"):
        with store.create(name) as writer:
            writer.commit()
    assert [ref.uri for ref in store.glob("*.parquet")] == ["y.parquet"]
    assert [ref.uri for ref in store.glob("**/*.parquet")] == ["in/x.parquet", "y.parquet"]
    assert store.stat("in/x.parquet").uri == "in/x.parquet"


def test_links_to_files_are_listed_and_links_to_folders_not_entered(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_bytes(b"abc")
    (tmp_path / "in/file").symlink_to(tmp_path / "out/x")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken").symlink_to(tmp_path / "nothing")
    store = open_store(str(tmp_path))
    assert [(ref.uri, ref.size) for ref in store.list(f"{tmp_path}/in")] == [(f"{tmp_path}/in/file", 3)]


def test_what_is_no_regular_file_is_no_object(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = open_store(str(tmp_path))
    assert list(store.list(str(tmp_path))) == []
    with pytest.raises(ObjectNotFound, match="pipe"):
        store.stat(f"{tmp_path}/pipe")


def test_a_rewrite_in_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(noise(LARGE))
    store = open_store(str(path))
    pinned = store.stat(str(path))
    file = store.open_arrow(pinned)
    file.read(10)
    with path.open("r+b") as rewrite:
        rewrite.write(b"other")
    with pytest.raises(ObjectChanged, match="rewritten while it was in use"):
        file.close()
    with pytest.raises(ObjectChanged, match="rewritten while it was in use"):
        store.read(pinned)


def test_a_file_cut_short_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    store = open_store(str(path))
    pinned = store.stat(str(path))
    os.truncate(path, 1)
    with pytest.raises(ObjectChanged):
        store.read(pinned)


def test_an_open_arrow_file_outlives_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    store = open_store(str(path))
    with store.open_arrow(store.stat(str(path))) as file:
        path.unlink()
        path.write_bytes(b"xyz")
        assert file.read() == b"abc"


def test_what_may_not_be_read_or_written_is_told() -> None:
    # Root may do everything, and nobody else may look into pytest's own folders.
    script = """
import os, tempfile
from headrace.transforms.errors import AccessDenied, StorageError
from headrace.transforms.storage import open_store
from headrace.transforms.storage.local import check_writable
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
folder = tempfile.mkdtemp()
store = open_store(folder)
with store.create(folder + "/x") as writer:
    writer.write(b"abc")
    ref = writer.commit()
os.chmod(folder + "/x", 0)
ref = store.stat(folder + "/x")  # the change time is part of its version
os.mkdir(folder + "/in")
os.chmod(folder, 0o500)
for verb in (lambda: store.read(ref), lambda: store.create(folder + "/y"), lambda: store.create(folder + "/new/y"),
             lambda: store.delete(ref)):
    try:
        verb()
    except AccessDenied as error:
        print(str(error).replace(folder, "."))
try:
    check_writable(folder + "/new/y")
except StorageError as error:
    print(str(error).replace(folder, "."))
os.chmod(folder, 0o700)
check_writable(folder + "/new/y")
os.chmod(folder + "/in", 0)
try:
    list(store.list(folder))
except AccessDenied as error:
    print(str(error).replace(folder, "."))
os.unlink(folder + "/x"); os.chmod(folder + "/in", 0o700); os.rmdir(folder + "/in"); os.rmdir(folder)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "Cannot read ./x. Found: Permission denied. Grant this user the right to read it.",
        "Cannot write ./y. Found: Permission denied. Grant this user the right to write it.",
        "Cannot write ./new/y. Found: Permission denied. Grant this user the right to write it.",
        "Cannot delete ./x. Found: Permission denied. Grant this user the right to delete it.",
        (
            "Nothing can be written to ./new/y. Expected: a folder that can be written. "
            "Found: ., which this user may not write to. Name another --output."
        ),
        "Cannot list ./in/. Found: Permission denied. Grant this user the right to list it.",
    ]


def test_no_space_is_told_and_nothing_stays(tmp_path: Path) -> None:
    # A limit on the size of files fails in write(2) as a full disk does, only with another number.
    script = f"""
import os, resource, signal
from headrace.transforms.errors import StorageError
from headrace.transforms.storage import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
writer = open_store("/").create("{tmp_path}/x")
for verb in (lambda: writer.write(bytes(2 << 20)), writer.commit):
    try:
        verb()
    except StorageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert (
        first == f"Cannot write {tmp_path}/x. Found: {os.strerror(errno.EFBIG)}. Raise this user's limit (ulimit -f)."
    )
    assert "committed or aborted before" in second
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_as_such() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space") as caught:
        full.write(b"x")
    told = str(_as_storage_error(caught.value, "/out/x", "write"))
    assert told.startswith("No space to write /out/x. Found: No space left on device.")


@pytest.mark.parametrize("name", ["x/y", "x/y/z"])
def test_a_file_where_a_folder_is_needed(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StorageError, match=r"Cannot write .*Not a directory"):
        open_store(str(tmp_path)).create(f"{tmp_path}/{name}")


@pytest.mark.parametrize("uri", ["file://host/x", "file://x", "/x\0y"])
def test_uris_that_are_no_path(uri: str) -> None:
    with pytest.raises(InvalidRequest):
        open_store(uri).stat(uri)
