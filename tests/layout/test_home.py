"""What a contributor finds: hooks that do what `make lint` does, a changelog that knows the version, a list of every task."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from headrace.transforms.versions import __version__

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_hooks_are_local_and_do_what_lint_does() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {tuple(hook["entry"].split()[:2]) for repo in config["repos"] for hook in repo["hooks"]}
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    lint = {
        tuple(line.replace("$(BIN)", ".venv/bin").replace(" --check", "").split()[:2]) for line in recipe.splitlines()
    }
    assert hooks == lint


def test_the_changelog_tells_of_this_version_and_of_what_comes() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1].split(" ")[0] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_help_lists_every_task_that_a_person_types() -> None:
    run = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^make (\S+)", run.stdout, re.MULTILINE))
    told = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
    asked_for = {name for line in re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert listed == told
    assert asked_for <= listed


TOPS = ("pipeline", "transforms", "headrace", "tests", "templates", "benchmarks", "docs", "examples")
# What is written at the start of a path, or after a blank, a quote or a bracket: no part of a URI or of a longer path.
PATH = re.compile(rf"""(?<![\w./$:{{}}*-])(?:(?:{"|".join(TOPS)})/[\w./*-]*\w/?)""")
IN_BUCKETS = ("templates/headrace.json",)  # where `make template` writes it
MODULE = re.compile(r"-m ((?:headrace|tests|benchmarks|examples)(?:\.\w+)+)")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("Makefile", "*.md", "docs/**/*.md", "templates/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # of versions before, with the names of then
)


def missing(text: str) -> list[str]:
    """Paths of this repository and modules of ours that the text names, and that are not there."""
    paths = [path for path in dict.fromkeys(PATH.findall(text)) if path not in IN_BUCKETS and not any(ROOT.glob(path))]
    return paths + [name for name in dict.fromkeys(MODULE.findall(text)) if find_spec(name) is None]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_module_that_a_page_names_is_there(page: str) -> None:
    assert not missing((ROOT / page).read_text("utf-8"))


def test_a_path_or_module_that_is_not_there_is_found() -> None:
    assert missing("see `tests/test_gone.py`") == ["tests/test_gone.py"]
    assert missing("(transforms/beam/gone/) and tests/layout/*.py") == ["transforms/beam/gone/"]
    assert missing("python -m headrace.gone") == ["headrace.gone"]
    assert missing("gs://bucket/docs/gone.md, build/docs/gone and python -m headrace.pipeline.demo") == []


def test_the_files_of_the_makefiles_lists_are_there() -> None:
    run = subprocess.run(
        ["make", "-pn", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    for name in ("FAST", "LOADING", "FAULTED"):
        (files,) = re.findall(rf"^{name} := (.*)$", run.stdout, re.MULTILINE)
        assert len(files.split()) > 1
        assert all((ROOT / one).exists() for one in files.split()), files
