"""Pipelines are built while IPython runs, without pandas and with the newest, which Beam's interactive package cannot use."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import apache_beam.pipeline
import pytest
from apache_beam.utils import interactive_utils

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance()
import apache_beam as beam
import headrace
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
seen = []
with beam.Pipeline(runner=FnApiRunner()) as pipeline:
    pipeline | beam.Create([1, 2]) | beam.Map(lambda x: print("SEEN", x + 40))
"""
ABSENT = "raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')\n"


@pytest.mark.parametrize("pandas", [ABSENT, None], ids=["absent", "as installed, the newest"])
def test_a_pipeline_is_built_and_run(pandas: str | None, tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    if pandas is not None:
        (tmp_path / "pandas.py").write_text(pandas)
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {"SEEN 41", "SEEN 42"} <= set(run.stdout.split("\n"))


def test_beam_still_alters_labels_in_this_way() -> None:
    """Fails when Beam changes what `headrace.transforms.beam.notebooks` replaces: then look whether that is still needed."""
    assert apache_beam.pipeline.alter_label_if_ipython is interactive_utils.alter_label_if_ipython
    assert list(inspect.signature(interactive_utils.alter_label_if_ipython).parameters) == ["transform", "pvalueish"]
    assert "interactive_environment" in inspect.getsource(interactive_utils.alter_label_if_ipython)
