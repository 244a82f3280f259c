"""Whole jobs whose rows fail: what is predicted, what goes to dead letters, and when the job fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.jobs.job import OnError
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.storage import open_store
from tests.support.jobs import names_in, put_table, read_output
from tests.support.loose import loose
from tests.support.strict import dead_letters_in, expected_y, mixed, put_mixed, strict_model

COUNTS = [40, 1, 60]
BAD = {7: "value", 8: "length", 30: "null", 40: "value", 100: "length"}
GOOD = [row for row in range(sum(COUNTS)) if row not in BAD]

Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, place: Any, *more: str, out: str = "out", on_error: str | None = "dead_letter") -> Any:
    argv = [f"--model={strict_model()}", f"--input={place}/in/*.parquet", f"--output={place}/{out}", "--batch_size=16"]
    code = main([*argv, *([f"--on_error={on_error}"] if on_error else []), *more])
    told = capfd.readouterr()
    return code, told.out, told.err


def records(out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`_SUCCESS`, and the manifest's rows."""
    store = open_store(out)
    mark = json.loads(store.read(store.stat(f"{out}/_SUCCESS")))
    (part,) = mark["manifest"]
    return mark, pq.read_table(store.open_arrow(store.stat(f"{out}/{part}"))).to_pylist()


def test_bad_rows_lie_in_dead_letters_with_all_that_is_known_and_the_rest_is_predicted(
    capfd: Capture, bucket: str
) -> None:
    tables = put_mixed(f"{bucket}/in", COUNTS, BAD)
    code, out, err = run(capfd, bucket, "--max_bad_rows=5", "--keep=id")
    assert code == 0, err
    assert f"Predictions of 96 rows are in {bucket}/out" in out
    assert f"5 rows could not be predicted and are in {bucket}/out/_dead_letters" in out
    assert "5 to dead letters" in err
    found = read_output(f"{bucket}/out")
    assert found["id"].to_pylist() == GOOD
    np.testing.assert_allclose(found["y"].to_numpy(), expected_y(GOOD), rtol=1e-6)
    dead = dead_letters_in(f"{bucket}/out/_dead_letters")
    files = [f"{bucket}/in/part-{i:05d}.parquet" for i in range(3)]
    stages = {"value": "model", "length": "features", "null": "features"}
    wanted = [
        [(files[0], 7, "value"), (files[0], 8, "length"), (files[0], 30, "null")],
        [(files[1], 0, "value")],
        [(files[2], 59, "length")],
    ]
    for table, source, rows in zip(dead.values(), tables, wanted, strict=True):
        # As read: columns that are neither kept nor fed to the model are not.
        assert table.schema.names == ["id", "x", "headrace_input", "headrace_row", "headrace_stage", "headrace_error"]
        assert table.select(["id", "x"]).equals(source.select(["id", "x"]).take([row for _, row, _ in rows]))
        assert table["headrace_input"].to_pylist() == [uri for uri, _, _ in rows]
        assert table["headrace_row"].to_pylist() == [row for _, row, _ in rows]
        assert table["headrace_stage"].to_pylist() == [stages[what] for _, _, what in rows]
        reasons = {"value": "a value is out of bounds", "length": "2 values", "null": "null"}
        for text, (uri, row, what) in zip(loose(table["headrace_error"].to_pylist()), rows, strict=True):
            assert reasons[what] in text
            assert uri in text
            assert str(row) in text


def test_records_name_dead_letters_and_account_for_every_row(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, BAD)
    assert run(capfd, tmp_path, "--max_bad_rows=5", f"--dead_letters={tmp_path}/dead")[0] == 0
    mark, manifest = records(f"{tmp_path}/out")
    assert (mark["rows"], mark["bad_rows"]) == (101, 5)
    names = list(dead_letters_in(f"{tmp_path}/dead"))
    assert [row["dead_letters"] for row in manifest] == [f"{tmp_path}/dead/{name}" for name in names]
    assert [(row["rows"], row["predicted_rows"], row["bad_rows"]) for row in manifest] == [
        (40, 37, 3),
        (1, 0, 1),
        (60, 59, 1),
    ]
    store = open_store(f"{tmp_path}")
    for row, name in zip(manifest, names, strict=True):
        assert name.startswith(row["output"].removesuffix(".parquet") + "-")
        file = pq.ParquetFile(store.open_arrow(store.stat(f"{tmp_path}/out/{row['output']}")))
        said = loose(file.metadata.metadata)
        assert said[b"headrace.bad_rows"] == str(row["bad_rows"]).encode()
        assert said[b"headrace.dead_letters"] == row["dead_letters"].encode()
        assert said[b"headrace.dead_letters_sha256"].decode().startswith(name.rpartition("-")[2].partition(".")[0])
        # A shard of which every row is bad has its file and its columns nevertheless.
        assert file.schema_arrow.names == ["id", "note", "y"]
    record = json.loads((tmp_path / "out/_headrace/job.json").read_bytes())
    assert (record["on_error"], record["max_bad_rows"]) == ("dead_letter", "5")
    capfd.readouterr()
    assert main(["verify", f"--output={tmp_path}/out"]) == 0
    assert "101, 5 of them in dead letters" in capfd.readouterr().out


def test_verify_finds_dead_letters_that_were_changed(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, BAD)
    assert run(capfd, tmp_path, "--max_bad_rows=5")[0] == 0
    path = next((tmp_path / "out/_dead_letters").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "id", pa.array([-1] * len(table), table["id"].type)), path)
    assert main(["verify", f"--output={tmp_path}/out"]) == 1
    told = capfd.readouterr().out
    wrong = rf"dead letters +3 +1 WRONG .*\n\n{path}\n  expected a content of the digest in its name\n"
    assert re.search(wrong, told, re.S)


def put_drifting(folder: str) -> None:
    """Three files, of which the second lacks a column that is read, has one that is not, and texts for whole numbers."""
    put_mixed(folder, [40, 6, 60], {7: "value"})
    store, uri = open_store(folder), f"{folder}/part-00001.parquet"
    store.delete(store.stat(uri))
    put_table(uri, pa.table({"other": [str(i) for i in range(6)], "id": [str(i) for i in range(40, 46)]}))


def test_all_rows_of_a_file_with_another_schema_go_to_dead_letters_with_their_own_columns(
    capfd: Capture, bucket: str
) -> None:
    put_drifting(f"{bucket}/in")
    flags = ("--max_bad_rows=7", "--keep=id")
    code, out, err = run(capfd, bucket, *flags)
    assert code == 0, err
    assert "7 rows could not be predicted" in out
    assert read_output(f"{bucket}/out")["id"].to_pylist() == [i for i in range(106) if i != 7 and not 40 <= i < 46]
    ordinary, own = dead_letters_in(f"{bucket}/out/_dead_letters").values()
    assert ordinary.schema.names[:2] == ["id", "x"]
    assert own.schema.names == ["other", "id", "headrace_input", "headrace_row", "headrace_stage", "headrace_error"]
    assert own["other"].to_pylist() == [str(i) for i in range(6)]
    assert own["headrace_row"].to_pylist() == list(range(6))
    assert set(own["headrace_input"].to_pylist()) == {f"{bucket}/in/part-00001.parquet"}
    assert set(own["headrace_stage"].to_pylist()) == {"schema"}
    (told,) = set(loose(own["headrace_error"].to_pylist()))
    assert told.endswith("in column 'id'. Expected: id: int64. Found: id: string.")
    manifest = records(f"{bucket}/out")[1]
    assert [(row["predicted_rows"], row["bad_rows"]) for row in manifest] == [(39, 1), (0, 6), (60, 0)]
    assert main(["verify", f"--output={bucket}/out"]) == 0
    assert (
        main(
            [
                *(f"--model={strict_model()}", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"),
                *flags,
                "--batch_size=16",
                "--on_error=dead_letter",
            ]
        )
        == 0
    )
    assert "Nothing to do" in capfd.readouterr().out
    store = open_store(bucket)
    for name in ("_SUCCESS", manifest[2]["output"]):
        store.delete(store.stat(f"{bucket}/out/{name}"))
    code, out, err = run(capfd, bucket, *flags)
    assert code == 0, err
    assert "60 rows computed" in out
    assert records(f"{bucket}/out")[1][1]["dead_letters"] == manifest[1]["dead_letters"]
    assert main(["verify", f"--output={bucket}/out"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            [],
            "none of its 6 rows can be predicted. Expected: id: int64; or 1 such rows at most (--max_bad_rows=1%)",
        ),
        (["--max_bad_rows=6"], "Too many rows cannot be predicted among the job's 106 rows. Expected: 6 at most"),
    ],
)
def test_more_rows_of_another_schema_than_the_bound_fail_the_job(
    capfd: Capture, tmp_path: Path, more: list[str], told: str
) -> None:
    put_drifting(f"{tmp_path}/in")
    code, _, err = run(capfd, tmp_path, "--keep=id", *more)
    assert code == 1
    assert told in err
    assert "with another --max_bad_rows" in err
    # Where one file alone is too much, that is known before anything is predicted.
    assert any(parse_output_name(name) for name in names_in(f"{tmp_path}/out")) == bool(more)


def test_a_job_without_bad_rows_leaves_no_trace_of_dead_letters(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, {})
    code, out, err = run(capfd, tmp_path)
    assert code == 0, err
    assert "could not be predicted" not in out
    assert not any("_dead_letters" in name for name in names_in(f"{tmp_path}/out"))
    assert {row["dead_letters"] for row in records(f"{tmp_path}/out")[1]} == {None}


def test_by_default_the_first_bad_row_fails_the_job_which_names_it(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", [50], {33: "value", 44: "value"})
    code, _, err = run(capfd, tmp_path, on_error=None)
    assert code == 1
    assert (
        f"Row 33 (counted from 0) of {tmp_path}/in/part-00000.parquet cannot be predicted: the model fails on it" in err
    )
    assert "a value is out of bounds" in err
    assert "--on_error=dead_letter" in err
    assert not any(parse_output_name(name) for name in names_in(f"{tmp_path}/out"))


@pytest.mark.parametrize(
    ("most", "rows", "allowed"),
    [
        ("0", 50, 0),
        ("7", 50, 7),
        ("1%", 0, 0),
        ("1%", 1, 1),
        ("1%", 100, 1),
        ("1%", 101, 2),
        ("0.1%", 3000, 3),
        ("0%", 9, 0),
    ],
)
def test_a_share_is_rounded_up_to_a_whole_row(most: str, rows: int, allowed: int) -> None:
    assert OnError("dead", most).allowed(rows) == allowed


@pytest.mark.parametrize(
    ("most", "counts", "bad", "told"),
    [
        ("2", [50], [1, 2, 3], "among rows 0-49 of {}/in/part-00000.parquet"),
        ("2", [20, 20, 20], [1, 21, 41], "among the job's 60 rows"),
        ("2%", [10, 10, 10, 21], [1, 11, 21, 31], "among the job's 51 rows"),
        (None, [99], [1, 2], "among rows 0-98"),
        ("100%", [3, 2], [0, 1, 2, 3, 4], "among the job's 5 rows"),
        ("100%", [1, 0], [0], "among the job's 1 row."),
        ("100%", [3, 2], [0, 1, 2, 3], None),
    ],
)
def test_more_bad_rows_than_the_bound_fail_the_shard_or_the_job(
    capfd: Capture, tmp_path: Path, most: str | None, counts: list[int], bad: list[int], told: str | None
) -> None:
    put_mixed(f"{tmp_path}/in", counts, dict.fromkeys(bad, "length"))
    code, _, err = run(capfd, tmp_path, *([f"--max_bad_rows={most}"] if most else []))
    if told is None:
        assert code == 0, err
        assert records(f"{tmp_path}/out")[0]["bad_rows"] == len(bad)
        return
    assert code == 1
    assert "Too many rows cannot be predicted " + told.format(tmp_path) in err
    assert f"row {bad[0]} (features): " in err
    assert ("with another --max_bad_rows" in err) == (most != "100%"), "none lets a job through that predicts nothing"
    assert "_SUCCESS" not in names_in(f"{tmp_path}/out")


def test_a_job_that_failed_for_its_bound_goes_on_with_another(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", [20, 20, 20], dict.fromkeys([1, 21, 41], "length"))
    assert run(capfd, tmp_path, "--max_bad_rows=2")[0] == 1
    code, out, err = run(capfd, tmp_path, "--max_bad_rows=3")
    assert code == 0, err
    assert "0 rows computed" in out
    assert "60 rows found done" in out
    assert "3 rows could not be predicted" in out


def test_a_run_that_resumes_knows_the_bad_rows_of_what_it_finds(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, BAD)
    assert run(capfd, tmp_path, "--max_bad_rows=5")[0] == 0
    out = tmp_path / "out"
    before, dead = read_output(str(out)), dead_letters_in(f"{out}/_dead_letters")
    _, manifest = records(str(out))
    (out / manifest[2]["output"]).unlink()
    (out / "_SUCCESS").unlink()
    # What an attempt left that came to nothing, and what another output of an equal job left in the same folder.
    orphan = next(name for name in dead if name.startswith("part-00000"))
    put_table(f"{out}/_dead_letters/{orphan[:-19]}0123456701234567.pq", list(dead.values())[1])
    metadata = {b"headrace.output": f"{out}/{manifest[0]['output']}".encode()}
    left = f"{out}/_dead_letters/{orphan[:-19]}89abcdef89abcdef.pq"
    put_table(left, list(dead.values())[1].replace_schema_metadata(metadata))
    code, told, err = run(capfd, tmp_path, "--max_bad_rows=5")
    assert code == 0, err
    assert "60 rows computed" in told
    assert "41 rows found done" in told
    assert read_output(str(out)).equals(before)
    assert records(str(out))[0]["bad_rows"] == 5
    after = dead_letters_in(f"{out}/_dead_letters")
    assert after.keys() - {row["dead_letters"].rpartition("/")[2] for row in records(str(out))[1]} == {
        f"{orphan[:-19]}0123456701234567.pq"
    }


def test_dead_letters_that_have_vanished_are_missed(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", [20, 20], {1: "null", 21: "null"})
    assert run(capfd, tmp_path, "--max_bad_rows=1")[0] == 1
    (gone, *_) = sorted((tmp_path / "out/_dead_letters").iterdir())
    put_table(f"{gone}".replace(".pq", "")[:-16] + "0" * 16 + ".pq", mixed(0, 1, {}))
    gone.unlink()
    code, _, err = run(capfd, tmp_path, "--max_bad_rows=2")
    assert code == 1
    assert "has vanished since it was written" in err


def test_overwriting_a_job_takes_its_dead_letters_away(capfd: Capture, tmp_path: Path) -> None:
    put_mixed(f"{tmp_path}/in", [20], {3: "null"})
    folder = f"--dead_letters={tmp_path}/dead"
    assert run(capfd, tmp_path, folder, "--max_bad_rows=1")[0] == 0
    assert run(capfd, tmp_path, folder, "--max_bad_rows=1", out="other")[0] == 0
    assert len(dead_letters_in(f"{tmp_path}/dead")) == 2
    code, _, err = run(capfd, tmp_path, on_error=None)
    assert code == 2
    assert "on_error" in err
    (tmp_path / "in/part-00000.parquet").unlink()
    put_mixed(f"{tmp_path}/in", [20], {})
    assert run(capfd, tmp_path, "--overwrite", on_error=None)[0] == 0
    assert len(dead_letters_in(f"{tmp_path}/dead")) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--max_bad_rows=3"], "--max_bad_rows=3 does nothing where the first bad row fails the job"),
        (["--dead_letters=dead"], "Add --on_error=dead_letter"),
        (["--on_error=dead_letter", "--max_bad_rows=-1"], "--max_bad_rows=-1 is not a number of rows"),
        (["--on_error=dead_letter", "--max_bad_rows=101%"], "not a number of rows"),
        (["--on_error=dead_letter", "--max_bad_rows=some"], "not a number of rows"),
        (["--on_error=dead_letter", "--dead_letters={}/out/sub"], "not a folder of its own"),
        (["--on_error=dead_letter", "--dead_letters={}/in"], "is where --input reads from"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(
    capfd: Capture, tmp_path: Path, flags: list[str], told: str
) -> None:
    put_mixed(f"{tmp_path}/in", [4], {})
    code, _, err = run(capfd, tmp_path, *(flag.format(tmp_path) for flag in flags), on_error=None)
    assert code == 2
    assert told in err
    assert not (tmp_path / "out").exists()


def test_an_input_whose_columns_clash_with_those_of_dead_letters_is_refused(capfd: Capture, tmp_path: Path) -> None:
    table = mixed(0, 4, {})
    put_table(f"{tmp_path}/in/part-00000.parquet", table.append_column("headrace_row", table["id"]))
    code, _, err = run(capfd, tmp_path)
    assert code == 2
    assert "a column 'headrace_row', and so have dead letters" in err
    assert run(capfd, tmp_path, "--keep=id")[0] == 0
