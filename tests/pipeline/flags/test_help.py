"""`--help` on 80 columns: grouped, with three examples that are commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.completion import SHELLS, completion
from headrace.pipeline.flags.flags import COMMANDS, NEEDED, flags_of
from headrace.pipeline.flags.help_text import help_text
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.dataflow import check_dataflow
from headrace.transforms.versions import __version__
from tests.support.terminal import Terminal


@pytest.mark.parametrize("columns", [80, 200])
def test_no_line_is_longer_than_80_columns(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    groups = re.findall(r"^([a-z][a-z ]+):$", text, re.MULTILINE)
    assert groups == [
        *("commands", "options", "what to predict", "columns", "around the model", "how to run", "messages"),
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


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["version"]])
def test_the_version(capsys: Capture, argv: list[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_flags_is_an_error_with_its_usage(capsys: Capture, command: str) -> None:
    """A script's variable may be empty."""
    assert main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: headrace {command} --{NEEDED[command][0]}=")


def test_without_anything_the_help_is_an_error_too(capsys: Capture) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{help_text()}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_its_own_flags(capsys: Capture, command: str) -> None:
    texts = []
    for argv in (["help", command], [command, "--help"], [command, "--model=m", "-h"]):
        assert main(argv) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert [line for line in texts[0].splitlines() if len(line) > 80] == []
    shown = re.findall(r"^  (?:-h, )?--(\w+)", texts[0], re.MULTILINE)
    assert shown == ["help", *(action.dest for action in flags_of(command))]
    assert ("sample" in shown) == (command == "verify")
    assert ("trial" in shown) == (command == "plan")
    assert ("overwrite" in shown) == (command in ("run", "plan"))
    assert set(NEEDED[command]) <= set(shown)


def test_every_flag_is_of_a_command() -> None:
    every = {action.dest for action in flags_of("")}
    assert every == {action.dest for command in COMMANDS for action in flags_of(command)}


@pytest.mark.parametrize("argv", [["help", "pln"], ["completion"], ["completion", "tcsh"], ["help", "run", "plan"]])
def test_help_for_what_is_not_there(capsys: Capture, argv: list[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("usage: headrace ")


_IMPORTED = """
import runpy, sys
sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module("pipeline", run_name="__main__")
except SystemExit:
    heavy = {"apache_beam", "tensorflow", "keras", "pyarrow", "numpy", "google.auth"}
    print("IMPORTED", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["help", "run"], ["verify"], ["completion", "bash"], []])
def test_what_is_answered_at_once_imports_nothing_heavy(argv: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", _IMPORTED, *argv], capture_output=True, text=True, timeout=60)
    assert ran.stderr.splitlines()[-1] == "IMPORTED []"


def test_a_terminal_is_told_at_once_what_starts() -> None:
    program = (
        "from headrace.pipeline.flags.answers_at_once import say_what_starts; import sys; say_what_starts(sys.argv[1:])"
    )
    for argv, said in (
        (["--model=m"], True),
        (["plan", "--model=m"], True),
        (["verify", "--output=o"], False),
        (["verify", "--sample=1"], True),
        (["--model=m", "--log_format=json"], False),
    ):
        with Terminal() as terminal:
            with open(terminal.path, "w") as stream:
                subprocess.run([sys.executable, "-c", program, *argv], stderr=stream, check=True, timeout=60)
                termios.tcdrain(stream)
            ended = time.monotonic() + 5
            while said and "Starting TensorFlow …" not in terminal.text() and time.monotonic() < ended:
                time.sleep(0.01)
            assert (terminal.text() == "Starting TensorFlow …") == said, argv
    ran = subprocess.run([sys.executable, "-c", program, "--model=m"], capture_output=True, timeout=60)
    assert ran.stderr == b""


def test_completion_names_every_flag_of_a_command() -> None:
    for shell in SHELLS:
        text = completion(shell)
        for action in flags_of(""):
            assert re.search(rf"(--|-l ){action.dest}\b", text), (shell, action.dest)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("headrace ", {*COMMANDS, "help", "version", "completion"}),
        ("headrace pl", {"plan"}),
        ("headrace verify --sa", {"--sample="}),
        ("headrace plan --sa", set()),
        ("headrace --model=m --on_e", {"--on_error=fail", "--on_error=dead_letter", "--on_error=skip_shard"}),
        ("headrace run --on_error=d", {"dead_letter"}),
    ],
)
def test_bash_completes(tmp_path: Path, typed: str, expected: set[str]) -> None:
    (tmp_path / "completion").write_text(completion("bash"))
    # As readline calls it: words are cut at = too.
    words = re.split(r"(=)|\s+", typed)
    words = [word for word in words if word] + [""] * typed.endswith(" ")
    program = f"""
        compopt() {{ :; }}
        source {tmp_path}/completion
        COMP_LINE={shlex.quote(typed)}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({shlex.join(words)})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _headrace
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ran = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = set(ran.stdout.split())
    assert found >= expected if typed.endswith(" ") else found == expected, ran.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_read_theirs(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"NOT SHOWN whether {shell} reads its completion: {shell} is not installed")
    (tmp_path / "completion").write_text(completion(shell))
    subprocess.run([shell, "-n", str(tmp_path / "completion")], check=True, timeout=30)
