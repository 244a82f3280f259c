"""`headrace.beam.yaml.Predict`: rows in, rows out, in Beam's own YAML pipelines and in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.yaml import main
from apache_beam.yaml.yaml_provider import InlineProvider

import headrace.beam
from headrace.beam.yaml import Predict
from headrace.transforms.errors import ColumnError, InvalidRequest
from tests.support.jobs import model_folder
from tests.support.strict import expected_y, put_mixed, strict_model

MODEL = str(model_folder() / "saved_model")


ROOT = Path(__file__).resolve().parents[3]


def documented() -> str:
    """The pipeline in docs/beam.md."""
    return re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/beam.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]


def test_from_parquet_to_parquet_by_beams_own_yaml_runner(tmp_path: Path) -> None:
    bad = {7: "value", 30: "null", 31: "length"}
    put_mixed(f"{tmp_path}/rows", [25, 15], bad)
    pipeline = documented().replace("gs://bucket/models/digits", strict_model()).replace("gs://bucket", str(tmp_path))
    pipeline = pipeline.replace("output_0", "y")
    main.run([f"--yaml_pipeline={pipeline}", "--runner=FnApiRunner"])
    found = pq.read_table(tmp_path / "scores").sort_by("id")
    good = [i for i in range(40) if i not in bad]
    assert found.schema.names == ["id", "scores"]
    assert found["id"].to_pylist() == good
    np.testing.assert_array_equal(found["scores"].to_numpy(), expected_y(good))
    errors = pq.read_table(tmp_path / "errors").sort_by("id").to_pylist()
    assert [(one["id"], one["stage"]) for one in errors] == [(7, "model"), (30, "features"), (31, "features")]
    assert "a value is out of bounds" in errors[0]["reason"]


def _equals(wanted: Any) -> Any:
    def check(found: Any) -> None:
        assert sorted(found) == wanted

    return check


class _Where(beam.DoFn):
    def process(self, row: Any, at: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Any:
        yield row.id, int(at), int(window.end)


@pytest.mark.parametrize("error_handling", [None, {"output": "errors"}])
def test_each_row_keeps_its_timestamp_and_window(error_handling: Any) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        predicted = (
            pipeline
            | beam.Create(range(30), reshuffle=False)
            | beam.Map(lambda i: TimestampedValue(i, i))
            | beam.Map(lambda i: beam.Row(id=int(i), x=[float(i)] * 4))
            | beam.WindowInto(FixedWindows(10))
            | Predict(MODEL, cast=["x"], batch_rows=8, error_handling=error_handling)
        )
        good = predicted if error_handling is None else predicted["good"]
        assert_that(good | beam.ParDo(_Where()), _equals([(i, i, i // 10 * 10 + 10) for i in range(30)]))


def test_rows_cross_a_shuffle_with_their_types_and_top_classes() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        predicted = (
            pipeline
            | beam.Create([beam.Row(id=i, x=[0.0, 1.0, 2.0, 3.0]) for i in range(2)])
            | Predict(MODEL, cast=["x"], top_k={"output_0": 2})
        )
        names = [name for name, _ in predicted.element_type._fields]
        assert names[0] == "id"
        assert len(names) == 3
        shuffled = (
            predicted | beam.Reshuffle() | beam.Map(lambda row: (row.id, *map(len, list(row._asdict().values())[1:])))
        )
        assert_that(shuffled, _equals([(0, 2, 2), (1, 2, 2)]))


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"keep": ["nope"]}, ColumnError, "nope"),
        ({"features": {"x": "pixels"}}, ColumnError, "pixels"),
        ({"error_handling": {"threshold": 1}}, InvalidRequest, "error_handling"),
        ({"error_handling": {"output": "good"}}, InvalidRequest, "error_handling"),
        ({"cast": "x"}, InvalidRequest, "cast is one text"),
        ({"fill": {"x": "none"}, "cast": ["x"]}, ColumnError, "none"),
    ],
)
def test_mistakes_are_found_while_the_pipeline_is_built(how: Any, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        _ = beam.Pipeline() | beam.Create([beam.Row(id=1, x=[1.0])]) | Predict(MODEL, **{"cast": ["x"]} | how)


def test_the_provider_is_a_file_too() -> None:
    listed = yaml.safe_load((Path(headrace.beam.__file__).parent / "providers.yaml").read_text("utf-8"))
    assert listed == yaml.safe_load(documented())["providers"]


def test_yaml_knows_the_options_and_what_they_are_for() -> None:
    schema = InlineProvider({"Predict": Predict}).config_schema("Predict")
    fields = {field.name: field for field in schema.fields}
    assert {"model", "keep", "top_k", "error_handling"} <= set(fields)
    assert fields["keep"].type.WhichOneof("type_info") == "array_type"
    assert all(field.description for field in fields.values())
