"""What tests of whole jobs with functions, several models and static batches share: small models, modules, one command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.cli import main
from headrace.transforms.jobs.job import JOB_RECORD
from headrace.transforms.storage import open_store

Capture = pytest.CaptureFixture[str]
Job = Callable[..., tuple[int, str, str]]


def job_in(place: str, capfd: Capture, **usual: str) -> Job:
    """Runs a command over `place`: flags that start with -- or a command's name; the rest replaces `usual` flags."""

    def run(*more: str, **instead: Any) -> tuple[int, str, str]:
        flags = {"input": f"{place}/in/*.parquet", "output": f"{place}/out"} | usual | instead
        given = [value for value in more if not value.startswith("-")]
        code = main([*given, *(f"--{k}={v}" for k, v in flags.items() if v), *(v for v in more if v.startswith("-"))])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def write_module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that this process can import, anew after each writing."""
    (folder / f"{name}.py").write_text(text, "utf-8")
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def record_of(output: str) -> Any:
    store = open_store(output)
    return json.loads(store.read(store.stat(f"{output}/{JOB_RECORD}")))


def save_signature(folder: Path, function: Callable[..., Any], inputs: dict[str, tuple[list[int | None], str]]) -> str:
    """A SavedModel whose one signature is the function of tensors by name."""
    import tensorflow as tf

    specs = {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()}
    module = tf.Module()
    module.serve = tf.function(function)
    tf.saved_model.save(
        module, str(folder), signatures={"serving_default": module.serve.get_concrete_function(**specs)}
    )
    return str(folder)
