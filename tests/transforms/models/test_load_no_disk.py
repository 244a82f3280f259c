"""The first promise: loading a model writes no byte to any file system. The kernel is asked, by strace."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import keras_zoo, model_zoo, orbax_checkpoints, zoo_v1
from tests.support.not_shown import not_shown
from tests.transforms.models import test_tflite

_CALLS = "%file,open,openat,creat,ftruncate,fallocate,copy_file_range"
_CHANGES = re.compile(
    r"\b(creat|mkdir|mkdirat|mknod|mknodat|(sym)?link(at)?|rename(at2?)?|f?truncate|fallocate|copy_file_range)\("
)
_OPENED_FOR_WRITING = re.compile(r"\bopen(at2?)?\(.*\bO_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)\b")
# Devices and the kernel's own view of the process are no file systems that keep anything, nor is memory without a name.
_NO_FILE = re.compile(r'"/(dev|proc)/|\bftruncate\(\d+</memfd:')
_MARK = "/headrace-test-begins-here"
# Never whole in the script, which strace shows as an argument.
_BEGIN = f"os.path.exists({_MARK[:9]!r} + {_MARK[9:]!r})"

# What is imported may keep caches of its own (keras writes ~/.keras/keras.json when there is none), so the modules come
# before the mark. After it nothing is excluded.
_LOAD = f"""
import os, sys
import google.cloud.storage, keras, tensorflow
import headrace.transforms.models.keras_model.model, headrace.transforms.models.saved_model.tf2, zstandard
import headrace.transforms.models.tflite, headrace.transforms.storage.gcs
from headrace.transforms.models.load import load_model
import numpy as np
{_BEGIN}
for uri in sys.argv[1:]:
    graph, _, weights = uri.partition(" ")
    model = load_model(graph, weights=weights or None)
    inputs = {{s.name: np.zeros([d or 2 for d in s.shape], s.dtype.replace("string", "S1")) for s in model.inputs.values()}}
    print(uri, {{name: array.shape for name, array in model.predict(inputs).items()}})
"""


def _without_coverage() -> dict[str, str]:
    """`make coverage` has each process write a file of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def writes(script: str, arguments: Sequence[str], trace: Path) -> tuple[list[str], str]:
    """The system calls after the mark that could change a file system, and what the script printed."""
    strace = shutil.which("strace")
    if strace is None:
        _without("strace is not installed")
    command = [
        strace,
        "-f",
        "--seccomp-bpf",  # other calls do not stop for it
        "-qq",
        "-y",  # what each descriptor is of
        "-s",
        "300",
        "-e",
        f"trace={_CALLS}",
        "-o",
        str(trace),
        sys.executable,
        "-c",
        script,
    ]
    done = subprocess.run(
        [*command, *arguments],
        cwd=Path(__file__).parents[3],
        env={**_without_coverage(), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        _without(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    before, mark, after = trace.read_text().partition(_MARK)
    assert mark, "the mark is not in the trace"
    assert "openat(" in before, "strace has seen no file at all"
    return [
        line
        for line in after.splitlines()
        if (_OPENED_FOR_WRITING.search(line) or _CHANGES.search(line)) and not _NO_FILE.search(line)
    ], done.stdout


def _without(reason: str) -> NoReturn:
    not_shown(f"that loading writes no file: {reason}")


def test_loading_from_a_bucket_writes_no_file(bucket: str, tmp_path: Path) -> None:
    from google.cloud import storage

    model_zoo.vocabulary(tmp_path / "saved")
    model_zoo.several_shards(tmp_path / "shards")
    model_zoo.tables_of_a_checkpoint(tmp_path / "tables")
    zoo_v1.reference_variables(tmp_path / "references")
    zoo_v1.resource_variables(tmp_path / "resources")
    zoo_v1.main_op(tmp_path / "initialised")
    keras_zoo.mlp().model.save(tmp_path / "mlp.keras")
    (tmp_path / "model.tflite").write_bytes(test_tflite.no_signatures(tmp_path)[0])
    _keras_in_pieces(tmp_path)
    client = storage.Client(project="test")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            blob = client.bucket(bucket.removeprefix("gs://")).blob(str(path.relative_to(tmp_path)))
            blob.upload_from_filename(str(path))
    client.close()
    folders = ("saved", "shards", "tables", "references", "resources", "initialised")
    uris = [f"{bucket}/{name}" for name in (*folders, "mlp.keras", "whole.h5", "unzipped", "model.tflite")]
    uris.append(f"{bucket}/unzipped/config.json {bucket}/apart.weights.h5")
    found, printed = writes(_LOAD, uris, tmp_path / "trace")
    assert [line.partition(" {")[0] for line in printed.splitlines() if line.startswith(bucket)] == uris
    assert found == []


def _keras_in_pieces(folder: Path) -> None:
    model = keras_zoo.mlp().model
    model.save(folder / "whole.h5")
    model.save_weights(folder / "apart.weights.h5")
    with zipfile.ZipFile(folder / "mlp.keras") as archive:
        archive.extractall(folder / "unzipped")


def test_loading_local_models_writes_no_file(tmp_path: Path) -> None:
    model_zoo.keras_export(tmp_path / "saved")
    keras_zoo.mlp().model.save(tmp_path / "mlp.keras")
    _keras_in_pieces(tmp_path)
    models = [str(tmp_path / name) for name in ("saved", "mlp.keras", "whole.h5", "unzipped")]
    models.append(f"{tmp_path}/unzipped/config.json {tmp_path}/apart.weights.h5")
    orbax_checkpoints.save(keras_zoo.mlp().model, tmp_path / "orbax/3")
    models += [str(tmp_path / "orbax"), str(orbax_checkpoints.real("texts"))]
    hub = ""
    if importlib.util.find_spec("keras_hub") is not None:
        from tests.support import hub_presets

        hub = "import keras_hub\n"
        models.append(str(hub_presets.preset(hub_presets.word_pieces)))
    found, printed = writes(hub + _LOAD, models, tmp_path / "trace")
    assert [line.partition(" {")[0] for line in printed.splitlines() if line.startswith("/")] == models
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "open(sys.argv[1], 'w')",
        "os.mkdir(sys.argv[1])",
        "os.symlink('/', sys.argv[1])",
        "import threading; t = threading.Thread(target=open, args=(sys.argv[1], 'ab')); t.start(); t.join()",
        "import tempfile; tempfile.TemporaryFile()",
        "import subprocess; subprocess.run(['touch', sys.argv[1]])",
    ],
)
def test_a_write_would_be_seen(tmp_path: Path, statement: str) -> None:
    found, _ = writes(f"import os, sys\n{_BEGIN}\n{statement}", [str(tmp_path / "x")], tmp_path / "trace")
    assert found
