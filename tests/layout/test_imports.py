"""Who may import whom: pipeline -> transforms/*.py -> transforms/models -> transforms/storage -> transforms/errors.

Beam, TensorFlow and Google's clients each have rooms of their own, and TensorFlow loads only when a function asks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    "headrace.transforms.errors",
    "headrace.transforms.storage",
    "headrace.transforms.models",
    "transforms",
    "pipeline",
)
BEAM = (
    "pipeline",
    "pipeline.*",
    *(f"transforms.{room}" for room in ("plan", "predict", "finalize", "metrics", "model_handler")),
)
TENSORFLOW = (
    "headrace.transforms.models.*",
    "headrace.transforms.columns.inputs*",
    "headrace.transforms.columns.column",
    "headrace.transforms.columns.values",
    "headrace.transforms.columns.casts",
    "headrace.transforms.columns.images",
    "headrace.transforms.columns.outputs",
    "headrace.transforms.predicting.predictor",
    "headrace.transforms.predicting.devices",
    "headrace.pipeline.demo",
)
GOOGLE = ("headrace.transforms.storage.*",)
ROOMS = {
    "apache_beam": BEAM,
    "tensorflow": TENSORFLOW,
    "keras": TENSORFLOW,
    "rich": ("headrace.pipeline.terminal.live_display",),
    **dict.fromkeys(("google.cloud", "google.auth", "google.api_core"), GOOGLE),
}
LAZY = ("tensorflow", "keras")
HELP = """
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("pipeline", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    runs_on_import: bool


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import statement, inside functions too, by absolute name; `from a import b` gives `a.b`."""
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, runs: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(name.name, child.lineno, runs) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                home = ".".join([*above, *([child.module] if child.module else [])])
                yield from (Import(f"{home}.{name.name}", child.lineno, runs) for name in child.names)
            else:
                function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, runs and not function and not for_types)

    return walk(ast.parse(source), True)


def floor(module: str) -> int | None:
    """The lowest floor that holds the module; None for other people's modules."""
    return next((at for at, room in enumerate(FLOORS) if module == room or module.startswith(f"{room}.")), None)


def trespasses(module: str, source: str, *, is_package: bool = False) -> list[str]:
    found = []
    for item in imports(module, source, is_package=is_package):
        here, there, top = floor(module), floor(item.target), item.target.split(".")[0]
        rooms = next((rooms for name, rooms in ROOMS.items() if f"{item.target}.".startswith(f"{name}.")), ("*",))
        if here is not None and there is not None and there > here:
            found.append(f"{module}:{item.line} reaches up to {item.target}")
        if not any(fnmatchcase(module, room) for room in rooms):
            found.append(f"{module}:{item.line} may not import {item.target}")
        if top in LAZY and item.runs_on_import:
            found.append(f"{module}:{item.line} loads {top} merely because it is imported")
    return found


def our_modules() -> Iterator[tuple[str, Path]]:
    for package in ("pipeline", "transforms"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_module_keeps_to_its_floor() -> None:
    modules = list(our_modules())
    assert {"headrace.pipeline.cli", "headrace.transforms.models.load", "headrace.transforms.storage.gcs"} <= {
        name for name, _ in modules
    }
    found = [
        trespass
        for module, path in modules
        for trespass in trespasses(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.transforms.storage.gcs", "def f():\n    from headrace.transforms.models import ref"),
        ("headrace.transforms.storage.gcs", "from headrace.transforms.shards.shard import Shard"),
        ("headrace.transforms.storage.gcs", "from .. import shard"),
        ("headrace.transforms.errors", "import headrace.transforms.storage"),
        ("headrace.transforms.shards.shard", "from pipeline import cli"),
        ("headrace.transforms.models.load", "if True:\n    import apache_beam as beam"),
        ("headrace.transforms.models.load", "from google.cloud import storage"),
        ("headrace.transforms.models.load", "import tensorflow as tf"),
        ("headrace.transforms.models.load", "class A:\n    import keras"),
        ("headrace.transforms.beam.plan", "def f():\n    import tensorflow"),
        ("headrace.transforms.storage.gcs", "def f():\n    import tensorflow"),
    ],
)
def test_a_trespass_is_seen(module: str, source: str) -> None:
    assert trespasses(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.transforms.models.load", "def f():\n    import tensorflow as tf"),
        ("headrace.transforms.models.load", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras"),
        (
            "headrace.transforms.models.load",
            "from .ref import ModelRef\nfrom headrace.transforms.storage import open_store",
        ),
        ("headrace.transforms.beam.plan", "import apache_beam\nfrom headrace.transforms.models.ref import ModelRef"),
        ("headrace.pipeline.cli", "from headrace.transforms.storage import open_store"),
    ],
)
def test_what_is_allowed_is_let_through(module: str, source: str) -> None:
    assert trespasses(module, source) == []


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import transforms", ("apache_beam", "tensorflow", "keras", "pyarrow", "google.cloud.storage")),
        ("from transforms import load_model", ("apache_beam", "tensorflow", "keras")),
        ("from transforms import open_store; open_store('gs://bucket')", ("apache_beam", "tensorflow", "keras")),
        ("from transforms import PlanShards, Predict, PredictShards, StreamingModelHandler", ("tensorflow", "keras")),
        (HELP, ("tensorflow", "keras", "rich")),
        (
            "import headrace.pipeline.runners.launch, headrace.pipeline.commands.summary",
            ("tensorflow", "keras", "rich"),
        ),
    ],
    ids=["transforms", "load_model", "open_store", "beam-transforms", "help", "no display"],
)
def test_nothing_loads_before_it_is_needed(program: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; print('LOADED', sorted(set({absent!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", f"{program}\n{check}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_the_public_names_are_these() -> None:
    import transforms

    assert transforms.__all__ == [
        "HeadraceError",
        "Model",
        "ModelRef",
        "PlanShards",
        "Predict",
        "PredictShards",
        "StreamingModelHandler",
        "TensorSpec",
        "load_model",
        "open_store",
        "pin_model",
    ]
    assert all(hasattr(transforms, name) for name in transforms.__all__)
