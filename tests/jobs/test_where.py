"""`--where`: every row of the input is in the output, in the dead letters or counted as left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.storage import StoreOptions, open_store
from tests.support.jobs import names_in, put_table, read_output
from tests.support.strict import dead_letters_in, expected_y, mixed, put_mixed, strict_model

WHERE = "y > 20 and note != 'nöte 30'"
Capture = pytest.CaptureFixture[str]


def flags(folder: str, *more: str, where: str = WHERE) -> list[str]:
    asked = [f"--model={strict_model()}", f"--input={folder}/in/**", f"--output={folder}/out", "--keep=id,note"]
    return [*asked, "--batch_size=8", f"--where={where}", "--report=none", *more]


def stay(ids: Any) -> list[int]:
    return [one for one, y in zip(ids, expected_y(list(ids)), strict=True) if y > 20 and one != 30]


def checked(folder: str) -> list[dict[str, Any]]:
    """The manifest's rows of a sound output, each of whose rows are accounted for."""
    verdict, _, manifest = verify(f"{folder}/out", StoreOptions())
    assert verdict.problems == []
    rows = manifest.to_pylist()
    for row in rows:
        for span in [row, *(row["joined"] or [])]:
            predicted = (
                row["predicted_rows"] if span is row else span["rows"] - span["bad_rows"] - span["filtered_rows"]
            )
            assert span["rows"] == predicted + span["bad_rows"] + span["filtered_rows"]
        if row["joined"]:
            assert row["filtered_rows"] == sum(span["filtered_rows"] for span in row["joined"])
    mark = json.loads(open_store(folder).read(open_store(folder).stat(f"{folder}/out/_SUCCESS")))
    assert mark["filtered_rows"] == verdict.filtered_rows == sum(row["filtered_rows"] for row in rows)
    return rows


def outputs(folder: str) -> list[str]:
    return [name for name in names_in(f"{folder}/out") if parse_output_name(name) is not None]


def said_by(path: Path) -> dict[bytes, bytes]:
    """What the prediction file says of itself, for another one to say."""
    metadata: Any = pq.read_metadata(path).metadata
    return {key: value for key, value in metadata.items() if key != b"ARROW:schema"}


def delete(uri: str) -> None:
    store = open_store(uri)
    store.delete(store.stat(uri))


def test_rows_left_out_are_counted_wherever_rows_are(capfd: Capture, tmp_path: Path) -> None:
    """And a part of the output made again, as well as all of it, counts the same."""
    folder = str(tmp_path)
    put_mixed(f"{folder}/in", [20, 0, 5, 40], {})
    assert main(["plan", *flags(folder)]) == 0
    assert f"Where    {WHERE}" in capfd.readouterr().out
    assert main(flags(folder, "--json", f"--report={folder}/report.html")) == 0
    summary = json.loads(capfd.readouterr().out)
    wanted = stay(range(65))
    assert (summary["rows"], summary["rows_computed"], summary["filtered_rows"]) == (65, 65, 65 - len(wanted))
    assert read_output(f"{folder}/out")["id"].to_pylist() == wanted
    left_out = [20 - len(stay(range(20))), 0, 5 - len(stay(range(20, 25))), 40 - len(stay(range(25, 65)))]
    assert [row["filtered_rows"] for row in checked(folder)] == left_out
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"Of these, {65 - len(wanted)} are left out of the output by --where." in page
    assert main(["verify", f"--output={folder}/out"]) == 0
    assert f"Rows     65, 0 of them in dead letters, {65 - len(wanted)} left out by --where" in capfd.readouterr().out
    for gone in ([outputs(folder)[0]], []):
        for name in ["_SUCCESS", *gone]:
            delete(f"{folder}/out/{name}")
        assert main(flags(folder)) == 0
        out = capfd.readouterr().out
        assert f"Predictions of {len(wanted)} rows are in" in out
        assert f"{65 - len(wanted)} rows are left out: not {WHERE}" in out
        assert f"{20 * len(gone)} rows computed" in out
        assert [row["filtered_rows"] for row in checked(folder)] == left_out
    assert main(flags(folder, where="y > 21")) == 2
    assert "where differ" in capfd.readouterr().err


@pytest.mark.parametrize("compact", [False, True])
def test_bad_rows_and_rows_left_out_are_told_apart(capfd: Capture, tmp_path: Path, compact: bool) -> None:
    folder, bad = str(tmp_path), {3: "value", 25: "null", 26: "length"}
    put_mixed(f"{folder}/in", [20, 20, 20], bad)
    more = ["--on_error=dead_letter", "--max_bad_rows=3", *(["--compact"] if compact else [])]
    assert main(flags(folder, *more)) == 0, capfd.readouterr().err
    good = [one for one in range(60) if one not in bad]
    assert read_output(f"{folder}/out")["id"].to_pylist() == stay(good)
    rows = checked(folder)
    assert len(rows) == (1 if compact else 3)
    assert sum(table.num_rows for table in dead_letters_in(f"{folder}/out/_dead_letters").values()) == 3
    counts = [row["filtered_rows"] for row in (rows[0]["joined"] if compact else rows)]
    parts = [[one for one in good if first <= one < first + 20] for first in (0, 20, 40)]
    assert counts == [len(part) - len(stay(part)) for part in parts]
    delete(f"{folder}/out/_SUCCESS")
    assert main(flags(folder, *more)) == 0
    assert "0 rows computed" in capfd.readouterr().out
    assert [row["joined"] or row["filtered_rows"] for row in checked(folder)] == [
        row["joined"] or row["filtered_rows"] for row in rows
    ]


def test_a_sample_finds_each_batch_among_the_rows_that_stayed(capfd: Capture, tmp_path: Path) -> None:
    folder = str(tmp_path)
    put_mixed(f"{folder}/in", [60, 30, 12], {})
    run = flags(folder, "--compact")
    assert main(run) == 0
    capfd.readouterr()
    assert main(["verify", *run, "--sample=40", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["checks"]["sample"] == {"looked_at": 40, "wrong": 0}
    assert document["filtered_rows"] == 102 - len(stay(range(102)))
    assert document["notes"] == []
    (name,) = outputs(folder)
    path = tmp_path / "out" / name
    table = pq.read_table(path)
    y = table["y"].to_numpy() + 1
    pq.write_table(table.set_column(table.schema.get_field_index("y"), "y", [pa.array(y)]), path)
    assert main(["verify", *run, "--sample=40", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["checks"]["sample"]["wrong"] > 30


def test_a_row_at_the_bound_is_no_fault_where_the_last_bits_differ(capfd: Capture, tmp_path: Path) -> None:
    """As on another kind of machine; with bits that are equal it is one."""
    put_mixed(f"{tmp_path}/in", [8], {})
    run = flags(str(tmp_path), where="y > 3")
    assert main(run) == 0
    (name,) = outputs(str(tmp_path))
    table = pq.read_table(tmp_path / "out" / name)
    said = said_by(tmp_path / "out" / name)
    assert said[b"headrace.batch_kept"] == b"[[[8, 6]]]"
    said[b"headrace.batch_kept"] = b"[[[8, 5]]]"
    for y, wrong in ((table["y"].to_numpy(), 1), (table["y"].to_numpy() * np.float32(1 + 1e-6), 0)):
        fewer = table.set_column(table.schema.get_field_index("y"), "y", pa.chunked_array([y])).slice(1)
        pq.write_table(fewer.replace_schema_metadata(said), tmp_path / "out" / name)
        capfd.readouterr()
        main(["verify", *run, "--sample=1", "--json"])
        document = json.loads(capfd.readouterr().out)
        assert document["checks"]["sample"] == {"looked_at": 1, "wrong": wrong}
        assert bool(document["notes"]) == (not wrong)


def test_verify_finds_a_row_that_went_without_being_counted(tmp_path: Path) -> None:
    folder = str(tmp_path)
    put_mixed(f"{folder}/in", [30], {})
    assert main(flags(folder)) == 0
    (name,) = outputs(folder)
    table = pq.read_table(tmp_path / "out" / name)
    said = said_by(tmp_path / "out" / name)
    pq.write_table(table.slice(1).replace_schema_metadata(said), tmp_path / "out" / name)
    found = {
        problem.expected for problem in verify(f"{folder}/out", StoreOptions())[0].problems if problem.check == "rows"
    }
    assert found == {f"rows {table.num_rows}"}
    said[b"headrace.filtered_rows"] = b"9"
    pq.write_table(table.replace_schema_metadata(said), tmp_path / "out" / name)
    found = {
        problem.found for problem in verify(f"{folder}/out", StoreOptions())[0].problems if problem.check == "rows"
    }
    assert found == {"filtered rows 9"}


def test_a_job_may_leave_out_every_row_and_keeps_partition_folders(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for day, first in ((1, 0), (2, 20)):
        put_table(f"{folder}/in/dt={day}/a.parquet", mixed(first, 20, {}))
    assert main(flags(folder, where="y < 0")) == 0
    assert [row["filtered_rows"] for row in checked(folder)] == [20, 20]
    empty = read_output(f"{folder}/out")
    assert (empty.num_rows, empty.column_names) == (0, ["id", "note", "y"])
    assert {name.partition("/")[0] for name in outputs(folder)} == {"dt=1", "dt=2"}
    assert main(flags(folder, "--keep=id,dt", "--overwrite", where="dt == '2'")) == 0
    assert read_output(f"{folder}/out")["id"].to_pylist() == list(range(20, 40))
    assert [row["filtered_rows"] for row in checked(folder)] == [20, 0]


def test_inputs_that_come_and_go_are_counted_anew(tmp_path: Path) -> None:
    folder = str(tmp_path)
    put_mixed(f"{folder}/in", [20, 20], {})
    assert main(flags(folder)) == 0
    delete(f"{folder}/in/part-00000.parquet")
    put_table(f"{folder}/in/part-00002.parquet", mixed(40, 20, {}))
    assert main(flags(folder, "--incremental")) == 0
    assert read_output(f"{folder}/out")["id"].to_pylist() == stay(range(20, 60))
    assert sum(row["filtered_rows"] for row in checked(folder)) == 40 - len(stay(range(20, 60)))


def test_functions_come_before_the_condition_and_mistakes_before_any_output(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    put_mixed(f"{folder}/in", [40], {})
    (tmp_path / "halves_of_test.py").write_text(
        "def half(batch):\n    import pyarrow.compute as pc\n"
        "    return batch.append_column('half', pc.divide(batch['y'], 2))\n"
    )
    monkeypatch.syspath_prepend(folder)
    for where, said in (("half > 10", "'half'"), ("y > 'a'", "cannot be compared"), ("y >", "no condition")):
        assert main(["plan", *flags(folder, where=where)]) == 2
        assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    result = headrace.run(
        model=strict_model(),
        input=f"{folder}/in/*",
        output=f"{folder}/out",
        keep=["id", "note"],
        postprocess="halves_of_test:half",
        where="half > 10 and note != 'nöte 30'",
        report="none",
    )
    assert result.to_arrow()["id"].to_pylist() == stay(range(40))
    assert (result.rows, result.filtered_rows) == (40, 40 - len(stay(range(40))))


def test_predict_leaves_out_the_same_rows_and_keeps_their_index() -> None:
    table = mixed(0, 40, {})
    found = headrace.predict(strict_model(), table, keep=["id", "note"], where=WHERE, batch_size=7)
    assert found["id"].to_pylist() == stay(range(40))
    frame = pd.DataFrame(
        {"id": np.arange(40), "x": [np.array(one, np.float32) for one in table["x"].to_pylist()]},
        index=[f"row {i}" for i in range(40)],
    )
    rows = headrace.predict(strict_model(), frame, keep=["id"], where="y > 20 and id != 30")
    assert rows.index.tolist() == [f"row {i}" for i in stay(range(40))]
    assert np.array_equal(rows["y"], expected_y(stay(range(40))))
    assert headrace.predict(strict_model(), frame, keep=[], where="y < 0").empty
    with pytest.raises(headrace.ColumnError, match="names a column 'z'"):
        headrace.predict(strict_model(), table, where="z > 1")
    with pytest.raises(headrace.InvalidRequest, match="is no condition"):
        headrace.predict(strict_model(), iter([table]), where="y >")
