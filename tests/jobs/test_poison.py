"""Whole jobs of which some shards fail: what is done all the same, what is listed, and what the same command then does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.pipeline.cli import main
from headrace.transforms.errors import OutputIncomplete, ShardsFailed
from headrace.transforms.report.kept import read_report
from headrace.transforms.storage import open_store
from tests.support.jobs import names_in, put_table, read_output
from tests.support.strict import expected_y, mixed, put_mixed, strict_model

COUNTS = [10] * 12
ROWS = sum(COUNTS)
SKIP = "--on_error=skip_shard"
PORTABLE = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")

Capture = pytest.CaptureFixture[str]


def command(place: Path, *more: str) -> list[str]:
    # Without --shard_bytes: the small shards are one unit of work.
    return [f"--model={strict_model()}", f"--input={place}/in/*.parquet", f"--output={place}/out", "--keep=id", *more]


def outputs(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "out").glob("*.parquet"))


def lists(place: Path) -> list[str]:
    return [name for name in names_in(f"{place}/out") if name.startswith("_manifest/failed-")]


@contextmanager
def dask() -> Iterator[tuple[str, ...]]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield "--runner=DaskRunner", f"--dask_client_address={cluster.scheduler_address}"


RUNNERS: dict[str, Any] = {"direct": nullcontext(()), "portable": nullcontext(PORTABLE), "dask": dask()}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_others_are_done_the_failed_are_listed_and_the_same_command_computes_these_alone(
    runner: str, tmp_path: Path, capfd: Capture
) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, {3: "value", 75: "length"})
    with RUNNERS[runner] as flags:
        assert main(command(tmp_path, SKIP, "--json", *flags)) == 1
        said = capfd.readouterr()
        summary = json.loads(said.out)
        assert (summary["shards"], summary["failed_shards"]) == (10, 2)
        assert (summary["rows"], summary["failed_rows"], summary["complete"]) == (100, 20, False)
        assert "The job failed: 2 of 12 shards failed" in said.err
        if runner != "dask":  # whose counters come after a task's end
            assert "failed" in said.err.partition("The job failed")[0]
        assert len(outputs(tmp_path)) == 10
        assert not (tmp_path / "out/_SUCCESS").exists()
        (listed,) = lists(tmp_path)
        assert summary["failed_list"] == f"{tmp_path}/out/{listed}"
        table = pq.read_table(tmp_path / "out" / listed).to_pylist()
        assert table == summary["failed"]
        assert [(one["input"], one["first_row"], one["rows"]) for one in table] == [
            (f"{tmp_path}/in/part-0000{i}.parquet", 0, 10) for i in (0, 7)
        ]
        assert "a value is out of bounds" in table[0]["reason"]
        assert "row 5" in table[1]["reason"].lower()
        page = (tmp_path / "out/_headrace/report.html").read_text()
        assert "Shards that failed" in page
        assert "2 of 12 shards failed: 20 rows have no predictions" in page
        before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in outputs(tmp_path)}
        if runner == "direct":  # nothing is fixed: the same two fail again
            assert main(command(tmp_path, SKIP)) == 1
            said = capfd.readouterr()
            assert "2 of 12 shards failed; 20 of 120 rows have no predictions" in said.out
            assert f"{tmp_path}/in/part-00000.parquet, rows 0-9: " in said.out
            assert len(lists(tmp_path)) == 1
        for i in (0, 7):
            put_again(tmp_path, i)
        assert main(command(tmp_path, SKIP, "--json", *flags)) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["rows"], summary["rows_computed"], summary["shards"]) == (120, 20, 12)
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in outputs(tmp_path)}
    assert after | before == after
    assert lists(tmp_path) == []
    found = read_output(f"{tmp_path}/out")
    assert found["id"].to_pylist() == list(range(ROWS))
    np.testing.assert_allclose(found["y"].to_numpy(), expected_y(list(range(ROWS))), rtol=1e-6)
    assert main(["verify", f"--output={tmp_path}/out"]) == 0


def put_again(place: Path, i: int) -> None:
    (place / f"in/part-{i:05d}.parquet").unlink()
    put_table(f"{place}/in/part-{i:05d}.parquet", mixed(10 * i, 10, {}))


def test_a_job_that_a_row_is_to_fail_does_the_others_before(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, {3: "value"})
    assert main(command(tmp_path)) == 1
    said = capfd.readouterr()
    assert f"Row 3 (counted from 0) of {tmp_path}/in/part-00000.parquet" in said.err.partition("The job failed: ")[2]
    assert "11 shards of the job are done and will not be computed again" in said.err
    assert said.out == ""
    assert len(outputs(tmp_path)) == 11
    assert not (tmp_path / "out/_SUCCESS").exists()
    assert lists(tmp_path) == []
    # Both policies make the same files.
    put_again(tmp_path, 0)
    assert main(command(tmp_path, SKIP, "--json")) == 0
    assert json.loads(capfd.readouterr().out)["rows_computed"] == 10


def test_where_nothing_can_be_predicted_the_job_fails_and_lists_nothing(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS[:2], {3: "value", 15: "value"})
    assert main(command(tmp_path, SKIP)) == 1
    said = capfd.readouterr()
    assert "The job failed: No shard of" in said.err
    assert "Found: 2 failed shards; the first: Row 3 (counted from 0)" in said.err
    assert said.out == ""
    assert lists(tmp_path) == outputs(tmp_path) == []


def test_more_failed_shards_than_the_bound_fail_the_job(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS[:4], {3: "value", 15: "value"})
    assert main(command(tmp_path, SKIP, "--max_failed_shards=1")) == 1
    said = capfd.readouterr().err
    assert "The job failed: Too many shards failed. Expected: 1 at most (--max_failed_shards)." in said
    assert lists(tmp_path) == []
    assert main(command(tmp_path, SKIP, "--max_failed_shards=2")) == 1
    assert len(lists(tmp_path)) == 1


def slowly(batch: pa.RecordBatch) -> pa.RecordBatch:
    if 0 in batch["id"].to_pylist():
        time.sleep(1)
    return batch


def test_a_job_that_gives_up_finishes_the_shards_that_run(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", [10] * 20, {10 * i + 3: "value" for i in range(1, 20)})
    assert main(command(tmp_path, "--preprocess=tests.jobs.test_poison:slowly")) == 1
    assert "The job failed: Row 3 (counted from 0)" in capfd.readouterr().err
    assert [name[:10] for name in outputs(tmp_path)] == ["part-00000"]


def refused(batch: pa.RecordBatch) -> pa.RecordBatch:
    if 35 in batch["id"].to_pylist():
        raise ConnectionRefusedError("no answer of the feature store")
    return batch


def test_what_is_not_of_a_shard_fails_the_job_at_once(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS, {})
    how = (SKIP, "--preprocess=tests.jobs.test_poison:refused", "--feature=x=x")
    assert main(command(tmp_path, *how)) == 1
    said = capfd.readouterr().err
    assert "no answer of the feature store" in said
    assert len(outputs(tmp_path)) < 11
    assert lists(tmp_path) == []


def test_files_of_another_schema_and_damaged_pages_fail_their_own_shards_alone(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS[:5], {}, compression="none", write_page_checksum=True)
    put_table(f"{tmp_path}/in/part-00002.parquet.tmp", pa.table({"id": [1, 2], "x": ["a", "b"]}))
    (tmp_path / "in/part-00002.parquet.tmp").rename(tmp_path / "in/part-00002.parquet")
    damaged = tmp_path / "in/part-00004.parquet"
    data = bytearray(damaged.read_bytes())
    at = data.index(np.float32(1.0).tobytes())
    data[at] ^= 1
    damaged.write_bytes(data)
    assert main(command(tmp_path, SKIP, "--json")) == 1
    summary = json.loads(capfd.readouterr().out)
    assert [(one["input"][-13:], one["error"]) for one in summary["failed"]] == [
        ("00002.parquet", "ColumnError"),
        ("00004.parquet", "NotParquet"),
    ]
    assert summary["shards"] == 3


def test_python_gets_an_error_with_the_summary_and_verify_names_the_list(tmp_path: Path, capfd: Capture) -> None:
    put_mixed(f"{tmp_path}/in", COUNTS[:3], {3: "value"})
    given: dict[str, Any] = {"model": strict_model(), "input": f"{tmp_path}/in/*.parquet", "output": f"{tmp_path}/out"}
    with pytest.raises(ShardsFailed, match="1 of 3 shards failed") as caught:
        headrace.run(**given, on_error="skip_shard")
    assert caught.value.began
    assert caught.value.document is not None
    assert caught.value.document["failed_shards"] == 1
    assert caught.value.text.startswith("NOT complete: 1 of 3 shards failed")
    with pytest.raises(OutputIncomplete, match=r"failed shards, listed in _manifest/failed-"):
        headrace.verify(output=given["output"])
    # Another job's --overwrite removes the list too.
    put_again(tmp_path, 0)
    headrace.run(**given, overwrite=True, batch_size=4)
    assert lists(tmp_path) == []
    store = open_store(given["output"])
    kept = read_report(store, store.stat(f"{given['output']}/_headrace/report.html"))
    assert kept.rows == 30
