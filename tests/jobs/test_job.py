"""Whole jobs through the command line: contents, resuming, refusing, overwriting, dying."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.jobs.job import REPORT
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.storage import open_store
from tests.support.jobs import (
    expected_scores,
    model_folder,
    names_in,
    put,
    put_inputs,
    put_model,
    put_table,
    read_output,
    rows,
    scores,
)

COUNTS = (100, 0, 37, 250)

Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, *argv: str) -> Any:
    code = main(list(argv))
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def place(bucket: str) -> Any:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", COUNTS, row_group_size=60)
    return bucket


def flags(place: str, *more: Any, model: Any = "model", out: Any = "out") -> Any:
    return [f"--model={place}/{model}", f"--input={place}/in/*.parquet", f"--output={place}/{out}", *more]


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_predictions_are_those_of_the_plainly_loaded_model_to_the_bit(capfd: Capture, place: str, name: str) -> None:
    if name != "saved_model":
        put_model(name, f"{place}/{name}")
    model = "model" if name == "saved_model" else name
    code, out, err = run(capfd, *flags(place, "--batch_size=64", "--prediction=output_0=scores", model=model))
    assert code == 0, err
    assert f"387 rows are in {place}/out" in out
    found = read_output(f"{place}/out")
    assert found.schema.names == ["id", "name", "scores"]
    given = rows(0, sum(COUNTS))
    assert found.select(["id", "name"]).equals(given.select(["id", "name"]))
    first = 0
    for count in COUNTS:
        # batches never cross a file
        part = given.slice(first, count)
        if count:
            wanted = expected_scores(name, part, 64)
            np.testing.assert_array_equal(scores(found.slice(first, count), "scores"), wanted)
        first += count


def test_the_output_names_its_inputs_in_order_and_the_manifest_accounts_for_every_row(
    capfd: Capture, place: str
) -> None:
    assert run(capfd, *flags(place))[0] == 0
    names = names_in(f"{place}/out")
    assert [name.split("/")[0] for name in names if name.startswith("_")] == [
        *("_SUCCESS", *["_headrace"] * 4, "_manifest")
    ]
    shards = [parse_output_name(name) for name in names if not name.startswith("_")]
    assert [(shard.stem, shard.end_row) for shard in shards if shard] == [
        (f"part-{i:05d}", count) for i, count in enumerate(COUNTS)
    ]
    store = open_store(place)
    success = json.loads(store.read(store.stat(f"{place}/out/_SUCCESS")))
    manifest = pq.read_table(store.open_arrow(store.stat(f"{place}/out/{success['manifest'][0]}")))
    assert manifest["rows"].to_pylist() == list(COUNTS)
    assert manifest["output"].to_pylist() == [name for name in names if not name.startswith("_")]
    assert all(threads is not None for threads in manifest["intra_op_threads"].to_pylist())
    assert set(manifest["device"].to_pylist()) == {"cpu"}
    assert success["rows"] == sum(COUNTS)
    assert success["limit"] is None
    record = json.loads(store.read(store.stat(f"{place}/out/_headrace/job.json")))
    assert record["fingerprint"] == success["fingerprint"]
    assert record["models"][""]["uri"] == f"{place}/model"


def test_large_files_are_split_at_row_groups(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place, "--shard_bytes=2000"))[0] == 0
    spans = [parse_output_name(name) for name in names_in(f"{place}/out")]
    assert [(s.first_row, s.end_row) for s in spans if s and s.stem == "part-00003"] == [
        (0, 60),
        (60, 120),
        (120, 180),
        (180, 240),
        (240, 250),
    ]
    assert read_output(f"{place}/out")["id"].to_pylist() == list(range(sum(COUNTS)))


def test_local_paths_work_like_buckets(capfd: Capture, tmp_path: Path) -> None:
    put_model("saved_model", f"{tmp_path}/model")
    put_inputs(f"{tmp_path}/in", COUNTS)
    assert run(capfd, *flags(str(tmp_path)))[0] == 0
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == list(range(sum(COUNTS)))


def test_hive_like_folders_are_mirrored_and_hidden_files_passed_over(capfd: Capture, tmp_path: Path) -> None:
    put_model("saved_model", f"{tmp_path}/model")
    put_table(f"{tmp_path}/in/dt=2026-01-01/a.parquet", rows(0, 5))
    put_table(f"{tmp_path}/in/dt=2026-01-02/a.parquet", rows(5, 5))
    put(f"{tmp_path}/in/dt=2026-01-02/_SUCCESS.parquet", b"hidden")
    put(f"{tmp_path}/in/dt=2026-01-02/empty.parquet", b"")
    code, _, err = run(
        capfd, f"--model={tmp_path}/model", f"--input={tmp_path}/in/**/*.parquet", f"--output={tmp_path}/out"
    )
    assert code == 0, err
    folders = [name.rpartition("/")[0] for name in names_in(f"{tmp_path}/out") if not name.startswith("_")]
    assert folders == ["dt=2026-01-01", "dt=2026-01-02"]
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == list(range(10))


def test_columns_chosen_by_flags(capfd: Capture, place: str) -> None:
    put_table(
        f"{place}/wide/a.parquet",
        pa.table(
            {"p": [0.5], "q": [0.25], "r": [1.0], "s": [2.0], "k": [7], "z": ["a"]},
            schema=schema_of({**dict.fromkeys("pqrs", pa.float32()), "k": pa.int32(), "z": pa.string()}),
        ),
    )
    code, _, err = run(
        capfd,
        f"--model={place}/model",
        f"--input={place}/wide/*.parquet",
        f"--output={place}/out",
        "--feature=x=p,q,r,s",
        "--keep=k,p",
        "--prediction",
        "output_0=scores",
    )
    assert code == 0, err
    found = read_output(f"{place}/out")
    assert found.schema.names == ["k", "p", "scores"]
    assert found.select(["k", "p"]).to_pylist() == [{"k": 7, "p": 0.5}]
    assert abs(scores(found, "scores").sum() - 1) < 1e-6


def test_keep_none_leaves_only_predictions(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place, "--keep="))[0] == 0
    assert read_output(f"{place}/out").schema.names == ["output_0"]


def test_limit_takes_the_first_rows_of_the_plan_and_is_marked(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place, "--limit=120"))[0] == 0
    assert read_output(f"{place}/out")["id"].to_pylist() == list(range(120))
    store = open_store(place)
    assert json.loads(store.read(store.stat(f"{place}/out/_SUCCESS")))["limit"] == 120
    code, out, _ = run(capfd, *flags(place, "--limit=120"))
    assert (code, out.startswith("Nothing to do")) == (0, True)
    code, _, err = run(capfd, *flags(place))
    assert code == 2
    assert "limit differ" in err


def test_the_plan_is_in_the_order_of_the_outputs_names(capfd: Capture, tmp_path: Path) -> None:
    place = str(tmp_path)
    put_model("saved_model", f"{place}/model")
    for i, name in enumerate(("a/b", "data-00000", "data", "é")):
        put_table(f"{place}/in/{name}.parquet", rows(i * 3, 3))
    for limit in (12, 7, 3, 2):
        argv = [f"--input={place}/in/**.parquet", f"--model={place}/model", f"--output={place}/{limit}"]
        assert run(capfd, *argv, f"--limit={limit}")[0] == 0
        assert read_output(f"{place}/{limit}")["id"].to_pylist() == read_output(f"{place}/12")["id"].to_pylist()[:limit]


def test_a_column_may_be_null_in_later_files(capfd: Capture, tmp_path: Path) -> None:
    place, table = str(tmp_path), rows(0, 3)
    put_model("saved_model", f"{place}/model")
    never = pa.schema([field.with_nullable(False) for field in table.schema])
    put_table(f"{place}/in/a.parquet", table.cast(never))
    put_table(f"{place}/in/b.parquet", table.set_column(0, "id", pa.array([3, None, 5])))
    code, _, err = run(capfd, *flags(place))
    assert code == 0, err
    assert read_output(f"{place}/out")["id"].to_pylist() == [0, 1, 2, 3, None, 5]


def test_a_finished_job_run_again_computes_nothing(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    before = list(open_store(place).list(f"{place}/out/"))
    code, out, _ = run(capfd, *flags(place))
    assert (code, "Nothing to do" in out) == (0, True)
    assert list(open_store(place).list(f"{place}/out/")) == before


def test_only_what_is_missing_is_computed(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    store = open_store(place)
    whole = read_output(f"{place}/out")
    before = {ref.uri: ref for ref in store.list(f"{place}/out/")}
    gone = next(uri for uri in before if "part-00002" in uri)
    store.delete(before[gone])
    code, out, err = run(capfd, *flags(place))
    assert code == 0
    assert "37 rows computed" in out
    assert "350 rows found done" in out
    assert "Going on: 3 shards" in err
    after = {ref.uri: ref for ref in store.list(f"{place}/out/")}
    changed = {uri.removeprefix(f"{place}/out/").split("/")[0] for uri in after if after[uri] != before.get(uri)}
    names = {gone.removeprefix(f"{place}/out/"), "_SUCCESS", "_manifest", "_headrace"}
    assert changed == names
    claim = f"{place}/out/_headrace/claims/00000002"
    ours = {f"{place}/out/{REPORT}", f"{claim}.claim", f"{claim}.started"}
    assert {uri for uri in after if "/_headrace/" in uri and after[uri] != before.get(uri)} == ours
    assert read_output(f"{place}/out").equals(whole)


def test_a_file_that_comes_later_is_added(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    put_table(f"{place}/in/part-00009.parquet", rows(sum(COUNTS), 5))
    code, out, _ = run(capfd, *flags(place))
    assert code == 0
    assert "5 rows computed" in out
    assert read_output(f"{place}/out")["id"].to_pylist() == list(range(sum(COUNTS) + 5))


def test_an_input_rewritten_since_is_refused_with_both_versions(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    store = open_store(place)
    was = store.stat(f"{place}/in/part-00002.parquet")
    store.delete(was)
    now = put_table(f"{place}/in/part-00002.parquet", rows(900, 37))
    before = list(store.list(f"{place}/out/"))
    code, _, err = run(capfd, *flags(place))
    assert code == 2
    assert f"rewritten since: {place}/in/part-00002.parquet" in err
    assert f"version {was.version}" in err
    assert f"version {now.version}" in err
    assert "--overwrite" in err
    assert list(store.list(f"{place}/out/")) == before
    code, out, _ = run(capfd, *flags(place, "--overwrite"))
    assert code == 0
    assert "387 rows computed" in out
    assert read_output(f"{place}/out")["id"].to_pylist()[100:137] == list(range(900, 937))


def test_an_input_that_is_gone_is_refused(capfd: Capture, place: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    store = open_store(place)
    store.delete(store.stat(f"{place}/in/part-00002.parquet"))
    code, _, err = run(capfd, *flags(place))
    assert code == 2
    assert f"gone since: {place}/in/part-00002.parquet" in err


def test_another_model_is_refused_with_both_and_overwrites_only_what_the_first_job_wrote(
    capfd: Capture, place: str
) -> None:
    assert run(capfd, *flags(place))[0] == 0
    put(f"{place}/out/notes.txt", b"mine")
    put_model("model.keras", f"{place}/model.keras")
    code, _, err = run(capfd, *flags(place, model="model.keras"))
    assert code == 2
    assert f"{place}/model" in err
    assert f"{place}/model.keras" in err
    assert "model differ" in err
    code, _, err = run(capfd, *flags(place, "--overwrite", model="model.keras"))
    assert code == 0, err
    names = names_in(f"{place}/out")
    assert "notes.txt" in names
    assert sum(parse_output_name(name) is not None for name in names) == len(COUNTS)
    assert read_output(f"{place}/out")["id"].to_pylist() == list(range(sum(COUNTS)))


def test_what_an_overwritten_job_still_wrote_is_told_and_overwritten_too(capfd: Capture, tmp_path: Path) -> None:
    """A job that runs on while another overwrites its folder leaves files that are in no record any more."""
    place = str(tmp_path)
    put_model("saved_model", f"{place}/model")
    put_inputs(f"{place}/in", [5, 6])
    assert run(capfd, *flags(place, "--keep=id"))[0] == 0
    late = {name: (tmp_path / "out" / name).read_bytes() for name in names_in(f"{place}/out") if name[0] != "_"}
    assert run(capfd, *flags(place, "--overwrite"))[0] == 0
    for name, data in late.items():
        put(f"{place}/out/{name}", data)
    code, _, err = run(capfd, *flags(place))
    assert code == 2
    assert "the output of another job than the one in the folder's record" in err
    code, _, err = run(capfd, *flags(place, "--overwrite"))
    assert code == 0, err
    assert read_output(f"{place}/out")["id"].to_pylist() == list(range(11))


def test_what_only_looks_like_an_output_is_not_overwritten(capfd: Capture, tmp_path: Path) -> None:
    place = str(tmp_path)
    put_model("saved_model", f"{place}/model")
    put_inputs(f"{place}/in", [5])
    assert run(capfd, *flags(place))[0] == 0
    put_table(f"{place}/out/part-{0:012d}-{5:012d}-{'ab' * 10}.parquet", rows(0, 5))
    before = names_in(f"{place}/out")
    code, _, err = run(capfd, *flags(place, "--overwrite"))
    assert code == 2
    assert "none by its own account" in err
    assert names_in(f"{place}/out") == before


def test_a_mark_that_is_not_ours_is_left_alone_or_made_anew(capfd: Capture, tmp_path: Path) -> None:
    place = str(tmp_path)
    put_model("saved_model", f"{place}/model")
    put_inputs(f"{place}/in", [5])
    put(f"{place}/out/_SUCCESS", b"")
    code, _, err = run(capfd, *flags(place))
    assert (code, names_in(f"{place}/out")) == (2, ["_SUCCESS"])
    assert "holds _SUCCESS, and no record of a job" in err
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert run(capfd, *flags(place))[0] == 0
    (tmp_path / "out" / "_SUCCESS").write_bytes(b"")
    code, out, err = run(capfd, *flags(place))
    assert code == 0, err
    assert "5 rows found done" in out
    mark = json.loads((tmp_path / "out" / "_SUCCESS").read_bytes())
    assert mark["rows"] == 5
    assert run(capfd, *flags(place, "--overwrite"))[0] == 0
    mark = json.loads((tmp_path / "out" / "_SUCCESS").read_bytes())
    (tmp_path / "out" / mark["manifest"][0]).write_bytes(b"damaged")
    code, out, err = run(capfd, *flags(place))
    assert code == 0, err
    assert "5 rows found done" in out


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("--prediction=output_0=scores", "prediction"),
        ("--keep=id", "keep"),
        ("--batch_size=10", "batch_size"),
        ("--shard_bytes=1000", "shard_bytes"),
    ],
)
def test_another_mapping_or_plan_is_refused(capfd: Capture, place: str, flag: str, field: str) -> None:
    assert run(capfd, *flags(place))[0] == 0
    code, _, err = run(capfd, *flags(place, flag))
    assert code == 2
    assert field in err


def test_a_null_in_a_feature_fails_the_job_naming_file_and_row(capfd: Capture, place: str) -> None:
    table = rows(900, 10)
    x = table["x"].to_pylist()
    x[7] = None
    put_table(f"{place}/in/part-00005.parquet", table.set_column(2, "x", pa.array(x, table.schema.field("x").type)))
    code, _, err = run(capfd, *flags(place))
    assert code == 1
    assert "part-00005.parquet" in err
    assert "row 7" in err
    assert "Traceback" not in err
    assert "_SUCCESS" not in names_in(f"{place}/out")
    assert not any("part-00005" in name for name in names_in(f"{place}/out"))


def test_a_file_with_other_types_fails_before_any_row_is_predicted(capfd: Capture, place: str) -> None:
    put_table(f"{place}/in/part-00005.parquet", pa.table({"id": ["a"], "name": ["b"], "x": [[1.0]]}))
    code, _, err = run(capfd, *flags(place))
    assert code == 1
    assert "part-00005.parquet" in err
    assert "column 'id'" in err
    assert not any(parse_output_name(name) for name in names_in(f"{place}/out"))


def test_plan_tells_all_and_writes_nothing(capfd: Capture, place: str) -> None:
    code, out, _ = run(capfd, "plan", *flags(place))
    assert code == 0
    assert re.search(r"^Input    4 files\n +4 shards, 387 rows, ", out, re.MULTILINE)
    assert "fixed_size_list" in out
    assert names_in(f"{place}/out") == []
    run(capfd, *flags(place))
    assert "Everything is done" in run(capfd, "plan", *flags(place))[1]


def test_inspect_shows_signatures_parameters_and_bytes(capfd: Capture, place: str) -> None:
    code, out, _ = run(capfd, "inspect", f"--model={place}/model")
    assert code == 0
    parameters = 4 * 16 + 16 + 16 * 3 + 3
    assert f"{parameters:,} parameters, {4 * parameters:,} bytes" in out
    assert "serving_default" in out
    assert "[batch, 4]" in out


@pytest.mark.parametrize("form", ["h5", "config", "tflite", "http"])
def test_other_models_give_the_same_predictions(
    capfd: Capture, place: str, tmp_path: Path, form: str, emulator: str
) -> None:
    """The network of `saved_model`, told otherwise; other kernels may round otherwise."""
    import keras
    import tensorflow as tf

    network = keras.saving.load_model(model_folder() / "model.keras")
    more = []
    if form == "h5":
        network.save(tmp_path / "model.h5")
        model = str(tmp_path / "model.h5")
    elif form == "config":
        (tmp_path / "config.json").write_text(network.to_json())
        network.save_weights(tmp_path / "model.weights.h5")
        model, more = str(tmp_path / "config.json"), [f"--weights={tmp_path}/model.weights.h5"]
    elif form == "tflite":
        converter = tf.lite.TFLiteConverter.from_saved_model(str(model_folder() / "saved_model"))
        (tmp_path / "model.tflite").write_bytes(converter.convert())
        model = str(tmp_path / "model.tflite")
    else:
        put_model("model.keras", f"{place}/model.keras")
        model = f"{emulator}/download/storage/v1/b/{place.removeprefix('gs://')}/o/model.keras?alt=media"
    code, _, err = run(
        capfd, f"--model={model}", f"--input={place}/in/*.parquet", f"--output={place}/out", "--batch_size=64", *more
    )
    assert code == 0, err
    found = read_output(f"{place}/out")
    assert found["id"].to_pylist() == list(range(sum(COUNTS)))
    (column,) = [name for name in found.schema.names if name not in ("id", "name")]
    given = rows(0, sum(COUNTS))
    np.testing.assert_allclose(scores(found, column), expected_scores("saved_model", given, 1000), atol=1e-6)
