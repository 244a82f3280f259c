"""The command's start. Python collects no garbage while modules load: of TensorFlow's and Beam's there is none, and looking
for it takes a third of the time.
"""

from __future__ import annotations

import gc


def entry() -> None:
    gc.disable()
    from .cli import entry as run

    run()


def loaded() -> None:
    """Modules are loaded; what there is now stays, and need not be looked through again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
