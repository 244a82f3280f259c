"""`pipeline.x` in a checkout: another name for the module `headrace.pipeline.x`."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class OneName(MetaPathFinder, Loader):
    """Finds `pipeline.x` as the module `headrace.pipeline.x`; `pipeline.__main__` stays a program."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if not fullname.startswith("pipeline.") or fullname == "pipeline.__main__":
            return None
        return ModuleSpec(fullname, self) if find_spec(f"headrace.{fullname}") else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(f"headrace.{module.__name__}")
