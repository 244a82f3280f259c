"""The files of templates/local, read as systemd and cron would, and their scripts run by a shell."""

from __future__ import annotations

import configparser
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request

FOLDER = Path(__file__).resolve().parents[2] / "templates" / "local"
# It writes its arguments down, one call a line, and fails where it is asked to.
HEADRACE = """#!/bin/sh
printf '%s\\t' "$@" >> "$CALLS"
echo >> "$CALLS"
if [ "$1" = verify ]; then exit "${VERIFY_ENDS:-0}"; fi
exit "${ENDS:-0}"
"""


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text())
    return parser


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of nightly.sh on a machine where all of it is below `tmp_path`."""
    (tmp_path / "headrace").write_text(HEADRACE)
    (tmp_path / "headrace").chmod(0o755)
    script = (FOLDER / "nightly.sh").read_text().replace("/opt/headrace/bin/headrace", f"{tmp_path}/headrace")
    (tmp_path / "nightly.sh").write_text(script)
    own = {"HEADRACE_ENV": f"{FOLDER}/headrace.env", "HEADRACE_LOCK": f"{tmp_path}/lock", "CALLS": f"{tmp_path}/calls"}
    return {**os.environ, **own}


def nightly(folder: Path, machine: dict[str, str], *day: str, **more: str) -> tuple[int, list[list[str]], str]:
    """The exit code, the arguments of each call of headrace, and what it printed."""
    done = subprocess.run(
        ["sh", f"{folder}/nightly.sh", *day], env=machine | more, capture_output=True, text=True, timeout=60
    )
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return done.returncode, [line.rstrip("\t").split("\t") for line in lines], done.stderr


def test_a_night_predicts_a_day_and_verifies_it(tmp_path: Path, machine: dict[str, str]) -> None:
    code, (predict, verify), _ = nightly(tmp_path, machine, "2026-11-22")
    assert code == 0
    request = parse_request(parse_flags(predict), "run")
    assert (request.models[0].uri, request.inputs, request.output) == (
        "gs://bucket/model",
        ("gs://bucket/in/dt=2026-11-22/*.parquet",),
        "gs://bucket/out/dt=2026-11-22",
    )
    assert verify[0] == "verify"
    assert parse_request(parse_flags(verify[1:]), "verify").output == request.output

    days = {f"{datetime.now(UTC) - timedelta(1):%Y-%m-%d}"}
    _, (predict, _), _ = nightly(tmp_path, machine)
    days.add(f"{datetime.now(UTC) - timedelta(1):%Y-%m-%d}")  # the test may run at midnight
    assert parse_request(parse_flags(predict), "run").output.rpartition("=")[2] in days


@pytest.mark.parametrize(("ends", "calls"), [({"ENDS": "2"}, 1), ({"VERIFY_ENDS": "1"}, 2)])
def test_its_exit_code_is_that_of_the_step_that_failed(
    tmp_path: Path, machine: dict[str, str], ends: dict[str, str], calls: int
) -> None:
    code, made, _ = nightly(tmp_path, machine, **ends)
    assert (code, len(made)) == (int(*ends.values()), calls)


def test_a_second_one_at_once_does_nothing(tmp_path: Path, machine: dict[str, str]) -> None:
    with subprocess.Popen(["flock", f"{tmp_path}/lock", "sleep", "60"], start_new_session=True) as first:
        while (
            not (tmp_path / "lock").exists()
            or subprocess.run(["flock", "-n", f"{tmp_path}/lock", "true"]).returncode == 0
        ):
            assert first.poll() is None
        code, calls, said = nightly(tmp_path, machine)
        os.killpg(first.pid, 9)
    assert (code, calls) == (75, [])
    assert "has not ended" in said
    assert nightly(tmp_path, machine)[0] == 0


def test_tries_are_bounded_and_the_last_failure_is_reported() -> None:
    service, when = unit("headrace.service")["Service"], unit("headrace.service")["Unit"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert service["ExecStart"] == "/opt/headrace/nightly.sh"
    assert (service["RuntimeDirectory"], when["StartLimitBurst"]) == ("headrace", "4")
    assert "/run/headrace/lock" in (FOLDER / "nightly.sh").read_text()
    assert unit("headrace.timer").getboolean("Timer", "Persistent")
    failed = when["OnFailure"].replace("@%n", "@")
    assert unit(failed)["Service"]["ExecStart"] == "/opt/headrace/failed.sh %i"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT SHOWN whether systemd reads the units: there is no systemd-analyze",
)
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for path in FOLDER.glob("headrace*.*er*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/headrace/", f"{FOLDER}/"))
    units = ["headrace.service", "headrace.timer", "headrace-failed@headrace.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *(f"{tmp_path}/{name}" for name in units)], capture_output=True, text=True
    )
    own = [line for line in done.stderr.splitlines() if "headrace" in line]
    assert own == []


class Heard(http.server.BaseHTTPRequestHandler):
    bodies: ClassVar[list[bytes]] = []
    answers = 200

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.answers)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def webhook() -> Iterator[str]:
    Heard.bodies.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Heard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
        server.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT SHOWN what a webhook gets: there is no curl")
def test_the_webhook_hears_which_unit_failed(tmp_path: Path, webhook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alerts.env").write_text(f"WEBHOOK={webhook}\n")
    environment = {**os.environ, "HEADRACE_ALERTS": f"{tmp_path}/alerts.env"}
    command = ["sh", f"{FOLDER}/failed.sh", "headrace"]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
    (body,) = Heard.bodies
    assert json.loads(body)["text"].startswith("headrace failed on ")
    monkeypatch.setattr(Heard, "answers", 403)
    assert subprocess.run(command, env=environment, timeout=60, capture_output=True).returncode == 1


def test_the_line_for_cron_runs_the_same_scripts() -> None:
    text = (FOLDER / "README.md").read_text()
    (line,) = re.findall(r"^ {4}\d+ \d+ \* \* \* (.*)$", text, re.MULTILINE)
    assert line == "headrace /opt/headrace/nightly.sh || /opt/headrace/failed.sh headrace"
    assert re.search(r"^ {4}d /run/headrace 0700 headrace headrace$", text, re.MULTILINE)
