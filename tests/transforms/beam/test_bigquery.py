"""The BigQuery example of docs/beam.md: its graph, and its part between the two services on dicts as BigQuery gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from headrace import ColumnRules, Predict
from tests.support.jobs import model_folder

ROOT = Path(__file__).resolve().parents[3]


def example() -> dict[str, Any]:
    """What the page's block defines, with the tests' small model in place of digits."""
    blocks = re.findall(r"^```python test\n(.*?)^```$", (ROOT / "docs/beam.md").read_text("utf-8"), re.M | re.S)
    (block,) = [one for one in blocks if "ReadFromBigQuery" in one]
    block = block.replace("gs://bucket/models/digits", str(model_folder() / "saved_model")).replace("pixels", "x")
    names = {"beam": beam, "pa": pa, "Predict": Predict, "ColumnRules": ColumnRules, "PipelineOptions": PipelineOptions}
    exec(block, names)
    return names


def test_the_graph_reads_predicts_and_writes_a_table() -> None:
    names = example()
    pipeline = beam.Pipeline(options=names["options"])
    names["predict_table"](pipeline)
    steps = {step.unique_name for step in pipeline.to_runner_api().components.transforms.values()}
    assert {"ReadFromBigQuery", "predict_dicts/Predict", "WriteToBigQuery/BigQueryBatchFileLoads"} <= {
        "/".join(name.split("/")[:2]) for name in steps
    }


def test_what_bigquery_gives_becomes_what_its_table_takes() -> None:
    names = example()
    fields = {field["name"]: field for field in names["SCORES"]["fields"]}

    def check(found: list[dict[str, Any]]) -> None:
        assert sorted(row["id"] for row in found) == [1, 2]
        for row in json.loads(json.dumps(found)):
            assert set(row) == set(fields)
            assert fields["scores"]["mode"] == "REPEATED"
            assert len(row["scores"]) == 3
            assert all(isinstance(one, float) for one in row["scores"])

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create([{"id": i, "x": [0.5 * i] * 4} for i in (1, 2)])
        assert_that(rows | names["predict_dicts"](), check)
