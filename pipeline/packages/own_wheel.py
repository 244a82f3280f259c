"""headrace itself for workers that do not have it: a wheel of the very modules that this process runs.

It requires the versions that are installed here: a worker with internet access installs what the launcher has. It is built
the same way from a checkout and from an installed distribution, without build tools or network. The format is
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, WorkerOptions

from headrace.transforms.errors import InvalidRequest
from headrace.transforms.versions import __version__

from ..terminal.log import log_event

_PACKAGE = Path(str(files("headrace"))).resolve()
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
# Stores and formats that a job may need, where they are installed here.
_WORKERS_EXTRAS = ("s3", "azure", "hf", "tflite")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?P<extras>\[[^]]*\])?(?P<rest>.*)")


@contextmanager
def own_package(options: PipelineOptions, *, elsewhere: bool, gpu: bool = False) -> Iterator[tuple[Path, ...]]:
    """The wheel, until the context ends; nothing where the workers have headrace in another way.

    `elsewhere`: the workers are on machines that may lack it. `gpu`: TensorFlow brings CUDA's libraries with it. Raises
    `InvalidRequest` where requirements cannot be found out.
    """
    if not elsewhere or travels_already(options):
        yield ()
        return
    log_event(
        "note",
        "Workers install headrace and its requirements from PyPI. From an image (--sdk_container_image, templates/flex) "
        "they start sooner, and need no internet access.",
    )
    with tempfile.TemporaryDirectory(prefix="headrace-package-") as folder:
        yield (build_wheel(Path(folder), gpu=gpu),)


def travels_already(options: PipelineOptions) -> bool:
    """Whether an image or a named package brings headrace: this checkout's setup.py, or an archive of headrace."""
    setup, worker = options.view_as(SetupOptions), options.view_as(WorkerOptions)
    if worker.sdk_container_image:
        return True
    if setup.setup_file and (Path(setup.setup_file).resolve().parent / "transforms" / "versions.py").exists():
        return True
    return any(re.match(r"headrace-\d", Path(package).name) for package in setup.extra_packages or ())


def build_wheel(folder: Path, *, gpu: bool = False) -> Path:
    """The same bytes for the same sources and versions."""
    info = f"headrace-{__version__}.dist-info"
    metadata = ["Metadata-Version: 2.1", "Name: headrace", f"Version: {__version__}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in pinned(_requirements(), gpu=gpu)]
    held = {f"headrace/{name}": path.read_bytes() for name, path in sorted(_sources(_PACKAGE))}
    held |= {
        f"{info}/METADATA": "\n".join([*metadata, ""]).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: headrace\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nheadrace = headrace.pipeline.start:entry\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in held.items())
    held[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"headrace-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(zipfile.ZipInfo(name.replace(os.sep, "/"), _LONG_AGO), data, zipfile.ZIP_DEFLATED)
    return wheel


def pinned(requirements: Iterable[str], *, gpu: bool = False) -> list[str]:
    """Each requirement at the version that is installed here; unchanged where none is installed under that name.

    Of the extras that workers may need, only what is installed here, sorted: a checkout lists them in another order.
    """
    found, of_extras = list[str](), set[str]()
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement.strip())
        extra = re.search(r"""extra == ["'](\w+)""", requirement)
        if match is None or (extra and extra[1] not in _WORKERS_EXTRAS):
            continue
        extras = match["extras"] or ("[and-cuda]" if gpu and match["name"] == "tensorflow" else "")
        try:
            pin = f"{match['name']}{extras}=={version(match['name'])}"
        except PackageNotFoundError:
            pin = "" if extra else f"{match['name']}{extras}{match['rest'].strip()}"
        if not extra:
            found.append(pin)
        elif pin:
            of_extras.add(pin)
    return found + sorted(of_extras.difference(found))


def _sources(folder: Path, below: str = "") -> Iterator[tuple[str, Path]]:
    """Every file by its name in the package; in a checkout, two of the package's folders are links."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            yield from _sources(path, f"{below}{path.name}/")
        elif path.is_file():
            yield f"{below}{path.name}", path


@cache
def _requirements() -> list[str]:
    """A checkout's requirements come from its own setup.py: an earlier installation from it may be out of date."""
    setup = _PACKAGE.parent / "setup.py"
    if not setup.exists():
        return list(requires("headrace") or ())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(setup), "--quiet", "egg_info", "--egg-base", folder]
        run = subprocess.run(command, cwd=_PACKAGE.parent, capture_output=True, text=True)
        described = Path(folder, "headrace.egg-info", "requires.txt")
        if run.returncode or not described.exists():
            raise InvalidRequest(
                "headrace cannot be packed for the workers",
                expected="setuptools in this environment",
                found=(run.stderr.strip().splitlines() or ["no description"])[-1],
                cure="pip install setuptools, or name an image that holds headrace with --sdk_container_image",
            )
        needed, *extras = re.split(r"^\[(.+)\]$", described.read_text("utf-8"), flags=re.MULTILINE)
        sections = zip(extras[::2], extras[1::2], strict=True)
        of_extras = [f'{one}; extra == "{name}"' for name, ones in sections for one in ones.split()]
        return needed.split() + of_extras


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
