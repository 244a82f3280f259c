"""`--compact`: the rows of small files in outputs of bounded size; what they hold, how they resume, and what is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.errors import ColumnError
from headrace.transforms.jobs.input_files import together
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import ObjectRef, StoreOptions, open_store
from tests.support.jobs import model_folder, names_in, put, put_inputs, put_table, read_output, rows
from tests.support.plans import plain_job
from tests.support.strict import dead_letters_in, put_mixed, strict_model

Capture = pytest.CaptureFixture[str]


def flags(folder: str, *more: str, out: str = "out", model: str = "") -> list[str]:
    asked = [
        f"--model={model or f'{model_folder()}/saved_model'}",
        f"--input={folder}/in/**",
        f"--output={folder}/{out}",
    ]
    return [*asked, "--batch_size=8", *more]


def compact(folder: str, *more: str, **how: str) -> list[str]:
    return flags(folder, "--compact", f"--shard_bytes={JOINED_BYTES}", *more, **how)


JOINED_BYTES = 9_000
"""Some six files of ten rows."""


def outputs(folder: str) -> list[str]:
    return [name for name in names_in(folder) if parse_output_name(name) is not None]


def manifest_of(folder: str) -> list[dict[str, Any]]:
    verdict, _, manifest = verify(folder, StoreOptions())
    assert verdict.problems == []
    return manifest.to_pylist()


def delete(uri: str) -> None:
    store = open_store(uri)
    store.delete(store.stat(uri))


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Thirty files of ten rows, the last without any, in two folders, beside one large file; predicted in few outputs."""
    folder = f"memory://{tmp_path.name}-{tmp_path.parent.name}"
    first = 0
    for day, count in ((1, 20), (2, 10)):
        tables = [rows(first + 10 * i, 10) for i in range(count)]
        for i, table in enumerate(tables):
            put_table(f"{folder}/in/dt={day}/part-{i:02d}.parquet", table if (day, i) != (2, 9) else table.slice(0, 0))
        first += 10 * count
    put_table(f"{folder}/in/dt=2/part-99.parquet", rows(1000, 2000), row_group_size=400)
    assert main(compact(folder)) == 0
    return folder


def test_outputs_are_few_bounded_and_in_order_and_hold_what_the_plain_job_predicts(place: str) -> None:
    assert main(flags(place, out="plain")) == 0
    assert read_output(f"{place}/out").equals(read_output(f"{place}/plain"))
    manifest = manifest_of(f"{place}/out")
    assert [row["output"] for row in manifest] == outputs(f"{place}/out")
    joined = [row for row in manifest if row["joined"]]
    assert 4 <= len(joined) <= 8
    seen = []
    for row in joined:
        names = [part["input"].removeprefix(f"{place}/in/") for part in row["joined"]]
        assert len({name.partition("/")[0] for name in names}) == 1, "no output has rows of two partitions"
        assert row["output"].startswith(names[0].removesuffix(".parquet") + "-")
        assert sum(part["input_bytes"] for part in row["joined"]) <= JOINED_BYTES
        assert row["rows"] == row["predicted_rows"] == sum(part["rows"] for part in row["joined"])
        seen += names
    assert seen == [f"dt={day}/part-{i:02d}.parquet" for day, count in ((1, 20), (2, 10)) for i in range(count)]
    assert all(row["input"].endswith("part-99.parquet") for row in manifest if not row["joined"])
    assert main(["verify", *compact(place, "--sample=6")]) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 120)), max_size=60))
def test_what_is_joined_is_a_function_of_the_listing_and_its_own_fixed_point(sized: list[tuple[str, int]]) -> None:
    files = [ObjectRef(f"memory://b/{folder}/{i}", size, "1") for i, (folder, size) in enumerate(sized)]
    groups = list(together(files, 100))
    assert [ref for group in groups for ref in group] == files
    assert all(len({ref.uri.rpartition("/")[0] for ref in group}) == 1 for group in groups)
    assert all(len(group) == 1 or sum(ref.size for ref in group) <= 100 for group in groups)
    assert [again for group in groups for again in together(group, 100)] == groups
    assert list(together(files, None)) == [(ref,) for ref in files]


def test_a_run_that_was_cut_off_goes_on_and_a_finished_one_has_nothing_to_do(capfd: Capture, place: str) -> None:
    before, names = read_output(f"{place}/out"), outputs(f"{place}/out")
    capfd.readouterr()
    assert main(compact(place)) == 0
    assert f"Nothing to do: all {len(names)} shards are" in capfd.readouterr().out
    delete(f"{place}/out/_SUCCESS")
    for name in names[1:3]:
        delete(f"{place}/out/{name}")
    kept = {ref.uri: ref.version for ref in open_store(place).list(f"{place}/out/part")}
    assert main(compact(place)) == 0
    out, err = capfd.readouterr()
    assert f"Going on: {len(names) - 2} shards are" in err
    assert outputs(f"{place}/out") == names
    assert kept.items() <= {ref.uri: ref.version for ref in open_store(place).list(f"{place}/out/part")}.items()
    assert read_output(f"{place}/out").equals(before)
    assert "found done" in out
    manifest_of(f"{place}/out")


def test_a_file_that_changed_is_told_and_with_incremental_only_its_output_is_made_again(
    capfd: Capture, place: str
) -> None:
    names = outputs(f"{place}/out")
    delete(f"{place}/in/dt=1/part-19.parquet")
    put_table(f"{place}/in/dt=1/part-19.parquet", rows(5000, 10))
    capfd.readouterr()
    assert main(compact(place)) == 2
    err = capfd.readouterr().err
    assert "joins files other than --compact joins now: one was rewritten, is gone or new since" in err
    assert "Add --incremental" in err
    assert main(compact(place, "--incremental")) == 0
    assert "1 output of inputs that changed or vanished will be removed" in capfd.readouterr().err
    now = outputs(f"{place}/out")
    assert len(set(names) - set(now)) == 1
    assert len(now) == len(names)
    assert 5000 in read_output(f"{place}/out")["id"].to_pylist()
    manifest_of(f"{place}/out")
    assert main(flags(place)) == 2, "a job that does not join is another job"
    assert "compact" in capfd.readouterr().err
    assert main(compact(place, "--keep=", out="other")) == 0
    stray, *_ = outputs(f"{place}/other")
    store = open_store(place)
    put(f"{place}/out/{stray}", store.read(store.stat(f"{place}/other/{stray}")))
    assert main(flags(place, "--overwrite")) == 0, "what an equal or another job left there says itself what it is"
    assert not set(outputs(f"{place}/out")) & {stray, *now}


@pytest.mark.parametrize("harm", ["dropped", "swapped", "other inputs"])
def test_verify_finds_what_is_wrong_with_an_output_of_many_files(place: str, harm: str) -> None:
    store, (one, two, *_) = open_store(place), outputs(f"{place}/out")
    uri, other = f"{place}/out/{one}", f"{place}/out/{two}"
    table = pq.read_table(store.open_arrow(store.stat(uri)))
    content, changed = store.read(store.stat(other)), table.schema.metadata
    if harm == "dropped":
        table = table.slice(1)
    if harm == "other inputs":
        table = table.replace_schema_metadata({**changed, b"headrace.joined": b"0" * 64})
    delete(uri)
    if harm == "swapped":
        put(uri, content)
    else:
        put_table(uri, table)
    verdict, _, _ = verify(f"{place}/out", StoreOptions())
    wanted = {"dropped": {"bytes", "rows"}, "swapped": {"bytes", "identity"}, "other inputs": {"bytes", "identity"}}[
        harm
    ]
    assert wanted <= {problem.check for problem in verdict.problems}
    assert {problem.where for problem in verdict.problems} == {uri}


def test_dead_letters_of_joined_files_name_file_and_row_and_a_resumed_run_knows_them(
    capfd: Capture, tmp_path: Path
) -> None:
    put_mixed(f"{tmp_path}/in", [10, 10, 10, 10], {3: "value", 25: "null"})
    run = compact(str(tmp_path), "--on_error=dead_letter", "--max_bad_rows=2", model=str(strict_model()))
    assert main(run) == 0, capfd.readouterr().err
    (dead,) = dead_letters_in(f"{tmp_path}/out/_dead_letters").values()
    where = [f"{tmp_path}/in/part-{i:05d}.parquet" for i in range(4)]
    assert dead["headrace_input"].to_pylist() == [where[0], where[2]]
    assert dead["headrace_row"].to_pylist() == [3, 5]
    (row,) = manifest_of(f"{tmp_path}/out")
    assert [(part["input"], part["rows"], part["bad_rows"]) for part in row["joined"]] == [
        (uri, 10, bad) for uri, bad in zip(where, [1, 0, 1, 0], strict=True)
    ]
    assert (row["rows"], row["predicted_rows"], row["bad_rows"]) == (40, 38, 2)
    (tmp_path / "out/_SUCCESS").unlink()
    assert main(run) == 0
    assert "0 rows computed" in capfd.readouterr().out
    (again,) = manifest_of(f"{tmp_path}/out")
    assert again["joined"] == row["joined"]
    record = json.loads((tmp_path / "out/_headrace/job.json").read_bytes())
    assert record["compact"] is True
    (path,) = (tmp_path / "out/_dead_letters").iterdir()
    path.unlink()
    moved = dead.set_column(dead.schema.get_field_index("headrace_input"), "headrace_input", [[where[0], where[1]]])
    put_table(str(path), moved)
    verdict, _, _ = verify(f"{tmp_path}/out", StoreOptions())
    assert {problem.check for problem in verdict.problems} == {"dead letters"}


def test_files_of_another_schema_are_not_joined(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [10, 10])
    put_table(f"{tmp_path}/in/part-00002.parquet", rows(20, 10).select(["id", "x"]))
    job = plain_job(f"{tmp_path}/in/*.parquet", compact=True)
    with pytest.raises(ColumnError, match=r"part-00002.*'name'.*without --compact, which joins files of one schema"):
        list(plan_shards(job, input_files(job)))


def test_compact_and_limit_contradict_each_other(capfd: Capture) -> None:
    assert main(["--model=m", "--input=i", "--output=o", "--compact", "--limit=3"]) == 2
    assert "--compact and --limit contradict" in capfd.readouterr().err


def test_a_single_file_is_one_output_or_is_refused_before_anything_is_written(tmp_path: Path, capfd: Capture) -> None:
    folder = f"memory://{tmp_path.name}-{tmp_path.parent.name}"
    for i in range(3):
        put_table(f"{folder}/in/part-{i}.parquet", rows(10 * i, 10))
    single = ("--compact", "--single_file")
    assert main(flags(folder, *single)) == 0
    assert len(outputs(f"{folder}/out")) == 1
    assert [len(row["joined"]) for row in manifest_of(f"{folder}/out")] == [3]
    assert main(flags(folder, out="plain")) == 0
    assert read_output(f"{folder}/out").equals(read_output(f"{folder}/plain"))
    capfd.readouterr()

    size = sum(ref.size for ref in open_store(folder).list(f"{folder}/in"))
    for harm, found, fix in (
        ((f"--shard_bytes={size - 1}",), f"{size:,} bytes in 3 files", f"--shard_bytes={size}"),
        ((), "4 files", "docs/one_file.md"),
    ):
        if not harm:
            put_table(f"{folder}/in/other/part-9.parquet", rows(100, 10))
        assert main(flags(folder, *single, *harm, out="refused")) == 2
        err = capfd.readouterr().err
        assert found in err
        assert fix in err
        assert not names_in(f"{folder}/refused")
    assert main(flags(folder, "--single_file", out="refused")) == 2
    assert "Add --compact" in capfd.readouterr().err
