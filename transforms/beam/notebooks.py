"""Beam in IPython and Jupyter without pandas 2.

While IPython runs, Beam 2.77 imports its interactive package for each step of a pipeline, only to put the cell's number before
the step's label (`apache_beam/utils/interactive_utils.py`, `alter_label_if_ipython`). That package imports Beam's
DataFrame API, which fails without pandas and with pandas 3. Then no pipeline can be built, even one that does not use
pandas.

This is the one place that touches that private function; tests/transforms/beam/test_notebooks.py fails when Beam changes it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import apache_beam.pipeline
from apache_beam.utils.interactive_utils import is_in_ipython

_INTERACTIVE = "apache_beam.runners.interactive.interactive_environment"
_log = logging.getLogger(__name__)


def let_beam_build_pipelines() -> None:
    """Leaves labels without the cell's number where Beam's interactive package cannot be imported. Elsewhere it does
    nothing.
    """
    if "IPython" not in sys.modules or not is_in_ipython() or _INTERACTIVE in sys.modules:
        return
    try:
        import_module(_INTERACTIVE)
    except (ImportError, AttributeError) as error:
        _log.info("Beam's interactive package is left out: %s: %s", type(error).__name__, error)
        apache_beam.pipeline.alter_label_if_ipython = _leave_label


def _leave_label(_transform: object, _inputs: object) -> None:
    """Replaces Beam's `alter_label_if_ipython`."""
