"""Files of many columns, which are checked side by side: damage to one of them is refused as it is in a file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.errors import NotParquet
from headrace.transforms.parquet import column_chunks
from headrace.transforms.parquet.chunks import Chunk
from headrace.transforms.parquet.footer import footer_of
from headrace.transforms.parquet.footer_thrift import index_row_groups
from headrace.transforms.parquet.guard import PageGuard, TooManyRows
from headrace.transforms.parquet.loaded_pages import LoadedPages
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.parquet.row_groups import GroupsInMemory
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import open_store
from tests.support import hostile_parquet as made

COLUMNS, DAMAGED, ROWS = 150, 77, 10
DATA = bytes(8 * ROWS)
SOUND = made.page(DATA, len(DATA), ROWS)


def header(kind: int = 0, unpacked: int = 80, packed: int = 80, values: int = ROWS, **more: Any) -> bytes:
    return made.struct(f1=kind, f2=unpacked, f3=packed, **(more or {"f5": made.struct(f1=values, f2=0, f3=3, f4=3)}))


def about(start: int, length: int = len(SOUND), **other: Any) -> made.Raw:
    fields = {
        "f1": made.INT64,
        "f2": [0],
        "f3": [b"x"],
        "f4": 0,
        "f5l": ROWS,
        "f6l": length,
        "f7l": length,
        "f9l": start,
    }
    return made.struct(f2l=start, f3=made.struct(**{**fields, **other}))


def read(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    store = open_store(str(path))
    source = store.stat(str(path))
    footer = read_footer(store, source)
    shard = Shard("out", source, 0, footer.rows, (0, len(footer.row_group_rows)), source.size)
    return sum(batch.num_rows for batch in read_batches(store, shard, footer.schema.names, 4096))


def wide(page: bytes = SOUND, chunk: Any = None, columns: int = COLUMNS) -> bytes:
    """One column has that page; `chunk` makes its chunk of where it starts."""
    pages, chunks, at = b"", [], 4
    for column in range(columns):
        own = page if column == DAMAGED else SOUND
        chunks.append(chunk(at) if chunk is not None and column == DAMAGED else about(at, len(own)))
        pages, at = pages + own, at + len(own)
    return made.file(made.wide(COLUMNS), ROWS, [made.group(chunks, ROWS)], pages)


def test_of_a_sound_file_no_column_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageGuard, "walk", lambda *_: pytest.fail("a page was checked alone"))
    ordinary, alone = column_chunks.ordinary_column(), list[int]()

    def counted(raw: bytes, at: int) -> Any:
        alone.append(at)
        return ordinary(raw, at)

    monkeypatch.setattr(column_chunks, "ordinary_column", lambda: counted)
    assert read(tmp_path / "sound.parquet", wide()) == ROWS
    assert len(alone) <= 2  # the first, and the last, which ends where the footer does


@pytest.mark.parametrize(
    ("page", "found"),
    [
        pytest.param(header(unpacked=-1), "Found: sizes -1 and 80", id="fewer than no bytes"),
        pytest.param(header(packed=-80), "Found: sizes 80 and -80", id="fewer than no bytes packed"),
        pytest.param(header(packed=1 << 20), "Found: sizes 80 and 1048576", id="longer than its chunk"),
        pytest.param(header(packed=81), "Found: sizes 80 and 81", id="longer than its chunk by one"),
        pytest.param(header(unpacked=2**31 - 1), "Found: 2,147,", id="2 GiB"),
        pytest.param(header(values=1 << 30), "Found: 1,073,741,824", id="a billion values"),
        pytest.param(header(values=-1), "Found: -1", id="fewer than no values"),
        pytest.param(b"\xff" * 20, "none at byte", id="no header"),
        pytest.param(header()[:-1] + b"\x05\x04\x80\x80\x80\x80\x0f\0", "none at byte", id="its size twice"),
        pytest.param(
            header(kind=2, unpacked=2**31 - 1, f7=made.struct(f1=1, f2=0)), "Found: 2,147,", id="a dictionary of 2 GiB"
        ),
        pytest.param(
            header(kind=3, packed=90, f8=made.struct(f1=ROWS, f2=0, f3=ROWS, f4=0, f5=0, f6=0)),
            "Found: sizes 80 and 90",
            id="of version 2, longer than its chunk",
        ),
    ],
)
def test_a_damaged_page_among_many_is_refused(page: bytes, found: str, tmp_path: Path) -> None:
    with pytest.raises(NotParquet, match="page that no honest file has") as refused:
        read(tmp_path / "damaged.parquet", wide(page + DATA))
    assert found in str(refused.value)


BEYOND = 1 << 40


@pytest.mark.parametrize(
    ("chunk", "found"),
    [
        pytest.param(lambda at: about(BEYOND), f"{len(SOUND)} bytes from {BEYOND} on", id="beyond the file"),
        pytest.param(lambda at: about(-9), "bytes from -9 on", id="before the file"),
        pytest.param(lambda at: about(at, BEYOND), f"{BEYOND} bytes from", id="longer than the file"),
        pytest.param(lambda at: about(at, -9), "-9 bytes from", id="of fewer than no bytes"),
        pytest.param(lambda at: about(at, (1 << 63) - 1), "bytes from 0 to", id="that ends beyond counting"),
        pytest.param(lambda at: about(at - 1), "which is another's too", id="in another's bytes"),
        pytest.param(
            lambda at: about(at, f11l=4), "which is another's too", id="with another's bytes for a dictionary"
        ),
        pytest.param(lambda at: made.struct(f2l=at), "what is none", id="that says nothing of itself"),
        pytest.param(
            lambda at: made.struct(f2l=at, f8=made.struct(f2=made.struct(f1=[b"x"]))), "encrypted", id="encrypted"
        ),
        pytest.param(
            lambda at: made.Raw(about(at)[:-1] + b"\x5c\x2c\x19\x18\x01x\0\0\0"),
            "encrypted",
            id="encrypted, and also described in plain",
        ),
    ],
)
def test_a_damaged_chunk_among_many_is_refused(chunk: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(NotParquet) as refused:
        read(tmp_path / "damaged.parquet", wide(chunk=chunk))
    assert found in str(refused.value)


@pytest.mark.parametrize(
    "field", [{"f2": [b"x"]}, {"f3": [1]}, {"f8": [1]}, {"f13": [1]}, {"f16": made.struct(f2=[b"x"])}]
)
def test_a_list_of_another_kind_among_many_is_refused_before_arrow_reads_it(field: dict[str, Any]) -> None:
    fields = {"f1": 2, "f2": [0], "f3": [b"x"], "f4": 0, "f5l": 1, "f6l": 1, "f7l": 1} | field
    fields = dict(sorted({**fields, "f9l": 4}.items(), key=lambda named: int(named[0][1:].rstrip("l"))))
    data = wide(chunk=lambda at: made.struct(f2l=at, f3=made.struct(**fields)))
    with pytest.raises(NotParquet, match="Expected: Thrift"):
        index_row_groups("x", data[-8 - int.from_bytes(data[-8:-4], "little") : -8])


def test_a_row_group_of_fewer_chunks_than_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotParquet, match=f"Found: {COLUMNS - 1} of {COLUMNS}"):
        read(tmp_path / "damaged.parquet", wide(columns=COLUMNS - 1))


def test_pages_of_many_columns_may_not_add_up_to_too_much(tmp_path: Path) -> None:
    """Each alone is within bounds."""
    size = 4 << 20
    zeros = pa.Codec("zstd").compress(bytes(size)).to_pybytes()
    pages, chunks = b"", []
    for _ in range(COLUMNS):
        page = made.page(zeros, size, ROWS)
        chunks.append(about(4 + len(pages), len(page), f4=made.ZSTD))
        pages += page
    with pytest.raises(NotParquet, match="no more than 314,572,800 bytes decompressed at once") as refused:
        read(tmp_path / "zeros.parquet", made.file(made.wide(COLUMNS), ROWS, [made.group(chunks, ROWS)], pages))
    assert f"Found: {76 * size:,} bytes" in str(refused.value)


def test_of_a_long_dictionary_among_many_fewer_rows_are_decoded_at_once(tmp_path: Path) -> None:
    columns: Any = {f"t{i}": pa.array(["x"] * 200) for i in range(COLUMNS)}
    columns["t9"] = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["x" * (4 << 20)]))
    path = str(tmp_path / "long.parquet")
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    store = open_store(path)
    parsed = footer_of(store, store.stat(path))
    (group,) = parsed.chunks((0, 1), range(COLUMNS), parsed.columns.long).groups
    with pa.OSFile(path, "r") as opened:
        memory = GroupsInMemory(opened, parsed.size)
        memory.load(group, 0)

    def check(rows: int) -> None:
        guard = PageGuard(path, lambda *_: pytest.fail("read again"), COLUMNS, rows, 0)
        LoadedPages(guard, memory.memory).check(group)

    check(100)
    with pytest.raises(TooManyRows) as fewer:
        check(200)
    assert 100 < fewer.value.rows < 200


@pytest.mark.parametrize("encoding", [b"\x0e", b"\x8e\0", b"\x8e\x80\x80\0"])
def test_values_that_may_repeat_earlier_ones_are_known_however_their_encoding_is_written(encoding: bytes) -> None:
    page = header(unpacked=1 << 20, packed=0).replace(
        b"\x15\0\x15\x06\x15\x06", b"\x15" + encoding + b"\x15\x06\x15\x06"
    )
    chunk = Chunk(0, len(page), ROWS, repeated=True)
    chunk.begin()
    with pytest.raises(TooManyRows):
        PageGuard("x", lambda at, size: page[at : at + size], 1, 4096, 0).walk(chunk, page, 0, 0, len(page))


def test_pages_checked_alone_and_side_by_side_have_one_bound_together() -> None:
    """A column of lists is read while a row group is in memory: what each of them may hold is not allowed for both together."""
    page = header(unpacked=150 << 20)
    data = page + bytes(80)

    def side_by_side(guard: PageGuard) -> None:
        guard.check_totals(np.array([[150 << 20], [80]]))

    def alone(guard: PageGuard) -> None:
        chunk = Chunk(0, len(data), ROWS, False)
        chunk.begin()
        guard.check(chunk, data, 0, 0, len(data))

    for first, then in ((side_by_side, alone), (alone, side_by_side)):
        guard = PageGuard("a.parquet", lambda *_: data, at_once=2, rows=1, padding=0)
        first(guard)
        with pytest.raises(NotParquet, match="decompressed at once"):
            then(guard)
