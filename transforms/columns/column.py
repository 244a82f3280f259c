"""A column: levels of structs and lists around a leaf, and how its rows become one tensor.

Its type and the tensor's rule alone decide which handlers serve it, before any data; the handlers then work on whole batches,
never on a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ColumnError, NullFeature
from ..models.streaming.dlpack import to_tensor
from ..nested_arrow import list_size, value_type
from .casts import UncastableError, cast, casts_exactly, numpy_dtype
from .images import Images
from .nesting import EqualLists, FixedLists, Level, ListLengthError, Member, Opened, PaddedLists, RaggedLists
from .rules import TensorRule
from .values import BadValueError, Bytes, Leaf, Numbers, leaf_of, nulls
from .wording import of

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class RowValues:
    """The values of rows, one row after the other: `counts` values each, numbers or an Arrow array of strings or binary.

    `kept` are the rows of the batch that have values, None for all of them.
    """

    values: np.ndarray[Any, Any] | pa.Array[Any]
    counts: int | np.ndarray[Any, Any]
    kept: np.ndarray[Any, Any] | None


@dataclass(frozen=True, slots=True)
class Column:
    """How one column is read: `path` leads from the top-level column, of exactly `type`, through structs to `name`."""

    name: str
    path: tuple[str, ...]
    type: pa.DataType
    levels: tuple[Level, ...]
    leaf: Leaf
    rule: TensorRule

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The shape of one row; () for a scalar, None for a length that only the data knows."""
        return (*(dim for level in self.levels for dim in level.dims), *self.leaf.dims)

    @property
    def is_plain_number(self) -> bool:
        """Whether it is a top-level column of integers or floats."""
        plain = pa.types.is_integer(self.type) or pa.types.is_floating(self.type)
        return plain and not self.levels and type(self.leaf) is Numbers

    def tensor(self, batch: pa.RecordBatch, inner: tuple[int, ...] | None, where: str, first_row: int) -> tf.Tensor:
        """All rows of the batch as the rule's dtype and of the shape `inner`, or where that is None, of their own.

        Raises `NullFeature` for a null at any level that the rule does not fill, and `ColumnError` for a list of another
        length, a value that cannot be cast and an image that cannot be decoded: all with the row.
        """
        at = self._open(batch, where, first_row)
        dims: Any = (*at.dims, *self.leaf.dims) if inner is None else inner
        return self._made(at, (batch.num_rows, *dims), where, first_row)

    def ragged(
        self, batch: pa.RecordBatch, where: str, first_row: int
    ) -> tuple[tf.Tensor, tuple[np.ndarray[Any, Any], ...]]:
        """The values of all rows, one after the other, and the int64 splits of the outermost lists, which stay as long as they
        are. Raises as `tensor`.
        """
        at = self._open(batch, where, first_row)
        count, dims = int(at.splits[-1][-1]), self.leaf.dims
        shape: Any = (count, *at.dims, *dims)
        return self._made(at, shape, where, first_row), tuple(at.splits)

    def _made(self, at: Opened, shape: tuple[int, ...], where: str, first_row: int) -> tf.Tensor:
        # TensorFlow's own cast would make zeros of the numbers nearest to zero.
        same = not isinstance(self.leaf, Numbers) or self.leaf.dtype == self.rule.dtype
        if same and self._lends(at):
            tensor = self._leaf_tensor(at, shape, where, first_row)
        elif isinstance(self.leaf, Numbers):
            tensor = to_tensor(self._numbers(at, where, first_row).reshape(shape))
        else:
            tensor = self._leaf_tensor(Opened(self._bytes(at)), shape, where, first_row)
        if tensor.dtype.name == self.rule.dtype:
            return tensor
        import tensorflow as tf

        return tf.cast(tensor, self.rule.dtype)

    def numbers(self, batch: pa.RecordBatch, where: str, first_row: int) -> np.ndarray[Any, Any]:
        """The values of a scalar column in the rule's dtype, or in one that holds them exactly. Raises as `tensor`."""
        at = self._open(batch, where, first_row)
        if self._lends(at) and isinstance(self.leaf, Numbers):
            return self.leaf.numpy(at.array)
        return self._numbers(at, where, first_row)

    def row_values(self, batch: pa.RecordBatch, where: str, first_row: int) -> RowValues:
        """The values in the rule's dtype, lists as long as they are where the rule is ragged. Raises as `tensor`."""
        at = self._open(batch, where, first_row)
        numbers = isinstance(self.leaf, Numbers)
        if at.present is None or not self.rule.ragged:
            values = self._numbers(at, where, first_row) if numbers else self._bytes(at)
            return RowValues(values, math.prod(at.dims), at.kept)
        rows = batch.num_rows if at.kept is None else len(at.kept)
        counts = np.count_nonzero(at.present.reshape(rows, -1), axis=1)
        values = self._cast(at, where, first_row) if numbers else self._filled(at.array)
        return RowValues(values, counts, at.kept)

    def step_values(self, batch: pa.RecordBatch, where: str, first_row: int) -> tuple[RowValues, np.ndarray[Any, Any]]:
        """The values of each row's outermost list, item after item, and how many items each row has. Raises as `tensor`."""
        at = self._open(batch, where, first_row)
        values = self._numbers(at, where, first_row) if isinstance(self.leaf, Numbers) else self._bytes(at)
        counts = np.diff(at.splits[1]) if len(at.splits) > 1 else math.prod(at.dims)
        return RowValues(values, counts, at.kept), np.diff(at.splits[0])

    def _open(self, batch: pa.RecordBatch, where: str, first_row: int) -> Opened:
        array = batch.column(self.path[0])
        if array.type != self.type and not self._reads(array.type):
            raise ColumnError(
                f"Column '{self.name}'{of(where)} has another type than the job was planned with",
                expected=str(self.type),
                found=str(array.type),
                cure="Write every input file with the same schema.",
            )
        at = Opened(array)
        for level in self.levels:
            if self.rule.optional and not at.dims and not at.splits and not isinstance(level, Member):
                at.leave_out_nulls()
            # A member is null where its struct is: its nulls are reported with those of the next level.
            fills = isinstance(level, Member) or (level.fills_nulls and self.rule.fill is not None)
            if at.array.null_count and not fills:
                self._refuse_nulls(batch, at, where, first_row)
            try:
                level.open(at)
            except ListLengthError as error:
                refused = ColumnError(
                    f"Column '{self.name}'{of(where)} has a list of another length in row "
                    f"{self._row(batch, at, error.index, where, first_row)}",
                    expected=error.wanted,
                    found=f"{error.length} values",
                    cure="Shorten the longer lists before predicting: nothing is cut off."
                    if isinstance(level, PaddedLists) or (isinstance(level, RaggedLists) and level.most is not None)
                    else "Make the lists equally long before predicting."
                    if self.rule.lists
                    else f"Make the lists equally long before predicting, or fill them up: --pad {self.rule.tensor}=VALUE.",
                )
                if error.wrong is not None and error.lengths is not None:
                    refused.alike = _alike(at, np.flatnonzero(error.wrong), error.lengths, "{} values")
                raise refused from None
        at.array = self.leaf.plain(at.array)
        if self.rule.optional and not at.dims and not at.splits:
            at.leave_out_nulls()
        if at.array.null_count and self.rule.fill is None:
            self._refuse_nulls(batch, at, where, first_row)
        return at

    def _row(self, batch: pa.RecordBatch, at: Opened, index: int, where: str, first_row: int) -> int:
        """The file's row of the value at this index, which fails; raises the error of an earlier row that fails deeper."""
        row = at.row(index)
        if row:
            before = batch.slice(0, row)
            if self.rule.lists:
                self.ragged(before, where, first_row)
            elif self.rule.optional:
                self.row_values(before, where, first_row)
            else:
                self.tensor(before, None, where, first_row)
        return first_row + row

    def _lends(self, at: Opened) -> bool:
        """Whether the leaf reads the whole array as it is."""
        if at.present is not None or at.array.null_count:
            return False
        own, wanted = self.leaf.dtype, self.rule.dtype
        return not isinstance(self.leaf, Numbers) or own == wanted or casts_exactly(own, wanted)

    def _leaf_tensor(self, at: Opened, shape: tuple[int, ...], where: str, first_row: int) -> tf.Tensor:
        try:
            return self.leaf.tensor(at.array, shape)
        except BadValueError as error:
            raise ColumnError(
                f"Column '{self.name}'{of(where)} cannot be read in row {first_row + at.row(error.index)}",
                expected=error.expected,
                found=error.found,
                cure=error.cure,
            ) from None

    def _numbers(self, at: Opened, where: str, first_row: int) -> np.ndarray[Any, Any]:
        read = self._cast(at, where, first_row)
        if at.present is None:
            return read
        padded = np.full(len(at.present), np.asarray(self.rule.pad, read.dtype))
        padded[at.present] = read
        return padded

    def _cast(self, at: Opened, where: str, first_row: int) -> np.ndarray[Any, Any]:
        """Nulls filled, nothing padded."""
        assert isinstance(self.leaf, Numbers)
        dtype = numpy_dtype(self.rule.dtype)
        values = self.leaf.numpy(at.array)
        missing = nulls(at.array) if at.array.null_count else None
        if missing is not None:
            # The value under a null may be anything, and must not be cast.
            values = np.where(missing, values.dtype.type(0), values)
        try:
            read = cast(values, self.rule.dtype)
        except UncastableError as error:
            refused = ColumnError(
                f"Column '{self.name}'{of(where)} has a value in row {first_row + at.row(error.index)} that --cast "
                f"cannot turn into {self.rule.dtype}",
                expected="0 or 1" if dtype == np.bool_ else f"a number within the bounds of {self.rule.dtype}",
                found=error.found,
                cure="Fix or drop that row before predicting.",
            )
            refused.alike = _alike(at, error.wrong, error.values)
            raise refused from None
        return read if missing is None else np.where(missing, np.asarray(self.rule.fill, dtype), read)

    def _filled(self, array: pa.Array[Any]) -> pa.Array[Any]:
        return array.fill_null(_scalar(self.rule.fill, array.type)) if array.null_count else array

    def _bytes(self, at: Opened) -> pa.Array[Any]:
        array = self._filled(at.array)
        if at.present is not None:
            places = pa.array(np.cumsum(at.present) - 1, mask=~at.present)
            array = array.take(places).fill_null(_scalar(self.rule.pad, array.type))
        return array

    def _reads(self, kind: pa.DataType) -> bool:
        """Whether the handlers serve that type too: files differ in what they call list items and whether these may be
        null, and pyarrow 25 forgets both when it pickles a fixed-size list's type.
        """
        other = column_of(self.name, self.path, kind, self.rule)
        if other is None or other.leaf != self.leaf or len(other.levels) != len(self.levels):
            return False
        return all(
            type(a) is type(b) and (not isinstance(a, Member | FixedLists) or a == b)
            for a, b in zip(self.levels, other.levels, strict=True)
        )

    def _refuse_nulls(self, batch: pa.RecordBatch, at: Opened, where: str, first_row: int) -> None:
        missing = np.flatnonzero(nulls(at.array))
        wanted, cure = "a value in every row: it is a feature of the model", "Fill or drop these rows before predicting"
        if self.rule.fill is not None:
            cure = f"Say --pad {self.rule.tensor}=VALUE too: then a null list counts as an empty one"
            wanted = "a list in every row"
        elif self.leaf.dims == ():
            cure += f", or say --fill {self.rule.tensor}=VALUE"
        count = at.array.null_count
        refused = NullFeature(
            f"Column '{self.name}'{of(where)} is null in row {self._row(batch, at, int(missing[0]), where, first_row)}",
            expected=wanted,
            found=f"{count} null{'s' * (count > 1)} in this batch" if batch.num_rows > 1 else "null",
            cure=f"{cure}.",
        )
        refused.alike = _alike(at, missing, None, "null")
        raise refused


def _alike(
    at: Opened, indices: np.ndarray[Any, Any], values: np.ndarray[Any, Any] | None, form: str = "{}"
) -> tuple[tuple[int, str], ...]:
    """Each row that has a value at one of these indices, with the first such value."""
    rows, first = np.unique(at.rows(indices), return_index=True)
    found = [form] * len(rows) if values is None else [form.format(values[index]) for index in indices[first]]
    return tuple(zip(rows.tolist(), found, strict=True))


def column_of(name: str, path: Sequence[str], kind: pa.DataType, rule: TensorRule) -> Column | None:
    """The handlers for a column of that type; None where no tensor can hold it, or the path does not lead to a leaf."""
    levels: list[Level] = []
    at, members = kind, list(path[1:])
    while True:
        if pa.types.is_struct(at):
            if not members or at.get_field_index(members[0]) < 0:
                return None
            levels.append(Member(members[0]))
            at = at.field(members.pop(0)).type
            continue
        level = _list_level(at, rule, sum(not isinstance(one, Member) for one in levels))
        if level is None:
            leaf = _leaf(at, rule)
            # A list of images of different sizes makes no tensor.
            in_list = leaf is not None and None in leaf.dims and any(level.dims for level in levels)
            fits = leaf is not None and not members and not in_list
            return Column(name, tuple(path), kind, tuple(levels), leaf, rule) if leaf and fits else None
        levels.append(level)
        at = value_type(at)


def _list_level(kind: pa.DataType, rule: TensorRule, depth: int) -> Level | None:
    if depth < rule.lists:
        if pa.types.is_fixed_size_list(kind):
            return RaggedLists((list_size(kind),))
        return RaggedLists((None,)) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return EqualLists((None,)) if rule.pad is None else PaddedLists((None,))
    if pa.types.is_fixed_size_list(kind):
        return FixedLists((list_size(kind),))
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation in (None, sorted(kind.permutation or ())):
        return FixedLists(tuple(kind.shape))
    return None


def _leaf(kind: pa.DataType, rule: TensorRule) -> Leaf | None:
    leaf = leaf_of(kind)
    if rule.image is None:
        return leaf
    return (
        Images(rule.dtype, decoded=leaf.decoded, size=rule.image, exif=rule.exif) if isinstance(leaf, Bytes) else None
    )


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar[Any]:
    options = pc.CastOptions(target_type=kind, allow_invalid_utf8=True)
    return pc.cast(pa.scalar(value, pa.binary()), options=options)  # type: ignore[call-overload]  # the stubs want a type too
