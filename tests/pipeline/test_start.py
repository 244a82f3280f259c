import sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy

from headrace.pipeline.start import with_folder


def test_a_users_modules_come_after_pythons_own_and_before_what_is_installed(tmp_path: Path) -> None:
    for name in ("random", "numpy", "post"):
        (tmp_path / f"{name}.py").write_text("")
    here = str(tmp_path)
    path = with_folder([entry for entry in sys.path if entry not in ("", here)], here)

    def found(name: str) -> str:
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        return str(spec.origin)

    assert not found("random").startswith(here)
    assert found("numpy") == f"{here}/numpy.py" != numpy.__file__
    assert found("post") == f"{here}/post.py"
    assert with_folder(path, here) == path
