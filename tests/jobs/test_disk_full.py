"""A disk that is full, or a file that may not grow: told with the cure, and nothing half-written is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.fault_table import tell
from tests.support.jobs import names_in, put_inputs, put_model

IN_A_SMALL_DISK = """
mount -t tmpfs -o size=600k tmpfs "$0" || exit 77
kept=$1; shift
"$@"; code=$?
cp -a "$0/." "$kept"
exit $code
"""


@pytest.mark.timeout(180)
@pytest.mark.skipif(shutil.which("unshare") is None, reason="NOT SHOWN what a full disk does: there is no unshare")
def test_a_full_disk_ends_the_job_and_leaves_whole_files_alone(tmp_path: Path) -> None:
    place, kept = str(tmp_path), tmp_path / "kept"
    put_model("saved_model", f"{place}/model")
    put_inputs(f"{place}/in", [2000, 2000, 40_000, 40_000])
    (tmp_path / "out").mkdir()
    kept.mkdir()
    argv = ["-m", "headrace", f"--model={place}/model", f"--input={place}/in/*.parquet", f"--output={place}/out"]
    disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", IN_A_SMALL_DISK, f"{place}/out", str(kept)]
    done = subprocess.run([*disk, sys.executable, *argv], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"NOT SHOWN what a full disk does: {done.stderr}")
    assert done.returncode == 1, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("The job failed")]
    assert f"No space to write {place}/out/part-0000" in told
    assert "Free some, or write elsewhere" in told
    assert "Traceback" not in done.stderr
    names = names_in(str(kept))
    assert "_SUCCESS" not in names
    assert not [name for _, _, files in os.walk(kept) for name in files if name.startswith(".")]
    for name in names:
        if name.endswith(".parquet"):
            assert pq.read_table(kept / name).num_rows in (2000, 40_000)
    tell(
        "the disk of the output is full",
        1,
        1,
        1,
        "an error that names file and fix, exit code 1; finished files are whole",
    )


def test_a_file_that_may_not_grow_names_the_limit(tmp_path: Path) -> None:
    program = f"""
import resource
from headrace.transforms.storage import open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with open_store("{tmp_path}").create("{tmp_path}/out/x") as writer:
        writer.write(bytes(20_000))
        writer.commit()
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"StorageError Cannot write {tmp_path}/out/x. Found: File too large. Raise")
    assert list((tmp_path / "out").iterdir()) == []
