"""Who may import whom, as ARCHITECTURE has it: imports go down a list of folders, without a cycle.

Beam, TensorFlow and Google's clients each have folders of their own, and TensorFlow loads only when a function asks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).resolve().parents[2]
# From the top down. A folder may import from those below it; what is in none of them is at the bottom.
FOLDERS = (
    "headrace",
    "headrace.pipeline",
    "headrace.pipeline.commands",
    "headrace.pipeline.runners",
    "headrace.pipeline.checks",
    "headrace.pipeline.flags",
    "headrace.pipeline.packages",
    "headrace.pipeline.terminal",
    "headrace.transforms.beam",
    "headrace.transforms.steps",
    "headrace.transforms.predicting",
    "headrace.transforms.report",
    "headrace.transforms.output",
    "headrace.transforms.jobs",
    "headrace.transforms.tables",
    "headrace.transforms.columns",
    "headrace.transforms.parquet",
    "headrace.transforms.shards",
    "headrace.transforms.models",
    "headrace.transforms.storage",
    "headrace.transforms",
)
LEVELS = 12
BEAM = ("headrace.pipeline.*", "headrace.transforms.beam.*")
TENSORFLOW = (
    "headrace.transforms.models.*",
    "headrace.transforms.columns.*",
    "headrace.transforms.predicting.*",
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
    runpy.run_module("headrace", run_name="__main__")
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


def folder(module: str) -> int | None:
    """The place in `FOLDERS` of the deepest one that holds the module; None for other people's modules."""
    holding = [at for at, name in enumerate(FOLDERS) if module == name or module.startswith(f"{name}.")]
    return max(holding, key=lambda at: FOLDERS[at].count("."), default=None)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    found = []
    for item in imports(module, source, is_package=is_package):
        here, there, top = folder(module), folder(item.target), item.target.split(".")[0]
        rooms = next((rooms for name, rooms in ROOMS.items() if f"{item.target}.".startswith(f"{name}.")), ("*",))
        if here is not None and there is not None and there < here:
            found.append(f"{module}:{item.line} imports {item.target}, which is above it")
        if not any(fnmatchcase(module, room) for room in rooms):
            found.append(f"{module}:{item.line} may not import {item.target}")
        if top in LAZY and item.runs_on_import:
            found.append(f"{module}:{item.line} loads {top} merely because it is imported")
        if top in ("pipeline", "transforms"):
            found.append(
                f"{module}:{item.line} imports {item.target} by its folder, not by its name headrace.{item.target}"
            )
    return found


def our_modules() -> dict[str, Path]:
    found = {}
    for top in ("headrace", "pipeline", "transforms"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name if top == "headrace" else f"headrace.{name}"] = path
    return found


def arrows(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module to the modules that it imports, leaving out imports for types alone and packages' `__init__`."""
    graph = dict[str, set[str]]()
    for name, path in modules.items():
        source = path.read_text("utf-8")
        targets = {
            item.target if item.target in modules else item.target.rpartition(".")[0]
            for item in imports(name, source, is_package=path.name == "__init__.py")
        }
        graph[name] = {target for target in targets if target in modules and target != name}
    return graph


def test_imports_go_down_the_list() -> None:
    modules = our_modules()
    assert {"headrace.pipeline.cli", "headrace.transforms.models.load", "headrace.transforms.storage.gcs"} <= set(
        modules
    )
    found = [
        violation
        for module, path in modules.items()
        for violation in violations(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_no_module_imports_itself_through_others_and_levels_are_few() -> None:
    graph = arrows(our_modules())
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")
    level = dict[str, int]()
    for module in order:
        level[module] = 1 + max((level[target] for target in graph.get(module, ())), default=0)
    folders = dict[str, set[str]]()
    for module, targets in graph.items():
        folders.setdefault(_folder_of(module), set()).update(map(_folder_of, targets))
    sorter = TopologicalSorter({name: targets - {name} for name, targets in folders.items()})
    depth = dict[str, int]()
    for name in sorter.static_order():
        depth[name] = 1 + max((depth[target] for target in folders.get(name, ()) if target != name), default=0)
    assert max(depth.values()) <= LEVELS + len([name for name in FOLDERS if ".pipeline" in name])


def _folder_of(module: str) -> str:
    at = folder(module)
    assert at is not None
    return FOLDERS[at]


def test_every_folder_says_what_belongs_in_it() -> None:
    for path in our_modules().values():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path} has no docstring"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.transforms.storage.gcs", "def f():\n    from headrace.transforms.models import ref"),
        ("headrace.transforms.storage.gcs", "from headrace.transforms.shards.shard import Shard"),
        ("headrace.transforms.storage.gcs", "from ..shards import shard"),
        ("headrace.transforms.errors", "import headrace.transforms.storage"),
        ("headrace.transforms.shards.shard", "from headrace.pipeline import cli"),
        ("headrace.transforms.steps.predict_shard", "if True:\n    import apache_beam as beam"),
        ("headrace.transforms.models.load", "from google.cloud import storage"),
        ("headrace.transforms.models.load", "import tensorflow as tf"),
        ("headrace.transforms.models.load", "class A:\n    import keras"),
        ("headrace.transforms.beam.plan", "def f():\n    import tensorflow"),
        ("headrace.transforms.storage.gcs", "def f():\n    import tensorflow"),
        ("headrace.transforms.storage.gcs", "import transforms.errors"),
        ("headrace.pipeline.flags.flags", "from ..commands import summary"),
    ],
)
def test_a_violation_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.transforms.models.load", "def f():\n    import tensorflow as tf"),
        ("headrace.transforms.models.load", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras"),
        (
            "headrace.transforms.models.load",
            "from .ref import ModelRef\nfrom headrace.transforms.storage import open_store",
        ),
        ("headrace.transforms.beam.plan", "import apache_beam\nfrom ..models.ref import ModelRef"),
        ("headrace.pipeline.cli", "from headrace.transforms.storage import open_store"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import headrace, headrace.beam", ("apache_beam", "tensorflow", "keras", "pyarrow", "google.cloud.storage")),
        ("from headrace import load_model", ("apache_beam", "tensorflow", "keras")),
        (
            "from headrace.transforms.storage import open_store; open_store('gs://bucket')",
            ("apache_beam", "tensorflow", "keras"),
        ),
        ("from headrace import Predict, StreamingModelHandler", ("tensorflow", "keras")),
        (HELP, ("tensorflow", "keras", "rich")),
        (
            "import headrace.pipeline.runners.launch, headrace.pipeline.commands.summary",
            ("tensorflow", "keras", "rich"),
        ),
    ],
    ids=["headrace", "load_model", "open_store", "beam-transforms", "help", "no display"],
)
def test_nothing_loads_before_it_is_needed(program: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; print('LOADED', sorted(set({absent!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", f"{program}\n{check}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_a_module_has_one_name() -> None:
    """`pipeline.x` is the module `headrace.pipeline.x`, and there is no `transforms`."""
    program = """
import pipeline.cli, headrace.pipeline.cli, pipeline.flags.flags
assert pipeline.cli is headrace.pipeline.cli
assert pipeline.flags.flags.__name__ == "headrace.pipeline.flags.flags"
copies = [name for name, module in sys.modules.items() if name.startswith("pipeline.") and module.__name__ == name]
assert not copies, copies
try:
    import transforms.errors
except ModuleNotFoundError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", f"import sys{program}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "headrace.transforms" in run.stdout


def test_the_public_names_are_these() -> None:
    assert headrace.__all__ == [
        "AccessDenied",
        "AlreadyExists",
        "ClaimLost",
        "ColumnError",
        "ColumnRules",
        "CorruptModel",
        "DataError",
        "HeadraceError",
        "InvalidInferenceArgs",
        "InvalidRequest",
        "JobError",
        "JobResult",
        "Loading",
        "Model",
        "ModelError",
        "ModelRef",
        "NotAModel",
        "NotParquet",
        "NullFeature",
        "ObjectChanged",
        "ObjectNotFound",
        "OutputConflict",
        "OutputIncomplete",
        "Predict",
        "ShardsFailed",
        "SignatureNotFound",
        "StorageError",
        "StoreOptions",
        "StoreUnavailable",
        "StreamingModelHandler",
        "TooManyBadRows",
        "TooManyFailedShards",
        "UnsupportedModel",
        "WorkerMismatch",
        "__version__",
        "describe_model",
        "inspect",
        "load_model",
        "pin_model",
        "plan",
        "predict",
        "run",
        "verify",
    ]
    assert all(hasattr(headrace, name) for name in headrace.__all__)


def test_every_error_is_public() -> None:
    from headrace.transforms import errors

    classes = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert classes <= set(headrace.__all__)
