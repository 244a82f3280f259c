"""A user's own function on record batches, before the model or after it: found by name, known by its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from ..errors import ColumnError, DataError, InvalidRequest, row_span
from ..nested_arrow import flat, members

BatchFunction = Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """`name` is `module:function`; `source` is the SHA-256 (hex) of the module's source, as the launcher saw it."""

    name: str
    source: str

    def load(self) -> BatchFunction:
        """Raises `InvalidRequest` where this process finds no such function, or one of another source."""
        function, source = _find(self.name)
        if source != self.source:
            raise InvalidRequest(
                f"{self.name} differs from the one that the job was launched with",
                expected=f"source {self.source[:12]}…",
                found=f"source {source[:12]}…",
                cure="Give every worker the same code, as with --user_package",
            )
        return function

    def applied(self, schema: pa.Schema, written: Collection[str] | None = None) -> AppliedFunction:
        """The function, loaded, as an `AppliedFunction`."""
        return AppliedFunction(self.load(), self.name, schema, written)


def find_function(name: str, flag: str) -> FunctionRef:
    """Raises `InvalidRequest` where `module:function` leads to nothing that can be called."""
    try:
        return FunctionRef(name, _find(name)[1])
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{flag}: {error.what}", expected=error.expected, found=error.found, cure=error.cure
        ) from error


def _find(name: str) -> tuple[BatchFunction, str]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InvalidRequest(f"{name!r} names no function", expected="module:function", found=name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything, and a script exits
        raise InvalidRequest(
            f"The module {module_name} cannot be imported",
            expected="a module on this process's path",
            found=f"{type(error).__name__}: {error}",
            cure="Name the package that holds it with --user_package, or put its folder on PYTHONPATH",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InvalidRequest(
            f"{module_name} has no function {attribute!r}",
            expected="a function of one record batch",
            found=", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none",
        )
    return function, hashlib.sha256(_source(module, name)).hexdigest()


def _source(module: ModuleType, name: str) -> bytes:
    try:
        return inspect.getsource(module).encode()
    except (OSError, TypeError):  # compiled: its file is what it is
        path = getattr(module, "__file__", None)
    if path is None:
        raise InvalidRequest(f"The source of {name} cannot be found", expected="a module in a file")
    with open(path, "rb") as file:
        return file.read()


class AppliedFunction:
    """The function as it is applied to batches of `schema`; `output_schema` is known from a batch without rows.

    Whether a column can hold nulls may differ from file to file: the function's input and output columns always can.
    """

    def __init__(
        self, function: BatchFunction, name: str, schema: pa.Schema, written: Collection[str] | None = None
    ) -> None:
        """`written` are those of its columns that go into Parquet as they are; None is all of them.

        Raises `DataError` where the function fails on a batch without rows, or gives no record batch.
        """
        self._function, self._name, self._schema, self._written = function, name, _nullable(schema), written
        empty = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=self._schema)
        cure = ": it is called without rows once, so that its columns are known before any row is read"
        result = self._call(empty, "a batch without rows", cure)
        self.output_schema: pa.Schema = _nullable(result.schema)

    def __call__(self, batch: pa.RecordBatch, where: str, first_row: int) -> pa.RecordBatch:
        """Raises `DataError` where it fails on the batch, changes rows' number or columns' types, or gives nulls
        that Parquet would not give back.

        `ColumnError` where the batch has other types than `schema`.
        """
        rows = f"{row_span(first_row, first_row + batch.num_rows)} of {where}"
        if not _nullable(batch.schema).equals(self._schema):
            raise ColumnError(
                f"{self._name} cannot be given {rows}: the columns are not those that the job was planned with",
                expected=_shown(self._schema, batch.schema),
                found=_shown(batch.schema, self._schema),
                cure="Leave this file out of --input, or write it again with these types",
            )
        result = self._call(pa.RecordBatch.from_arrays(batch.columns, schema=self._schema), rows)
        if not _nullable(result.schema).equals(self.output_schema):
            raise DataError(
                f"{self._name} gives other columns for {rows} than for a batch without rows",
                expected=_shown(self.output_schema, result.schema),
                found=_shown(result.schema, self.output_schema),
                cure="Return the same columns and types for every batch, as by naming each array's type",
            )
        for field, column in zip(self.output_schema, result.columns, strict=True):
            if (self._written is None or field.name in self._written) and _has_null_list(column):
                row = next(row for row in range(len(column)) if _has_null_list(column.slice(row, 1)))
                raise DataError(
                    f"{self._name} gives a null for row {first_row + row} of {where} that Parquet would not give back",
                    expected=f"a value for every list of a fixed size in {field.name}: {field.type}",
                    found="null",
                    cure="Return lists of any size (pa.list_(…)), or fill the null",
                )
        return pa.RecordBatch.from_arrays(result.columns, schema=self.output_schema)

    def _call(self, batch: pa.RecordBatch, rows: str, cure: str = "") -> pa.RecordBatch:
        try:
            result = self._function(batch)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{self._name} fails on {rows}",
                expected="a record batch",
                found=f"{type(error).__name__}: {error}{_line_of(error)}",
                cure=f"Fix the function{cure}",
            ) from error
        if isinstance(result, pa.Table):
            arrays = [_one_chunk(column) for column in result.columns]
            result = pa.RecordBatch.from_arrays(arrays, schema=result.schema)
        if not isinstance(result, pa.RecordBatch) or result.num_rows != batch.num_rows:
            raise DataError(
                f"{self._name} must return one row per input row; for {rows} it did not",
                expected=f"a record batch, rows: {batch.num_rows}",
                found=f"rows: {result.num_rows}" if isinstance(result, pa.RecordBatch) else type(result).__name__,
                cure="Return one row for each, in the same order",
            )
        return result


def _one_chunk(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _has_null_list(array: pa.Array[Any]) -> bool:
    """pyarrow writes, but cannot read, a null fixed-size list; one in a null struct is null too."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_struct(array.type):
        return any(map(_has_null_list, members(array)))
    if pa.types.is_map(array.type):
        array = array.cast(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))
    if pa.types.is_fixed_size_list(array.type) and array.null_count:
        return True
    return pa.types.is_nested(array.type) and _has_null_list(flat(array))


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _shown(schema: pa.Schema, other: pa.Schema) -> str:
    """The columns that the other lacks or has otherwise; all of them where only their order differs."""
    theirs = {field.name: field.type for field in other}
    fields = [field for field in schema if theirs.get(field.name) != field.type]
    if not fields and schema.names != other.names and set(schema.names) == set(other.names):
        fields = list(schema)
    return ", ".join(f"{field.name}: {field.type}" for field in fields) or "no other column"


def _line_of(error: BaseException) -> str:
    """The place in the user's code that raised it: of the frames below ours, the deepest in the function's file."""
    frame = error.__traceback__.tb_next if error.__traceback__ else None
    if frame is None:
        return ""
    file, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == file:
            line = frame.tb_lineno
        frame = frame.tb_next
    return f" (line {line} of {os.path.basename(file)})"
