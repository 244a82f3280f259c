"""`--help` on 80 columns: grouped, with three examples that are commands."""

from __future__ import annotations

import re
import shlex

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.flags import COMMANDS, help_text, parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.dataflow import check_dataflow
from headrace.transforms.versions import __version__


@pytest.mark.parametrize("columns", [80, 200])
def test_no_line_is_longer_than_80_columns(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    groups = re.findall(r"^([a-z][a-z ]+):$", text, re.MULTILINE)
    assert groups == [
        *("commands", "options", "what to predict", "columns", "around the model", "how to run", "what is told"),
        *("how a worker loads the model", "access", "examples"),
    ]
    assert [word for word in re.findall(r"^  (\w+)   ", text, re.MULTILINE) if word in COMMANDS] == list(COMMANDS)


def test_its_three_examples_are_commands() -> None:
    text = help_text().partition("examples:")[2].replace("\\\n", " ")
    examples = [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("headrace ")]
    assert len(examples) == 3
    for argv in examples:
        command = argv.pop(0) if argv[0] in COMMANDS else "run"
        options = parse_flags(argv)
        check_dataflow(options, parse_request(options, command))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"
