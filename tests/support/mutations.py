"""Small mutations of core files, and whether the tests notice: `python -m tests.support.mutations [--seed=1] [FILE ...]`.

A mutation changes one operator, comparison, number, truth value or statement, chosen by the seed; it is made in a copy of the
checkout, and the tests that belong to its file run there. One that they let pass meets the wider tests, of whole jobs. What
survives both is printed with its place, to be read: either it is equivalent, or a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HANGS_AFTER_S = 400
_MODELS, _TESTS = "transforms/models", "tests/transforms/models"
CORE = {
    f"{_MODELS}/saved_model/tensor_bundle.py": [f"{_TESTS}/saved_model/test_tensor_bundle.py"],
    f"{_MODELS}/keras_model/hdf5.py": [
        f"{_TESTS}/keras_model/test_hdf5_index.py",
        f"{_TESTS}/keras_model/test_hdf5.py",
    ],
    f"{_MODELS}/keras_model/archive.py": [
        f"{_TESTS}/keras_model/test_keras_archive.py",
        f"{_TESTS}/keras_model/test_keras_damage.py",
    ],
    f"{_MODELS}/streaming/composed_crc.py": [f"{_TESTS}/streaming/test_composed_crc.py"],
    f"{_MODELS}/streaming/tensor_stream.py": [
        f"{_TESTS}/streaming/test_stream.py",
        f"{_TESTS}/streaming/test_stream_host_bytes.py",
    ],
    "transforms/columns/nesting.py": [
        "tests/transforms/columns/test_tensors.py",
        "tests/transforms/columns/test_tensors_properties.py",
        "tests/transforms/columns/test_properties.py",
        "tests/transforms/columns/test_composite_inputs.py",
    ],
    "transforms/columns/outputs.py": [
        "tests/transforms/columns/test_outputs.py",
        "tests/transforms/columns/test_ragged_outputs.py",
    ],
    "transforms/columns/casts.py": [
        "tests/transforms/columns/test_tensors.py",
        "tests/transforms/columns/test_rules.py",
    ],
    "transforms/parquet/guard.py": [
        "tests/transforms/parquet/test_parquet_hostile.py",
        "tests/transforms/parquet/test_parquet_damaged.py",
        "tests/transforms/parquet/test_parquet.py",
    ],
    "transforms/parquet/footer_thrift.py": [
        "tests/transforms/parquet/test_parquet_hostile.py",
        "tests/transforms/parquet/test_parquet_types.py",
        "tests/transforms/parquet/test_parquet.py",
    ],
    "transforms/output/claims.py": [
        "tests/jobs/test_claims.py",
        "tests/transforms/output/test_claims_of_faulty_stores.py",
        "tests/transforms/output/test_claim_numbers.py",
    ],
    "transforms/output/manifest.py": ["tests/transforms/output/test_manifest.py"],
    "transforms/predicting/bisection.py": ["tests/transforms/predicting/test_bisect.py"],
    "transforms/shards/partitions.py": ["tests/transforms/shards/test_partition_folders.py"],
    "transforms/storage/http_ranges.py": [
        "tests/transforms/storage/test_http_range.py",
        "tests/transforms/storage/test_http_limits.py",
    ],
}
WIDER = ["tests/jobs/test_job.py", "tests/jobs/test_unfit_rows.py", f"{_TESTS}/test_load_faults.py"]

_SWAPS: dict[type[ast.AST], Any] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True, slots=True)
class Mutation:
    path: str
    line: int
    before: str
    after: str
    source: str
    """The whole file with it."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def changed(node: ast.AST) -> ast.AST | None:
    """The node with one thing changed, or `None` where there is nothing to change."""
    node = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _SWAPS:
            node.ops = [_SWAPS[type(operator)]()]
        case ast.BinOp(op=operator) if type(operator) in _SWAPS and not _of_text(node):
            node.op = _SWAPS[type(operator)]()
        case ast.BoolOp(op=operator):
            node.op = _SWAPS[type(operator)]()
        case ast.UnaryOp(op=ast.Not()):
            return node.operand
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=int(number)):
            node.value = number + 1
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise():
            return ast.Pass()
        case ast.Continue():
            return ast.Break()
        case _:
            return None
    return node


def _of_text(node: ast.AST) -> bool:
    """Texts that are put together: any other operator would be a `TypeError` at once."""
    return any(isinstance(each, ast.Constant) and isinstance(each.value, str | bytes) for each in ast.walk(node))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What runs: no annotation, and no text of an error."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield child
                yield from _code(child)


def mutations(path: str, source: str) -> list[Mutation]:
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node in _code(ast.parse(source)):
        other = changed(node)
        if other is None or not isinstance(node, ast.expr | ast.stmt):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        raw = source.encode()
        text = ast.unparse(other)
        after = f"({text})" if isinstance(node, ast.expr) else text
        before = " ".join(raw[begin:end].decode().split())
        whole = (raw[:begin] + after.encode() + raw[end:]).decode()
        found.append(Mutation(path, node.lineno, before, after, whole))
    return found


def chosen(seed: int, each: int, paths: Sequence[str]) -> list[Mutation]:
    picked = []
    for path in paths:
        of_file = mutations(path, (ROOT / path).read_text())
        picked += random.Random(f"{seed} {path}").sample(of_file, min(each, len(of_file)))
    return picked


def outcome(folder: Path, mutation: Mutation) -> str:
    file = folder / mutation.path
    right = file.read_text()
    file.write_text(mutation.source)
    try:
        for tests in (CORE[mutation.path], WIDER):
            command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests]
            try:
                code = subprocess.run(command, cwd=folder, capture_output=True, timeout=HANGS_AFTER_S).returncode
            except subprocess.TimeoutExpired:
                return "hung"
            if code not in (0, 1):
                return "killed at import" if code in (2, 4) else f"pytest ended with {code}"
            if code == 1:
                return "killed" if tests is not WIDER else "killed by the wider tests"
        return "SURVIVED"
    finally:
        file.write_text(right)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=4, help="mutations of each file")
    parser.add_argument("files", nargs="*", default=[], metavar="FILE", help=f"of {', '.join(CORE)}")
    given = parser.parse_args(arguments)
    picked = chosen(given.seed, given.each, given.files or list(CORE))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkout"
        skipped = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".hypothesis", "build", "*.egg-info")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=skipped)
        for mutation in picked:
            result = outcome(folder, mutation)
            counts[result] += 1
            print(f"{result:26} {mutation}", flush=True)
    print(
        f"\nseed {given.seed}, {len(picked)} mutations: " + ", ".join(f"{n} {name}" for name, n in counts.most_common())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
