"""`verify --sample` holds values of every kind against one another: by what they are, not by how Arrow came to hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.pipeline.checks.recomputed_sample import near, same
from headrace.pipeline.cli import main
from tests.support.jobs import model_folder, put_table, rows

NAN = float("nan")
MAP = pa.map_(pa.string(), pa.float64())
MEMBERS = pa.struct([("number", pa.float32()), ("text", pa.string())])

# Values; the same ones but for a single difference.
KINDS: list[tuple[pa.DataType, list[Any], list[Any]]] = [
    (pa.float64(), [NAN, None, 1.0], [NAN, 2.0, 1.0]),
    (MEMBERS, [{"number": NAN, "text": "a"}, None], [{"number": NAN, "text": "b"}, None]),
    (pa.list_(pa.float64()), [[NAN, None], None, [1.0]], [[NAN], None, [None, 1.0]]),
    (pa.large_list(MEMBERS), [[{"number": NAN}], None], [[{"number": 1}], None]),
    (pa.list_(pa.float32(), 2), [[NAN, 1.0], None], [[NAN, 2.0], None]),
    (MAP, [[("a", NAN)], None, []], [[("b", NAN)], None, []]),
    (pa.string_view(), ["a", None], ["b", None]),
]


def sliced(values: list[Any], kind: pa.DataType) -> pa.Array[Any]:
    """The same values behind others that do not count."""
    return pa.concat_arrays([pa.array(values[:1], kind), pa.array(values, kind)]).slice(1)


@pytest.mark.parametrize(("kind", "values", "others"), KINDS, ids=[str(kind) for kind, _, _ in KINDS])
def test_what_is_alike_is_and_what_differs_does(kind: pa.DataType, values: list[Any], others: list[Any]) -> None:
    assert same(pa.array(values, kind), sliced(values, kind))
    for alike in (same, near):
        assert not alike(pa.array(values, kind), sliced(others, kind))


def test_dictionaries_may_differ_in_their_order() -> None:
    one = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), ["a", "b"])
    assert same(one, pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), ["b", "a"]))
    assert not same(one, pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), ["b", "a"]))


def test_near_is_within_the_tolerance_of_each_fraction_however_deep() -> None:
    one = pa.array([{"scores": [1.0, NAN]}, None])
    close, far = (pa.array([{"scores": [value, NAN]}, None]) for value in (1.0 + 1e-6, 1.1))
    assert not same(one, close)
    assert near(one, close)
    assert not near(one, far)
    assert not near(pa.array(["a"]), pa.array(["b"]))


def test_a_sound_output_with_kept_columns_of_every_kind_is_sound(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = rows(0, 60)
    for number, (kind, values, _) in enumerate(KINDS):
        if pa.types.is_fixed_size_list(kind):  # Arrow decodes no null in these
            values = values[:1]
        table = table.append_column(f"kept_{number}", pa.array((values * 60)[:60], kind))
    words = [pa.array([f"{i % 5 if i < 30 else 5 - i % 5}" for i in range(i, i + 10)]) for i in range(0, 60, 10)]
    table = table.append_column("word", pa.chunked_array([chunk.dictionary_encode() for chunk in words]))
    tensors = np.where(np.arange(240) % 7, np.arange(240), NAN).reshape(60, 2, 2)
    table = table.append_column("tensor", pa.FixedShapeTensorArray.from_numpy_ndarray(tensors))
    put_table(f"{tmp_path}/in/a.parquet", table, row_group_size=13)
    command = [
        f"--model={model_folder()}/saved_model",
        f"--input={tmp_path}/in/*.parquet",
        f"--output={tmp_path}/out",
        "--feature=x=x",
        "--batch_size=8",
    ]
    assert main(command) == 0
    assert main(["verify", *command, "--sample=12"]) == 0, capfd.readouterr().out
    limited = [*command, f"--output={tmp_path}/limited", "--limit=11"]
    assert main(limited) == 0
    assert main(["verify", *limited, "--sample=12"]) == 0, capfd.readouterr().out
