"""What a contributor finds: hooks that do what `make lint` does, a changelog that knows the version, a list of every task."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
