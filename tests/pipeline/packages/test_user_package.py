"""The user's modules as packages: built, tried apart, known by their contents, and handed to the workers."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import SetupOptions
from apache_beam.runners.portability.stager import Stager

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.packages.user_package import UserPackage, open_user_packages
from headrace.pipeline.runners.launch import open_pipeline
from headrace.transforms.errors import InvalidRequest
from tests.support.jobs import model_folder, put_inputs, read_output

Capture = pytest.CaptureFixture[str]

PROJECT = '[project]\nname = "mine"\nversion = "1"\n'
FUNCTIONS = """\
import pyarrow as pa
from mine.numbers import FACTOR

def scaled(batch):
    x = batch.column("x").flatten()
    x = pa.array(x.to_numpy() * FACTOR)
    return batch.set_column(2, "x", pa.FixedSizeListArray.from_arrays(x, 4))
"""


SOURCES = {"mine/__init__.py": "", "mine/functions.py": FUNCTIONS, "mine/numbers.py": "FACTOR = 2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of two modules; `mine.functions:scaled` multiplies `x` with what `mine.numbers` says."""
    return write(tmp_path / "src", PROJECT, SOURCES)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserPackage]:
    """The same, built and on the path, with the folder as its source."""
    folder = write(tmp_path_factory.mktemp("built") / "src", PROJECT, SOURCES)
    with open_user_packages([str(folder)], ["mine.functions"]) as (package,):
        yield package


def write(folder: Path, project: str | None, modules: dict[str, str]) -> Path:
    for name, text in modules.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    if project is not None:
        (folder / "pyproject.toml").write_text(project, "utf-8")
    return folder


def refused(sources: list[Any], *modules: str) -> str:
    with pytest.raises(InvalidRequest) as caught, open_user_packages([str(source) for source in sources], modules):
        pass
    return str(caught.value)


def test_a_job_runs_with_the_function_of_a_package_and_is_another_when_the_package_changes(
    folder: Path, capfd: Capture, tmp_path: Path
) -> None:
    put_inputs(f"{tmp_path}/in", [20])

    def job(out: str, *more: str) -> tuple[int, str]:
        code = main(
            [
                f"--model={model_folder()}/saved_model",
                f"--input={tmp_path}/in/*.parquet",
                f"--output={tmp_path}/{out}",
                *more,
            ]
        )
        return code, capfd.readouterr().err

    paths = [list(sys.path), os.environ.get("PYTHONPATH")]
    around = (f"--user_package={folder}", "--preprocess=mine.functions:scaled")
    before = sorted(path.name for path in folder.rglob("*"))
    code, err = job("out", *around)
    assert code == 0, err
    assert sorted(path.name for path in folder.rglob("*")) == before, "building left something behind"
    assert "mine" not in sys.modules
    assert [sys.path, os.environ.get("PYTHONPATH")] == paths
    assert job("plain")[0] == 0
    assert not read_output(f"{tmp_path}/out")["output_0"].equals(read_output(f"{tmp_path}/plain")["output_0"])
    (folder / "mine/numbers.py").write_text("FACTOR = 3")
    code, err = job("out", *around)
    assert code == 2
    assert "another job: user_package differ" in err


def test_workers_of_this_machine_have_it_on_their_path(package: UserPackage) -> None:
    program = "import mine.numbers; print(mine.numbers.FACTOR)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "2\n", run.stderr


def test_equal_contents_have_one_digest_whenever_and_from_whatever_they_are_built(
    package: UserPackage, folder: Path, tmp_path: Path
) -> None:
    wheel, archive = tmp_path / package.wheel.name, tmp_path / "mine-1.tar.gz"
    wheel.write_bytes(package.wheel.read_bytes())
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "mine-1")
    os.utime(folder / "mine/numbers.py", (1e9, 1e9))
    for source in (folder, wheel, archive):
        with open_user_packages([str(source)], []) as (again,):
            assert again.digest == package.digest
            assert (again.folder / "mine/numbers.py").read_text() == "FACTOR = 2"


def test_runners_elsewhere_are_handed_the_wheel_as_beam_takes_it(package: UserPackage, tmp_path: Path) -> None:
    options = parse_flags(["--runner=PortableRunner", "--job_endpoint=localhost:1", "--extra_package=other.whl"])
    open_pipeline(options, [package])
    staged = options.view_as(SetupOptions).extra_packages
    assert staged == ["other.whl", str(package.wheel)]
    resources = Stager._create_extra_packages(staged[1:], str(tmp_path))
    assert len(resources) == 2
    assert (tmp_path / "extra_packages.txt").read_text() == f"{package.wheel.name}\n"
    install = ["install", "--quiet", "--no-index", "--no-deps", f"--target={tmp_path}/site", staged[1]]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    assert (tmp_path / "site/mine/numbers.py").read_text() == "FACTOR = 2"


def test_processes_of_this_machine_are_handed_nothing(package: UserPackage) -> None:
    options = parse_flags([])
    open_pipeline(options, [package])
    assert not options.view_as(SetupOptions).extra_packages


def test_what_lies_only_where_headrace_was_started_is_not_on_a_worker(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here", None, {"only_here.py": ""})
    (folder / "mine/functions.py").write_text("import only_here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"))
    told = refused([folder], "mine.functions")
    assert "mine.functions: ModuleNotFoundError: No module named 'only_here'" in told
    assert str(folder) in told


def test_a_folder_that_says_nowhere_what_it_is_and_the_cure(package: UserPackage, tmp_path: Path) -> None:
    folder = write(tmp_path / "My code", None, {"features.py": "A = 1", "more.py": "", "deep/__init__.py": ""})
    told = refused([folder], "features")
    assert "pyproject.toml or setup.py" in told
    cure = told[told.index("printf") : told.rindex("'") + 1]
    subprocess.run(["sh", "-c", cure], check=True)
    (folder / "more.py").write_text("import mine.numbers")
    with open_user_packages([str(folder), str(package.wheel)], ["features", "more", "deep"]) as packages:
        assert [one.name for one in packages] == ["my_code", "mine"]


@pytest.mark.parametrize(
    ("project", "modules", "fragments"),
    [
        (
            None,
            {"setup.py": 'raise RuntimeError("there is no header")'},
            ["cannot be built", "RuntimeError: there is no header", "python -m build --wheel"],
        ),
        (
            '[build-system]\nrequires = ["nobuilder"]\nbuild-backend = "nobuilder.api"\n' + PROJECT,
            {"a.py": ""},
            ["cannot be built", "nobuilder", "[build-system]"],
        ),
        (None, {"read.me": ""}, ["no Python modules either", "Name the folder that holds your modules"]),
    ],
)
def test_what_cannot_be_built_is_told(
    tmp_path: Path, project: str | None, modules: dict[str, str], fragments: list[str]
) -> None:
    told = refused([write(tmp_path / "src", project, modules)])
    assert all(fragment in told for fragment in [str(tmp_path / "src"), *fragments]), told


def test_packages_may_have_the_names_of_what_lies_beside_sources(tmp_path: Path) -> None:
    find = f"{PROJECT}[tool.setuptools.packages.find]\n"
    held = {f"mine/{name}/__init__.py": "" for name in ("build", "dist", "venv", "deep/build")}
    beside = {"build/lib/mine/stale.py": "", "dist/old.py": "", "venv/lib/mine/stale.py": "", "mine/.hidden/a.py": ""}
    folder = write(tmp_path / "src", find, {"mine/__init__.py": "", "mine/deep/__init__.py": "", **held, **beside})
    with open_user_packages([str(folder)], ["mine.build", "mine.dist", "mine.venv", "mine.deep.build"]) as (package,):
        found = {str(path.relative_to(package.folder)) for path in package.folder.rglob("*.py")}
    assert found == {"mine/__init__.py", "mine/deep/__init__.py", *held}
    folder = write(tmp_path / "top", find, {"build/__init__.py": "", "build/a.py": ""})
    with open_user_packages([str(folder)], ["build.a"]):
        pass


def test_what_cannot_be_copied_is_told(folder: Path) -> None:
    (folder / "mine/nowhere").symlink_to("/nowhere")
    with open_user_packages([str(folder)], ["mine.functions"]):
        pass
    os.mkfifo(folder / "mine/pipe")
    assert f"plain files and folders that can be read. Found: {folder}/mine/pipe" in refused([folder])
    (folder / "mine/pipe").unlink()
    (folder / "mine/self").symlink_to(".")
    assert f"Found: {folder}/mine/self/" in refused([folder])


def test_what_is_no_package_is_told(package: UserPackage, tmp_path: Path) -> None:
    assert "nothing there" in refused([tmp_path / "none"])
    write(tmp_path, None, {"a.txt": ""})
    assert "ends in .whl" in refused([tmp_path / "a.txt"])
    with zipfile.ZipFile(tmp_path / "mine-1-cp27-cp27m-win32.whl", "w") as other:
        other.writestr("mine.py", "")
    assert "not a supported wheel on this platform" in refused([tmp_path / "mine-1-cp27-cp27m-win32.whl"])
    assert "gives mine twice" in refused([package.wheel, package.wheel])


def test_what_would_stand_in_headraces_place_is_told(package: UserPackage, tmp_path: Path) -> None:
    wheel = tmp_path / package.wheel.name
    wheel.write_bytes(package.wheel.read_bytes())
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("transforms/__init__.py", "")
        archive.writestr("pipeline.py", "")
    with open_user_packages([str(wheel)], []):
        pass
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("headrace/transforms/__init__.py", "")
    told = refused([wheel])
    assert "holds a module 'headrace'" in told
    assert "that one is headrace's own" in told
    assert "Rename it" in told


def test_a_wrong_package_is_refused_before_anything_is_written(tmp_path: Path, capfd: Capture) -> None:
    put_inputs(f"{tmp_path}/in", [3])
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]
    assert main([*flags, f"--user_package={tmp_path}/none"]) == 2
    assert "Cannot start: --user_package" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
