"""`--where`: a condition on the output's columns, in a grammar of its own that Python's parser reads and nothing executes.

    condition   comparison | condition and condition | condition or condition | not condition | (condition) | a bool column
    comparison  value (== | != | < | <= | > | >=) value, chained too | value [not] in (constant, ...) | value is [not] null
    value       a column's name | column("any name") | value[i] | a number | 'text' | true | false | + - * / of numbers

As in SQL, what a null is compared with gives null, `and`, `or` and `not` follow three-valued logic, and rows are left out of
which the condition is null or false.
"""

from __future__ import annotations

import ast
import warnings
from functools import partial, reduce
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ColumnError, InvalidRequest
from .comparable import Constant, NotComparable, as_doubles, comparable
from .wording import listed, nearest

MOST_LETTERS = 4096
_MOST_DEPTH = 64
_CURE = (
    "Write comparisons (== != < <= > >=, in, is null) of columns with numbers or 'texts', joined by and, or, not, as in "
    '--where \'score > 0.9 and name != "other"\'; column("any name") names a column that is no plain word'
)
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
}
_JOINING: tuple[type[ast.AST], ...] = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd)
_VALUES: tuple[type[ast.AST], ...] = (ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Call, ast.Tuple, ast.List)
_ALLOWED: tuple[type[ast.AST], ...] = (
    *_JOINING,
    *_VALUES,
    *(ast.BinOp, ast.Compare, ast.In, ast.NotIn, ast.Is, ast.IsNot),
    *_ARITHMETIC,
    *_COMPARISONS,
)
_WORDS: dict[str, Any] = {"null": None, "true": True, "false": False}


def parse_where(text: str) -> ast.expr:
    """Raises `InvalidRequest` for what the grammar has not."""
    if len(text) > MOST_LETTERS:
        raise InvalidRequest("--where is too long", expected=f"{MOST_LETTERS:,} letters", found=f"{len(text):,}")
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
        raise _refused(text, "is no condition", said) from error
    level, depth = [tree], 0
    while level:
        for node in level:
            if not isinstance(node, _ALLOWED) or not _is_plain(node):
                raise _refused(text, "has what no condition may have", _source(text, node))
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1  # type: ignore[misc]
        if depth > _MOST_DEPTH:
            raise _refused(text, f"is nested in more than {_MOST_DEPTH} levels", text)
    return tree


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            is_large = type(value) is int and abs(value) > 2**64
            return value is None or (type(value) in (bool, int, float, str) and not is_large)
        case ast.Call():
            named = isinstance(node.func, ast.Name) and node.func.id == "column"
            return named and len(node.args) == 1 and not node.keywords and isinstance(_constant(node.args[0]), str)
        case ast.Subscript():
            index = _constant(node.slice)
            return type(index) is int and isinstance(node.value, (ast.Name, ast.Call))
        case ast.Compare():
            return all(map(_has_its_sides, node.ops, node.comparators))
    return True


def _constant(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")


def _has_its_sides(operator: ast.cmpop, right: ast.expr) -> bool:
    """`in` has a list of constants on its right, `is` null, and nothing else has these."""
    if isinstance(operator, (ast.In, ast.NotIn)):
        return isinstance(right, (ast.Tuple, ast.List)) and bool(right.elts)
    return _is_null(right) == isinstance(operator, (ast.Is, ast.IsNot)) and not isinstance(right, (ast.Tuple, ast.List))


def _source(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(text.strip(), node) or type(node).__name__


def _refused(text: str, what: str, found: str) -> InvalidRequest:
    return InvalidRequest(f"--where {text[:200]!r} {what}", expected="a condition", found=found[:200], cure=_CURE)


class RowFilter:
    """A condition on batches of one schema. Safe for many threads at once."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        """Raises `InvalidRequest` as `parse_where`, and `ColumnError` where the columns are not there, or of other types than
        the condition compares: nothing in a batch of that schema can make it fail.
        """
        self._text, self._tree = text, parse_where(text)
        self(pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema))

    def mask(self, batch: pa.RecordBatch) -> pa.Array[Any]:
        """True for each row that stays, false or null for those that do not."""
        return self._condition(self._tree, batch)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that stay, in their order."""
        return filtered(batch, self.mask(batch))

    def _condition(self, node: ast.expr, batch: pa.RecordBatch) -> pa.Array[Any]:
        match node:
            case ast.BoolOp():
                join = "and_kleene" if isinstance(node.op, ast.And) else "or_kleene"
                return _fold(join, [self._condition(part, batch) for part in node.values])
            case ast.UnaryOp(op=ast.Not()):
                return _call("invert", self._condition(node.operand, batch))
            case ast.Compare():
                sides = [node.left, *node.comparators]
                parts = [
                    self._comparison(*comparison, batch) for comparison in zip(sides, node.ops, sides[1:], strict=False)
                ]
                return _fold("and_kleene", parts)
        value = self._value(node, batch)
        if isinstance(value, Constant) or not pa.types.is_boolean(value.type):
            self._wrong(node, "a comparison, or a column of true and false", str(getattr(value, "type", "a constant")))
        return value

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, batch: pa.RecordBatch) -> pa.Array[Any]:
        if isinstance(operator, (ast.Is, ast.IsNot)):
            value = self._value(left, batch)
            if isinstance(value, Constant):
                self._wrong(left, "a column", "a constant")
            return _call("is_null" if isinstance(operator, ast.Is) else "is_valid", value)
        if isinstance(right, (ast.Tuple, ast.List)):
            found = _fold("or_kleene", [self._compared("equal", left, element, batch) for element in right.elts])
            return found if isinstance(operator, ast.In) else _call("invert", found)
        return self._compared(_COMPARISONS[type(operator)], left, right, batch)

    def _compared(self, function: str, left: ast.expr, right: ast.expr, batch: pa.RecordBatch) -> pa.Array[Any]:
        first, second = self._value(left, batch), self._value(right, batch)
        try:
            return _call(function, *comparable(first, second))
        except (NotComparable, pa.ArrowException) as error:
            shown = f"{_source(self._text, left)} ({_kind(first)}) and {_source(self._text, right)} ({_kind(second)})"
            why = "" if isinstance(error, NotComparable) else f": {error}"
            raise ColumnError(
                f"--where {self._text[:200]!r} compares what cannot be compared",
                expected="a column with a constant or a column of its kind: numbers, texts, true or false, dates, times",
                found=f"{shown}{why}"[:500],
                cure="Write numbers bare, texts in quotes, and dates as '2026-01-31' or '2026-01-31T10:00:00Z'",
            ) from error

    def _value(self, node: ast.expr, batch: pa.RecordBatch) -> pa.Array[Any] | Constant:
        match node:
            case ast.Constant(value=None):
                self._wrong(node, "null only after is or is not", "null")
            case ast.Constant():
                return Constant(node.value)
            case ast.Name() if node.id in _WORDS and node.id not in batch.schema.names:
                return self._value(ast.Constant(_WORDS[node.id]), batch)
            case ast.Name():
                return self._column(node.id, batch)
            case ast.Call():
                return self._column(str(_constant(node.args[0])), batch)
            case ast.Subscript():
                return self._element(node, batch)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                value = self._value(node.operand, batch)
                sign = -1 if isinstance(node.op, ast.USub) else 1
                if isinstance(value, Constant) and type(value.value) in (int, float):
                    return Constant(sign * value.value)
                return _call("multiply", self._doubles(node.operand, value), pa.scalar(float(sign)))
            case ast.BinOp():
                sides = [self._doubles(side, self._value(side, batch)) for side in (node.left, node.right)]
                result = _call(_ARITHMETIC[type(node.op)], *sides)
                return Constant(result.as_py()) if isinstance(result, pa.Scalar) else result
        if not isinstance(node, (ast.BoolOp, ast.UnaryOp, ast.Compare)):
            self._wrong(node, "a value", type(node).__name__)
        return self._condition(node, batch)

    def _doubles(self, node: ast.expr, value: pa.Array[Any] | Constant) -> Any:
        try:
            return as_doubles(value)
        except NotComparable:
            self._wrong(node, "numbers to reckon with", _kind(value))

    def _column(self, name: str, batch: pa.RecordBatch) -> pa.Array[Any]:
        if name not in batch.schema.names:
            raise ColumnError(
                f"--where names a column {name!r} that the output lacks",
                expected="a kept column, a prediction, or what --top_k or --postprocess gives",
                found=listed("columns", batch.schema.names),
                cure=nearest(name, batch.schema.names) or "Keep it, as in --keep, or write texts in quotes",
            )
        array: Any = batch.column(name)
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array

    def _element(self, node: ast.Subscript, batch: pa.RecordBatch) -> pa.Array[Any]:
        array: Any = self._value(node.value, batch)
        index, kind = int(_constant(node.slice)), array.type
        if not pa.types.is_fixed_size_list(kind) or not 0 <= index < kind.list_size:
            self._wrong(node, "an element, counted from 0, of a column whose rows have all as many", str(kind))
        at = (np.arange(len(array)) + array.offset) * kind.list_size + index
        return array.values.take(pa.array(at, pa.int64(), mask=array.is_null().to_numpy(zero_copy_only=False)))

    def _wrong(self, node: ast.expr, expected: str, found: str) -> NoReturn:
        raise ColumnError(
            f"--where {self._text[:200]!r} does not fit the columns at {_source(self._text, node)[:200]!r}",
            expected=expected,
            found=found,
            cure=_CURE,
        )


def _call(function: str, *arguments: Any) -> Any:
    return pc.call_function(function, list(arguments))


def _fold(function: str, parts: list[Any]) -> Any:
    return reduce(partial(_call, function), parts)


def _kind(value: pa.Array[Any] | Constant) -> str:
    return repr(value.value) if isinstance(value, Constant) else str(value.type)


# Which pyarrow 25 does not filter.
_VIEWS: dict[pa.DataType, pa.DataType] = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def filtered(batch: pa.RecordBatch, mask: pa.Array[Any]) -> pa.RecordBatch:
    """The rows for which the mask is true. Raises `ColumnError` for a column that Arrow cannot filter."""
    stay: Any = mask
    if len(mask) and stay.true_count == len(mask):
        return batch
    return pa.RecordBatch.from_arrays(
        [_filtered(field, column, mask) for field, column in zip(batch.schema, batch.columns, strict=True)],
        schema=batch.schema,
    )


def _filtered(field: pa.Field[Any], column: pa.Array[Any], mask: pa.Array[Any]) -> pa.Array[Any]:
    try:
        if (stored := _VIEWS.get(field.type)) is not None:
            return column.cast(stored).filter(mask).cast(field.type)
        return column.filter(mask)
    except pa.ArrowNotImplementedError as error:
        raise ColumnError(
            f"--where cannot leave out rows of the column {field.name!r}",
            expected="a type that Arrow filters",
            found=f"{field.type}: {error}",
            cure="Leave it out: name the other columns that you want in --keep",
        ) from error
