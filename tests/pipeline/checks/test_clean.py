"""--clean removes what interrupted uploads left hidden in the output folder, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.pipeline.cli import main
from headrace.transforms.storage import open_store
from headrace.transforms.storage.s3 import PART
from tests.support.jobs import put, put_inputs, put_model, read_output
from tests.support.s3_service import s3_service, use_s3


def test_hidden_files_go_and_others_stay(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = str(tmp_path)
    put_model("saved_model", f"{place}/model")
    put_inputs(f"{place}/in", [5])
    put(f"{place}/out/deep/notes.txt", b"mine")
    left = [tmp_path / "out" / ".headrace-0123", tmp_path / "out" / "deep" / ".headrace-4567"]
    elsewhere = tmp_path / ".headrace-89ab"
    for path in (*left, elsewhere):
        path.write_bytes(b"half of a file")
    argv = [f"--model={place}/model", f"--input={place}/in/*.parquet", f"--output={place}/out"]
    assert main(argv) == 0
    assert all(path.exists() for path in left)
    assert main([*argv, "--clean"]) == 0
    assert "2 interrupted uploads removed" in capfd.readouterr().err
    assert not any(path.exists() for path in left)
    assert elsewhere.exists()
    assert (tmp_path / "out" / "deep" / "notes.txt").read_bytes() == b"mine"
    assert read_output(f"{place}/out").num_rows == 5


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3

    with s3_service() as url:
        use_s3(monkeypatch, url)
        name = f"test-{uuid.uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield name


def test_uploads_that_s3_keeps_are_aborted_below_the_folder_alone(s3_bucket: str) -> None:
    import boto3

    store = open_store(f"s3://{s3_bucket}")
    writers = [store.create(f"s3://{s3_bucket}/{name}") for name in ("out/a", "out/deep/b", "output/c")]
    for writer in writers:
        writer.write(bytes(PART + 1))
    put(f"s3://{s3_bucket}/out/whole", b"mine")
    assert store.clean(f"s3://{s3_bucket}/out/") == 2
    kept = boto3.client("s3").list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in kept] == ["output/c"]
    assert store.read(store.stat(f"s3://{s3_bucket}/out/whole")) == b"mine"
    assert store.clean(f"s3://{s3_bucket}/out/") == 0
    writers[2].abort()
