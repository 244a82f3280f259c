"""`verify` finds what went wrong with a finished output, and says nothing of a sound one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.nested_arrow import flat
from headrace.transforms.storage import StoreOptions
from tests.support.fault_table import tell
from tests.support.jobs import model_folder, put_inputs, put_model
from tests.support.loose import loose

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out`, of six files, and `other`, the same by another model; made once, copied for each test."""
    folder = tmp_path_factory.mktemp("verify")
    put_inputs(f"{folder}/in", (300, 0, 90), row_group_size=60)
    put_model("saved_model", f"{folder}/model")
    put_model("model.keras", f"{folder}/model.keras")
    for model, out in (("model", "out"), ("model.keras", "other")):
        assert main([*job(folder, model), f"--output={folder}/{out}"]) == 0
    return folder


def job(folder: Path, model: str = "model") -> list[str]:
    return [
        f"--model={folder}/{model}",
        f"--input={folder}/in/*.parquet",
        "--shard_bytes=2000",
        "--batch_size=16",
        "--prediction=output_0=p",
    ]


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "out", copy_function=_keep_identity))


def _keep_identity(source: str, target: str) -> None:
    """A local object's version is its file: a link is the same one, until a test replaces it."""
    os.link(source, target)


def files(output: Path) -> list[Path]:
    return sorted(output.glob("*.parquet"))


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def remove(output: Path, finished: Path) -> None:
    files(output)[1].unlink()


def drop_a_row(output: Path, finished: Path) -> None:
    path = files(output)[1]
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.slice(1), path)


def swap(output: Path, finished: Path) -> None:
    first, second = files(output)[:2]
    a, b = first.read_bytes(), second.read_bytes()
    replace(first, b)
    replace(second, a)


def flip_in_a_page(output: Path, finished: Path) -> None:
    data = bytearray(files(output)[1].read_bytes())
    data[200] ^= 0x10
    replace(files(output)[1], bytes(data))


def flip_in_the_footer(output: Path, finished: Path) -> None:
    data = bytearray(files(output)[1].read_bytes())
    data[-60] ^= 0x01
    replace(files(output)[1], bytes(data))


def mix_in(output: Path, finished: Path) -> None:
    other = files(finished / "other")[1]
    shutil.copy(other, output / other.name)


def mix_in_under_our_name(output: Path, finished: Path) -> None:
    replace(files(output)[1], files(finished / "other")[1].read_bytes())


def mix_in_a_stranger(output: Path, finished: Path) -> None:
    """Of another name than headrace gives: a reader of all files takes it as well."""
    (output / "extra.parquet").write_bytes(files(output)[1].read_bytes())


def cut(output: Path, finished: Path) -> None:
    replace(files(output)[1], files(output)[1].read_bytes()[:-20])


def leave_a_span_out(output: Path, finished: Path) -> None:
    """As a planner that forgot rows would: neither a file nor a line in the manifest."""
    gone = files(output)[1]
    gone.unlink()
    rewrite_manifest(output, lambda table: table.filter(pa.compute.not_equal(table["output"], loose(gone.name))))


def twice(output: Path, finished: Path) -> None:
    rewrite_manifest(output, lambda table: pa.concat_tables([table, table.slice(1, 1)]))


def another_record(output: Path, finished: Path) -> None:
    path = output / "_headrace/job.json"
    replace(path, path.read_bytes().replace(b'"batch_size": 16', b'"batch_size": 17'))


FAULTS: dict[Callable[[Path, Path], None], str] = {
    remove: "files",
    drop_a_row: "bytes",
    swap: "identity",
    flip_in_a_page: "bytes",
    flip_in_the_footer: "bytes",
    mix_in: "files",
    mix_in_under_our_name: "identity",
    mix_in_a_stranger: "files",
    cut: "bytes",
    leave_a_span_out: "inputs",
    twice: "files",
    another_record: "record",
}


def rewrite_manifest(output: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    mark = json.loads((output / "_SUCCESS").read_text())
    (part,) = mark["manifest"]
    table = change(pq.read_table(output / part))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    mark["manifest"] = [f"_manifest/part-00000-{hashlib.sha256(data).hexdigest()[:16]}.pq"]
    mark["shards"] = table.num_rows
    (output / part).unlink()
    (output / mark["manifest"][0]).write_bytes(data)
    replace(output / "_SUCCESS", json.dumps(mark).encode())


def test_a_sound_output_is_sound(output: Path, capfd: Capture) -> None:
    assert main(["verify", f"--output={output}"]) == 0
    out = capfd.readouterr().out
    assert "Sound." in out
    assert "390, 0 of them in dead letters" in out
    verdict, _, _ = verify(str(output), StoreOptions())
    assert verdict.checked["files"] == len(files(output)) > 4
    assert not verdict.notes


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_finds(fault: Callable[[Path, Path], None], output: Path, finished: Path, capfd: Capture) -> None:
    fault(output, finished)
    assert main(["verify", f"--output={output}"]) == 1
    assert "NOT sound" in capfd.readouterr().out
    verdict, _, _ = verify(str(output), StoreOptions())
    assert FAULTS[fault] in {problem.check for problem in verdict.problems}
    what = fault.__name__.replace("_", " ")
    tell(f"a finished output is damaged: {what}", 1, 1, 1, f"`verify` finds it: {FAULTS[fault]}")


def test_pages_are_held_against_their_own_checksums_where_the_manifest_has_none(output: Path, finished: Path) -> None:
    """As where an earlier run wrote the file and its store keeps no checksum."""
    flip_in_a_page(output, finished)
    where = [field.name for field in pq.read_schema(next(output.glob("_manifest/*")))].index("output_crc32c")
    rewrite_manifest(
        output, lambda table: table.set_column(where, table.field(where), pa.nulls(table.num_rows, pa.uint32()))
    )
    verdict, _, _ = verify(str(output), StoreOptions())
    assert {problem.check for problem in verdict.problems} == {"bytes"}


def test_a_sample_is_equal_to_the_bit(output: Path, finished: Path, capfd: Capture) -> None:
    assert main(["verify", *job(finished), f"--output={output}", "--sample=6"]) == 0
    out = capfd.readouterr().out
    assert "sample" in out
    assert "equal to the bit" not in out


def test_a_sample_finds_other_values_in_files_that_are_otherwise_sound(
    output: Path, finished: Path, capfd: Capture
) -> None:
    for path in files(output):
        table = pq.read_table(path)
        scores = table["p"].combine_chunks()
        if not len(scores):
            continue
        changed = pa.FixedSizeListArray.from_arrays(pa.array(flat(scores).to_numpy() + np.float32(0.25)), 3)
        place = table.schema.get_field_index("p")
        path.unlink()
        pq.write_table(table.set_column(place, "p", changed), path)
    rewrite_manifest(output, lambda table: _as_they_are(output, table))
    assert main(["verify", f"--output={output}"]) == 0, capfd.readouterr().out
    assert main(["verify", *job(finished), f"--output={output}", "--sample=3"]) == 1
    assert "column 'p' of rows from" in capfd.readouterr().out


def _as_they_are(output: Path, table: pa.Table) -> pa.Table:
    """The manifest as a forger would have it: sizes those of the files, no checksums."""
    sizes = pa.array([os.path.getsize(output / name) for name in loose(table["output"].to_pylist())], pa.int64())
    names = table.schema.names
    table = table.set_column(names.index("output_bytes"), table.field("output_bytes"), sizes)
    where = names.index("output_crc32c")
    return table.set_column(where, table.field(where), pa.nulls(table.num_rows, pa.uint32()))


def test_a_sample_of_a_file_with_other_columns_is_told(output: Path, finished: Path, capfd: Capture) -> None:
    for path in files(output):
        table = pq.read_table(path)
        path.unlink()
        pq.write_table(table.drop_columns("p"), path)
    rewrite_manifest(output, lambda table: _as_they_are(output, table))
    assert main(["verify", *job(finished), f"--output={output}", "--sample=3"]) == 1
    assert "expected columns " in capfd.readouterr().out


def test_a_damaged_part_of_the_manifest_is_a_fault_found(output: Path, capfd: Capture) -> None:
    (part,) = output.glob("_manifest/*")
    replace(part, part.read_bytes()[:-9])
    assert main(["verify", f"--output={output}"]) == 1
    assert "NOT sound" in capfd.readouterr().err


def test_a_sample_with_another_model_is_refused(output: Path, finished: Path, capfd: Capture) -> None:
    assert main(["verify", *job(finished, "model.keras"), f"--output={output}", "--sample=1"]) == 2
    assert "model differ" in capfd.readouterr().err


def test_what_is_no_finished_job_is_told(tmp_path: Path, output: Path, capfd: Capture) -> None:
    assert main(["verify", f"--output={tmp_path}/nothing"]) == 2
    assert "holds no finished job" in capfd.readouterr().err
    (output / "_SUCCESS").unlink()
    assert main(["verify", f"--output={output}"]) == 2
    assert "_SUCCESS is missing" in capfd.readouterr().err


def test_sampling_is_for_verify(capfd: Capture) -> None:
    assert main([f"--model={model_folder()}/saved_model", "--input=x", "--output=y", "--sample=2"]) == 2
    assert "--sample is for verify" in capfd.readouterr().err
