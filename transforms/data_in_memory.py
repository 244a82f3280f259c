"""Data in memory of several kinds as record batches, and predictions back in the same kind: a pandas or polars DataFrame, an
Arrow table or record batch, a dict of arrays, or an iterable of any of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import DataError
from .nested_arrow import flat, is_list, lengths, list_size, value_type

KINDS = "a pandas or polars DataFrame, an Arrow table or record batch, a dict of arrays, or an iterable of these"


Rows = np.ndarray[Any, np.dtype[np.bool_]] | None


@dataclass(frozen=True, slots=True)
class Held:
    """`table` holds the rows; `back` makes of a table of predictions what the rows came in. With the predictions it is given
    which of the rows they are of, True for each, or None for all of them.
    """

    table: pa.Table
    back: Callable[[pa.Table, Rows], Any]


def is_one(data: Any) -> bool:
    """Whether this is rows itself, not an iterable of them."""
    return isinstance(data, (pa.Table, pa.RecordBatch, Mapping)) or _is_from(data, "pandas") or _is_from(data, "polars")


def hold(data: Any) -> Held:
    """Raises `DataError` where this is none of `KINDS`, or Arrow cannot take a column."""
    if isinstance(data, pa.Table):
        return Held(data, lambda table, _: table)
    if isinstance(data, pa.RecordBatch):
        return Held(pa.Table.from_batches([data]), lambda table, _: _one_batch(table))
    if isinstance(data, Mapping):
        return Held(_of_arrays(data), lambda table, _: {name: as_array(table[name]) for name in table.column_names})
    if _is_from(data, "pandas"):
        return _of_pandas(data)
    if _is_from(data, "polars"):
        import polars

        frame = data.collect() if isinstance(data, polars.LazyFrame) else data
        return Held(frame.to_arrow(), lambda table, _: polars.from_arrow(table))
    raise DataError(
        f"Data of type {type(data).__module__}.{type(data).__qualname__} cannot be predicted",
        expected=KINDS,
        cure='Pass an array under the name of the model\'s input, as in {"x": array}',
    )


def _is_from(data: Any, library: str) -> bool:
    """A DataFrame of a library that is imported: if it is not, the data cannot be of it."""
    module = sys.modules.get(library)
    kinds = tuple(filter(None, (getattr(module, name, None) for name in ("DataFrame", "LazyFrame"))))
    return bool(kinds) and isinstance(data, kinds)


def _of_pandas(frame: Any) -> Held:
    names = [name for name in frame.columns if not isinstance(name, str)]
    if names:
        raise DataError(
            f"The DataFrame has a column named {names[0]!r}",
            expected="column names that are text",
            found=type(names[0]).__name__,
            cure="Rename the columns: frame.columns = frame.columns.map(str)",
        )
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError("Arrow cannot take a column of the DataFrame", found=str(error)) from error

    def back(predicted: pa.Table, rows: Rows) -> Any:
        found = predicted.replace_schema_metadata(None).to_pandas()
        found.index = frame.index if rows is None else frame.index[rows]
        return found

    return Held(table.replace_schema_metadata(None), back)


def _of_arrays(data: Mapping[str, Any]) -> pa.Table:
    """The first dimension of each array counts rows; the others become fixed-size lists."""
    columns = {}
    for name, given in data.items():
        if isinstance(given, (pa.Array, pa.ChunkedArray)):
            columns[name] = given
            continue
        array = np.asarray(given)
        if array.ndim == 0:
            raise DataError(
                f"{name!r} is one value",
                expected="an array whose first dimension counts the rows",
                found=repr(given)[:100],
                cure="Repeat it for each row, as in numpy.full(rows, value)",
            )
        columns[name] = _column(name, array)
    rows = {name: len(column) for name, column in columns.items()}
    if len(set(rows.values())) > 1:
        raise DataError(
            "The arrays have different numbers of rows",
            expected="first dimensions that are equal",
            found=", ".join(f"{name} {count}" for name, count in rows.items()),
        )
    return pa.table(columns)


def _column(name: str, array: np.ndarray[Any, Any]) -> pa.Array[Any]:
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    try:
        values = np.ascontiguousarray(array).reshape(-1)
        listed = array.dtype.kind in "US" or (array.dtype.kind == "O" and array.ndim == 1)
        flat = pa.array(values.tolist() if listed else values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"Arrow cannot take the array {name!r}", found=f"{array.dtype} {list(array.shape)}: {error}"
        ) from error
    for size in reversed(array.shape[1:]):
        if not size:
            what = f"An array of shape {list(array.shape)} holds no values"
            raise DataError(what, expected="dimensions of 1 or more", found=str(flat.type))
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def as_array(column: pa.ChunkedArray[Any], *, equal_lists: bool = False) -> np.ndarray[Any, Any]:
    """A column as an array: fixed-size lists become dimensions, with `equal_lists` also others whose lengths are equal;
    what has nulls or unequal lengths is an array of objects.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    shape, kind = [len(array)], array.type
    while not array.null_count and (size := _list_size(array, equal_lists)) is not None:
        shape.append(size)
        array, kind = flat(array), value_type(kind)
    if pa.types.is_nested(kind) or array.null_count or len(array) != np.prod(shape):
        return column.to_numpy()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def _list_size(lists: pa.Array[Any], equal_lists: bool) -> int | None:
    if pa.types.is_fixed_size_list(lists.type):
        return list_size(lists.type)
    if not equal_lists or not is_list(lists.type):
        return None
    sizes = np.unique(lengths(lists).to_numpy())
    return int(sizes[0]) if len(sizes) == 1 else None


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
