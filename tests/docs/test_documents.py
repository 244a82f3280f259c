"""Every code block of every document: the shell's are read as commands, their flags by our own parser; Python's compile.

Blocks marked `test` are run besides, by `tests/docs/test_readme.py`. Other programs' commands are looked at as shell alone.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import headrace
from headrace.pipeline.flags.beam_options import _every_flag, parse_flags
from headrace.pipeline.flags.flags import COMMANDS
from headrace.pipeline.flags.request import parse_request
from headrace.transforms.errors import InvalidRequest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*/*/README.md")),
    *sorted(ROOT.glob("examples/*.md")),
]
MARKDOWN = MarkdownIt("commonmark").enable("table")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
# Other programs, whose flags are not ours.
OTHERS = {"gcloud", "docker", "airflow", "systemctl", "sudo", "terraform", "crontab", "pip", "pip-audit", "pre-commit"}
SHELL = {"cat", "cd", "cp", "export", "install", "mkdir", "printf", "apt-get", "loginctl", "flock", "curl", ".ci/run"}
# Flags of the benches, of Beam's worker pool and YAML runner, and of Dask's worker.
THEIRS = {"json", "svg", "service_port", "container_executable", "nthreads", "yaml_pipeline_file"}


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language (without `test`) and content of each fenced block; of an indented one, ''."""
    for token in MARKDOWN.parse(page.read_text("utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.info.partition(" ")[0], token.content


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command, without what is piped to it by <<END, redirections and variables set for it."""
    script = re.sub(r"<<'?(\w+)'?(.*?)\n.*?^\1$", r"\2", script.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|()"):
                while words and re.match(r"^[A-Z_]+=", words[0]):
                    del words[0]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def is_ours(words: list[str]) -> list[str] | None:
    """The arguments, where the command is headrace's."""
    if words[0] == "headrace":
        return words[1:]
    return words[3:] if words[:3] in (["python", "-m", "pipeline"], ["python", "-m", "headrace"]) else None


def check_command(words: list[str]) -> None:
    """Raises where a flag, a value's form, a target, a module or an example does not exist."""
    if (argv := is_ours(words)) is not None:
        check_flags(argv)
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert set(targets) <= TARGETS, f"make has no {set(targets) - TARGETS}"
        for word in words[1:]:
            if word.startswith("ARGS="):
                check_flags(shlex.split(word.removeprefix("ARGS=")), whole=False)
    elif words[0] == "python" and words[1].startswith("examples/"):
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[0] == "python":
        assert words[1] == "-m"
        assert find_spec(words[2]) is not None, f"there is no module {words[2]}"
    else:
        assert words[0] in OTHERS | SHELL, f"{words[0]} is no program that the documents may use"


def check_flags(argv: list[str], *, whole: bool = True) -> None:
    argv = argv[: argv.index(">")] if ">" in argv else argv
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "run"
    if argv in ([], ["--help"]):
        return
    options = parse_flags(argv)
    if whole and not any("…" in word or "$" in word for word in argv):
        parse_request(options, command)


def check_block(language: str, content: str) -> None:
    if language == "sh":
        syntax = subprocess.run(["bash", "-n", "-c", content], capture_output=True, text=True)
        assert syntax.returncode == 0, syntax.stderr
        for words in commands(content):
            check_command(words)
    elif language == "":
        for line in content.replace("\\\n", " ").splitlines():
            if line.strip().startswith("--"):  # a part of a command
                check_flags(shlex.split(line), whole=False)
            elif re.match(r"\s*(headrace|make|python -m (pipeline|headrace)) ", line):
                for words in commands(re.sub(r"\[(.*)\]", r"\1", line.strip())):
                    check_command(words)
    elif language == "python":
        for node in ast.walk(compile(content, "block", "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and node.module == "headrace":
                assert {name.name for name in node.names} <= set(headrace.__all__)
    elif language in ("json", "yaml", "toml"):
        {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}[language](content)
    else:
        assert language in ("text", "{toctree}", "hcl", "ini"), f"blocks of {language!r} are not looked at"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_can_be_read(page: Path) -> None:
    for language, content in fences(page):
        try:
            check_block(language, content)
        except (AssertionError, InvalidRequest, SyntaxError, ValueError) as error:
            raise AssertionError(f"{page.relative_to(ROOT)}: {error}\n{content}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_text_names_no_flag_that_there_is_not(page: Path) -> None:
    ours = {flag.removeprefix("--") for action in _every_flag()._actions for flag in action.option_strings}
    named = {
        flag
        for token in MARKDOWN.parse(page.read_text("utf-8"))
        for child in token.children or []
        if child.type == "code_inline" and not set(child.content.split()) & OTHERS
        if not child.content.startswith("make bench-")  # its ARGS are the bench's own
        for flag in re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w-])", child.content)
    }
    assert named <= ours | THEIRS | {"help"}


def test_every_link_within_the_repository_leads_to_something() -> None:
    """On the site, `tests/docs/test_docs_site.py` looks at them again, with what they name within a page."""
    broken = {
        (str(page.relative_to(ROOT)), link)
        for page in PAGES
        for token in MARKDOWN.parse(page.read_text("utf-8"))
        for child in token.children or []
        for link in [str(child.attrs.get("href") or child.attrs.get("src") or "#").partition("#")[0]]
        if link and "://" not in link and not (page.parent / link).exists()
    }
    assert not broken


@pytest.mark.parametrize(
    ("language", "content"),
    [
        ("sh", "headrace --modle=x"),
        ("sh", "cd x && python -m pipeline --model=x --input=y --ouptut=z"),
        ("sh", "headrace \\\n  --model=x --input=y --output=z --feature=pixels"),
        ("sh", "cd x && python -m headrace --model=x --input=y --ouptut=z"),
        ("sh", "headrace inspcet --model=x"),
        ("sh", "make bench-everything"),
        ("sh", "make run MODEL=a INPUT=b OUTPUT=c ARGS='--kep=id'"),
        ("sh", "python -m examples.audio"),
        ("sh", "hedrace plan --model=x"),
        ("sh", "if true"),
        ("", "    --model=x --inptu=y"),
        ("python", "from headrace import Predcit"),
        ("python", "a = ("),
        ("ruby", "1"),
    ],
)
def test_a_mistake_in_a_block_is_seen(language: str, content: str) -> None:
    with pytest.raises((AssertionError, InvalidRequest, SyntaxError)):
        check_block(language, content)


def test_commands_are_found_in_a_script() -> None:
    script = "mkdir a\ncat > a/b <<'END'\nheadrace --no\nEND\nA=1 headrace plan \\\n  --model=x | tail # said\n"
    assert list(commands(script)) == [["mkdir", "a"], ["cat", ">", "a/b"], ["headrace", "plan", "--model=x"], ["tail"]]
