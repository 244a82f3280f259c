"""A table: scalar columns of several types packed into one input, nulls filled, a bad row in dead letters.

    python -m examples.tabular [FOLDER]

The model is a Normalization and a linear layer in one `.keras` file. Its weights are set by hand: the results can be checked.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.pipeline.cli import main as headrace

ROWS = 500
BAD = 123
MEAN, VARIANCE, WEIGHTS = [40.0, 50_000.0, 2.0], [100.0, 1e8, 1.0], [0.5, 1.0, -0.25]


def make_model(uri: str) -> None:
    """float32 `person` [batch, 3] (years, income, children) to float32 `score` [batch, 1]."""
    import keras

    person = keras.Input((3,), name="person")
    layer = keras.layers.Dense(1, use_bias=False, name="score")
    score = layer(keras.layers.Normalization(mean=MEAN, variance=VARIANCE)(person))
    layer.set_weights([np.array([WEIGHTS], np.float32).T])
    keras.Model(person, {"score": score}).save(uri)


def make_data(uri: str) -> np.ndarray[Any, Any]:
    """Parquet with `id`, `years` (int16), `income` (float64, some null) and `children` (int8). Gives float64 [rows, 3]."""
    random = np.random.default_rng(0)
    years = random.integers(18, 90, ROWS).astype(np.int16)
    income = np.round(random.lognormal(10.8, 0.4, ROWS), 2)
    income[BAD] = 1e300  # float32 has no such number
    children = random.integers(0, 6, ROWS).astype(np.int8)
    unknown = random.random(ROWS) < 0.1
    unknown[BAD] = False
    columns = {"years": years, "income": pa.array(income, mask=unknown), "children": children}
    pq.write_table(pa.table({"id": range(ROWS), **columns}), uri, row_group_size=100)
    return np.stack([years, np.where(unknown, 0, income), children], axis=1)


def main(folder: str) -> None:
    make_model(f"{folder}/model.keras")
    table = make_data(f"{folder}/people.parquet")
    code = headrace(
        [
            f"--model={folder}/model.keras",
            f"--input={folder}/people.parquet",
            f"--output={folder}/out",
            "--feature=person=years,income,children",
            "--cast=person",
            "--fill=person=0",
            "--keep=id",
            "--on_error=dead_letter",
        ]
    )
    assert code == 0, f"headrace ended with exit code {code}"
    found = pq.read_table(f"{folder}/out")
    rows = np.delete(np.arange(ROWS), BAD)
    assert found["id"].to_pylist() == rows.tolist()
    expected = ((table[rows] - MEAN) / np.sqrt(VARIANCE)) @ np.array(WEIGHTS)
    np.testing.assert_allclose(
        np.ravel(np.array(found["score"].to_pylist(), np.float64)), expected, rtol=1e-4, atol=1e-4
    )
    bad = pq.read_table(f"{folder}/out/_dead_letters")
    assert bad["id"].to_pylist() == [BAD]
    print(f"{len(found)} rows are predicted. Row {BAD} is not: {bad['headrace_error'][0]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)
