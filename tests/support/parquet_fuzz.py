"""Damaged Parquet files by number, footers and pages changed as Thrift; run as a program, a process that reads them.

`python -m tests.support.parquet_fuzz FOLDER FIRST END MEMORY` prints a line before it reads an input, with its number,
and one after, with what came of it. It may map MEMORY bytes at most.
"""

from __future__ import annotations

import random
import resource
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.hostile_parquet import (
    NONE,
    OPTIONAL,
    REQUIRED,
    ZSTD,
    Raw,
    many_columns,
    mutated,
    one_column,
    ordinary,
    read,
    varint,
)

BOOLS, BYTE, INTEGERS, DOUBLE, BINARY, LIST, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 9, (9, 10), 12
NUMBERS = (
    0,
    1,
    -1,
    2,
    4,
    7,
    100,
    127,
    128,
    1 << 14,
    1 << 20,
    1 << 27,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
Tree = list[list[Any]]
"""A struct: [id, type, value] of each field; of a list the value is [type of members, members, how many it claims]."""


def parse(data: bytes, at: int) -> tuple[Tree, int]:
    fields: Tree = []
    last = 0
    while (head := data[at]) & 15:
        at += 1
        if head > 15:
            last += head >> 4
        else:
            last, at = _signed(data, at)
        kind = head & 15
        value, at = (None, at) if kind in BOOLS else _parse_value(data, at, kind)
        fields.append([last, kind, value])
    return fields, at + 1


def _parse_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _signed(data, at)
    if kind == BINARY:
        size, at = _number(data, at)
        return data[at : at + size], at + size
    if kind in LISTS:
        head, at = data[at], at + 1
        count, at = _number(data, at) if head >> 4 == 15 else (head >> 4, at)
        members = []
        for _ in range(count):
            member, at = _parse_value(data, at, head & 15)
            members.append(member)
        return [head & 15, members, count], at
    if kind == STRUCT:
        return parse(data, at)
    size = 8 if kind == DOUBLE else 1
    return data[at : at + size], at + size


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _number(data, at)
    return (value >> 1) ^ -(value & 1), at


def write(fields: Tree) -> bytes:
    out, last = b"", 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) if 0 < number - last < 16 else bytes([kind]) + _zigzag(number)
        out += b"" if kind in BOOLS else _write_value(kind, value)
        last = number
    return out + b"\0"


def _write_value(kind: int, value: Any) -> bytes:
    if isinstance(value, Raw):
        return value
    if kind in INTEGERS:
        return _zigzag(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind in LISTS:
        member, members, count = value
        return bytes([0xF0 | member]) + varint(count) + b"".join(_write_value(member, one) for one in members)
    return write(value) if kind == STRUCT else bytes(value)


def _zigzag(value: int) -> bytes:
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def _structs(fields: Tree) -> list[Tree]:
    found = [fields]
    for _, kind, value in fields:
        if isinstance(value, Raw):
            continue
        if kind == STRUCT:
            found += _structs(value)
        elif kind in LISTS and value[0] == STRUCT:
            for one in value[1]:
                found += _structs(one)
    return found


def change(fields: Tree, rng: random.Random) -> None:
    """One field of one struct, at any depth: another number, type, count, place, or something that grows from few bytes."""
    struct = rng.choice(_structs(fields))
    how = rng.randrange(9)
    if how == 0 or not struct:
        struct.append([rng.choice((1, 2, 5, 8, 13, 1000)), *_grown(rng)])
        return
    field = rng.choice(struct)
    if isinstance(field[2], Raw):
        return
    if how == 1:
        struct.remove(field)
    elif how == 2:
        struct.append([*field[:2], deepcopy(_other(field, rng))])
    elif how == 3:
        field[0] = rng.randrange(-3, 20)
    elif how == 4 and field[1] in INTEGERS:
        field[1] = rng.choice(INTEGERS)
    elif how == 5:
        rng.shuffle(struct)
    elif how == 6 and field[1] in LISTS:
        field[2][2] = rng.choice((0, 1, 14, 15, 1000, 1 << 20, (1 << 31) - 1, (1 << 32) + 1))
    elif how == 7 and field[1] in LISTS:
        field[2][0] = rng.choice((1, 3, 4, 5, 6, 7, 8, 12)) if not field[2][1] else field[2][0]
        field[2][1] = deepcopy(field[2][1]) * rng.choice((0, 2, 50))
        field[2][2] = len(field[2][1])
    else:
        field[2] = _other(field, rng)


def _other(field: list[Any], rng: random.Random) -> Any:
    if field[1] in INTEGERS:
        return rng.choice(NUMBERS) if rng.random() < 0.7 else field[2] + rng.choice((-1, 1))
    if field[1] == BINARY:
        return rng.choice((b"", field[2] + b"\xff", b"\0" * 300, field[2] * 40))
    return field[2]


def _grown(rng: random.Random) -> tuple[int, Any]:
    """Many empty structs, lists in lists, or structs in structs."""
    count = rng.choice((10, 1000, 100_000))
    how = rng.randrange(3)
    if how == 0:
        return LIST, Raw(bytes([0xF0 | STRUCT]) + varint(count) + bytes(count))
    if how == 1:
        return LIST, Raw(bytes([0x10 | LIST]) * count + b"\x05")
    return STRUCT, Raw(bytes([0x10 | STRUCT]) * count + b"\0" * (count + 1))


@cache
def sound() -> list[bytes]:
    of_few = [ordinary(codec, version) for codec in ("zstd", "snappy", "none") for version in ("1.0", "2.0")]
    return [*of_few, many_columns("zstd")]


@cache
def body(codec: int) -> bytes:
    import pyarrow as pa

    data = bytes(range(80))
    return pa.Codec("zstd").compress(data).to_pybytes() if codec == ZSTD else data


def _of_footer(rng: random.Random) -> bytes:
    data = rng.choice(sound())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    fields, _ = parse(data, start)
    for _ in range(rng.choice((1, 1, 2, 5))):
        change(fields, rng)
    footer = write(fields)
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _of_pages(rng: random.Random) -> bytes:
    codec, pages = rng.choice((NONE, ZSTD)), b""
    for _ in range(rng.randrange(1, 4)):
        packed = body(codec)
        kind = rng.choice((0, 0, 2, 3))
        values: Tree = [[1, 5, 10], [2, 5, rng.choice((0, 2, 3, 5, 6, 7, 8, 9))]]
        values += (
            [[3, 5, 3], [4, 5, 3]] if kind == 0 else [[3, 5, 10], [4, 5, 0], [5, 5, 0], [6, 5, 0]] if kind == 3 else []
        )
        fields: Tree = [[1, 5, kind], [2, 5, 80], [3, 5, len(packed)], [{0: 5, 2: 7, 3: 8}[kind], STRUCT, values]]
        for _ in range(rng.choice((0, 1, 1, 3))):
            change(fields, rng)
        pages += write(fields) + packed
    rows = rng.choice((10, 20, 1, 1 << 20))
    how = {"codec": codec, "repetition": rng.choice((REQUIRED, OPTIONAL, 2)), "kind": rng.choice((2, 2, 6, 1, 0))}
    return one_column(pages, rows, **how)


def make(number: int) -> bytes:
    rng = random.Random(number)
    how = number % 4
    if how == 0:
        return mutated(rng.choice(sound()), rng)
    return _of_footer(rng) if how < 3 else _of_pages(rng)


if __name__ == "__main__":
    folder, first, end, memory = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for each in range(first, end):
        path = folder / f"{each}.parquet"
        path.write_bytes(make(each))
        print(each, flush=True)
        print(read(str(path)).replace("\n", " "), flush=True)
        path.unlink()
