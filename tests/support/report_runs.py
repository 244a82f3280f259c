"""Two real runs of one model, a night apart: today's digits are others, and some rows are cut short."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.pipeline.cli import main
from headrace.transforms.jobs.job import REPORT
from headrace.transforms.nested_arrow import flat
from tests.support.jobs import put, put_table

BAD_ROWS = (17, 4_000, 4_001)
FILES, ROWS = 6, 2_500
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def best(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds what the scores say: the digit, its word, and how sure the model is on a scale without an end."""
    scores = flat(batch["scores"]).to_numpy().reshape(-1, len(_WORDS))
    at = scores.argmax(axis=1)
    ordered = np.sort(scores, axis=1)
    batch = batch.append_column("digit", pa.array(at, pa.int64()))
    batch = batch.append_column("word", pa.array([_WORDS[i] for i in at], pa.string()))
    return batch.append_column("odds", pa.array(ordered[:, -1] / np.maximum(1e-12, ordered[:, -2]), pa.float64()))


def two_runs(place: str) -> tuple[str, str]:
    """The reports of yesterday and of today, written by the command line below `place`, a folder of any store."""
    _put_model(f"{place}/model")
    pixels, labels = _digits()
    random = np.random.default_rng(1)
    more: list[str] = []
    reports = []
    for night, chance in (("yesterday", np.ones(10)), ("today", np.where(np.isin(np.arange(10), (1, 7)), 2.5, 1.0))):
        weights = chance[labels] / chance[labels].sum()
        rows = random.choice(len(labels), FILES * ROWS, p=weights)
        noisy = np.clip(pixels[rows] + random.normal(0, 2.0, (len(rows), 64)), 0, 16).astype(np.float32)
        _put_rows(f"{place}/{night}/in", noisy, BAD_ROWS if night == "today" else ())
        flags = [f"--model={place}/model", f"--input={place}/{night}/in/*.parquet", f"--output={place}/{night}/out"]
        flags += ["--prediction=output_0=scores", "--keep=id", "--postprocess=tests.support.report_runs:best"]
        assert main([*flags, "--batch_size=256", "--on_error=dead_letter", *more]) == 0
        reports.append(f"{place}/{night}/out/{REPORT}")
        more = [f"--compare={reports[0]}"]
    return reports[0], reports[1]


def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _put_model(uri: str) -> None:
    import keras
    from sklearn.linear_model import LogisticRegression

    pixels, labels = _digits()
    fitted = LogisticRegression(C=0.01, solver="newton-cg").fit(pixels, labels)
    inputs = keras.Input((64,), name="pixels")
    dense = keras.layers.Dense(10, activation="softmax")
    model = keras.Model(inputs, dense(inputs))
    dense.set_weights([fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)])
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            put(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def _put_rows(folder: str, pixels: np.ndarray[Any, Any], bad: tuple[int, ...]) -> None:
    for file in range(FILES):
        ids = np.arange(file * ROWS, (file + 1) * ROWS)
        lists = [pixels[i, : 63 if i in bad else 64] for i in ids]
        table = pa.table({"id": pa.array(ids), "pixels": pa.array(lists, pa.list_(pa.float32()))})
        put_table(f"{folder}/part-{file:05d}.parquet", table)
