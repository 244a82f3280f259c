"""An output as version 0.1 left it: no claims, a mark without a claim, and versions of local files without a change time."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.storage import StoreOptions, open_store
from tests.support.jobs import model_folder, put_inputs, put_table, read_output, rows

Capture = pytest.CaptureFixture[str]
OLD = StoreOptions(change_times=False)


def flags(folder: Path, *more: str) -> list[str]:
    model = f"{model_folder()}/saved_model"
    return [f"--model={model}", f"--input={folder}/in/*", f"--output={folder}/out", "--batch_size=8", *more]


@pytest.fixture
def earlier(tmp_path: Path, capfd: Capture) -> Path:
    """A finished job of three files, in the form of version 0.1."""
    put_inputs(f"{tmp_path}/in", [10, 20, 30])
    out = tmp_path / "out"
    (out / "_headrace").mkdir(parents=True)
    begun = {"fingerprint": "0", "headrace_format": 1, "models": {"": {"digest": "0"}}}
    (out / "_headrace/job.json").write_text(json.dumps(begun))
    assert main(flags(tmp_path)) == 0
    shutil.rmtree(out / "_headrace/claims")
    for path in out.glob("part-*.parquet"):
        rewrite(path, path, pq.read_table(path))
    (part,) = (out / "_manifest").iterdir()
    manifest = [row | as_it_is(f"{out}/{row['output']}") for row in pq.read_table(part).to_pylist()]
    rewrite(part, part, pa.Table.from_pylist(manifest, pq.read_schema(part)))
    name = f"part-00000-{hashlib.sha256(part.read_bytes()).hexdigest()[:16]}.parquet"
    part.rename(part.with_name(name))
    mark = json.loads((out / "_SUCCESS").read_text())
    del mark["claim"], mark["digest"]
    (out / "_SUCCESS").write_text(json.dumps(mark | {"manifest": [f"_manifest/{name}"]}))
    capfd.readouterr()
    return tmp_path


def rewrite(path: Path, to: Path, table: pa.Table) -> None:
    said = dict(pq.read_metadata(path).metadata or {})
    del said[b"headrace.claim"], said[b"ARROW:schema"]
    pq.write_table(table.replace_schema_metadata(said), to, compression="zstd")


def as_it_is(uri: str) -> dict[str, Any]:
    ref = open_store(uri, OLD).stat(uri)
    crc = google_crc32c.value(Path(uri).read_bytes())
    return {"output_bytes": ref.size, "output_version": ref.version, "output_crc32c": crc}


def assert_sound(folder: Path, *, claim: int | None, of_format: int) -> None:
    verdict, record, _ = verify(f"{folder}/out", StoreOptions())
    assert verdict.problems == []
    assert record["headrace_format"] == of_format
    assert json.loads((folder / "out/_SUCCESS").read_text()).get("claim") == claim


def test_it_is_sound_and_done_and_goes_on_where_a_file_is_gone(earlier: Path, capfd: Capture) -> None:
    out, whole = earlier / "out", read_output(f"{earlier}/out")
    (earlier / "in/part-00001.parquet").chmod(0o600)  # it kept no change time, so that none has changed
    assert_sound(earlier, claim=None, of_format=1)
    assert main(flags(earlier)) == 0
    assert "Nothing to do" in capfd.readouterr().out
    (out / "_SUCCESS").unlink()
    next(out.glob("part-00001-*")).unlink()
    assert main(flags(earlier)) == 0
    said = capfd.readouterr().out
    assert "20 rows computed" in said
    assert "40 rows found done" in said
    assert_sound(earlier, claim=1, of_format=1)
    assert read_output(str(out)).equals(whole)
    assert [path.suffix for path in (out / "_manifest").iterdir()] == [".pq"]


def test_with_incremental_what_changed_is_predicted_and_the_rest_kept(earlier: Path, capfd: Capture) -> None:
    (earlier / "in/part-00002.parquet").unlink()
    put_table(f"{earlier}/in/part-00002.parquet", rows(500, 5))
    assert main(flags(earlier)) == 2
    assert "was made from an input that has been rewritten since" in capfd.readouterr().err
    assert main(flags(earlier, "--incremental")) == 0
    said = capfd.readouterr().out
    assert "5 rows computed" in said
    assert "30 rows found done" in said
    assert_sound(earlier, claim=1, of_format=1)
    assert read_output(f"{earlier}/out")["id"].to_pylist() == [*range(30), *range(500, 505)]
    assert main(flags(earlier)) == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_overwritten_it_is_a_job_of_today(earlier: Path, capfd: Capture) -> None:
    assert main(flags(earlier, "--overwrite")) == 0
    assert "60 rows computed" in capfd.readouterr().out
    assert_sound(earlier, claim=1, of_format=2)
    assert not list((earlier / "out/_manifest").glob("*.parquet"))
    (earlier / "in/part-00001.parquet").chmod(0o600)
    assert main(flags(earlier)) == 2
    assert "has been rewritten since" in capfd.readouterr().err
