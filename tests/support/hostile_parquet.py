"""Parquet files that nobody writes by accident, byte by byte; run as a program, a process that reads them.

`python -m tests.support.hostile_parquet FOLDER MEMORY` prints a JSON line for each file: its name, what came of reading
it whole, and seconds. It may map MEMORY bytes at most.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

INT64, BYTE_ARRAY = 2, 6
REQUIRED, OPTIONAL, REPEATED = 0, 1, 2
NONE, ZSTD = 0, 6
BATCH_ROWS = 4096


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        number, out = number >> 7, out + bytes([number & 127 | 128])
    return out + bytes([number])


class Raw(bytes):
    """A value that is written as it is."""


def struct(**fields: Any) -> Raw:
    """Thrift's compact protocol; each field is named by its id: `f3=1` is an i32, `f3l=1` an i64."""
    out, last = b"", 0
    for name, value in fields.items():
        number = int(name[1:].rstrip("l"))
        kind, data = _value(value, long=name.endswith("l"))
        out += bytes([(number - last) << 4 | kind]) + data
        last = number
    return Raw(out + b"\0")


def _value(value: Any, *, long: bool) -> tuple[int, bytes]:
    if isinstance(value, Raw):
        return 12, value
    if isinstance(value, bytes):
        return 8, varint(len(value)) + value
    if isinstance(value, list):
        kinds = {_value(one, long=False)[0] for one in value} or {12}
        body = b"".join(_value(one, long=False)[1] for one in value)
        count = (
            bytes([len(value) << 4 | kinds.pop()])
            if len(value) < 15
            else bytes([0xF0 | kinds.pop()]) + varint(len(value))
        )
        return 9, count + body
    return 6 if long else 5, varint(value * 2 if value >= 0 else -value * 2 - 1)


def leaf(name: bytes = b"x", kind: int = INT64, repetition: int = REQUIRED) -> Raw:
    return struct(f1=kind, f3=repetition, f4=name)


def nested(levels: int) -> list[Raw]:
    return [struct(f4=b"root", f5=1), *[struct(f3=OPTIONAL, f4=b"g", f5=1)] * levels, leaf()]


def wide(columns: int) -> list[Raw]:
    return [struct(f4=b"root", f5=columns), *(leaf(b"c%d" % i) for i in range(columns))]


def file(schema: list[Raw], rows: int = 0, groups: list[Raw] | None = None, pages: bytes = b"") -> bytes:
    footer = struct(f1=1, f2=schema, f3l=rows, f4=groups or [])
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def page(data: bytes, unpacked: int, values: int, *, packed: int | None = None) -> bytes:
    header = struct(
        f1=0, f2=unpacked, f3=len(data) if packed is None else packed, f5=struct(f1=values, f2=0, f3=3, f4=3)
    )
    return header + data


def chunk(length: int, rows: int, *, codec: int = NONE, start: int = 4, kind: int = INT64) -> Raw:
    about = struct(f1=kind, f2=[0], f3=[b"x"], f4=codec, f5l=rows, f6l=length, f7l=length, f9l=start)
    return struct(f2l=start, f3=about)


def group(columns: list[Raw], rows: int) -> Raw:
    return struct(f1=columns, f2l=100, f3l=rows)


def one_column(data: bytes, rows: int, **how: Any) -> bytes:
    """A file of one column of one chunk."""
    repetition = how.pop("repetition", REQUIRED)
    schema = [struct(f4=b"root", f5=1), leaf(repetition=repetition)]
    return file(schema, rows, [group([chunk(len(data), rows, **how)], rows)], data)


def crafted() -> dict[str, bytes]:
    ten = page(bytes(80), 80, 10)
    zeros = pa.Codec("zstd").compress(bytes(300 << 20)).to_pybytes()
    # Each has one page of 200 MiB, and the next is small.
    half = pa.Codec("zstd").compress(bytes(200 << 20)).to_pybytes()
    two = page(half, 200 << 20, 10) + page(pa.Codec("zstd").compress(bytes(80)).to_pybytes(), 80, 10)
    side_by_side = [chunk(len(two), 20, codec=ZSTD, start=4 + i * len(two)) for i in range(2)]
    # Of the second column's chunk it says that it holds no value, in fewer than no bytes.
    large = b"".join(page(random.Random(1).randbytes(1 << 20), 1 << 20, 1 << 17) for _ in range(64))
    about = struct(f1=INT64, f2=[0], f3=[b"x"], f4=NONE, f5l=0, f6l=0, f7l=-(1 << 40), f9l=4)
    less = [chunk(len(large), 64 << 17), struct(f2l=4, f3=about)]
    twice = struct(f1=1, f2=wide(2), f3l=0, f4=[])[:-1] + b"\x09\x04" + _value(nested(60_000), long=False)[1] + b"\0"
    return {
        "sound": one_column(ten, 10),
        "wide and sound": file(wide(10_100)),
        "sound, with bytes after the last value": one_column(ten + b"\xff" * 40, 10),
        "deep": file(nested(60_000)),
        "deep in a second schema": b"PAR1" + twice + len(twice).to_bytes(4, "little") + b"PAR1",
        "deep, below what Arrow stands": file(nested(2000)),
        "many row groups": file(wide(1), 10**5, [group([], 1)] * 10**5),
        "rows beyond counting": one_column(ten, 1 << 62),
        "fewer than no rows": file(wide(1), -5, [group([chunk(len(ten), 10)], -5)], ten),
        "rows that do not add up": file(wide(1), 11, [group([chunk(len(ten), 10)], 10)], ten),
        "a chunk beyond the file": file(wide(1), 10, [group([chunk(1 << 40, 10)], 10)], ten),
        "a chunk before the file": file(wide(1), 10, [group([chunk(len(ten), 10, start=-9)], 10)], ten),
        "chunks that overlap": file(wide(2), 10, [group([chunk(90, 10), chunk(90, 10, start=20)], 10)], ten * 2),
        "a footer longer than the file": b"PAR1" + bytes(50) + (1 << 31).to_bytes(4, "little") + b"PAR1",
        "a small page that claims 2 GiB": one_column(page(bytes(80), 2**31 - 1, 10), 10, codec=ZSTD),
        "a page of a negative size": one_column(page(bytes(80), -1, 10), 10, codec=ZSTD),
        "a page longer than its chunk": one_column(page(bytes(80), 80, 10, packed=1 << 30), 10),
        "zeros that decompress to 300 MiB": one_column(page(zeros, 300 << 20, 10), 10, codec=ZSTD),
        "zeros that decompress to 200 MiB in each column": file(wide(2), 20, [group(side_by_side, 20)], two * 2),
        "a chunk of fewer than no bytes": file(wide(2), 64 << 17, [group(less, 64 << 17)], large),
        "a list of a billion": one_column(page(bytes(80), 80, 1 << 30), 1, repetition=REPEATED),
        "long text in a dictionary": long_text(),
    }


def long_text() -> bytes:
    """20,000 rows that all hold the same text of 4 MiB, in a small file."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * (4 << 20)]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": text}), sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()


def ordinary(compression: Any, version: Any) -> bytes:
    rows = 40
    table = pa.table(
        {
            "id": range(rows),
            "text": [f"v{i % 7}" for i in range(rows)],
            "fixed": pa.array([[1.0, 2.0, 3.0]] * rows, pa.list_(pa.float32(), 3)),
            "list": [[i] * (i % 4) for i in range(rows)],
            "struct": [{"a": i, "b": [str(i)]} for i in range(rows)],
            "dictionary": pa.array([str(i % 3) for i in range(rows)]).dictionary_encode(),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, data_page_version=version, row_group_size=15)
    return sink.getvalue().to_pybytes()


def many_columns(compression: Any) -> bytes:
    """So many that they are checked side by side."""
    kinds: Any = (range(8), [0.5] * 8, list("abcdefgh"), [None, True] * 4)
    sink = pa.BufferOutputStream()
    table = pa.table({f"c{i}": kinds[i % 4] for i in range(104)})
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue().to_pybytes()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the footer, or of the pages, flipped, replaced, inserted or taken out; the footer's length stays true."""
    out, footer = bytearray(data), len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    first, end = (footer, len(data) - 8) if rng.random() < 0.7 else (4, footer)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, how = rng.randrange(first, end - 16), rng.randrange(4)
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at] = rng.choice([0, 0xFF, 0x7F, 0x80])
        elif how == 2:
            out[at:at] = rng.randbytes(rng.randrange(1, 8))
        else:
            del out[at : at + rng.randrange(1, 8)]
    if first == footer:
        out[-8:-4] = (len(out) - 8 - footer).to_bytes(4, "little")
    return bytes(out)


def read(path: str) -> str:
    from headrace.transforms.errors import HeadraceError
    from headrace.transforms.parquet.reader import read_batches, read_footer
    from headrace.transforms.shards.shard import Shard
    from headrace.transforms.storage import open_store

    store = open_store(path)
    try:
        source = store.stat(path)
        footer = read_footer(store, source)
        shard = Shard("out", source, 0, footer.rows, (0, len(footer.row_group_rows)), source.size)
        rows = sum(batch.num_rows for batch in read_batches(store, shard, footer.schema.names, BATCH_ROWS))
    except HeadraceError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return f"{rows} rows"


if __name__ == "__main__":
    memory = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for one in sorted(Path(sys.argv[1]).iterdir()):
        began = time.monotonic()
        outcome = read(str(one))
        print(json.dumps({"name": one.name, "outcome": outcome, "seconds": time.monotonic() - began}), flush=True)
