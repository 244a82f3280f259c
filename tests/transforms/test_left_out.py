"""What is left out looks as if it were not installed, to one thread and for a while."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from pathlib import Path

import pytest

from headrace.transforms.left_out import leave_out, left_out, put_back


@pytest.fixture
def unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that this process can import, and has not."""
    name = "unused_by_this_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "part.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (name, f"{name}.part"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return name


def test_within_the_block_it_is_missing_and_afterwards_it_is_there(unused: str) -> None:
    finders = list(sys.meta_path)
    with left_out(unused):
        for module in (unused, f"{unused}.part"):
            with pytest.raises(ModuleNotFoundError, match="left out") as found:
                importlib.import_module(module)
            assert found.value.name == unused
        # TensorFlow asks where Keras is, without an import.
        spec = importlib.util.find_spec(unused)
        assert spec is not None
        assert spec.origin is not None
        assert spec.origin.endswith(f"{unused}/__init__.py")
    assert importlib.import_module(f"{unused}.part").__name__ == f"{unused}.part"
    assert sys.meta_path == finders


def test_one_module_of_a_package_alone(unused: str) -> None:
    with left_out(f"{unused}.part"):
        importlib.import_module(unused)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{unused}.part")
    importlib.import_module(f"{unused}.part")


def test_it_stays_where_it_is_imported_already_and_for_other_threads(unused: str) -> None:
    with left_out(unused, "json"):
        assert importlib.import_module("json") is sys.modules["json"]
        thread = threading.Thread(target=importlib.import_module, args=(unused,))
        thread.start()
        thread.join()
        assert importlib.import_module(unused) is sys.modules[unused]


def test_until_it_is_put_back_which_ends_no_block(unused: str) -> None:
    leave_out(unused)
    with left_out(f"{unused}.part"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(unused)
        put_back()
        importlib.import_module(unused)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{unused}.part")
    put_back()
    importlib.import_module(f"{unused}.part")
