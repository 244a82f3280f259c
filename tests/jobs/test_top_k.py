"""`--top_k` of whole jobs, of `headrace.predict` and of `Predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

import headrace
from headrace.transforms.jobs.job import JOB_RECORD, stored_object
from headrace.transforms.storage import open_store
from tests.support.jobs import expected_scores, model_folder, put_inputs, read_output, rows

NAMES = ["alpha", "beta", "gamma"]


def asked(folder: str, **more: Any) -> dict[str, Any]:
    model = f"{model_folder()}/saved_model"
    return {"model": model, "input": f"{folder}/in/*", "output": f"{folder}/out", "keep": ["id"]} | more


def labels_in(folder: Path) -> str:
    (folder / "labels.txt").write_text("\n".join(NAMES))
    return f"{folder}/labels.txt"


def test_a_job_writes_labels_and_scores_in_place_of_the_output(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [7, 5])
    given = asked(str(tmp_path), top_k={"output_0": f"2:{labels_in(tmp_path)}"})
    drawn = headrace.plan(**given).text
    assert "◀──┬────  output_0  float32 [batch, 3]\noutput_0_score" in drawn
    assert "◀──┘\n" in drawn
    result = headrace.run(**given, report="none")
    out = read_output(f"{tmp_path}/out")
    assert out.column_names == ["id", "output_0_label", "output_0_score"]
    scores = expected_scores("saved_model", rows(0, 12), 12)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    assert out["output_0_label"].to_pylist() == [[NAMES[i] for i in row] for row in order]
    found = np.array(out["output_0_score"].to_pylist(), np.float32)
    assert np.allclose(found, np.take_along_axis(scores, order, 1), atol=1e-6)
    assert result.rows == 12
    sampled = headrace.verify(**given, sample=3, report="none").document
    assert (sampled["sound"], sampled["checks"]["sample"]["looked_at"]) == (True, 3)


def test_other_labels_are_another_job_wherever_they_lie(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [3])
    labels = labels_in(tmp_path)
    headrace.run(**asked(str(tmp_path), top_k={"output_0": f"1:{labels}"}, report="none"))
    store = open_store(labels)
    record = stored_object(store, store.stat(f"{tmp_path}/out/{JOB_RECORD}"))["models"][""]
    assert record["prediction"] == {}
    assert record["top_k"]["output_0"].keys() == {"k", "column", "labels"}
    (tmp_path / "elsewhere.txt").write_text("\n".join(NAMES))
    again = headrace.run(**asked(str(tmp_path), top_k={"output_0": f"1:{tmp_path}/elsewhere.txt"}, report="none"))
    assert again.computed_rows == 0
    (tmp_path / "elsewhere.txt").write_text("\n".join(reversed(NAMES)))
    with pytest.raises(headrace.OutputConflict, match="top_k differ"):
        headrace.run(**asked(str(tmp_path), top_k={"output_0": f"1:{tmp_path}/elsewhere.txt"}))
    with pytest.raises(headrace.OutputConflict, match="prediction differ"):
        headrace.run(**asked(str(tmp_path), top_k={"output_0": f"1:{labels}"}, outputs=["output_0"]))


def test_labels_of_other_classes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [3])
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(headrace.ColumnError, match=r"Expected: 3 lines.*Found: 2 lines"):
        headrace.plan(**asked(str(tmp_path), top_k={"output_0": f"1:{tmp_path}/labels.txt"}))
    assert not (tmp_path / "out").exists()
    looked = headrace.inspect(
        model=f"{model_folder()}/saved_model", input=f"{tmp_path}/in/*", top_k={"output_0": f"1:{tmp_path}/labels.txt"}
    )
    assert any("are not those of" in link["problem"] for link in looked.document["columns"])


def test_predict_in_memory_and_in_a_pipeline(tmp_path: Path) -> None:
    table, labels = rows(0, 4), labels_in(tmp_path)
    wanted = expected_scores("saved_model", table, 4).argmax(axis=1).tolist()
    model = f"{model_folder()}/saved_model"
    found = headrace.predict(model, table, keep=["id"], top_k={"output_0": 1}, outputs=["output_0"])
    assert found.column_names == ["id", "output_0", "output_0_class", "output_0_score"]
    assert found["output_0_class"].to_pylist() == wanted

    def check(batches: list[pa.RecordBatch]) -> None:
        columns = pa.Table.from_batches(batches).to_pydict()
        assert columns["output_0_label"] == [NAMES[i] for i in wanted]

    with beam.Pipeline() as pipeline:
        predict = headrace.Predict(model, keep=[], top_k={"output_0": f"1:{labels}"})
        assert_that(pipeline | beam.Create([0]) | beam.Map(lambda _: table.to_batches()[0]) | predict, check)
