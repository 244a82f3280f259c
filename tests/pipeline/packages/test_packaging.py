"""What is shipped: a wheel that works outside the checkout, and the source archive that Beam's --setup_file stages."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import headrace
from tests.support.jobs import FEATURES, put_inputs, read_output
from tests.support.warm import python

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("headrace", "pipeline", "transforms")
# Names in the checkout. `headrace/pipeline` and `headrace/transforms` are links, which rglob does not follow.
SOURCES = {
    str(path.relative_to(ROOT))
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}
# Names in a wheel.
SHIPPED = {name if name.startswith("headrace/") else f"headrace/{name}" for name in SOURCES}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the distribution is built from, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", *(PACKAGES if package == "headrace" else ()))
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Built from the source archive, as installing from an index would do it."""
    _python("-m", "build", "--no-isolation", "--outdir", "dist", cwd=source)
    return next((source / "dist").glob("*.whl"))


def _python(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    run = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == SHIPPED
    assert "headrace/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"headrace"}


def test_the_version_is_written_once(wheel: Path) -> None:
    assert wheel.name.startswith(f"headrace-{headrace.__version__}-")
    texts = [path.read_text("utf-8") for path in (ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile")]
    assert not any(headrace.__version__ in re.findall(r"\b\d+\.\d+\.\d+\b", text) for text in texts)


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_the_command_works_outside_the_checkout(wheel: Path, kind: str, tmp_path: Path) -> None:
    (built,) = wheel.parent.glob(kind)
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    _python("-m", "pip", "install", *offline, "--target=site", str(built), cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = _python(
        "-c",
        "import headrace as h, headrace.pipeline, headrace.transforms as t; print(h.__file__, h.pipeline.__file__, t.__file__)",
        cwd=tmp_path,
        env=env,
    )
    assert all(path.startswith(str(tmp_path / "site")) for path in where.split())
    script = tmp_path / "site" / "bin" / "headrace"
    text = _python(str(script), "--help", cwd=tmp_path, env=env)
    assert "--model" in text
    refused = subprocess.run(
        [sys.executable, script, "--modle=x"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--model" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's bin/ with headrace from the wheel; other packages are those of the environment that runs the tests."""
    root = tmp_path_factory.mktemp("environment")
    _python("-m", "venv", "--without-pip", str(root), cwd=root)
    _pip(root, "install", str(wheel))
    site = next((root / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "bin"


def _pip(environment: Path, command: str, *given: str) -> None:
    how = ("--no-deps", "--no-index") if command == "install" else ("--yes",)
    _python("-m", "pip", f"--python={environment}/bin/python", command, "--quiet", *how, *given, cwd=environment)


OWN = {
    "pipeline.py": "MINE = True\n",
    "transforms/__init__.py": "MINE = True\n",
    "post.py": "import pipeline, transforms\nassert pipeline.MINE and transforms.MINE\n"
    "import numpy as np\nimport pyarrow as pa\n\n\ndef top(batch):\n"
    "    scores = batch['output_0'].flatten().to_numpy().reshape(-1, 3)\n"
    "    best = np.argmax(scores, axis=1).astype('int32')\n"
    "    return pa.RecordBatch.from_pydict({'top': best, 'id': batch['id'], 'name': batch['name']})\n",
    "pre.py": "def same(batch):\n    return batch\n",
    "operations.py": "print('operations are imported')\n",
    "layers.py": "import keras\n\n\nclass Own(keras.layers.Layer):\n    def call(self, x):\n        return x * 2\n",
    "make.py": "import keras, layers\n"
    f"x = keras.Input(({FEATURES},), name='x')\n"
    "keras.Model(x, keras.layers.Dense(3)(layers.Own()(x))).save('model.keras')\n",
}


def test_the_command_runs_where_a_user_has_modules_of_the_same_names(environment: Path, tmp_path: Path) -> None:
    """And finds the modules that its flags name in the current folder."""
    for name, source in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    python((tmp_path / "make.py").read_text(), path=[str(tmp_path)], folder=str(tmp_path))
    put_inputs(str(tmp_path / "in"), [10, 10])
    named = ["--preprocess=pre:same", "--postprocess=post:top", "--import_module=operations"]
    job = ["--model=model.keras", "--custom_objects=layers:Own", "--input=in/*.parquet", "--output=out", *named]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([environment / "headrace", *job], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "operations are imported" in run.stdout
    assert read_output(str(tmp_path / "out")).column_names == ["top", "id", "name"]
    site = str(environment.parent)
    for program in (
        ["-m", "headrace", "--version"],
        ["-c", "import headrace; print(headrace.predict, headrace.__file__)"],
    ):
        told = subprocess.run([environment / "python", *program], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        assert "--version" in program or site in told.stdout


def test_another_distribution_may_have_a_pipeline(environment: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-1-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        for name in ("pipeline", "transforms"):
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(f"{name}/errors.py", "")
        archive.writestr("other-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: other\nVersion: 1\n")
        archive.writestr("other-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("other-1.dist-info/RECORD", "")
    before = _files(environment)
    _pip(environment.parent, "install", str(other))
    assert _headrace(environment, tmp_path).startswith("usage: headrace")
    assert _files(environment) > before
    _pip(environment.parent, "uninstall", "other")
    assert _headrace(environment, tmp_path).startswith("usage: headrace")
    assert before <= _files(environment)


def _files(environment: Path) -> set[str]:
    (site,) = (environment.parent / "lib").glob("python*/site-packages")
    return {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def _headrace(environment: Path, folder: Path) -> str:
    return subprocess.run([environment / "headrace", "--help"], cwd=folder, capture_output=True, text=True).stdout


def test_a_checkout_runs_without_any_installation(source: Path, tmp_path: Path) -> None:
    """Of a copy, since the checkout itself is installed here."""
    for package in ("pipeline", "transforms"):
        shutil.copytree(source / package, tmp_path / package)
    shutil.copytree(ROOT / "headrace", tmp_path / "headrace", symlinks=True)
    program = (
        "import runpy, sys; sys.argv = ['pipeline', '--help']\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "finally:\n    import headrace.pipeline.cli as cli; print(cli.__file__)"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: headrace")
    assert run.stdout.splitlines()[-1].startswith(str(tmp_path))


def test_what_beam_stages_for_workers_is_complete(source: Path, tmp_path: Path) -> None:
    """As Beam builds it: by `build` where the launcher has it, by setup.py itself elsewhere."""
    from apache_beam.runners.portability.stager import Stager

    by_build = Stager._build_setup_package(str(source / "setup.py"), str(tmp_path))
    _python("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "plain"), cwd=source)
    for archive in (by_build, next((tmp_path / "plain").iterdir())):
        with tarfile.open(archive) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
        assert SOURCES | {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_every_import_is_a_declared_requirement(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().split("\n\n")[0].splitlines()
    required = {_plain(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")}
    homes = packages_distributions()
    missing = {
        f"{path}: {name}"
        for path in sorted(SOURCES)
        if path.endswith(".py")
        for name in _imported((ROOT / path).read_text("utf-8"))
        # Type checkers have _typeshed themselves.
        if name not in (*sys.stdlib_module_names, "_typeshed", *PACKAGES)
        # A package of an extra need not be installed here; its import is then taken for its name.
        and required.isdisjoint({_plain(home) for home in homes.get(name, [name])})
    }
    assert not missing


def test_the_pins_are_plain_and_cover_the_requirements() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+(; python_version < \"3\.13\")?", line) for line in lines)
    pinned = {_plain(line) for line in lines}
    setup = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    asked = {
        _plain(item.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for item in node.value.elts
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }
    assert {"tensorflow", "apache-beam", "pytest", "scikit-learn"} <= asked
    assert asked <= pinned


def test_setup_py_alone_describes_the_distribution() -> None:
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _plain(requirement: str) -> str:
    """The name alone, as indexes compare it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def _imported(source: str) -> set[str]:
    tree = list(ast.walk(ast.parse(source)))
    plain = {name.name for node in tree if isinstance(node, ast.Import) for name in node.names}
    by_name = {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {module.split(".")[0] for module in plain | by_name}
