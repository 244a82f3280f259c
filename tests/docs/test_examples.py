"""Each of `examples/` is run as it stands; what it asserts about its own predictions is the test."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    example["main"](str(tmp_path))
    assert capfd.readouterr().out
    assert {"model", "model.keras"} & set(os.listdir(tmp_path))


def test_every_example_is_told() -> None:
    told = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert {"vision", "text", "tabular"} <= set(EXAMPLES)
    assert all(f"python -m examples.{name}" in told for name in EXAMPLES)
