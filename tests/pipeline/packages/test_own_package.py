"""The wheel in which headrace itself reaches workers that do not have it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from headrace import __version__
from headrace.pipeline.flags.beam_options import PredictOptions
from headrace.pipeline.packages.own_wheel import build_wheel, own_package, pinned, travels_already
from tests.pipeline.packages.test_packaging import ROOT, SHIPPED

DATAFLOW = "--runner=DataflowRunner"


def test_it_holds_every_file_and_pip_reads_it(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == SHIPPED
    site = tmp_path / "site"
    how = ("--quiet", "--no-deps", "--no-index", "--no-compile", f"--target={site}")
    subprocess.run([sys.executable, "-m", "pip", "install", *how, str(wheel)], check=True)
    assert {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()} >= SHIPPED
    assert "headrace" in {path.name for path in (site / "bin").iterdir()}


def test_an_installed_headrace_makes_the_same_wheel_without_a_checkout(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "again").mkdir()
    program = "import sys; sys.path.insert(0, 'site'); from pathlib import Path; "
    program += "from headrace.pipeline.packages import own_wheel as o; print(o.__file__); o.build_wheel(Path('again'))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(str(tmp_path)) or run.stdout.startswith("site/")
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_requirements_are_asked_for_as_they_are_here() -> None:
    import numpy

    asked = ["numpy>=2.1", "tensorflow>=2.21", "no-such-package>=3", 'pytest>=1; extra == "dev"', "apache-beam[gcp]>=2"]
    found = pinned(asked)
    assert found[0] == f"numpy=={numpy.__version__}"
    assert found[1].startswith("tensorflow==")
    assert found[2] == "no-such-package>=3"
    assert found[3].startswith("apache-beam[gcp]==")
    assert len(found) == 4
    assert pinned(["tensorflow>=2.21"], gpu=True)[0].startswith("tensorflow[and-cuda]==")


def test_extras_that_are_here_come_along(tmp_path: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    wheel = build_wheel(tmp_path)
    needed = zipfile.ZipFile(wheel).read(f"headrace-{__version__}.dist-info/METADATA").decode().splitlines()
    assert f"Requires-Dist: s3fs=={s3fs.__version__}" in needed
    assert not any("pytest" in line or "extra ==" in line for line in needed)
    assert pinned(["s3fs>=1; extra == 's3'", 'no-such-package>=3; extra == "s3"']) == [f"s3fs=={s3fs.__version__}"]


@pytest.mark.parametrize(
    ("flags", "there"),
    [
        ((), False),
        (("--sdk_container_image=r/headrace:1",), True),
        ((f"--setup_file={ROOT}/setup.py",), True),
        (("--setup_file=elsewhere/setup.py",), False),
        ((f"--extra_package=dist/headrace-{__version__}-py3-none-any.whl",), True),
        ((f"--extra_package=dist/headrace-{__version__}.tar.gz",), True),
        (("--extra_package=dist/headraces-1-py3-none-any.whl",), False),
    ],
)
def test_it_travels_once(flags: tuple[str, ...], there: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = PredictOptions([DATAFLOW, *flags])
    assert travels_already(options) is there
    with own_package(options, elsewhere=True) as wheels:
        assert [wheel.exists() for wheel in wheels] == ([] if there else [True])
    assert not any(wheel.exists() for wheel in wheels)
    assert ("need no internet" in capsys.readouterr().err) is not there


def test_workers_of_this_machine_need_no_package() -> None:
    with own_package(PredictOptions([]), elsewhere=False) as wheels:
        assert wheels == ()
