"""templates/flex/Dockerfile walked without docker: its own steps in a folder and an environment of their own.

Neither base image can be had in the tests, nor is any package fetched: what others' wheels would bring is taken from the
environment that runs the tests. What the image has of headrace comes by the very lines of the Dockerfile.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "templates" / "flex" / "Dockerfile"


@dataclass(frozen=True)
class Image:
    """`root` stands for the image's /; `variables` are what its ENV lines say."""

    root: Path
    variables: dict[str, str]

    @property
    def bin(self) -> Path:
        return self.root / "env" / "bin"


def steps(stage: str) -> list[tuple[str, str]]:
    """Instruction and the rest of its line, of the stage of that name; the last one is ""."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found = stages.setdefault(rest.partition(" AS ")[2], [])
        elif stages:
            found.append((instruction, rest.strip()))
    return stages[stage]


def build_image(root: Path, image: str) -> Image:
    """Raises `CalledProcessError` where a step fails."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "env"], check=True)
    for instruction, rest in steps("wheels"):
        if instruction == "COPY":
            *sources, target = rest.split()
            for path in (path for pattern in sources for path in sorted(ROOT.glob(pattern))):
                _copy(path, root / "source" / target)
        elif instruction == "RUN" and "--require-hashes" not in rest:
            _run(rest, root, root / "source")
    variables = {}
    for instruction, rest in steps(""):
        if instruction == "RUN":
            install, check = re.sub(r"--mount=\S+", "", rest).strip().split(" && ")
            _run(install, root, root)
            # Last, since pip would take the editable headrace there for this one.
            site = next((root / "env" / "lib").glob("python*/site-packages"))
            (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
            _run(check, root, root)
        elif instruction == "COPY" and not rest.startswith("--from"):
            copied, target = rest.split()
            _copy(ROOT / copied, root / target.lstrip("/"))
        elif instruction == "ENV":
            name, _, value = rest.partition("=")
            variables[name] = value.replace("${IMAGE}", image)
    return Image(root, variables)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    if target.suffix != source.suffix:  # a folder
        target = target / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _run(command: str, root: Path, folder: Path) -> None:
    """`pip` is this environment's, and works on the image's; its variables keep it from fetching anything."""
    pip = shlex.join([sys.executable, "-m", "pip", "--python", str(root / "env" / "bin" / "python")])
    command = re.sub(r"^pip ", f"{pip} ", command).replace("/wheels", f"{root}/wheels")
    own = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # A build takes setuptools from here.
    own |= {"PYTHONPATH": sysconfig.get_path("purelib")} if " wheel " in command else {}
    subprocess.run(["sh", "-ec", command], cwd=folder, check=True, env={"PATH": os.environ["PATH"], **own})
