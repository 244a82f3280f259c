"""Ragged and sparse inputs: lists as they are become values and row splits, or values and their positions.

A list's values are at the positions 0, 1, … of its row in a sparse tensor, as `tf.io.VarLenFeature` and
`tf.RaggedTensor.to_sparse` have it. Where they are at others, two columns of lists name both, positions first, or one column
of lists of structs, as a sparse output becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, UnsupportedModel
from ..models.spec import TensorSpec
from ..models.streaming.dlpack import to_tensor
from ..nested_arrow import is_list, value_type
from .column import Column
from .fitting import match, misfit, with_lengths
from .nesting import RaggedLists
from .output_arrays import POSITION, VALUE
from .rules import TensorRule
from .struct_paths import member_type, path_of
from .wording import described, of, within

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class CompositeInput:
    """How one such input is read. `columns` are one of values, or of a sparse input positions and values."""

    spec: TensorSpec
    columns: tuple[Column, ...]
    row_nbytes: ClassVar[None] = None  # rows vary

    @property
    def mapping(self) -> dict[str, tuple[str, ...]]:
        return {self.spec.name: tuple(column.name for column in self.columns)}

    def tensors(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[str, tf.Tensor]:
        """Its parts by their names."""
        composite = self.spec.composite
        assert composite is not None
        values, splits = self.columns[-1].ragged(batch, where, first_row)
        if composite.kind == "ragged":
            made = [values, *(to_tensor(edges.astype(composite.splits, copy=False)) for edges in splits)]
        elif len(self.columns) == 1:
            made = _sparse(values, splits, (self.spec.shape or ())[1:])
        else:
            made = self._placed(values, splits[0], batch, where, first_row)
        return dict(zip(composite.parts, made, strict=True))

    def _placed(
        self, values: tf.Tensor, edges: np.ndarray[Any, Any], batch: pa.RecordBatch, where: str, first_row: int
    ) -> list[tf.Tensor]:
        """A sparse tensor of the positions that rows name, in their order, which TensorFlow's kernels rely on."""
        import tensorflow as tf

        positions, own = self.columns[0].ragged(batch, where, first_row)
        size, lengths = (self.spec.shape or ())[1], np.diff(edges)
        _refuse(
            np.flatnonzero(np.diff(own[0]) != lengths),
            f"Columns {' and '.join(repr(one.name) for one in self.columns)}{of(where)} have lists of different lengths",
            "a position for each value",
            np.diff(own[0]),
            "{} positions",
            first_row,
        )
        at, rows = np.asarray(memoryview(positions)), np.repeat(np.arange(batch.num_rows), lengths)
        if not ((np.diff(rows) > 0) | (np.diff(at) > 0)).all():
            order = np.lexsort((at, rows))
            at, values = at[order], tf.gather(values, order)
        wrong = (at < 0) | (at >= (np.iinfo(np.int64).max if size is None else size))
        wrong[1:] |= (np.diff(at) == 0) & (np.diff(rows) == 0)
        bad, first = np.unique(rows[wrong], return_index=True)
        found = np.zeros(batch.num_rows, np.int64)
        found[bad] = at[wrong][first]
        _refuse(
            bad,
            f"Column '{self.columns[0].name}'{of(where)} has a position that is out of range, or twice in one list,",
            "each position once, from 0 on" + ("" if size is None else f" and below {size}"),
            found,
            "{}",
            first_row,
        )
        width = size if size is not None else int(at.max(initial=-1)) + 1
        indices = np.stack([rows, at], axis=1)
        return [to_tensor(indices), values, tf.constant([batch.num_rows, width], tf.int64)]


def _refuse(
    rows: np.ndarray[Any, Any], what: str, expected: str, values: np.ndarray[Any, Any], form: str, first_row: int
) -> None:
    if not len(rows):
        return
    refused = ColumnError(
        f"{what} in row {first_row + int(rows[0])}",
        expected=expected,
        found=form.format(values[rows[0]]),
        cure="Fix or drop that row before predicting.",
    )
    refused.alike = tuple((int(row), form.format(values[row])) for row in rows)
    raise refused


def _sparse(
    values: tf.Tensor, splits: Sequence[np.ndarray[Any, Any]], inner: tuple[int | None, ...]
) -> list[tf.Tensor]:
    """Indices, values and dense shape of values that are at the first positions of each list."""
    import tensorflow as tf

    places = [np.arange(len(splits[0]) - 1)]
    shape = [len(splits[0]) - 1]
    for edges, size in zip(splits, inner, strict=True):
        lengths = np.diff(edges)
        places = [np.repeat(one, lengths) for one in places]
        places.append(np.arange(edges[-1]) - np.repeat(edges[:-1], lengths))
        shape.append(int(lengths.max(initial=0)) if size is None else size)
    return [to_tensor(np.stack(places, axis=1)), values, tf.constant(shape, tf.int64)]


def composite_columns(
    schema: pa.Schema, spec: TensorSpec, names: tuple[str, ...], rule: TensorRule
) -> list[tuple[TensorSpec, str, TensorRule]]:
    """What is to be read from each of its columns."""
    assert spec.composite is not None
    pair = names
    if spec.composite.kind == "sparse" and len(names) == 1 and _holds_pairs(schema, names[0].strip()):
        pair = f"{names[0].strip()}.{POSITION}", f"{names[0].strip()}.{VALUE}"
    if spec.composite.kind == "sparse" and len(pair) == 2:
        positions = replace(spec, dtype="int64"), pair[0], replace(rule, dtype="int64", fill=None, cast=False)
        return [positions, (spec, pair[1], rule)]
    return [(spec, name, rule) for name in names]


def _holds_pairs(schema: pa.Schema, name: str) -> bool:
    path = path_of(schema, name)
    kind = None if path is None else member_type(schema.field(path[0]).type, path)
    if kind is None or not is_list(kind):
        return False
    of_list = value_type(kind)
    return pa.types.is_struct(of_list) and min(of_list.get_field_index(one) for one in (POSITION, VALUE)) >= 0


def composite_input(spec: TensorSpec, columns: tuple[Column, ...], where: str) -> CompositeInput:
    """Raises `ColumnError` where the columns do not fit, `UnsupportedModel` for a sparse input of unknown rank."""
    assert spec.composite is not None
    kind = spec.composite.kind
    if kind == "sparse" and len(spec.shape or ()) < 2:
        raise UnsupportedModel(
            f"The model's sparse input '{spec.name}' has no known rank",
            expected="a batch of rows with one dimension or more, as in tf.SparseTensorSpec([None, None])",
            found=described(spec),
            cure="Export the model with its rank.",
        )
    pair = kind == "sparse" and len(columns) == 2
    if (len(columns) > 1 and not pair) or (pair and len(spec.shape or ()) != 2):
        raise ColumnError(
            f"{len(columns)} columns do not fit tensor '{spec.name}'{within(where)}",
            expected=f"one column of lists for {described(spec)}"
            + (", or two: of positions and of values" if kind == "sparse" and len(spec.shape or ()) == 2 else ""),
            found=", ".join(column.name for column in columns),
            cure=f"Name one: --feature {spec.name}=COLUMN.",
        )
    return CompositeInput(spec, tuple(_held(spec, column, where, pair) for column in columns))


def _held(spec: TensorSpec, column: Column, where: str, pair: bool) -> Column:
    """The column, its lists held to the sizes that the tensor knows."""
    assert spec.composite is not None
    target = None if spec.shape is None else spec.shape[1:]
    cure = "Write it as lists" + (" of lists" * (spec.lists - 1)) + ", or name another column with --feature."
    outer = [level for level in column.levels if isinstance(level, RaggedLists)]
    if len(outer) != spec.lists or (target is not None and len(column.dims) != len(target)):
        raise misfit(spec, column, where, cure)
    if spec.composite.kind == "ragged":
        if (fit := match(column.dims, target)) is None:
            raise misfit(spec, column, where, cure)
        return with_lengths(column, fit[0])
    if pair:
        return column
    assert target is not None
    if any(
        most is not None and size is not None and size > most for size, most in zip(column.dims, target, strict=True)
    ):
        raise misfit(spec, column, where, "Shorten the lists: nothing is cut off.")
    sizes = iter(target)
    levels = [replace(one, most=next(sizes)) if isinstance(one, RaggedLists) else one for one in column.levels]
    return replace(column, levels=tuple(levels))
