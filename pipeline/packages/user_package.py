"""The user's own modules on their way to the workers: built as wheels, tried apart, known by their contents."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from headrace.transforms.errors import InvalidRequest

_ROOT = Path(str(files("headrace"))).resolve().parent
_NO_SOURCES = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
_BESIDE = ("build", "dist", "venv")
_ARCHIVES = (".whl", ".tar.gz", ".zip")
# They describe the tool that built a wheel; all other files describe its content.
_TOOLS_OWN = re.compile(r"[^/]+\.dist-info/(RECORD|WHEEL)")
_IMPORT_APART = """
import importlib, sys
sys.path[:0] = sys.argv[1].split("\\n")
sys.path.append(sys.argv[2])
for name in sys.argv[3:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        text = f"{name}: {type(error).__name__}: {error}".replace("\\n", " ")
        sys.exit(f"\\nIMPORT {text}")
"""


@dataclass(frozen=True, slots=True)
class UserPackage:
    """`source` is as given; `wheel` is what the workers install; `digest` is the SHA-256 (hex) of the wheel's content.

    A wheel's dates and its builder's name are not part of the digest: unchanged sources give the same digest.
    """

    name: str
    source: str
    wheel: Path
    folder: Path
    digest: str


@contextmanager
def open_user_packages(sources: Sequence[str], modules: Sequence[str]) -> Iterator[tuple[UserPackage, ...]]:
    """The packages on the path of this process, and of those that it starts, until the context ends.

    `sources` are folders, wheels and source archives; `modules` must be found with nothing but these and the environment
    on the path, as on a worker. Raises `InvalidRequest` where one cannot be built or imported. Uses no network.
    """
    if not sources:
        yield ()
        return
    with tempfile.TemporaryDirectory(prefix="headrace-user-packages-") as work:
        packages = tuple(_build(source, Path(work, str(number))) for number, source in enumerate(sources))
        names = [package.name for package in packages]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidRequest(
                f"--user_package gives {repeated[0]} twice",
                expected="each package once",
                found=" and ".join(package.source for package in packages if package.name == repeated[0]),
            )
        if modules:
            _import_apart(packages, modules)
        with _on_path([str(package.folder) for package in packages]):
            yield packages


def _build(source: str, work: Path) -> UserPackage:
    """Copies a folder first: builders leave files where they work, and take up what earlier ones left."""
    path, built = Path(source), work / "wheel"
    if path.is_dir():
        _check_described(path)
        path = _copied(path, work / "source")
    elif not path.is_file() or not source.endswith(_ARCHIVES):
        raise InvalidRequest(
            f"--user_package={source} is not a package",
            expected=f"a folder, or a file that ends in {', '.join(_ARCHIVES)}, on this machine",
            found="a file" if path.is_file() else "nothing there",
            cure="Repeat --user_package for each" if "," in source else "",
        )
    how = ("--isolated", "--disable-pip-version-check", "--no-cache-dir", "--no-input")
    build = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(built))
    run = subprocess.run(
        [sys.executable, "-m", "pip", *how, "wheel", *build, str(path.resolve())],
        capture_output=True,
        text=True,
        cwd="/",
    )
    wheels = sorted(built.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        raise InvalidRequest(
            f"--user_package={source} cannot be built",
            expected="a package that this environment's build tools make a wheel of, without network",
            found=_reason(run.stdout + run.stderr),
            cure="Install what its [build-system] requires next to headrace, or build it yourself "
            "(python -m build --wheel) and name the wheel",
        )
    return _unpack(source, wheels[0], work / "site")


def _copied(folder: Path, to: Path) -> Path:
    def ignored(within: str, names: list[str]) -> set[str]:
        # Below the top, and with modules in them, they are packages like others.
        left = [name for name in _BESIDE if Path(within) == folder and not (folder / name / "__init__.py").exists()]
        return _NO_SOURCES(within, names).union(left)

    try:
        return Path(shutil.copytree(folder, to, ignore=ignored, ignore_dangling_symlinks=True))
    except (shutil.Error, OSError) as error:
        several = isinstance(error, shutil.Error)
        path, reason = (error.args[0][0][0], error.args[0][0][2]) if several else (error.filename, error.strerror)
        raise InvalidRequest(
            f"--user_package={folder} cannot be copied",
            expected="plain files and folders that can be read",
            found=f"{path}: {reason}"[:300],
            cure="Remove it, or build the package yourself (python -m build --wheel) and name the wheel",
        ) from error


def _check_described(folder: Path) -> None:
    if (folder / "pyproject.toml").exists() or (folder / "setup.py").exists():
        return
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem.isidentifier() and path.stem != "__init__")
    packages = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "mine"
    dumps = partial(json.dumps, ensure_ascii=False)  # such a list is one of TOML too
    lines = ["[project]", f'name = "{name}"', 'version = "1"']
    lines += ["[tool.setuptools]", f"py-modules = {dumps(modules)}", f"packages = {dumps(packages)}"]
    raise InvalidRequest(
        f"--user_package={folder} says nowhere what it is",
        expected="pyproject.toml or setup.py in it",
        found=", ".join([f"{module}.py" for module in modules] + [f"{package}/" for package in packages])
        or "no Python modules either",
        cure="Describe it: printf '%s\\n' " + " ".join(f"'{line}'" for line in lines) + f" > '{folder}/pyproject.toml'"
        if modules or packages
        else "Name the folder that holds your modules",
    )


def _reason(output: str) -> str:
    """The last lines of pip's output that report an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(error|exception|unavailable)\b", line, re.IGNORECASE)]
    own = [line for line in errors if "subprocess-exited" not in line and "metadata-generation" not in line]
    return (own or errors or lines or ["nothing was said"])[-1][:300]


def _unpack(source: str, wheel: Path, site: Path) -> UserPackage:
    """As an installer lays a pure or compiled wheel out; scripts and data files are nothing that is imported."""
    digest = hashlib.sha256()
    tops: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(entry for entry in archive.namelist() if not entry.endswith("/")):
            data = archive.read(name)
            if not _TOOLS_OWN.fullmatch(name):
                digest.update(f"{len(name.encode())} {len(data)} ".encode() + name.encode() + data)
            target = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
            if (site / target).resolve().is_relative_to(site.resolve()) and ".data/" not in target:
                (site / target).parent.mkdir(parents=True, exist_ok=True)
                (site / target).write_bytes(data)
                tops.add(target.partition("/")[0].partition(".")[0])
    if "headrace" in tops:
        raise InvalidRequest(
            f"--user_package={source} holds a module 'headrace'",
            expected="any other name: that one is headrace's own",
            cure="Rename it, or leave it out of that package",
        )
    return UserPackage(wheel.name.partition("-")[0], source, wheel, site, digest.hexdigest())


def _import_apart(packages: Sequence[UserPackage], modules: Sequence[str]) -> None:
    """Neither the folder from which headrace was started nor PYTHONPATH counts: a worker has neither."""
    found = "\n".join(str(package.folder) for package in packages)
    run = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORT_APART, found, str(_ROOT), *dict.fromkeys(modules)],
        capture_output=True,
        text=True,
        cwd=packages[0].folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    if run.returncode:
        names = " and ".join(package.source for package in packages)
        raise InvalidRequest(
            f"With --user_package={names} and this environment alone, a module cannot be imported",
            expected="modules that need nothing of the folder in which headrace was started",
            found=next(iter(re.findall(r"^IMPORT (.*)$", run.stderr, re.MULTILINE)), f"exit code {run.returncode}"),
            cure="Add what is missing to the package, name its package with --user_package too, or install it here and in "
            "the workers' image",
        )


@contextmanager
def _on_path(folders: Sequence[str]) -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry not in folders]
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        ended = tuple(f"{folder}{os.sep}" for folder in folders)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(ended):
                del sys.modules[name]
