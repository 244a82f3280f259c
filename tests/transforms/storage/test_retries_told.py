"""Requests that are tried again are counted, whichever path they are on, and told at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.pipeline.cli import main
from headrace.transforms.storage.store import take_retries
from tests.support.front import Front, Gate, served
from tests.support.jobs import put_inputs, put_model


def once(asked: Callable[[Gate], bool]) -> Callable[[Gate], bool]:
    met = False

    def fault(gate: Gate) -> bool:
        nonlocal met
        if met or not asked(gate):
            return False
        met = True
        gate.answer(503, {"Retry-After": "0"}, b"busy")
        return True

    return fault


def test_the_summary_counts_requests_that_were_tried_again(
    capfd: pytest.CaptureFixture[str], emulator: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [20] * 2)
    take_retries()
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        front.faults += [
            once(lambda gate: "alt=media" in gate.path and "variables.data" in gate.path),
            once(lambda gate: "alt=media" in gate.path and "part-00001" in gate.path),
            once(lambda gate: "prefix=in" in gate.path),
            once(lambda gate: gate.command == "POST" and b"part-00001" in gate.body),
        ]
        argv = [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
        assert main(argv) == 0
        assert "4 requests to a store were tried again" in capfd.readouterr().out
        assert main([*argv, "--overwrite"]) == 0
        assert "tried again" not in capfd.readouterr().out
