"""`plan` names all that keeps columns from feeding the models at once, with one command or call that is let through."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.pipeline.cli import main
from headrace.pipeline.commands.needs_report import command_line
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.parquet.footer import footer_of
from headrace.transforms.storage import open_store

Capture = pytest.CaptureFixture[str]
# Of each input its dtype and its shape beyond the batch.
INPUTS = {
    "a": ("float32", ()),
    "b b": ("float32", ()),
    "age": ("float32", ()),
    "word": ("string", ()),
    "tags": ("int64", (3,)),
    "photo": ("uint8", (4, 4, 3)),
    "fine": ("float32", ()),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import tensorflow as tf

    folder = str(tmp_path_factory.mktemp("needs") / "model")

    def total(**given: Any) -> dict[str, Any]:
        numbers = [tf.cast(given[name], tf.float32) for name in given if name != "word"]
        rows = [tf.reduce_sum(tf.reshape(one, (tf.shape(one)[0], -1)), 1) for one in numbers]
        return {"total": tf.add_n(rows) + tf.cast(tf.strings.length(given["word"]), tf.float32)}

    specs = {name.replace(" ", "_"): tf.TensorSpec((None, *inner), dtype) for name, (dtype, inner) in INPUTS.items()}
    module = tf.Module()
    module.served = tf.function(total)
    tf.saved_model.save(module, folder, {"serving_default": module.served.get_concrete_function(**specs)})
    return folder


def table(rows: int, **columns: Any) -> pa.Table:
    import tensorflow as tf

    image = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
    whole = {
        "a": pa.array(np.arange(rows), pa.float32()),
        "b_b": pa.array(np.arange(rows), pa.float32()),
        "age": pa.array(np.arange(rows), pa.float32()),
        "word": pa.array(["w"] * rows),
        "tags": pa.array([[1, 2, 3]] * rows),
        "photo": pa.array([image] * rows, pa.binary()),
        "fine": pa.array(np.arange(rows), pa.float32()),
    }
    return pa.table(whole | columns)


BAD = {
    "a": pa.array([1.5] * 8, pa.float64()),
    "b_b": pa.array([2**40] * 8, pa.int64()),
    "age": pa.array([1, None, 3, None, 5, 6, 7, 8], pa.float32()),
    "word": pa.array(["w", None] * 4),
    "tags": pa.array([[1, 2, 3], [1], None, [1, None]] * 2),
}


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes files of such columns each; the flags of a job on them."""

    def written(*files: dict[str, Any], groups: int = 8, rows: int = 8) -> list[str]:
        (tmp_path / "in").mkdir()
        for number, columns in enumerate(files):
            pq.write_table(table(rows, **columns), tmp_path / "in" / f"{number:03d}.parquet", row_group_size=groups)
        return [f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]

    return written


def planned(capfd: Capture, *argv: str, code: int = 2) -> tuple[dict[str, Any], str]:
    capfd.readouterr()
    assert main(["plan", *argv, "--json"]) == code
    out, err = capfd.readouterr()
    return json.loads(out), err


def flags_of(document: dict[str, Any]) -> dict[str, list[list[str]]]:
    return {need["tensor"]: need["flags"] for need in document["needs"]}


def test_all_needs_at_once_and_the_command_that_is_let_through(
    capfd: Capture, model: str, place: Callable[..., list[str]]
) -> None:
    argv = [f"--model={model}", *place(BAD), "--keep="]
    document, err = planned(capfd, *argv)
    assert flags_of(document) == {
        "a": [["cast", ""]],
        "b_b": [["cast", ""]],
        "age": [["fill", "0"]],
        "word": [["fill", ""]],
        "tags": [["fill", "0"], ["pad", "0"]],
        "photo": [["decode_image", "4x4"]],
    }
    nulls = {need["tensor"]: need["found"] for need in document["needs"]}
    assert nulls["age"] == "2 nulls in 1 of 1 file looked at"
    assert err.startswith("Cannot start: The input does not fit the model in 6 ways.")
    assert "Column 'age' holds nulls" in err
    assert "Say --cast=a,b_b --decode_image=photo=4x4 --fill=age=0 --fill=tags=0 --fill=word= --pad=tags=0." in err
    assert main(argv) == 2
    assert capfd.readouterr().err.splitlines()[-1] == err.splitlines()[-1]  # a run names all of them too
    command = shlex.split(document["command"])
    assert command[:3] == ["headrace", "plan", argv[0]]
    assert main(command[1:]) == 0
    assert main([*command[2:], "--overwrite"]) == 0  # and the job itself runs
    assert '"rows": 8,' in capfd.readouterr().out
    # As text the command stands on a line of its own.
    assert main(["plan", *argv]) == 2
    (line,) = [one for one in capfd.readouterr().out.splitlines() if one.startswith("headrace plan")]
    assert shlex.split(line) == [one for one in command if one != "--json"]
    assert f"--input='{argv[1][8:]}'" in line


def test_a_signature_in_an_address_is_not_printed() -> None:
    line = command_line(["--model=https://user:word@host/m.keras?sig=abc", "--keep=a b"], (("fill", "x='"),))
    assert "word" not in line
    assert "abc" not in line
    assert shlex.split(line)[2:] == ["--model=https://host/m.keras", "--keep=a b", "--fill=x='"]


def test_one_need_is_the_error_that_a_run_stops_at(capfd: Capture, model: str, place: Callable[..., list[str]]) -> None:
    argv = [f"--model={model}", *place({"a": BAD["a"]}), "--decode_image=photo=4x4"]
    document, err = planned(capfd, *argv)
    assert flags_of(document) == {"a": [["cast", ""]]}
    assert main(argv) == 2
    assert capfd.readouterr().err.splitlines()[-1] == err.splitlines()[-1]


def test_the_only_column_of_bytes_feeds_the_only_input_of_images(capfd: Capture, tmp_path: Path) -> None:
    import keras

    pixels = keras.Input((4, 4, 3), name="pixels")
    keras.Model(pixels, keras.layers.Flatten()(pixels)).save(tmp_path / "model.keras")
    images = table(2)["photo"]
    pq.write_table(pa.table({"name": ["a.png", "b.png"], "image": images}), tmp_path / "photos.parquet")
    argv = [f"--model={tmp_path}/model.keras", f"--input={tmp_path}/photos.parquet", f"--output={tmp_path}/out"]
    assert main(argv) == 2
    assert "--feature pixels=COLUMN, or say --decode_image=pixels=4x4." in capfd.readouterr().err
    document, _ = planned(capfd, *argv, "--decode_image=pixels=4x4", code=0)
    (fed,) = [one for one in document["columns"] if one["kind"] == "feature"]
    assert [column["name"] for column in fed["columns"]] == ["image"]


def test_python_names_the_call(model: str, place: Callable[..., list[str]]) -> None:
    source, output = (one.partition("=")[2] for one in place(BAD))
    arguments: dict[str, Any] = {
        "model": model,
        "input": source,
        "output": output,
        "keep": [],
        "cast": "a",
        "fill": {"word": "?"},
    }
    with pytest.raises(ColumnError) as caught:
        headrace.plan(**arguments)
    assert "--" not in str(caught.value)
    with pytest.raises(ColumnError) as of_run:
        headrace.run(**arguments)
    assert str(of_run.value) == str(caught.value).replace("headrace.plan(", "headrace.run(")
    call = caught.value.cure.removeprefix("Call ")
    assert "cast=['a', 'b_b'], fill={'word': '?', 'age': 0, 'tags': 0}" in call
    assert call.endswith("decode_image={'photo': '4x4'}, pad={'tags': 0})")
    assert eval(call, {"headrace": headrace}).document["needs"] == []


def test_nulls_of_any_sampled_file_are_seen_and_of_the_whole_file(
    capfd: Capture, model: str, place: Callable[..., list[str]]
) -> None:
    files: list[dict[str, Any]] = [{} for _ in range(40)]
    files[30 // 3 * 3] = {"age": pa.array([*range(7), None], pa.float32())}  # of 40 files, every third is looked at
    argv = [f"--model={model}", *place(*files, groups=2), "--decode_image=photo=4x4"]
    document, err = planned(capfd, *argv)
    assert flags_of(document) == {"age": [["fill", "0"]]}
    assert "1 null in 1 of 14 files looked at" in err
    with pytest.raises(NullFeature, match=r"Call headrace.plan\(.*fill=\{'age': 0\}"):
        headrace.plan(model=model, input=argv[1][8:], output=argv[2][9:], decode_image={"photo": "4x4"})


def test_nulls_that_no_footer_records_are_seen_in_the_rows(
    capfd: Capture, model: str, place: Callable[..., list[str]], tmp_path: Path
) -> None:
    argv = [f"--model={model}", *place({}), "--decode_image=photo=4x4"]
    pq.write_table(table(8, age=BAD["age"]), tmp_path / "in" / "000.parquet", write_statistics=False)
    document, _ = planned(capfd, *argv)
    assert flags_of(document) == {"age": [["fill", "0"]]}
    assert document["needs"][0]["problem"].endswith("is null in row 1")


def test_a_longer_list_and_a_null_in_an_image_have_no_flag(
    capfd: Capture, model: str, place: Callable[..., list[str]]
) -> None:
    long = {"tags": pa.array([[1, 2, 3]] * 7 + [[1, 2, 3, 4]]), "a": BAD["a"], "photo": pa.nulls(8, pa.binary())}
    argv = [f"--model={model}", *place(long), "--decode_image=photo=4x4"]
    document, err = planned(capfd, *argv)
    assert flags_of(document) == {"a": [["cast", ""]], "tags": [], "photo": []}
    assert document["command"] is None
    assert "has a list of another length in row 7" in err
    assert "Shorten the longer lists before predicting: nothing is cut off." in err
    assert main(["plan", *argv]) == 2
    assert "No flag allows 2 of these" in capfd.readouterr().out


def test_where_bad_rows_may_go_elsewhere_plan_only_says_so(
    capfd: Capture, model: str, place: Callable[..., list[str]]
) -> None:
    argv = [f"--model={model}", *place({"age": BAD["age"]}), "--decode_image=photo=4x4"]
    for more in ("--on_error=dead_letter", "--limit=1"):
        document, _ = planned(capfd, *argv, more, code=0)
        assert flags_of(document) == {"age": [["fill", "0"]]}
        assert shlex.split(document["command"])[-1] == "--fill=age=0"
        assert document["input"]["rows"] == (1 if "limit" in more else 8)


def test_footers_count_nulls_by_leaf_and_row_group(tmp_path: Path) -> None:
    """Of the columns asked for alone, those within structs and lists too."""
    columns = {
        "plain": [1, None, 3, None],
        "struct": pa.array([{"m": 1}, None, {"m": None}, {"m": 2}], pa.struct([("m", pa.int64())])),
        "text": ["a", None, "b", "c"],
        "none": [1, 2, 3, 4],
    }
    path = str(tmp_path / "f.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=2)
    store = open_store(path)
    footer = footer_of(store, store.stat(path))
    assert footer.null_counts(0, range(4)) == {0: 1, 1: 1, 2: 1, 3: 0}
    assert footer.null_counts(1, {1, 2}) == {1: 1, 2: 0}
    pq.write_table(pa.table(columns), path, write_statistics=["text"])
    assert footer_of(store, store.stat(path)).null_counts(0, range(4)) == {2: 1}
