"""`--top_k`: the best classes of an output and their scores."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.plan import ColumnChoice, plan_columns
from headrace.transforms.columns.top_k import (
    MOST_LABEL_BYTES,
    BestClasses,
    Labels,
    TopK,
    parse_top_k,
    plan_best_classes,
    read_labels,
)
from headrace.transforms.errors import ColumnError, HeadraceError, InvalidRequest
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.storage import StoreOptions

CLASSES = 5
NUMBERS = ("float16", "float32", "float64", "int8", "uint8", "int32", "uint32", "int64", "uint64")
SPEC = TensorSpec("s", "float32", (None, CLASSES))
ANIMALS = Labels("labels.txt", "katze\r\nhund\n\nröhrling\nhund\n".encode())


def best(k: int, dtype: str = "float32", labels: Labels | None = None) -> BestClasses:
    return plan_best_classes({"s": TensorSpec("s", dtype, (None, CLASSES))}, TopK("s", k, labels))


def arrays(one: BestClasses, values: Any) -> list[Any]:
    import tensorflow as tf

    found = one.arrays(tf.constant(values, one.spec.dtype), len(values))
    for array, field in zip(found, one.fields, strict=True):
        array.validate(full=True)
        assert array.type == field.type
    return [array.to_pylist() for array in found]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(NUMBERS), k=st.integers(1, CLASSES), rows=st.integers(1, 4))
def test_classes_are_sorted_by_score_and_equal_ones_by_id(data: st.DataObject, dtype: str, k: int, rows: int) -> None:
    """Few values, so that many are equal; NaN and both infinities, and both ends of whole numbers, are among them."""
    kind = np.dtype(dtype)
    few: list[Any] = [0, 1, 2]
    few += [-1.5, -0.0, np.nan, np.inf, -np.inf] if kind.kind == "f" else [np.iinfo(kind).min, int(np.iinfo(kind).max)]
    values = np.array([[data.draw(st.sampled_from(few)) for _ in range(CLASSES)] for _ in range(rows)], kind)
    rank = [[-np.inf if np.isnan(one) else one for one in row.tolist()] for row in values]
    ids = np.array([sorted(range(CLASSES), key=lambda i: (-row[i], i))[:k] for row in rank])
    classes, scores = arrays(best(k, dtype), values)
    assert np.array_equal(np.array(classes).reshape(rows, k), ids)
    wanted = np.take_along_axis(values, ids, axis=1)
    assert np.array(scores, kind).reshape(rows, k).tobytes() == wanted.tobytes() or np.isnan(wanted).any()
    assert np.array_equal(np.array(scores, kind).reshape(rows, k), wanted, equal_nan=kind.kind == "f")


def test_one_class_is_a_value_and_several_are_lists() -> None:
    values = [[0.1, 0.9, 0.2, 0.3, 0.0], [0.5, 0.0, 0.0, 0.5, 0.0]]
    assert [field.name for field in best(1).fields] == ["s_class", "s_score"]
    assert [field.type for field in best(1).fields] == [pa.int32(), pa.float32()]
    assert arrays(best(1), values)[0] == [1, 0]
    assert arrays(best(3), values)[0] == [[1, 3, 2], [0, 3, 1]]


def test_labels_stand_for_ids_whatever_their_lines_end_in() -> None:
    one = pickle.loads(pickle.dumps(best(2, labels=ANIMALS)))
    assert ANIMALS.names == ["katze", "hund", "", "röhrling", "hund"]
    assert [field.name for field in one.fields] == ["s_label", "s_score"]
    labels, _ = arrays(one, [[0, 0, 2, 3, 0]])
    assert labels == [["röhrling", ""]]


def test_bfloat16_scores_become_float32() -> None:
    assert arrays(best(1, "bfloat16"), [[0, 0.5, 0, 1.5, 0]]) == [[3], [1.5]]
    assert best(1, "bfloat16").fields[1].type == pa.float32()


@pytest.mark.parametrize(
    ("spec", "asked", "said"),
    [
        (SPEC, TopK("z", 1), "names no output"),
        (SPEC, TopK("s", 6), "asks for 6 classes"),
        (SPEC, TopK("s", 1, Labels("labels.txt", b"a\nb\nc\n")), "Found: 3 lines"),
        (TensorSpec("s", "float32", (None, None)), TopK("s", 1), "no scores of classes"),
        (TensorSpec("s", "float32", (None, 2, 3)), TopK("s", 1), "no scores of classes"),
        (TensorSpec("s", "float32", (None,)), TopK("s", 1), "no scores of classes"),
        (TensorSpec("s", "float32", (3, 5)), TopK("s", 1), "no scores of classes"),
        (TensorSpec("s", "string", (None, 5)), TopK("s", 1), "no scores of classes"),
    ],
)
def test_what_has_no_such_classes_is_refused(spec: TensorSpec, asked: TopK, said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        plan_best_classes({"s": spec}, asked)


@pytest.mark.parametrize("value", ["0", "-1", "", "many", "5:", "1.5"])
def test_a_number_of_classes_is_one_or_more(value: str) -> None:
    with pytest.raises(InvalidRequest, match="not a number of classes"):
        parse_top_k("s", value)


def test_labels_are_small_and_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xff\n")
    with pytest.raises(InvalidRequest, match="not text"):
        read_labels(str(path), StoreOptions())
    path.write_bytes(b"a\n" * (MOST_LABEL_BYTES // 2 + 1))
    with pytest.raises(InvalidRequest, match="too large"):
        read_labels(str(path), StoreOptions())
    path.write_bytes("\ufeffa\nb".encode())
    assert read_labels(str(path), StoreOptions()).names == ["a", "b"]
    with pytest.raises(HeadraceError, match=r"none\.txt"):
        read_labels(str(tmp_path / "none.txt"), StoreOptions())


SIGNATURE = Signature(
    "serving_default",
    {"x": TensorSpec("x", "float32", (None,))},
    {"s": SPEC, "t": TensorSpec("t", "float32", (None,))},
)


@pytest.mark.parametrize(
    ("choice", "columns"),
    [
        (ColumnChoice(), ["t", "s_class", "s_score"]),
        (ColumnChoice(outputs=("s",)), ["s", "s_class", "s_score"]),
        (ColumnChoice(outputs=("t",)), ["t", "s_class", "s_score"]),
        (ColumnChoice(predictions=(("s", "animal"),)), ["t", "animal_class", "animal_score"]),
        (ColumnChoice("cnn"), ["cnn_t", "cnn_s_class", "cnn_s_score"]),
        (
            ColumnChoice(predictions=(("s", "animal"),), outputs=("s", "t")),
            ["animal", "t", "animal_class", "animal_score"],
        ),
    ],
)
def test_the_outputs_own_column_is_there_only_where_outputs_names_it(choice: ColumnChoice, columns: list[str]) -> None:
    """And a choice with nothing left to a default leads to the same columns again."""
    schema = pa.schema({"x": pa.float32()})
    asked = ColumnChoice(**{**_fields(choice), "top_k": (TopK("s", 2),)})
    plan = plan_columns(schema, [(SIGNATURE, asked)], [])
    assert plan.output_schema.names == columns
    resolved = plan.models[0].resolved(asked)
    assert plan_columns(schema, [(SIGNATURE, resolved)], []).output_schema.equals(plan.output_schema)


def test_a_column_that_is_kept_has_no_second_of_its_name() -> None:
    schema = pa.schema({"x": pa.float32(), "s_score": pa.float32()})
    with pytest.raises(ColumnError, match="would both be 's_score'"):
        plan_columns(schema, [(SIGNATURE, ColumnChoice(top_k=(TopK("s", 1),)))], ["s_score"])


def _fields(choice: ColumnChoice) -> dict[str, Any]:
    return {name: getattr(choice, name) for name in ("name", "predictions", "outputs")}
