"""`--where`: which conditions there are, what they mean beside numpy's and SQL's, and what is refused."""

from __future__ import annotations

import datetime
import operator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.checks.recomputed_sample import same
from headrace.transforms.columns.where import MOST_LETTERS, RowFilter, parse_where
from headrace.transforms.errors import ColumnError, HeadraceError, InvalidRequest

ROWS: dict[str, Any] = {
    "id": pa.array([0, 1, 2, 3], pa.int64()),
    "score": pa.array([0.9, 0.25, None, float("nan")], pa.float32()),
    "half": pa.array([np.float16(0.9), None, np.float16(2), np.float16(-1)], pa.float16()),
    "small": pa.array([0, 200, None, 255], pa.uint8()),
    "large": pa.array([0, 2**64 - 1, 2**63, None], pa.uint64()),
    "price": pa.array([Decimal("9.99"), Decimal("10.00"), None, Decimal("-1.00")], pa.decimal128(10, 2)),
    "label": pa.array(["cat", "dog", None, ""], pa.string()),
    "view": pa.array(["cat", "dog", None, ""], pa.string_view()),
    "raw": pa.array([b"cat", b"\xff", None, b""], pa.binary()),
    "coded": pa.array(["cat", "dog", None, "cat"]).dictionary_encode(),
    "good": pa.array([True, False, None, True]),
    "day": pa.array([datetime.date(2026, 1, 31), datetime.date(2026, 2, 1), None, None], pa.date32()),
    "at": pa.array([0, 3_600_000_000, None, None], pa.timestamp("us", "UTC")),
    "best": pa.array(
        [[0.9, 0.1], [0.8, 0.2], [0, 0], [0.6, 0.4]], pa.list_(pa.field("element", pa.float32(), False), 2)
    ),
    "two words": pa.array([1, 2, 3, 4], pa.int64()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]),
        pa.array([[1, 2], [3, 4], [5, 6], [7, 8]], pa.list_(pa.float32(), 2)),
    ),
}
BATCH = pa.RecordBatch.from_pydict(ROWS)
DATABASE = duckdb.connect()


def stay(condition: str, batch: pa.RecordBatch = BATCH) -> list[int]:
    kept = RowFilter(condition, batch.schema)(batch)
    kept.validate(full=True)
    assert kept.schema.equals(batch.schema)
    ids: list[Any] = kept["id"].to_pylist()
    return ids


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("id >= 2", [2, 3]),
        ("2 <= id", [2, 3]),
        ("0 < id < 3", [1, 2]),
        ("id == 1 or id == 3", [1, 3]),
        ("not id == 1", [0, 2, 3]),
        ("id in (0, 3)", [0, 3]),
        ("id not in [0, 3]", [1, 2]),
        ("-id < -2", [3]),
        ("id * 2 - 1 > 4 / 2", [2, 3]),
        ("id > 0.5", [1, 2, 3]),
        ("id == 1.0", [1]),
        ("score >= 0.9", [0]),
        ("score != 0.25", [0, 3]),
        ("score is null", [2]),
        ("score is not None", [0, 1, 3]),
        ("not (score > 0.5)", [1, 3]),
        ("half >= 0.9", [0, 2]),
        ("half > score", []),
        ("small < 300", [0, 1, 3]),
        ("small > -1 and small != 200", [0, 3]),
        ("large == 18446744073709551615", [1]),
        ("large > id", [1, 2]),
        ("large > -5", [0, 1, 2]),
        ("price > 9.99", [1]),
        ("price == 9.99", [0]),
        ("price < score", []),
        ("label == 'dog'", [1]),
        ("label in ('cat', '')", [0, 3]),
        ("label not in ('cat', 'dog')", [3]),
        ("label < 'd'", [0, 3]),
        ("view == label", [0, 1, 3]),
        ("raw == 'cat'", [0]),
        ("raw != label", [1]),
        ("coded == 'cat'", [0, 3]),
        ("good", [0, 3]),
        ("not good", [1]),
        ("good == true and id != 0", [3]),
        ("good is null", [2]),
        ("day >= '2026-02-01'", [1]),
        ("at == '1970-01-01T01:00:00Z'", [1]),
        ("best[0] > 0.7", [0, 1]),
        ("best[1] + best[0] > 0.5", [0, 1, 3]),
        ("tensor[1] == 6", [2]),
        ('column("two words") == 4', [3]),
        ("id / 0 > 1", [1, 2, 3]),
    ],
)
def test_a_condition_tells_the_rows_that_stay(condition: str, ids: list[int]) -> None:
    assert stay(condition) == ids
    # Of a part of the batch, which begins anywhere in its memory.
    assert stay(condition, BATCH.slice(1, 2)) == [one for one in ids if one in (1, 2)]


OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
INTEGERS = {str(kind): kind for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64())}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), sign=st.sampled_from(list(OPERATORS)), kind=st.sampled_from(list(INTEGERS)))
def test_whole_numbers_are_compared_as_python_does(data: st.DataObject, sign: str, kind: str) -> None:
    limits = np.iinfo(kind)
    few = st.sampled_from([limits.min, limits.max, 0, 1, -1, 2**53 + 1, 2**64, -(2**63)])
    value, constant = data.draw(few | st.integers(int(limits.min), int(limits.max))), data.draw(few)
    value = min(max(value, int(limits.min)), int(limits.max))
    batch = pa.RecordBatch.from_pydict({"id": pa.array([value], INTEGERS[kind])})
    assert bool(stay(f"id {sign} {constant}", batch)) == OPERATORS[sign](value, constant)


CONDITIONS = st.recursive(
    st.sampled_from(
        ["a > 1", "b == 2", "a < b", "a is null", "b is not null", "a in (1, 2)", "b not in (1, 3)", "a + b > 3"]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda one: f"({one[0]}) {one[1]} ({one[2]})"),
        inner.map(lambda one: f"not ({one})"),
    ),
    max_leaves=6,
)
SMALL = st.lists(st.none() | st.integers(0, 4), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(condition=CONDITIONS, a=SMALL, b=SMALL)
def test_nulls_mean_what_they_mean_in_sql(condition: str, a: list[int | None], b: list[int | None]) -> None:
    kind = pa.int32()
    table = pa.table({"id": pa.array(range(8), kind), "a": pa.array(a, kind), "b": pa.array(b, kind)})
    found = _sql(table, condition)
    assert stay(condition, table.to_batches()[0]) == found


def _sql(rows_of_test: pa.Table, condition: str) -> list[int]:
    DATABASE.register("rows_of_test", rows_of_test)
    found = DATABASE.execute(f"SELECT id FROM rows_of_test WHERE {condition.replace('==', '=')} ORDER BY id")
    return [row[0] for row in found.fetchall()]


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "score >",
        "score = 0.9",
        "score > 0.9; id",
        "__import__('os').system('true')",
        "open('x')",
        "id.real > 1",
        "(lambda: id)() > 1",
        "[one for one in id] == 1",
        "id if good else id",
        "id ** 9 > 1",
        "id & 1 == 1",
        "f'{id}' == 'x'",
        "b'x' == raw",
        "1j == id",
        "id == None",
        "id is 3",
        "null == null",
        "id in ()",
        "id in label",
        "id > (1, 2)",
        "(id := 3) > 1",
        "best[0:1] == 1",
        "best[-1] > 1",
        "column(id) > 1",
        "column('id', 'x') > 1",
        f"id > {2**65}",
        "-" * 4000 + "id > 1",
        "not " * 100 + "good",
        "(" * 300 + "good" + ")" * 300,
        "good" + " or good" * MOST_LETTERS,
        "good\0",
    ],
)
def test_what_the_grammar_has_not_is_refused_unread(condition: str) -> None:
    with pytest.raises(InvalidRequest, match="--where"):
        parse_where(condition)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("idgo() \t\n'\"\\<>=!+-*/[]0123456789.,andornotisull:\0é"), max_size=60))
def test_any_text_is_a_condition_or_an_error_of_ours(text: str) -> None:
    with suppress(HeadraceError):
        RowFilter(text, BATCH.schema)(BATCH)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("scores > 0.9", "Did you mean 'score'"),
        ("label > 3", r"label \(string\) and 3"),
        ("id == 'x'", r"id \(int64\) and 'x'"),
        ("good > 1", "compares what cannot be compared"),
        ("1 < 2", "compares what cannot be compared"),
        ("best > 1", "compares what cannot be compared"),
        ("day > 'tomorrow'", "compares what cannot be compared"),
        ("day == at", "compares what cannot be compared"),
        ("at > '1970-01-01'", "zone offset"),
        ("id", "a comparison, or a column of true and false"),
        ("3", "a comparison, or a column of true and false"),
        ("label + 1 > 2", "numbers to reckon with"),
        ("best[2] > 1", "an element"),
        ("label[0] == 'c'", "an element"),
        ("3 is null", "a column"),
        ("price > 1e300", "compares what cannot be compared"),
    ],
)
def test_what_does_not_fit_the_columns_is_refused_before_any_row(condition: str, said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        RowFilter(condition, BATCH.schema)


def test_every_column_stays_what_it_is_and_one_that_arrow_cannot_filter_is_named() -> None:
    kept = RowFilter("id > 0", BATCH.schema)(BATCH)
    for name in BATCH.schema.names:
        assert same(kept.column(name), BATCH.slice(1).column(name)), name
    assert RowFilter("id >= 0", BATCH.schema)(BATCH) is BATCH
    nested = pa.RecordBatch.from_pydict({"id": [1], "views": pa.array([["a"]], pa.list_(pa.string_view()))})
    with pytest.raises(ColumnError, match="cannot leave out rows of the column 'views'"):
        RowFilter("id > 0", nested.schema)
