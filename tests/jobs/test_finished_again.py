"""A finished job that is run again: what it asks of the store."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from headrace.pipeline.cli import main
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.storage import open_store
from tests.support.front import Front, served
from tests.support.jobs import model_folder, put, put_inputs

Capture = pytest.CaptureFixture[str]


def flags(folder: str, *more: str) -> list[str]:
    model = f"{model_folder()}/saved_model"
    return [f"--model={model}", f"--input={folder}/in/*", f"--output={folder}/out", "--batch_size=8", *more]


@pytest.mark.parametrize("more", [[], ["--compact", "--shard_bytes=5000"]])
def test_it_lists_input_and_output_once_and_reads_no_footer(
    capfd: Capture, emulator: str, bucket: str, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    put_inputs(f"{bucket}/in", [10] * 12)
    assert main(flags(bucket, *more)) == 0
    capfd.readouterr()
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        assert main(flags(bucket, *more)) == 0
        asked = Counter(unquote(path) for _, path, _ in front.seen)
    assert "Nothing to do" in capfd.readouterr().out
    listings = [path for path in asked.elements() if "prefix=" in path]
    assert sorted(path.partition("prefix=")[2].partition("&")[0] for path in listings) == ["in/", "out/"]
    others = [path.partition("?")[0].partition("/o/")[2] for path in asked.elements() if path not in listings]
    assert {name.rpartition("/")[0] for name in others} <= {
        "out",
        "out/_headrace",
        "out/_headrace/claims",
        "out/_manifest",
    }
    # Whether a newer claim than the listed one stands is asked by name, since a listing may lag.
    assert [name for name in others if "claims/" in name] == ["out/_headrace/claims/00000002.claim"]
    assert not [name for name in others if parse_output_name(name)]
    assert len(others) <= 8


def test_where_the_record_tells_nothing_of_the_first_file_its_footer_is_read(capfd: Capture, tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}"
    put_inputs(f"{folder}/in", [10])
    assert main(flags(folder)) == 0
    store, uri = open_store(folder), f"{folder}/out/_headrace/job.json"
    record = json.loads(store.read(store.stat(uri)))
    first = record.pop("first_input")
    for said in ({**first, "schema": "AAAA"}, {**first, "schema": "é"}, {**first, "version": "0"}, {}, None, "no"):
        store.delete(store.stat(uri))
        put(uri, json.dumps({**record, "first_input": said}).encode())
        capfd.readouterr()
        assert main(flags(folder)) == 0
        assert "Nothing to do" in capfd.readouterr().out
