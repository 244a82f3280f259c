"""The files of templates/local, read as systemd and cron would."""

import configparser
import re
import shlex
from pathlib import Path

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request

FOLDER = Path(__file__).resolve().parents[2] / "templates" / "local"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text())
    return parser


def environment() -> dict[str, str]:
    return dict(line.split("=", 1) for line in (FOLDER / "headrace.env").read_text().splitlines())


def asked(command: str) -> list[str]:
    """The flags of a command line after systemd or a shell has filled in the variables."""
    words = [re.sub(r"\$\{?(\w+)\}?", lambda m: environment()[m[1]], word) for word in shlex.split(command)]
    return words[words.index("/opt/headrace/bin/headrace") + 1 :]


def test_the_service_runs_a_command_line_that_headrace_takes() -> None:
    request = parse_request(parse_flags(asked(unit("headrace.service")["Service"]["ExecStart"])), "run")
    assert (request.models[0].uri, request.inputs, request.output) == (
        environment()["MODEL"],
        (environment()["INPUT"],),
        environment()["OUTPUT"],
    )


def test_a_wrong_request_is_not_repeated_and_the_timer_catches_up() -> None:
    service = unit("headrace.service")["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert unit("headrace.timer").getboolean("Timer", "Persistent")


def test_the_line_for_cron_asks_the_same() -> None:
    (line,) = re.findall(r"^ {4}(\d+ \d+ \* \* \* .*)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert asked(line) == asked(unit("headrace.service")["Service"]["ExecStart"])
