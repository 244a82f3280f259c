"""`--incremental`: what is new or changed is predicted, and no reader of the manifest sees an input twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.steps import finish
from headrace.transforms.storage import StoreOptions, open_store
from tests.support.jobs import model_folder, names_in, put, put_inputs, put_table, read_output, rows
from tests.support.loose import loose

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Files of rows 0-9, 10-19 and 20-29 that have been predicted."""
    folder = f"memory://{tmp_path.name}-{tmp_path.parent.name}"
    put_inputs(f"{folder}/in", [10, 10, 10])
    assert main(flags(folder)) == 0
    return folder


def flags(folder: str, *more: str) -> list[str]:
    model = f"{model_folder()}/saved_model"
    return [f"--model={model}", f"--input={folder}/in/*", f"--output={folder}/out", "--batch_size=8", *more]


def replace_input(folder: str, number: int, first: int | None) -> None:
    store, uri = open_store(folder), f"{folder}/in/part-{number:05d}.parquet"
    store.delete(store.stat(uri))
    if first is not None:
        put_table(uri, rows(first, 10))


def outputs(folder: str) -> list[str]:
    return [name for name in names_in(f"{folder}/out") if parse_output_name(name) is not None]


def test_what_is_new_or_changed_is_predicted_and_the_rest_kept(capfd: Capture, place: str) -> None:
    before = outputs(place)
    replace_input(place, 1, first=100)
    replace_input(place, 2, first=None)
    put_table(f"{place}/in/part-00003.parquet", rows(30, 10))
    capfd.readouterr()
    assert main(flags(place)) == 2
    assert "Add --incremental to predict only what is new or changed" in capfd.readouterr().err
    assert main(flags(place, "--incremental")) == 0
    out, err = capfd.readouterr()
    assert "20 rows computed" in out
    assert "10 rows found done" in out
    assert "2 outputs of inputs that changed or vanished will be removed" in err
    assert read_output(f"{place}/out")["id"].to_pylist() == [*range(10), *range(100, 110), *range(30, 40)]
    now = outputs(place)
    assert [name for name in now if name in before] == [before[0]]
    assert len(now) == 3
    verdict, record, manifest = verify(f"{place}/out", StoreOptions())
    assert verdict.problems == []
    assert manifest["output"].to_pylist() == now
    assert "incremental" not in json.dumps(record)
    for again in (flags(place), flags(place, "--incremental")):
        assert main(again) == 0
        assert "Nothing to do" in capfd.readouterr().out


def test_an_input_that_was_only_removed_takes_its_output_along(capfd: Capture, place: str) -> None:
    before, parts = outputs(place), set(names_in(f"{place}/out"))
    replace_input(place, 1, first=None)
    capfd.readouterr()
    assert main(flags(place, "--incremental")) == 0
    assert "0 rows computed" in capfd.readouterr().out
    assert outputs(place) == [before[0], before[2]]
    assert read_output(f"{place}/out")["id"].to_pylist() == [*range(10), *range(20, 30)]
    verdict, _, manifest = verify(f"{place}/out", StoreOptions())
    assert verdict.problems == []
    assert manifest["output"].to_pylist() == outputs(place)
    assert {name for name in names_in(f"{place}/out") if name.startswith("_manifest/")}.isdisjoint(parts)
    assert main(flags(place, "--incremental")) == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_where_the_mark_stands_no_row_is_there_twice(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_input(place, 1, first=100)
    marked = finish._mark_success
    seen: list[list[int]] = []

    def look(*args: Any) -> Any:
        seen.append(loose(read_output(f"{place}/out")["id"].to_pylist()))
        return marked(*args)

    monkeypatch.setattr(finish, "_mark_success", look)
    assert main(flags(place, "--incremental")) == 0
    assert seen == [[*range(10), *range(100, 110), *range(20, 30)]]


def test_what_a_crash_left_to_be_removed_is_removed_by_the_next_run(capfd: Capture, place: str) -> None:
    """Or another run that ended later."""
    store = open_store(place)
    old = {name: store.read(store.stat(f"{place}/out/{name}")) for name in outputs(place)[1:]}
    replace_input(place, 1, first=100)
    replace_input(place, 2, first=None)
    assert main(flags(place, "--incremental")) == 0
    for name, data in old.items():
        put(f"{place}/out/{name}", data)
    assert main(flags(place)) == 2
    capfd.readouterr()
    assert main(flags(place, "--incremental")) == 0
    assert "0 rows computed" in capfd.readouterr().out
    assert not old.keys() & set(outputs(place))
    assert read_output(f"{place}/out")["id"].to_pylist() == [*range(10), *range(100, 110)]


def test_only_outputs_of_this_very_job_give_way(capfd: Capture, place: str) -> None:
    (first, *_) = outputs(place)
    replace_input(place, 0, first=None)
    strange = first.removesuffix(".parquet")[:-12] + "0" * 12 + ".parquet"
    put_table(f"{place}/out/{strange}", rows(0, 10))
    capfd.readouterr()
    assert main(flags(place, "--incremental")) == 1
    err = capfd.readouterr().err
    assert f"{strange} is not part of this job" in err
    assert "_SUCCESS" not in names_in(f"{place}/out")
    assert strange in outputs(place)
    assert first in outputs(place)
    put_table(f"{place}/out/part-{0:012d}-{5:012d}-{'ab' * 10}.parquet", rows(0, 5))
    assert main(flags(place, "--incremental")) == 2
    assert "the output of another job" in capfd.readouterr().err


def test_another_input_names_the_pattern_to_begin_with(capfd: Capture, place: str) -> None:
    put_inputs(f"{place}/more", [10])
    capfd.readouterr()
    assert main(flags(place, f"--input={place}/more/*", "--incremental")) == 2
    error = capfd.readouterr().err
    assert "of another job: input differs." in error
    assert (
        f"one pattern for all of its files, such as --input='{place}/**/*.parquet'. For that, name another --output"
        in error
    )


def test_incremental_and_overwrite_contradict_each_other(capfd: Capture) -> None:
    assert main(["--model=m", "--input=i", "--output=o", "--incremental", "--overwrite"]) == 2
    assert "--incremental and --overwrite contradict" in capfd.readouterr().err
