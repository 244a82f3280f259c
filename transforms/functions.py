"""A user's own function on record batches, before the model or after it: found by name, known by its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from transforms.errors import DataError, InvalidRequest

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
    except Exception as error:  # the user's module may raise whatever it likes
        raise InvalidRequest(
            f"The module {module_name} cannot be imported",
            expected="a module on this process's path",
            found=f"{type(error).__name__}: {error}",
            cure="Install it, start from its folder, or name it with --user_package",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InvalidRequest(
            f"{module_name} has no function {attribute!r}",
            expected="a function of one record batch",
            found=f"{', '.join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or 'none'}",
        )
    return function, hashlib.sha256(_source(module, name)).hexdigest()


def _source(module: ModuleType, name: str) -> bytes:
    try:
        return inspect.getsource(module).encode()
    except (OSError, TypeError):  # compiled: its file is what it is
        path = getattr(module, "__file__", None)
    if path is None:
        raise InvalidRequest(f"The source of {name} cannot be found", expected="a module that lies in a file")
    with open(path, "rb") as file:
        return file.read()


class AppliedFunction:
    """The function as it is applied to batches of `schema`; `output_schema` is known from a batch without rows."""

    def __init__(self, function: BatchFunction, name: str, schema: pa.Schema) -> None:
        """Raises `DataError` where the function fails on a batch without rows, or gives no record batch."""
        self._function, self._name = function, name
        self.output_schema: pa.Schema = self._call(_empty(schema)).schema

    def __call__(self, batch: pa.RecordBatch, where: str, first_row: int) -> pa.RecordBatch:
        """Raises `DataError` where it fails on the batch, or changes rows' number or columns' types."""
        return self._call(batch, where, first_row)

    def _call(self, batch: pa.RecordBatch, where: str = "a batch without rows", first_row: int = 0) -> pa.RecordBatch:
        rows = f"rows {first_row} to {first_row + batch.num_rows} (the end exclusive) of {where}"
        try:
            result = self._function(batch)
        except Exception as error:
            raise DataError(
                f"{self._name} fails on {rows if batch.num_rows else where}",
                expected="a record batch",
                found=f"{type(error).__name__}: {error}",
                cure="Mend the function"
                + ("" if batch.num_rows else ": it is called without rows once, to learn its columns"),
            ) from error
        if isinstance(result, pa.Table):
            result = result.combine_chunks().to_batches()
            result = result[0] if result else None
        if not isinstance(result, pa.RecordBatch) or result.num_rows != batch.num_rows:
            raise DataError(
                f"{self._name} gives something else than a row for each row of {rows if batch.num_rows else where}",
                expected=f"a record batch of {batch.num_rows} rows",
                found=f"{result.num_rows} rows" if isinstance(result, pa.RecordBatch) else type(result).__name__,
                cure="Return one row for each, in the same order",
            )
        expected = getattr(self, "output_schema", None)
        if expected is not None and not result.schema.equals(expected):
            raise DataError(
                f"{self._name} gives other columns for {rows} than for a batch without rows",
                expected=_shown(expected),
                found=_shown(result.schema),
                cure="Return the same columns and types for every batch",
            )
        return result


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
