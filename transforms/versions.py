"""What a job's numbers and files depend on in addition to its inputs: the launcher's versions, which workers must have."""

from __future__ import annotations

from collections.abc import Mapping

__version__ = "0.1.0"
ASKS_FOR_VERSION = (["--version"], ["-V"], ["version"])

# Some packages have several names, one for each kind of build.
_NAMES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly"),
    "keras": ("keras", "keras-nightly"),
    "pyarrow": ("pyarrow",),
}


def versions() -> dict[str, str]:
    """Name to version; of Python, whose pickles and libraries change with it, the first two numbers."""
    import platform

    found = {name: _installed(names) for name, names in _NAMES.items()}
    return found | {"headrace": __version__, "python": ".".join(platform.python_version_tuple()[:2])}


def _installed(names: tuple[str, ...]) -> str:
    # Here, and so are others below: `headrace --version` needs the number above and nothing else.
    from importlib.metadata import PackageNotFoundError, version

    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def check_versions(launcher: Mapping[str, str]) -> None:
    """Raises `WorkerMismatch` where this process has other versions than the launcher had when it made the job."""
    from .errors import WorkerMismatch

    here = versions()
    differ = sorted(name for name in launcher if launcher[name] != here.get(name, "not installed"))
    if differ:
        raise WorkerMismatch(
            f"This worker is not like the launcher: {', '.join(differ)} {'differ' if len(differ) > 1 else 'differs'}",
            expected=", ".join(f"{name} {launcher[name]}" for name in differ) + " (the launcher's)",
            found=", ".join(f"{name} {here.get(name, 'not installed')}" for name in differ) + " (the worker's)",
            cure="Start the job from the image that the workers run (--sdk_container_image), or install the launcher's "
            "versions on them (--requirements_file)",
        )
