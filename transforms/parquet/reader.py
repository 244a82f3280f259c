"""A Shard as a stream of record batches; memory is bounded by the batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ColumnError, DataError, NotParquet, NullFeature, row_span
from ..nested_arrow import one_batch, repeated
from ..shards.deleted_rows import drop_rows, stored_object, unpack_positions
from ..shards.partition_types import constant
from ..shards.shard import Shard
from ..storage.store import ObjectRef, Store
from .arrow_types import as_type
from .decoding import Wanted, decoded_batches
from .footer import ParsedFooter, check_size, footer_of, footers
from .guard import BATCH_BYTES

_NULL_LIST = re.compile(r"lists to be of size=(?P<size>\d+) but index (?P<index>\d+) had size=0")


@dataclass(frozen=True, slots=True)
class Footer:
    """Rows, compressed bytes and uncompressed ones per row group; each has its share of the compressed bytes by the latter."""

    schema: pa.Schema
    row_group_rows: list[int]
    row_group_bytes: list[int]
    key_values: dict[bytes, bytes]
    row_group_unpacked: Sequence[int] = ()

    @property
    def rows(self) -> int:
        return sum(self.row_group_rows)


def read_footer(store: Store, source: ObjectRef) -> Footer:
    """The footer at the object's end, read in one request unless it is unusually long; from the cache where it was read lately.

    Raises `NotParquet` where the object is not a Parquet file, is cut short, or contradicts itself.
    """
    parsed = footer_of(store, source)
    metadata = parsed.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, unpacked = [group.num_rows for group in groups], [group.total_byte_size for group in groups]
    if min([*rows, *unpacked], default=0) < 0 or sum(rows) != metadata.num_rows:
        raise NotParquet(
            f"{source.uri} has a footer that contradicts itself",
            expected=f"row groups of {metadata.num_rows} rows in all, none of less than 0",
            found=f"{len(rows)} of {sum(rows)} rows, the smallest of {min(rows, default=0)}",
            cure="Leave it out of --input, or write it again",
        )
    # A column chunk's own size would be exact, but pyarrow 25 ends the process on some that are damaged.
    data_bytes, total = max(0, source.size - metadata.serialized_size - 12), sum(unpacked) or 1
    sizes = [data_bytes * size // total for size in unpacked]
    return Footer(parsed.columns.schema, rows, sizes, dict(metadata.metadata or {}), unpacked)


def most_row_bytes(store: Store, source: ObjectRef, footer: Footer, columns: Collection[str]) -> int:
    """Uncompressed bytes of a row of these columns, in the row group where a row has most."""
    parsed = footer_of(store, source)
    read = [number for number, (name, _) in enumerate(parsed.columns.leaves) if name in columns]
    return max(
        (-(-parsed.unpacked(group, read) // rows) for group, rows in enumerate(footer.row_group_rows) if rows),
        default=0,
    )


def read_batches(
    store: Store, shard: Shard, columns: Sequence[str], batch_rows: int, types: pa.Schema | None = None
) -> Iterator[pa.RecordBatch]:
    """The shard's rows in order: batch i holds its rows [i * batch_rows, (i + 1) * batch_rows); the last may hold fewer.
    Partition columns have their type in `types`, else they are text.

    `types` are those to give columns, where the file's own are read alike; see
    `headrace.transforms.parquet.arrow_types.read_alike`. Raises `ColumnError` where a column is missing, is there twice, or
    holds what its type in `types` cannot; `NotParquet` where the data contradict the footer, or claim to be more than
    such bytes can hold; `DataError` where a batch does not fit into memory.
    """
    constants, renamed = dict(shard.partitions), dict(shard.renamed)
    asked = {renamed.get(name, name): name for name in columns if name not in constants}
    stored = list(asked)
    with _open(store, shard.source) as (parsed, opened):
        schema = _schema_read(shard.source.uri, parsed.columns.schema, stored, columns)
        if types is not None:
            schema = pa.schema([field.with_type(types.field(asked[field.name]).type) for field in schema])
        left, decoded = shard.rows, 0

        def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal decoded
            as_read: bool | None = None
            for batch in batches:
                decoded += batch.num_rows
                if as_read is None:  # all batches of a file are of one schema
                    as_read = batch.schema.equals(schema)
                yield batch if as_read else _cast(shard, batch, schema)

        try:
            in_order = not (constants or renamed) and schema.names == list(columns)
            batches = count(decoded_batches(Wanted.of(parsed, shard, stored), opened, batch_rows))
            if shard.deleted:
                batches = drop_rows(batches, unpack_positions(shard.deleted))
            for batch in _whole_batches(batches, shard.skip, batch_rows):
                part = batch if batch.num_rows <= left else batch.slice(0, left)
                left -= part.num_rows
                if not in_order:
                    part = part.rename_columns([asked.get(name, name) for name in part.schema.names])
                    part = _with_constants(part, columns, constants, types)
                yield part
                if not left:
                    return
        except MemoryError as error:
            raise _too_large(shard, batch_rows, str(error) or "no memory left") from error
        except pa.ArrowNotImplementedError as error:
            raise ColumnError(
                f"{shard.source.uri} has columns that Arrow {pa.__version__} cannot read together",
                expected=f"columns {', '.join(stored)}, of kinds that it reads",
                found=str(error),
                cure="Leave the nested ones out with --keep, or write them with plain values",
            ) from error
        except (pa.ArrowException, OSError) as error:
            if null := _NULL_LIST.search(str(error)):
                # Arrow cannot decode a null in a fixed-size list; `index` counts from 1 in the batch that failed.
                row = shard.first_row - shard.skip + decoded + int(null["index"]) - 1
                raise _null_list(shard, parsed.columns.schema, stored, row, null["size"]) from error
            raise NotParquet(
                f"{shard.source.uri} cannot be decoded in {row_span(shard.first_row, shard.end_row)}",
                expected="Parquet data pages that fit the file's footer",
                found=str(error),
                cure="Write that file again",
            ) from error
    if left:
        raise NotParquet(
            f"{shard.source.uri} ends {left} rows early",
            expected=f"{shard.rows} rows from row {shard.first_row} on, as its footer says",
            found=f"{shard.rows - left} rows",
            cure="Write that file again",
        )


def _whole_batches(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of `rows` after the first `skip` rows: Arrow gives shorter ones where a column's dictionary changes."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows == rows and not skip and not held:
            yield batch
            continue
        if skip:
            dropped = min(skip, batch.num_rows)
            skip -= dropped
            batch = batch.slice(dropped)
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            joined = held[0] if len(held) == 1 else one_batch(held)
            yield joined.slice(0, rows)
            held, count = [joined.slice(rows)] if count > rows else [], count - rows
    if count:
        yield held[0] if len(held) == 1 else one_batch(held)


def _schema_read(uri: str, schema: pa.Schema, stored: Sequence[str], columns: Sequence[str]) -> pa.Schema:
    """The columns of the file's schema that are read, in the file's order."""
    wanted = set(stored)
    if missing := sorted(wanted - set(schema.names)):
        raise ColumnError(
            f"{uri} lacks the column {missing[0]!r}",
            expected=f"columns {', '.join(columns)}",
            found=f"columns {', '.join(schema.names)}",
            cure="Leave this file out of --input, or write it again with that column",
        )
    # Usually all columns are wanted. The schema is then taken whole: each field taken out of it is a new object.
    every = len(wanted) == len(schema)
    read = schema.remove_metadata() if every else pa.schema([field for field in schema if field.name in wanted])
    if len(read) > len(wanted):
        raise repeated_columns(uri, read.names)
    return read


def _cast(shard: Shard, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    # Asked for a column "a.b", Arrow gives the member b of a struct a as well, and that struct before its turn.
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(as_type(column, field.type))
        except pa.ArrowInvalid as error:
            raise ColumnError(
                f"{shard.source.uri} has values in column {field.name!r} that the first input file's type cannot hold",
                expected=str(field.type),
                found=f"{column.type}: {error}",
                cure="Leave this file out of --input, or write it again with the same schema",
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def repeated_columns(where: str, names: Sequence[str]) -> ColumnError:
    twice = next(name for name, times in Counter(names).items() if times > 1)
    return ColumnError(
        f"{where} has several columns named {twice!r}",
        expected="a name for each column",
        found=f"columns {', '.join(names)}",
        cure="Rename all but one of them, or leave this file out of --input",
    )


def _too_large(shard: Shard, batch_rows: int, found: str) -> DataError:
    return DataError(
        f"{shard.source.uri} has rows too large for a batch between rows {shard.first_row} and {shard.end_row}",
        expected=f"{batch_rows} rows of {BATCH_BYTES:,} bytes at most",
        found=found,
        cure="Say a smaller --batch_size",
    )


def _with_constants(
    batch: pa.RecordBatch, columns: Sequence[str], constants: dict[str, str | None], types: pa.Schema | None
) -> pa.RecordBatch:
    """The columns in their order; those of `constants` are the same in every row."""
    if not constants:
        return batch.select(columns)
    kinds = {
        name: types.field(name).type if types is not None else pa.string() for name in constants if name in columns
    }
    arrays = [
        repeated(constant(constants[name], kinds[name]), kinds[name], batch.num_rows)
        if name in constants
        else batch.column(name)
        for name in columns
    ]
    fields = [pa.field(name, kinds[name]) if name in constants else batch.schema.field(name) for name in columns]
    metadata: Any = batch.schema.metadata
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata))


def _null_list(shard: Shard, schema: pa.Schema, columns: Sequence[str], row: int, size: str) -> NullFeature:
    lists = [name for name in columns if pa.types.is_fixed_size_list(schema.field(name).type)]
    return NullFeature(
        f"{shard.source.uri} has a null in row {row} (counted from 0) of column {' or '.join(map(repr, lists))}",
        expected=f"a list of {size} values in each row",
        found="null",
        cure="Arrow cannot read it, and --fill does not help: write the column as a list of any size, for --fill "
        "and --pad, or filter that row out; where no feature needs the column, leave it out with --keep",
    )


@contextmanager
def _open(store: Store, source: ObjectRef) -> Iterator[tuple[ParsedFooter, pa.NativeFile]]:
    """Closes the source too, which `ParquetFile` leaves open: only then does a local file report that it was rewritten."""
    check_size(source)
    with closing(store.open_arrow(stored_object(source))) as opened:

        def read(start: int, length: int) -> pa.Buffer:
            opened.seek(start)
            return opened.read_buffer(length)

        yield footers.get(source, read), opened
