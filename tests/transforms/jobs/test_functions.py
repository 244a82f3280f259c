"""`--preprocess` and `--postprocess`: the user's own functions of record batches, through the command line."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.transforms.errors import ColumnError, InvalidRequest, WorkerMismatch
from headrace.transforms.jobs.user_functions import AppliedFunction, find_function
from headrace.transforms.nested_arrow import flat
from headrace.transforms.predicting.predictor import load_predictor
from headrace.transforms.versions import versions
from tests.support.around import Capture, Job, job_in, record_of, write_module
from tests.support.jobs import expected_scores, model_folder, names_in, put_inputs, put_table, read_output, rows, scores
from tests.support.loose import loose

MODULE = """
import pyarrow as pa, pyarrow.compute as pc

def lists(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(values), 4)

def doubled(batch):
    x = lists(batch.column("x").flatten().to_numpy() * 2)
    return pa.record_batch({"id": batch["id"], "x": x, "length": pc.utf8_length(batch["name"])})

def as_table(batch):
    return pa.Table.from_batches([doubled(batch)])

def best(batch):
    first = pc.list_element(batch["output_0"], 0)
    return batch.append_column("sure", pc.greater(first, 0.5)).drop_columns(["name"])

def only_names(batch):
    return batch.select(["name"])

def twice(batch):
    return pa.concat_batches([batch, batch])

def drops(batch):
    return batch.filter(pc.less(batch["id"], 30))

def shifty(batch):
    kind = pa.int64() if batch.num_rows else pa.int32()
    return batch.append_column("more", pa.nulls(batch.num_rows, kind))

def fails(batch):
    if 30 in batch["id"].to_pylist():
        raise KeyError("thirty")
    return batch

def fails_on_none(batch):
    return batch.append_column("low", pa.array([min(batch["id"].to_pylist())] * batch.num_rows))

def fixed(batch, null):
    best = [None if i == 30 and null else [i, 2 * i] for i in batch["id"].to_pylist()]
    return batch.append_column("best", pa.array(best, pa.list_(pa.int64(), 2)))

def null_list(batch):
    return fixed(batch, True)

def null_struct(batch):
    lists = fixed(batch, False)["best"]
    null = pa.array([i == 30 for i in batch["id"].to_pylist()], pa.bool_())
    return batch.append_column("best", pa.StructArray.from_arrays([lists], ["of"], mask=null))

def null_tensor(batch):
    kind = pa.fixed_shape_tensor(pa.int64(), [2])
    return batch.append_column("best", pa.ExtensionArray.from_storage(kind, fixed(batch, True)["best"]))

def list_of_null(batch):
    offsets = pa.array(range(len(batch) + 1), pa.int32())
    return batch.append_column("best", pa.ListArray.from_arrays(offsets, fixed(batch, True)["best"]))

def twice_named(batch):
    return pa.RecordBatch.from_arrays([*batch.columns, batch["id"]], names=[*batch.schema.names, "id"])

def no_columns(batch):
    return batch.select([])

def a_union(batch):
    return batch.append_column("more", pa.UnionArray.from_sparse(pa.array([0] * len(batch), pa.int8()), [batch["id"]]))

def run_ends(batch):
    return batch.append_column("more", pc.run_end_encode(batch["id"]))

def interval(batch):
    return batch.append_column("more", pa.nulls(len(batch), pa.month_day_nano_interval()))

def no_members(batch):
    return batch.append_column("more", pa.nulls(len(batch), pa.list_(pa.struct([]))))

def no_values(batch):
    return batch.append_column("more", pa.nulls(len(batch), pa.struct([("of", pa.list_(pa.int8(), 0))])))

def lists_named(batch):
    return batch.append_column("more", pa.nulls(len(batch), pa.dictionary(pa.int32(), pa.list_(pa.int8()))))

def same(batch):
    return batch

def nothing(batch):
    pass

def leaves(batch):
    if batch.num_rows:
        raise SystemExit(0)
    return batch
"""


@pytest.fixture
def job(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Two files of 20 and 30 rows and one of none, and the module `around_the_model`."""
    put_inputs(f"{tmp_path}/in", [20, 0, 30])
    write_module(tmp_path, "around_the_model", MODULE, monkeypatch)
    return job_in(str(tmp_path), capfd, model=f"{model_folder()}/saved_model", batch_size="8")


def around(**which: str) -> list[str]:
    return [f"--{flag}=around_the_model:{name}" for flag, name in which.items()]


@pytest.mark.parametrize("name", ["doubled", "as_table"])
def test_features_and_kept_columns_may_be_derived(job: Job, tmp_path: Path, name: str) -> None:
    """`name` feeds nothing and is not kept; the function reads it all the same."""
    code, _, err = job(*around(preprocess=name), "--keep=id,length")
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert found.schema.names == ["id", "length", "output_0"]
    given = rows(0, 50)
    assert found["length"].to_pylist() == [len(text) for text in loose(given["name"].to_pylist())]
    x = flat(given["x"].combine_chunks()).to_numpy() * np.float32(2)
    doubled = given.set_column(2, "x", pa.FixedSizeListArray.from_arrays(pa.array(x), 4))
    parts = [expected_scores("saved_model", doubled.slice(first, count), 8) for first, count in ((0, 20), (20, 30))]
    np.testing.assert_array_equal(scores(found), np.concatenate(parts))


def test_predictions_may_be_worked_on_and_columns_dropped(job: Job, tmp_path: Path) -> None:
    """Also where a file has no rows: its columns are those of all others."""
    code, _, err = job(*around(postprocess="best"))
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert found.schema.names == ["id", "output_0", "sure"]
    assert found["sure"].to_pylist() == (scores(found)[:, 0] > 0.5).tolist()
    assert len([name for name in names_in(f"{tmp_path}/out") if name.startswith("part-")]) == 3


def test_the_plan_shows_both(job: Job, tmp_path: Path) -> None:
    code, out, err = job("plan", *around(preprocess="doubled", postprocess="only_names"), "--keep=id")
    assert (code, out) == (2, ""), "the function's columns are checked"
    assert "'name'" in err or '"name"' in err
    code, out, err = job("plan", *around(preprocess="doubled", postprocess="doubled"), "--keep=id,x")
    assert code == 2, "what fails on the predictions is told too"
    code, out, err = job("plan", *around(preprocess="doubled"))
    assert code == 0, err
    assert "Around   around_the_model:doubled, then the model\n" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--preprocess=no_such_module:f"], ["--preprocess", "no_such_module", "--user_package", "PYTHONPATH"]),
        (["--postprocess=around_the_model:no"], ["--postprocess", "no function 'no'", "best", "doubled"]),
        (["--preprocess=around_the_model"], ["'around_the_model' names no function", "module:function"]),
        (around(preprocess="nothing"), ["around_the_model:nothing", "NoneType", "a record batch, rows: 0"]),
        (
            around(preprocess="fails_on_none"),
            ["fails on a batch without rows", "ValueError", "(line ", "around_the_model.py"],
        ),
        (around(preprocess="only_names"), ["'x'", "around_the_model:only_names"]),
    ],
)
def test_what_can_be_known_before_is_told_before(
    job: Job, tmp_path: Path, flags: list[str], fragments: list[str]
) -> None:
    code, _, err = job(*flags)
    assert code == 2
    assert all(fragment in err for fragment in fragments), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("a_union", "Found: more: sparse_union<"),
        ("run_ends", "Found: more: run_end_encoded<"),
        ("interval", "Found: more: month_day_nano_interval: "),
        ("no_members", "Found: more: list<"),
        ("no_values", "Found: more: struct<"),
        ("lists_named", "Found: more: dictionary<"),
    ],
)
@pytest.mark.parametrize("flag", ["preprocess", "postprocess"])
def test_columns_that_parquet_cannot_hold_are_told_before(
    job: Job, tmp_path: Path, flag: str, name: str, fragment: str
) -> None:
    code, _, err = job("plan", *around(**{flag: name}))
    assert code == 2
    assert f"--{flag}" in err
    assert fragment in err


@pytest.mark.parametrize(("name", "found"), [("no_columns", "no column"), ("twice_named", "two columns named 'id'")])
def test_columns_that_make_no_table_are_told_before(job: Job, name: str, found: str) -> None:
    code, _, err = job("plan", *around(postprocess=name))
    assert code == 2
    assert "--postprocess" in err
    assert f"Found: {found}. Fix the function" in err


def test_a_script_that_leaves_when_it_is_imported_is_no_silent_success(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, "script_of_mine", "import sys\nsys.exit(0)\n", monkeypatch)
    code, _, err = job("--preprocess=script_of_mine:f")
    assert code == 2
    assert "script_of_mine cannot be imported" in err
    assert "SystemExit: 0" in err


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("twice", ["row 0", "part-00000.parquet", "a record batch, rows: 1", "Found: rows: 2"]),
        ("drops", ["row 10", "part-00002.parquet", "a record batch, rows: 1", "Found: rows: 0"]),
        ("shifty", ["row 0", "more: int32", "more: int64", "naming each array's type"]),
        ("fails", ["row 10", "part-00002.parquet", "KeyError", "thirty", "around_the_model.py"]),
        ("leaves", ["row 0", "SystemExit: 0", "around_the_model.py"]),
    ],
)
@pytest.mark.parametrize("flag", ["preprocess", "postprocess"])
def test_what_only_the_rows_tell_names_file_and_rows(job: Job, flag: str, name: str, fragments: list[str]) -> None:
    code, _, err = job(*around(**{flag: name}))
    assert code == 1
    told = err[err.index("The job failed") :]
    assert f"around_the_model:{name}" in told
    if name in ("twice", "shifty", "leaves"):  # shards run at once: either file may be the first to fail
        fragments = [fragment for fragment in fragments if not fragment.startswith("part-")]
    assert all(fragment in told for fragment in fragments), told


@pytest.mark.parametrize("name", ["null_list", "null_struct", "null_tensor", "list_of_null"])
@pytest.mark.parametrize("flag", ["preprocess", "postprocess"])
def test_nulls_that_parquet_would_not_give_back_are_bad_rows(job: Job, tmp_path: Path, flag: str, name: str) -> None:
    code, _, err = job(*around(**{flag: name}))
    assert code == 1, read_output(f"{tmp_path}/out")
    told = err[err.index("The job failed") :]
    parts = [f"around_the_model:{name}", "part-00002.parquet", "ow 10", "best: ", "Found: null", "pa.list_(…)"]
    assert all(part in told for part in parts), told
    code, _, err = job(*around(**{flag: name}), "--on_error=dead_letter", "--max_bad_rows=10%", "--overwrite")
    assert code == 0, err
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == [i for i in range(50) if i != 30]


def test_nulls_that_are_not_written_are_no_fault(job: Job, tmp_path: Path) -> None:
    code, _, err = job(*around(preprocess="null_list", postprocess="only_names"))
    assert code == 0, err
    assert read_output(f"{tmp_path}/out").num_rows == 50


def test_a_file_of_other_types_is_named_rather_than_handed_on(job: Job, tmp_path: Path) -> None:
    other = rows(50, 5).set_column(0, "id", pa.array([str(i) for i in range(5)]))
    put_table(f"{tmp_path}/in/part-9.parquet", other)
    code, _, err = job(*around(preprocess="doubled"))
    assert code != 0
    assert "part-9.parquet" in err


def test_files_may_differ_in_what_can_be_null(job: Job, tmp_path: Path) -> None:
    table = rows(50, 5)
    strict = table.cast(pa.schema([field.with_nullable(False) for field in table.schema]))
    put_table(f"{tmp_path}/in/part-9.parquet", strict)
    code, _, err = job(*around(preprocess="same", postprocess="best"))
    assert code == 0, err
    assert read_output(f"{tmp_path}/out").num_rows == 55


def test_another_source_is_another_job(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job(*around(postprocess="best"))[0] == 0
    assert "Nothing to do" in job(*around(postprocess="best"))[1]
    kept = record_of(f"{tmp_path}/out")["postprocess"]
    assert kept["name"] == "around_the_model:best"
    write_module(tmp_path, "around_the_model", MODULE.replace("0.5", "0.25"), monkeypatch)
    code, _, err = job(*around(postprocess="best"))
    assert code == 2
    assert "another job: postprocess differ" in err
    assert kept["source"] in err
    code, _, err = job()
    assert code == 2
    assert "postprocess" in err


def prepared(tmp_path: Path, *more: str) -> Any:
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]
    return prepare(parse_request(parse_flags([*flags, *more]), "run"))


def test_a_worker_with_another_function_says_so(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pickle.loads(pickle.dumps(prepared(tmp_path, *around(preprocess="doubled")).job))
    assert load_predictor(wanted).output_schema.names == ["id", "length", "output_0"]
    write_module(tmp_path, "around_the_model", MODULE + "\n# another\n", monkeypatch)
    with pytest.raises(InvalidRequest, match=r"around_the_model:doubled differs from the one .* --user_package"):
        load_predictor(wanted)


def test_a_worker_of_other_versions_says_so(job: Job, tmp_path: Path) -> None:
    wanted = prepared(tmp_path).job
    assert dict(wanted.versions) == versions()
    assert versions()["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert versions()["tensorflow"].startswith("2.")
    other = tuple((name, "9.9" if name in ("keras", "python") else version) for name, version in wanted.versions)
    with pytest.raises(WorkerMismatch) as caught:
        load_predictor(replace(wanted, versions=(*other, ("nothing", "1"))))
    told = str(caught.value)
    assert "keras, nothing, python differ" in told
    assert "Expected: keras 9.9, nothing 1, python 9.9 (the launcher's)" in told
    assert f"Found: keras {versions()['keras']}, nothing not installed, python {versions()['python']}" in told
    assert "--sdk_container_image" in told


@pytest.mark.parametrize(
    "kind",
    [
        pa.fixed_shape_tensor(pa.float32(), (2, 2)),
        pa.dictionary(pa.int32(), pa.string()),
        pa.struct([("a", pa.int32())]),
        pa.map_(pa.string(), pa.int32()),
        pa.string_view(),
        pa.timestamp("us", "UTC"),
        pa.null(),
    ],
    ids=str,
)
def test_columns_of_every_kind_pass_through_a_function_as_batch_or_table(kind: pa.DataType) -> None:
    schema = pa.schema([pa.field("a", kind), pa.field("b", pa.int8(), nullable=False)], metadata={"made": "by pandas"})
    batch = pa.RecordBatch.from_arrays([pa.nulls(3, loose(kind)), pa.array([1, 2, 3], pa.int8())], names=["a", "b"])
    for function in (lambda one: one, lambda one: pa.Table.from_batches([one.slice(0, 1), one.slice(1)])):
        applied = AppliedFunction(loose(function), "mine:it", schema, written=["b"])
        result = applied(batch, "a.parquet", 0)
        assert result.schema == applied.output_schema
        assert result.to_pylist() == batch.to_pylist()
    with pytest.raises(ColumnError, match=r"rows 7-9 .* a\.parquet.*b: int8.*b: int64"):
        applied(batch.set_column(1, "b", pc.cast(batch["b"], pa.int64())), "a.parquet", 7)


def test_a_compiled_or_callable_object_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(
        tmp_path,
        "with_an_object",
        "class A:\n    def __call__(self, b):\n        return b\nfunction = A()",
        monkeypatch,
    )
    ref = find_function("with_an_object:function", "--preprocess")
    assert loose(ref.load())(1) == 1
    assert len(find_function("math:floor", "--preprocess").source) == 64
    with pytest.raises(InvalidRequest, match="cannot be found"):
        find_function("sys:exit", "--preprocess")
