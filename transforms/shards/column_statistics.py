"""Statistics of a column of predictions: made while a shard is written, kept with it, merged over shards. No Beam.

Numbers are in `number_bins`. Nothing here visits rows one by one.

Rows, nulls, NaN, min, max and sums cover every row. Bins, classes and values cover a shard's first `ALL_ROWS` rows and
then every `EVERY`-th batch, which counts for as many: that keeps them cheap compared with a light model.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter, methodcaller
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..bounded_json import parse_json
from ..nested_arrow import is_any_list, list_size, value_type
from .number_bins import Numbers, as_integer

ALL_ROWS = 1 << 14
EVERY = 8
MOST_COLUMNS = 64
MOST_CLASSES = 1000
MOST_VALUES = 256
MOST_VALUE_BYTES = 64
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_MOST_ENCODED = 64 << 10
_MOST_DECODED = 4 << 20


@dataclass(slots=True)
class Column:
    """`rows` of one column; `nulls` of them are null as a whole.

    `numbers` are its numbers, each number of a list, or the lengths of its texts in bytes. For rows of one to `MOST_CLASSES`
    scores, `classes` counts where in the row the largest is (of equal ones the first), and `largest` are these scores.
    `values` counts each value, None where these are too many: only whole numbers, bools and texts of few different values.
    """

    name: str
    kind: str
    rows: int = 0
    nulls: int = 0
    numbers: Numbers | None = None
    classes: np.ndarray[Any, Any] | None = None
    largest: Numbers | None = None
    values: dict[str, int] | None = None
    _layout: _Layout | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, name: str, kind: pa.DataType) -> Self:
        leaf = _Layout.of(kind).leaf
        type_name = f"{kind}"[:200]
        if pa.types.is_boolean(leaf):
            return cls(name, type_name, values={})
        if pa.types.is_integer(leaf) or leaf in _TEXTS:
            return cls(name, type_name, numbers=Numbers(), values={})
        if not pa.types.is_floating(leaf):
            return cls(name, type_name)
        of_scores = pa.types.is_fixed_size_list(kind) and value_type(kind) == leaf
        if of_scores and 2 <= list_size(kind) <= MOST_CLASSES:
            return cls(
                name, type_name, numbers=Numbers(), classes=np.zeros(list_size(kind), np.int64), largest=Numbers()
            )
        return cls(name, type_name, numbers=Numbers())

    def add(self, array: pa.Array[Any], weight: int = 1) -> None:
        """`weight` as of `Numbers.add`, for classes and values too."""
        self.rows += len(array)
        self.nulls += array.null_count
        if self.numbers is None and self.values is None:
            return
        lists = len(array) - array.null_count
        if (layout := self._layout) is None:
            layout = self._layout = _Layout.of(array.type)
        flat = array
        for inwards in layout.steps:
            flat = inwards(flat)
        if flat.null_count:
            flat = flat.drop_null()
        if layout.text:
            texts: Any = flat
            lengths = pc.binary_length(texts)
            self._count_values(flat, weight, long=(pc.max(lengths).as_py() or 0) > MOST_VALUE_BYTES)
            flat = lengths
        elif not layout.floating:
            self._count_values(flat, weight)
        if self.numbers is None:
            return
        numbers = flat.to_numpy(zero_copy_only=False)
        if self.classes is not None and weight and len(numbers) == lists * len(self.classes):
            self._count_classes(numbers.reshape(lists, len(self.classes)), weight)
        self.numbers.add(numbers, weight)

    def _count_classes(self, scores: np.ndarray[Any, Any], weight: int) -> None:
        assert self.classes is not None
        assert self.largest is not None
        at = scores.argmax(axis=1)
        largest = scores.reshape(-1)[np.arange(0, scores.size, scores.shape[1]) + at]
        if (missing := np.isnan(largest)).any():  # argmax gives the first NaN
            at, largest = at[~missing], largest[~missing]
        self.largest.add(largest, weight)
        self.classes += np.bincount(at, minlength=len(self.classes)) * weight

    def _count_values(self, flat: pa.Array[Any], weight: int, *, long: bool = False) -> None:
        if self.values is None or long:
            self.values = None
            return
        if not weight:
            return
        counted = pc.value_counts(flat)
        if len(counted) > MOST_VALUES:
            self.values = None
            return
        values, counts = counted.field("values").to_pylist(), counted.field("counts").to_numpy() * weight
        self._add_values(zip(map(_shown, values), counts.tolist(), strict=True))

    def _add_values(self, counted: Iterable[tuple[str, int]]) -> None:
        assert self.values is not None
        for value, count in counted:
            self.values[value] = self.values.get(value, 0) + count
        if len(self.values) > MOST_VALUES:
            self.values = None

    def is_like(self, other: Column) -> bool:
        """Whether it has the same name and type, and is counted in the same way."""
        return self._way() == other._way()

    def _way(self) -> tuple[Any, ...]:
        scores = None if self.classes is None else len(self.classes)
        return self.name, self.kind, self.numbers is None, self.largest is None, scores

    def merge(self, other: Column) -> None:
        """The result does not depend on the order of merges, except for that of `values`. Raises `ValueError` where it is a
        column of another type.
        """
        if not self.is_like(other):
            raise ValueError(f"{other.name} of {other.kind} is not {self.name} of {self.kind}")
        self.rows, self.nulls = self.rows + other.rows, self.nulls + other.nulls
        for mine, theirs in ((self.numbers, other.numbers), (self.largest, other.largest)):
            if mine is not None and theirs is not None:
                mine.merge(theirs)
        if self.classes is not None and other.classes is not None:
            self.classes = self.classes + other.classes
        if self.values is None or other.values is None:
            self.values = None
        else:
            self._add_values(other.values.items())

    def dump(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"name": self.name, "kind": self.kind, "rows": self.rows, "nulls": self.nulls}
        for name in ("numbers", "largest"):
            if (numbers := getattr(self, name)) is not None:
                fields[name] = numbers.dump()
        if self.classes is not None:
            fields["classes"] = self.classes.tolist()
        if self.values is not None:
            fields["values"] = self.values
        return fields

    @classmethod
    def load(cls, fields: dict[str, Any]) -> Self:
        """Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` where `dump` gave no such thing."""
        return cls(
            str(fields["name"]),
            str(fields["kind"]),
            as_integer(fields["rows"]),
            as_integer(fields["nulls"]),
            Numbers.load(fields["numbers"]) if "numbers" in fields else None,
            np.array([as_integer(count) for count in fields["classes"]], np.int64) if "classes" in fields else None,
            Numbers.load(fields["largest"]) if "largest" in fields else None,
            {str(value): as_integer(count) for value, count in fields["values"].items()}
            if "values" in fields
            else None,
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The way to all values of an array of that kind, in order; those of null lists are none."""

    steps: tuple[Callable[[pa.Array[Any]], pa.Array[Any]], ...]
    leaf: pa.DataType
    text: bool
    floating: bool

    @classmethod
    def of(cls, kind: pa.DataType) -> Self:
        steps: list[Callable[[pa.Array[Any]], pa.Array[Any]]] = []
        leaf = kind
        while True:
            if isinstance(leaf, pa.BaseExtensionType):
                steps.append(attrgetter("storage"))
                leaf = leaf.storage_type
            elif pa.types.is_dictionary(leaf):
                steps.append(methodcaller("dictionary_decode"))
                leaf = value_type(leaf)
            elif is_any_list(leaf):
                steps.append(methodcaller("flatten"))
                leaf = value_type(leaf)
            else:
                return cls(tuple(steps), leaf, leaf in _TEXTS, pa.types.is_floating(leaf))


class Columns:
    """The columns of a shard's predictions, the first `MOST_COLUMNS` of them."""

    def __init__(self, schema: pa.Schema, names: Iterable[str]) -> None:
        some = [name for _, name in zip(range(MOST_COLUMNS), names, strict=False)]
        self.columns = [Column.of(name, schema.field(name).type) for name in some]
        self._rows = self._batches = 0

    def add(self, batch: pa.RecordBatch) -> None:
        weight = 1 if self._rows < ALL_ROWS else EVERY if self._batches % EVERY == 0 else 0
        self._batches += self._rows >= ALL_ROWS
        self._rows += batch.num_rows
        for column in self.columns:
            column.add(batch.column(column.name), weight)

    def encode(self) -> tuple[str, tuple[Column, ...]]:
        return encode(self.columns)


def encode(columns: Iterable[Column]) -> tuple[str, tuple[Column, ...]]:
    """As text of some kilobytes, 64 KiB at most, and the columns that are in it: what would not fit is left out, beginning
    with the last.
    """
    columns = tuple(columns)
    dumped = [column.dump() for column in columns]
    while True:
        text = base64.b64encode(zlib.compress(json.dumps(dumped, separators=(",", ":")).encode(), 6)).decode()
        if len(text) <= _MOST_ENCODED or not dumped:
            return text, columns[: len(dumped)]
        dumped.pop()


def decode(text: str) -> list[Column]:
    """Raises `ValueError` where `encode` did not give it."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_DECODED)
        return [Column.load(fields) for fields in parse_json(data)]
    except (ValueError, zlib.error, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no statistics: {type(error).__name__}: {error}") from error


def merge(into: list[Column], more: Iterable[Column]) -> set[str]:
    """Columns by their name; one that `into` lacks is copied to it. The names of those that are of another type there: what
    `into` has of them is of no use, since which came first decides it.
    """
    by_name, unlike = {column.name: column for column in into}, set()
    for column in more:
        mine = by_name.get(column.name)
        if mine is None:
            by_name[column.name] = deepcopy(column)
            into.append(by_name[column.name])
        elif mine.is_like(column):
            mine.merge(column)
        else:
            unlike.add(column.name)
    return unlike


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value).lower() if isinstance(value, bool) else str(value)
