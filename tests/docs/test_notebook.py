"""examples/notebook.ipynb, executed by a real kernel: with the newest pandas, and where pandas is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT = "raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')\n"


@pytest.mark.parametrize("pandas", ["newest", "absent"])
def test_the_notebook_runs_in_a_kernel(pandas: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = [str(ROOT)]
    if pandas == "absent":
        (tmp_path / "pandas.py").write_text(ABSENT)
        path.insert(0, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join(path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = json.dumps(outputs)
    assert "<progress" in shown
    assert "report.html" in shown
    assert "cast=" in shown
    assert "['id', 'score']" in shown


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text("utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
