"""Hostile Parquet ends in an error of ours, in little memory and time: read in a process that may end without one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.parquet.footer_thrift import index_row_groups
from tests.support.hostile_parquet import crafted, mutated, ordinary

MEMORY = 4 << 30
MUTATED = 300
REFUSED = {
    "deep": "schema that no honest file has. Expected: 128 levels",
    "deep in a second schema": "footer that no honest file has",
    "deep, below what Arrow stands": "128 levels",
    "many row groups": "NotParquet",
    "rows beyond counting": "NotParquet",
    "fewer than no rows": "contradicts itself",
    "rows that do not add up": "contradicts itself",
    "a chunk beyond the file": "column chunk",
    "a chunk before the file": "column chunk",
    "chunks that overlap": "bytes of its own",
    "a footer longer than the file": "NotParquet",
    "a small page that claims 2 GiB": "2,147,483,647 bytes",
    "a page of a negative size": "sizes",
    "a page longer than its chunk": "of its chunk",
    "zeros that decompress to 300 MiB": "314,572,800 bytes",
    "zeros that decompress to 200 MiB in each column": "no more than 268,435,456 bytes",
    "a chunk of fewer than no bytes": "NotParquet",
    "a list of a billion": "1,073,741,824",
    "long text in a dictionary": "DataError",
}


def read_all(files: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    argv = [sys.executable, "-m", "tests.support.hostile_parquet", str(folder), str(MEMORY)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    unread = sorted(files.keys() - found.keys())
    assert done.returncode == 0, f"the process ended at {unread[:1]}: {done.stderr[-2000:]}"
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return read_all(crafted(), tmp_path_factory.mktemp("crafted"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_claims_more_than_it_can_be_is_refused(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    told = outcomes[name]["outcome"]
    assert told.startswith(("NotParquet: ", "DataError: "))
    assert REFUSED[name] in told
    assert outcomes[name]["seconds"] < 30


def test_sound_files_made_the_same_way_are_read(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["sound"]["outcome"] == "10 rows"
    assert outcomes["wide and sound"]["outcome"] == "0 rows"
    assert outcomes["sound, with bytes after the last value"]["outcome"] == "10 rows"


@pytest.mark.timeout(300)
def test_bytes_changed_at_random_are_told_or_harmless(tmp_path: Path) -> None:
    rng = random.Random(20261123)
    sound = [ordinary(codec, version) for codec in ("zstd", "snappy", "none") for version in ("1.0", "2.0")]
    found = read_all({f"{i:04d}": mutated(rng.choice(sound), rng) for i in range(MUTATED)}, tmp_path)
    raw = [told["outcome"] for told in found.values() if told["outcome"].startswith("raw")]
    assert not raw
    assert sum(told["outcome"].startswith("NotParquet") for told in found.values()) > MUTATED // 2
    assert max(told["seconds"] for told in found.values()) < 30


def test_a_footer_of_many_row_groups_takes_little_memory() -> None:
    """As Arrow's objects it took 35 times its bytes, which grew with the shard."""
    file = BytesIO()
    pq.write_table(pa.table({name: pa.array(range(8_000)) for name in "ab"}), file, row_group_size=4)
    data = file.getvalue()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    index_row_groups("many.parquet", footer)  # what is compiled once
    tracemalloc.start()
    try:
        groups = index_row_groups("many.parquet", footer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(groups.at) == 2_000
    assert peak < len(footer)
