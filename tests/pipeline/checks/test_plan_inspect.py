"""What `plan` and `inspect` show: words that fit 80 columns, and JSON with the keys that docs/watching.md lists."""

from __future__ import annotations

import json
import re
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.pipeline.checks.column_links import Link, link_columns
from headrace.pipeline.checks.output_folder import OutputState
from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.cli import main
from headrace.pipeline.commands.link_table import drawn
from headrace.pipeline.commands.summary import report_plan
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.graph import LOCAL_SHARD_BYTES
from headrace.pipeline.terminal.tables import WIDTH, table
from headrace.transforms.columns.plan import ColumnChoice
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from tests.support.jobs import model_folder, put_inputs, put_table, rows

Capture = pytest.CaptureFixture[str]
DOCUMENTED = (Path(__file__).parents[3] / "docs" / "watching.md").read_text("utf-8")


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    put_inputs(f"{tmp_path}/in", [20, 30])
    return [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]


def shown(capfd: Capture, *argv: str, code: int = 0) -> str:
    capfd.readouterr()
    assert main(list(argv)) == code
    return capfd.readouterr().out


def too_long(text: str) -> list[str]:
    """Lines that a terminal of 80 columns would wrap; a URI is not cut, since it is there to be copied."""
    return [line for line in text.splitlines() if len(line) > WIDTH and "/" not in line]


def test_plan_draws_how_the_model_is_fed(capfd: Capture, argv: list[str]) -> None:
    text = shown(capfd, "plan", *argv, "--keep=id")
    assert re.search(r"^         2 shards, 50 rows, [\d,]+ bytes of Parquet$", text, re.MULTILINE)
    assert re.search(r"^         524 bytes to stream, 131 parameters$", text, re.MULTILINE)
    assert re.search(r"^Memory   4 GB a worker", text, re.MULTILINE)
    drawing = text[text.index("The input's columns") :].splitlines()
    assert drawing == [
        "The input's columns, and signature serving_default",
        "",
        "column    type                                 tensor",
        "x         fixed_size_list<float>[4]  ───────▶  x         float32 [batch, 4]",
        "output_0  fixed_size_list<float>[3]  ◀───────  output_0  float32 [batch, 3]",
        "id        int64                      ════════  kept",
        "name      string                               not read",
    ]
    assert not too_long(text)


def test_plan_as_json(capfd: Capture, argv: list[str]) -> None:
    plan = json.loads(shown(capfd, "plan", *argv, "--json"))
    assert (plan["input"]["files"], plan["input"]["shards"], plan["input"]["rows"]) == (2, 2, 50)
    assert plan["models"][0]["bytes"] == 524
    assert plan["memory_bytes_per_worker"] == 4 * 10**9
    assert [(one["kind"], one["columns"][0]["name"]) for one in plan["columns"]] == [
        ("feature", "x"),
        ("prediction", "output_0"),
        ("kept", "id"),
        ("kept", "name"),
    ]
    assert plan["columns"][0]["tensor"] == {"name": "x", "dtype": "float32", "shape": [None, 4]}
    assert not undocumented(plan)


def undocumented(found: Any) -> set[str]:
    """Keys within that the page does not name; those of `signatures` and `checks` are names themselves."""
    if isinstance(found, list):
        return {key for one in found for key in undocumented(one)}
    if not isinstance(found, dict):
        return set()
    own = {key for key in found if f"`{key}`" not in DOCUMENTED}
    named = [found.get(key, {}).values() for key in ("signatures", "checks") if isinstance(found.get(key, {}), dict)]
    inner = [value for key, value in found.items() if key not in ("signatures", "checks")]
    return own | undocumented(inner) | undocumented([list(values) for values in named])


def test_a_plan_of_many_shards_counts_what_the_local_runner_keeps(argv: list[str]) -> None:
    prepared = prepare(parse_request(parse_flags(argv), "plan"))
    (shard, *_) = plan_shards(prepared.job, input_files(prepared.job))
    plans = [
        report_plan(prepared, OutputState(), repeat(shard, count), runner)
        for count, runner in ((2, None), (1_000_000, None), (1_000_000, "DataflowRunner"))
    ]
    said = [" ".join(plan.lines) for plan in plans]
    few, many, elsewhere = (plan.document["memory_bytes_per_worker"] for plan in plans)
    assert ["for the shards, which Beam's local" in " ".join(text.split()) for text in said] == [False, True, False]
    # On Dataflow no worker holds what grows with the number of shards.
    assert few == elsewhere == 4 * 10**9
    assert many - few >= 1_000_000 * LOCAL_SHARD_BYTES - 10**9
    assert not too_long("\n".join(plans[1].lines))


def test_files_of_zero_bytes_are_told(capfd: Capture, argv: list[str], tmp_path: Path) -> None:
    model, source, _ = argv
    (tmp_path / "in" / "part-00009.parquet").touch()
    (tmp_path / "in" / "part-00007.parquet").touch()
    said = f"Files of zero bytes passed over: 2, the first of them {tmp_path}/in/part-00007.parquet"
    assert said in shown(capfd, "plan", *argv)
    assert said in shown(capfd, "inspect", model, source)
    found = json.loads(shown(capfd, "inspect", source, "--json"))
    assert found["input"]["empty"] == 2
    assert not undocumented(found)
    for end in ("50 rows computed", "Nothing to do"):
        assert main(argv) == 0
        out, err = capfd.readouterr()
        assert end in out
        assert f"{said}.\n" in err


def test_where_columns_do_not_fit_plan_shows_all_of_it_beside_the_error(capfd: Capture, argv: list[str]) -> None:
    assert main(["plan", *argv, "--feature=x=nmae"]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("Cannot start: There is no column 'nmae'")
    assert re.search(r"^nmae +\(missing\) +─── ✗ ── +x +float32 \[batch, 4\]$", out, re.MULTILINE)
    assert "There is no column 'nmae' for tensor 'x'. Did you mean 'name'?" in out
    assert not too_long(out)


def test_inspect_shows_an_input_alone_and_beside_a_model(capfd: Capture, argv: list[str]) -> None:
    model, source, _ = argv
    text = shown(capfd, "inspect", source)
    assert "20 rows in 1 row group" in text
    assert re.search(r"^x +fixed_size_list<", text, re.MULTILINE)
    both = shown(capfd, "inspect", model, source)
    assert "───────▶" in both
    assert re.search("^signature serve$", both, re.MULTILINE)
    assert "function" not in both
    other = shown(capfd, "inspect", model, source, "--signature=predict")
    assert "There is no signature 'predict' to check these columns against" in other
    found = json.loads(shown(capfd, "inspect", model, source, "--json"))
    assert found["input"]["first_rows"] == 20
    assert found["models"][0]["signatures"]["serving_default"]["inputs"][0]["shape"] == [None, 4]
    assert not undocumented(found)
    assert main(["inspect", "--json"]) == 2
    assert "--model is missing" in capfd.readouterr().err


def test_inspect_refuses_what_can_run_nowhere_and_says_where_nothing_can_be_called(
    capfd: Capture, tmp_path: Path
) -> None:
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function
        def python(self, x: Any) -> Any:
            return tf.numpy_function(lambda a: a, [x], tf.float32)

        @tf.function
        def double(self, x: Any) -> Any:
            return x * 2.0

    module, x = Model(), tf.TensorSpec([None], tf.float32, name="x")
    tf.saved_model.save(module, f"{tmp_path}/untraced")
    assert "The model has no signature" in shown(capfd, "inspect", f"--model={tmp_path}/untraced")
    python, double = module.python.get_concrete_function(x), module.double.get_concrete_function(x)
    tf.saved_model.save(module, f"{tmp_path}/model", signatures={"serving_default": python, "double": double})
    model = f"--model={tmp_path}/model"
    assert main(["inspect", model]) == 2
    assert "calls a Python function (PyFunc)" in capfd.readouterr().err
    assert "signature double" in shown(capfd, "inspect", model, "--signature=double")


def test_run_and_verify_answer_in_json(capfd: Capture, argv: list[str]) -> None:
    summary = json.loads(shown(capfd, *argv, "--json"))
    assert (summary["rows"], summary["rows_computed"], summary["shards"]) == (50, 50, 2)
    again = json.loads(shown(capfd, *argv, "--json"))
    assert (again["rows_computed"], again["shards"]) == (0, 2)
    verdict = json.loads(shown(capfd, "verify", argv[2], "--json"))
    assert verdict["sound"] is True
    assert verdict["checks"]["rows"] == {"looked_at": 2, "wrong": 0}
    assert not undocumented([summary, again, verdict])


def spec(name: str, dtype: str, *inner: int | None) -> TensorSpec:
    return TensorSpec(name, dtype, (None, *inner))


SCHEMA = schema_of(
    {
        "a": pa.float32(),
        "b": pa.float32(),
        "wide": pa.float64(),
        "small": pa.int32(),
        "picture": pa.binary(),
        "payload": pa.struct([("pixels", pa.list_(pa.float32(), 4)), ("note", pa.string())]),
        "id": pa.int64(),
    }
)


def test_every_way_from_column_to_tensor_is_told() -> None:
    inputs = [spec("two", "float32", 2), spec("cast", "float32"), spec("wider", "int64"), spec("id", "int64")]
    inputs += [
        spec("image", "uint8", 8, 8, 3),
        spec("member", "float32", 4),
        spec("smal", "int32"),
        spec("b", "string"),
    ]
    signature = Signature("s", {one.name: one for one in inputs}, {"out": spec("out", "float32")})
    features = {"two": ("a", "b"), "cast": ("wide",), "wider": ("small",), "image": ("picture",)}
    features |= {"member": ("payload.pixels",), "nobody": ("a",)}
    rules = ColumnRules(cast=("cast",), decode_image=(("image", (8, 8)),))
    links = link_columns(SCHEMA, [(signature, ColumnChoice("", tuple(features.items()), (), rules))], None)
    hows = {link.tensor.name: link.problem or link.how for link in links if link.tensor}
    assert hows == {
        "nobody": "The model has no input 'nobody'",
        "two": "packed",
        "cast": "cast",
        "wider": "widened",
        "id": "",
        "image": "decoded",
        "member": "",
        "smal": "There is no column 'smal' for tensor 'smal'",
        "b": "Column 'b' does not fit tensor 'b'",
        "out": "",
    }
    assert {link.cure for link in links if link.tensor and link.tensor.name == "smal"} == {
        "Did you mean 'small'? Say --feature smal=COLUMN."
    }
    # A struct of which a member is read is kept, as `plan` keeps it.
    assert [link.columns[0][0] for link in links if link.kind == "kept"] == ["payload"]
    lines = drawn(links, "signature s")
    assert not [line for line in lines if len(line) > WIDTH]
    at = next(i for i, line in enumerate(lines) if line.startswith("a "))
    assert re.fullmatch(r"a +float +───┬───▶ +two +float32 \[batch, 2\]", lines[at])
    assert re.fullmatch(r"b +float +───┘", lines[at + 1])


@pytest.mark.parametrize("length", [5, 30, 200])
def test_a_drawing_never_wraps(length: int) -> None:
    name = "n" * length
    kind = pa.struct([(f"{name}{i}", pa.float32()) for i in range(3)])
    links = [Link("feature", "model", ((name, kind),), spec(name, "float32", *range(length % 9)))]
    links += [Link("kept", "", ((f"{name}{i}", kind),), None) for i in range(50)]
    lines = drawn(links, "signature s")
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].split()[:2] == ["10", "more"]
    assert max(map(len, table(("a", "b"), [(name, name)], 40))) <= 40


def test_columns_of_files_are_what_feeds_the_model_not_the_other_way(capfd: Capture, tmp_path: Path) -> None:
    """Of two models with an input of the same name, each is drawn under its own."""
    put_table(f"{tmp_path}/in/a.parquet", rows(0, 5))
    model = f"{model_folder()}/saved_model"
    text = shown(capfd, "inspect", f"--model=p={model}", f"--model=q={model}", f"--input={tmp_path}/in/*")
    assert "signatures p: serving_default, q: serving_default" in text
    assert re.search(r"───────▶ +p\.x .*\n.*◀─.* p\.output_0 .*\n.*───────▶ +q\.x ", text)
