"""What every store must do. A new store's test subclasses this, and sets and gets a value by other means than the store."""

from __future__ import annotations

import gc
import pickle
import threading
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.errors import AlreadyExists, ObjectChanged, ObjectNotFound, StorageError
from headrace.transforms.storage import ObjectRef, Store, open_store

# More than a store sends or reads at once, and no multiple of it.
LARGE = (17 << 20) + 3
NAMES = [
    "a.b",
    "a/b",
    "a/b c.parquet",
    "a/c/d.parquet",
    "a/c/e/f.parquet",
    "a0",
    "b/[x].parquet",
    "b/per%20cent#hash?.parquet",
    "b/über-日本.parquet",
    "z.parquet",
]


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


TABLE = pa.table({"a": np.arange(700_000), "b": np.random.default_rng(0).random(700_000)})


class ReadContract:
    """Subclasses give the fixtures `store` and `root` (a new, empty folder's URI without a trailing slash)."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def collect_only_what_is_new(cls) -> Iterator[None]:
        """Each collection within a test would else go through all that TensorFlow has made, for most of a second."""
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()

    @abstractmethod
    def put(self, uri: str, data: bytes) -> None:
        """Sets an object, replacing what stands there."""

    @abstractmethod
    def remove(self, uri: str) -> None:
        """Takes an object away."""

    def test_stat_tells_size_and_a_version_that_every_write_changes(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"one")
        first = store.stat(f"{root}/x")
        self.put(f"{root}/x", b"two")
        second = store.stat(f"{root}/x")
        assert (first.uri, first.size) == (f"{root}/x", 3)
        assert first.version != second.version

    @pytest.mark.parametrize("name", ["nothing", "folder", "folder/", "folder/nothing/x"])
    def test_stat_of_what_is_no_object(self, store: Store, root: str, name: str) -> None:
        self.put(f"{root}/folder/x", b"x")
        with pytest.raises(ObjectNotFound, match=name):
            store.stat(f"{root}/{name}")

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, LARGE), (1, 2), (LARGE - 1, 1), (5 << 20, 9 << 20)])
    def test_exact_ranges(self, store: Store, root: str, offset: int, length: int) -> None:
        data = noise(LARGE)
        self.put(f"{root}/x", data)
        assert store.read(store.stat(f"{root}/x"), offset, length) == data[offset : offset + length]

    def test_scattered_reads_fill_exactly_the_buffers(self, store: Store, root: str) -> None:
        data = noise(LARGE)
        self.put(f"{root}/x", data)
        sizes = [0, 1, 7, 4096, 0, 3 << 20, *[3] * 2000, 5]
        total = bytearray(b"\xaa" * (sum(sizes) + 2))
        buffers, at = [], 1
        for size in sizes:
            buffers.append(memoryview(total)[at : at + size])
            at += size
        store.read_into(store.stat(f"{root}/x"), 11, buffers)
        assert total == b"\xaa" + data[11 : 11 + sum(sizes)] + b"\xaa"

    def test_empty_objects(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"")
        ref = store.stat(f"{root}/x")
        assert ref.size == 0
        assert store.read(ref) == b""

    @pytest.mark.parametrize(("offset", "length"), [(3, 1), (0, 4), (4, None), (-1, 1)])
    def test_reading_past_the_end_says_so(self, store: Store, root: str, offset: int, length: int | None) -> None:
        self.put(f"{root}/x", b"abc")
        with pytest.raises(StorageError, match=r"/x is too short.*Found: 3 bytes"):
            store.read(store.stat(f"{root}/x"), offset, length)

    def test_a_rewritten_object_is_not_read(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"one")
        pinned = store.stat(f"{root}/x")
        self.put(f"{root}/x", b"two")
        with pytest.raises(ObjectChanged, match="/x was rewritten"):
            store.read(pinned)
        with pytest.raises(ObjectChanged, match="/x was rewritten"):
            store.open_arrow(pinned).read()

    def test_a_vanished_object_is_not_found(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"one")
        pinned = store.stat(f"{root}/x")
        self.remove(f"{root}/x")
        with pytest.raises(ObjectNotFound, match="/x"):
            store.read(pinned)

    def test_pickling(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"abc")
        ref = store.stat(f"{root}/x")
        copy, same_ref = pickle.loads(pickle.dumps((store, ref)))
        assert copy.options == store.options
        assert copy.read(same_ref) == b"abc"

    def test_many_threads(self, store: Store, root: str) -> None:
        data = noise(1 << 20)
        self.put(f"{root}/x", data)
        ref = store.stat(f"{root}/x")

        def piece(at: int) -> bytes:
            return store.read(ref, at, 1 << 14)

        with ThreadPoolExecutor(16) as threads:
            assert b"".join(threads.map(piece, range(0, 1 << 20, 1 << 14))) == data
        assert store.counters.bytes_read == 1 << 20
        assert store.counters.retries == 0

    def test_parquet(self, store: Store, root: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(TABLE, sink, row_group_size=50_000)
        self.put(f"{root}/t.parquet", sink.getvalue().to_pybytes())
        for pre_buffer in (True, False):
            with store.open_arrow(store.stat(f"{root}/t.parquet")) as file:
                assert pq.ParquetFile(file, pre_buffer=pre_buffer).read().equals(TABLE)


class ListContract(ReadContract):
    """Of stores that can tell what a folder holds."""

    def test_list_is_recursive_and_in_uri_order(self, store: Store, root: str) -> None:
        for name in reversed(NAMES):
            self.put(f"{root}/{name}", name.encode())
        refs = list(store.list(root))
        assert [ref.uri for ref in refs] == [f"{root}/{name}" for name in NAMES]
        assert [ref.uri for ref in store.list(f"{root}/a/")] == [f"{root}/{name}" for name in NAMES if name[:2] == "a/"]
        assert refs == [store.stat(ref.uri) for ref in refs]
        assert [store.read(ref) for ref in refs] == [name.encode() for name in NAMES]

    @pytest.mark.parametrize("name", ["", "nothing", "nothing/there", "x"])
    def test_list_of_nothing(self, store: Store, root: str, name: str) -> None:
        self.put(f"{root}-next/x", b"")
        self.put(f"{root}/folder/x", b"")
        assert list(store.list(f"{root}/{name}")) == [] or not name

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("z.parquet", ["z.parquet"]),
            ("*", ["a.b", "a0", "z.parquet"]),
            ("a?", ["a0"]),
            ("a/*.parquet", ["a/b c.parquet"]),
            ("a/**/*.parquet", ["a/b c.parquet", "a/c/d.parquet", "a/c/e/f.parquet"]),
            ("a/c/**", ["a/c/d.parquet", "a/c/e/f.parquet"]),
            ("**/[df].parquet", ["a/c/d.parquet", "a/c/e/f.parquet"]),
            ("**/[!a-e].parquet", ["a/c/e/f.parquet", "z.parquet"]),
            ("b/[[]x].parquet", ["b/[x].parquet"]),
            ("b/*%20*#*[?].parquet", ["b/per%20cent#hash?.parquet"]),
            ("b/*-日本.*", ["b/über-日本.parquet"]),
            ("[a-z]/b", ["a/b"]),
            ("a[!x]b", ["a.b"]),
            ("nothing*", []),
        ],
    )
    def test_glob(self, store: Store, root: str, pattern: str, names: list[str]) -> None:
        for name in NAMES:
            self.put(f"{root}/{name}", b"")
        assert [ref.uri for ref in store.glob(f"{root}/{pattern}")] == [f"{root}/{name}" for name in names]


class StoreContract(ListContract):
    """Of stores that can be written to."""

    def remove(self, uri: str) -> None:
        store = open_store(uri)
        store.delete(store.stat(uri))

    @abstractmethod
    def get(self, uri: str) -> bytes | None:
        """The object's content; None where there is none."""

    def test_delete_takes_only_the_pinned_version(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"one")
        pinned = store.stat(f"{root}/x")
        self.put(f"{root}/x", b"two")
        with pytest.raises(ObjectChanged, match="/x"):
            store.delete(pinned)
        assert self.get(f"{root}/x") == b"two"
        store.delete(store.stat(f"{root}/x"))
        assert self.get(f"{root}/x") is None
        store.delete(pinned)

    def test_publish_gives_a_name_once_and_only_while_its_source_stands(self, store: Store, root: str) -> None:
        def prepared(data: bytes) -> ObjectRef:
            with store.create(f"{root}/deep/prepared-{len(data)}") as writer:
                writer.write(data)
                return writer.commit()

        gone = prepared(b"of a run that lost")
        store.delete(gone)
        with pytest.raises(ObjectNotFound):
            store.publish(gone, f"{root}/mark")
        assert self.get(f"{root}/mark") is None
        one, other = prepared(b"one"), prepared(b"other")
        assert store.publish(one, f"{root}/mark") == store.stat(f"{root}/mark")
        with pytest.raises(AlreadyExists, match="/mark already exists"):
            store.publish(other, f"{root}/mark")
        for ref in (one, other):
            store.delete(store.stat(ref.uri))
        assert self.get(f"{root}/mark") == b"one"
        store.delete(store.stat(f"{root}/mark"))
        with pytest.raises(ObjectNotFound):
            store.publish(one, f"{root}/mark")
        assert self.get(f"{root}/mark") is None

    def test_commit_of_nothing(self, store: Store, root: str) -> None:
        with store.create(f"{root}/x") as writer:
            assert writer.commit().size == 0
        assert self.get(f"{root}/x") == b""

    @pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1, 16 << 20, LARGE])
    def test_commit_publishes_what_was_written(self, store: Store, root: str, size: int) -> None:
        data = noise(size)
        with store.create(f"{root}/deep/er/x") as writer:
            for at in range(0, size, 3_000_000):
                piece = data[at : at + 3_000_000]
                assert writer.write((bytes, bytearray, memoryview)[at % 3](piece)) == len(piece)
            assert writer.tell() == size
            assert self.get(f"{root}/deep/er/x") is None
            ref = writer.commit()
            assert writer.closed
        assert ref == store.stat(f"{root}/deep/er/x")
        assert self.get(f"{root}/deep/er/x") == data

    @pytest.mark.parametrize("size", [3, LARGE])
    def test_create_never_replaces(self, store: Store, root: str, size: int) -> None:
        self.put(f"{root}/x", b"first")

        def create() -> None:
            with store.create(f"{root}/x") as writer:
                writer.write(noise(size))
                writer.commit()

        with pytest.raises(AlreadyExists, match="/x already exists"):
            create()
        assert self.get(f"{root}/x") == b"first"

    @pytest.mark.parametrize("size", [3, LARGE])
    @pytest.mark.parametrize("end", ["abort", "leave", "raise", "collect", "close"])
    def test_nothing_but_commit_publishes(self, store: Store, root: str, size: int, end: str) -> None:
        writer: Any = store.create(f"{root}/x")
        writer.write(noise(size))
        if end == "abort":
            writer.abort()
            writer.abort()
        elif end == "leave":
            with writer:
                pass
        elif end == "raise":
            with pytest.raises(ZeroDivisionError), writer:
                raise ZeroDivisionError
        elif end == "close":
            writer.flush()
            writer.close()
        del writer
        gc.collect()
        assert self.get(f"{root}/x") is None
        assert list(store.list(root)) == []

    def test_what_has_ended_takes_no_more(self, store: Store, root: str) -> None:
        for end in ("commit", "abort"):
            writer = store.create(f"{root}/{end}")
            getattr(writer, end)()
            assert writer.closed
            with pytest.raises(StorageError, match="before"):
                writer.write(b"x")
            with pytest.raises(StorageError, match="before"):
                writer.commit()
            writer.abort()
        assert self.get(f"{root}/commit") == b""

    def test_of_writers_that_race_exactly_one_wins(self, store: Store, root: str) -> None:
        for round_ in range(5):
            start = threading.Barrier(4)

            def race(seed: int, uri: str = f"{root}/{round_}", start: threading.Barrier = start) -> bytes | None:
                data = noise(1000, seed)
                with store.create(uri) as writer:
                    writer.write(data)
                    start.wait()
                    try:
                        writer.commit()
                    except AlreadyExists:
                        return None
                return data

            with ThreadPoolExecutor(4) as threads:
                winners = [data for data in threads.map(race, range(4)) if data is not None]
            assert winners == [self.get(f"{root}/{round_}")]

    def test_parquet_there_and_back(self, store: Store, root: str) -> None:
        with store.create(f"{root}/t.parquet") as writer:
            sink: Any = writer  # pyarrow takes whatever writes
            pq.write_table(TABLE, sink, row_group_size=50_000)
            ref = writer.commit()
        for pre_buffer in (True, False):
            with store.open_arrow(ref) as file:
                assert file.size() == ref.size
                assert pq.ParquetFile(file, pre_buffer=pre_buffer).read().equals(TABLE)
