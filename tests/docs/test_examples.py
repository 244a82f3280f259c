"""Each of `examples/` is run as it stands; what it asserts about its own predictions is the test."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = "folder_of_images"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != TOOL)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    example["main"](str(tmp_path))
    assert capfd.readouterr().out
    assert {"model", "model.keras"} & set(os.listdir(tmp_path))


def test_a_folder_of_images_becomes_parquet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {"b.JPG": b"\xff\xd8b", "cats/a.png": b"\x89PNG" + bytes(100), "cats/old/c.jpeg": b""}
    for name, content in {**files, "cats/notes.txt": b"no image"}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tool = runpy.run_path(str(ROOT / "examples" / f"{TOOL}.py"))
    tool["main"].__globals__["MOST_BYTES"] = 3  # so that several row groups are written
    written = str(tmp_path / "photos.parquet")
    tool["main"](str(tmp_path / "photos"), written)
    assert capfd.readouterr().out.startswith("3 images are in ")
    found = pq.read_table(written)
    assert dict(zip(*found.to_pydict().values(), strict=True)) == files
    assert pq.read_metadata(written).num_row_groups == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="No image is in"):
        tool["main"](str(tmp_path / "empty"), f"{tmp_path}/none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_every_example_is_told() -> None:
    told = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert {"vision", "text", "tabular"} <= set(EXAMPLES)
    assert all(f"python -m examples.{name}" in told for name in EXAMPLES)
    assert f"python examples/{TOOL}.py" in told
