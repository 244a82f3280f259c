"""What one sees of a running job: on terminals that can draw, on those that cannot, in pipes, and as JSON lines."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace import load_model
from headrace.pipeline.cli import main
from headrace.pipeline.terminal.progress_meter import Meter, describe, duration
from headrace.pipeline.terminal.progress_output import is_live
from headrace.transforms import progress
from headrace.transforms.models.progress_line import ProgressLine
from tests.pipeline.terminal.test_stopping import ROWS, SHARDS, Stall
from tests.support.front import Front, served
from tests.support.jobs import model_folder, put_inputs, put_model
from tests.support.pictures import terminal_picture
from tests.support.terminal import Terminal
from tests.support.warm import Warm

pytestmark = pytest.mark.timeout(240)
COLOURS = re.compile(rb"\x1b\[(\d+;)*(3[0-8]|9[0-7])(;\d+)*m")
DRAWS = {"TERM": "xterm-256color", "CI": ""}


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    put_inputs(f"{tmp_path}/in", [ROWS] * SHARDS)
    return [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]


def on_a_terminal(warm: Warm, argv: list[str], columns: int = 90, **env: str) -> Terminal:
    """After the job has ended, well."""
    with Terminal(columns) as terminal:
        job = warm.start(argv, terminal.path, DRAWS | env)
        assert warm.wait(job) == 0, terminal.text()
        assert terminal.is_sane()
    return terminal


def test_a_terminal_shows_model_rows_and_shards(warm: Warm, argv: list[str]) -> None:
    terminal = on_a_terminal(warm, argv)
    model, rows, shards, *summary = terminal.text().splitlines()
    assert re.fullmatch(r"model +━+ +0\.0 MiB +ready", model)
    assert re.fullmatch(rf"rows +━+ +{SHARDS * ROWS} of {SHARDS * ROWS} +[\d,]+ rows/s +all done", rows)
    assert re.fullmatch(rf"shards +{SHARDS} of {SHARDS} done, 0 in flight +0 retries, 0 dead letters, \d+ s", shards)
    assert summary[0].startswith(f"Predictions of {SHARDS * ROWS} rows are in ")
    assert any(line.endswith(f"{SHARDS} shards") for line in summary)
    assert "".join(summary).endswith("/out/_headrace/report.html")
    assert COLOURS.search(terminal.written)
    assert b"\x1b[?25l" not in terminal.written, "a killed process could not show the cursor again"


@pytest.mark.parametrize("columns", [20, 50])
def test_a_narrow_terminal_is_not_wrapped(warm: Warm, argv: list[str], columns: int) -> None:
    terminal = on_a_terminal(warm, argv, columns, NO_COLOR="1")
    lines = terminal.text().splitlines()
    assert lines[0] == ("model   0.0 MiB, re…" if columns == 20 else "model   0.0 MiB, ready")
    assert [line.split()[0] for line in lines[:3]] == ["model", "rows", "shards"]
    assert lines[3].startswith("        0 retries")
    assert not COLOURS.search(terminal.written)


@pytest.mark.parametrize("env", [{}, {"TERM": ""}, {"TERM": "dumb"}, {"TERM": "xterm", "CI": "true"}])
def test_it_is_not_drawn_where_it_cannot_be_or_nobody_looks(env: dict[str, str]) -> None:
    with Terminal() as terminal, open(terminal.path, "w") as stream:
        assert is_live(stream, {"TERM": "xterm"})
        assert not is_live(stream, env)
    with open(os.devnull, "w") as stream:
        assert not is_live(stream, {"TERM": "xterm"})


def test_a_dumb_terminal_has_lines(warm: Warm, argv: list[str]) -> None:
    terminal = on_a_terminal(warm, argv, TERM="dumb")
    assert b"\x1b" not in terminal.written
    assert f"{SHARDS} of {SHARDS} shards, {SHARDS * ROWS} of {SHARDS * ROWS} rows" in terminal.text()


def test_ctrl_c_says_what_is_done_and_leaves_the_terminal_as_it_was(warm: Warm, bucket: str, emulator: str) -> None:
    argv, stall = stalled_argv(bucket), Stall()
    for front in served(Front(emulator)):
        front.faults.append(stall)
        with Terminal() as terminal:
            job = warm.start(argv, terminal.path, DRAWS | {"STORAGE_EMULATOR_HOST": front.url})
            assert stall.held.wait(60), terminal.text()
            os.kill(job, signal.SIGINT)
            wait_for(lambda: "Stopping. Once more ends it at once." in terminal.text(), terminal)
            assert re.search(r"^shards +\d of 6 done, [12] in flight", terminal.text(), re.MULTILINE)
            stall.let_go.set()
            assert warm.wait(job) == 130
            assert terminal.is_sane()
        told = terminal.text()
        assert re.search(
            r"^Stopped\. \d of 6 shards are done\. .*The same command goes on", told, re.MULTILINE | re.DOTALL
        ), told
        assert "Traceback" not in told


def test_ctrl_c_twice_ends_it_on_a_line_of_its_own(warm: Warm, bucket: str, emulator: str) -> None:
    argv, stall = stalled_argv(bucket), Stall()
    for front in served(Front(emulator)):
        front.faults.append(stall)
        with Terminal() as terminal:
            job = warm.start(argv, terminal.path, DRAWS | {"STORAGE_EMULATOR_HOST": front.url})
            assert stall.held.wait(60), terminal.text()
            os.kill(job, signal.SIGINT)
            wait_for(lambda: "Stopping." in terminal.text(), terminal)
            os.kill(job, signal.SIGINT)
            assert warm.wait(job) == 130
            assert terminal.is_sane()
        stall.let_go.set()
        assert terminal.text().splitlines()[-1] == "Ended at once."
        assert terminal.screen.cursor.x == 0


def test_a_failing_job_leaves_the_error_below_the_display(warm: Warm, argv: list[str]) -> None:
    with Terminal() as terminal:
        job = warm.start([*argv, "--postprocess=tests.pipeline.terminal.test_display:fail_later"], terminal.path, DRAWS)
        assert warm.wait(job) == 1, terminal.text()
        assert terminal.is_sane()
        lines = terminal.text().splitlines()
    # Above the display is the shard that failed: the job goes on for a while.
    display = next(i for i, line in enumerate(lines) if line.startswith("model "))
    assert "no luck" in " ".join(lines[:display])
    assert "The job failed: " in "".join(lines[display + 3 :])
    assert "no luck" in " ".join(lines[display + 3 :])


def fail_later(batch: Any) -> Any:
    if batch.num_rows:
        raise ValueError("no luck")
    return batch


EVENT_KEYS = {"time", "severity", "event", "message"}


def json_lines(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log, and what came to standard output, which is its last line here."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[:-1], lines[-1]


def test_json_lines_tell_progress_and_summary(warm: Warm, argv: list[str], tmp_path: Path) -> None:
    job = warm.start([*argv, "--log_format=json"], f"{tmp_path}/log.txt", DRAWS)
    assert warm.wait(job) == 0
    log, answer = json_lines(tmp_path / "log.txt")
    assert all(line.keys() >= EVENT_KEYS for line in log)
    assert {line["event"] for line in log} == {"progress", "summary"}
    last, summary = log[-2:]
    assert last["rows"] == last["rows_planned"] == SHARDS * ROWS
    assert last["shards"] == last["shards_planned"] == SHARDS
    assert (last["shards_in_flight"], last["bad_rows"], last["storage_retries"]) == (0, 0, 0)
    assert last["model_bytes"] == last["model_bytes_total"] == 524
    assert summary["rows"] == summary["rows_computed"] == SHARDS * ROWS
    assert summary.items() >= answer.items()
    documented = (Path(__file__).parents[3] / "docs" / "watching.md").read_text("utf-8")
    for line in log:
        assert not [key for key in line if f"`{key}`" not in documented]


def test_json_lines_tell_errors(warm: Warm, argv: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    for more, code in (
        (["--signature=predict"], 2),
        (["--on_erorr=fail"], 2),
        (["--postprocess=tests.pipeline.terminal.test_display:fail_later"], 1),
    ):
        log.unlink(missing_ok=True)
        assert warm.wait(warm.start([*argv, *more, "--log_format", "json"], str(log))) == code
        *_, error = (json.loads(line) for line in log.read_text().splitlines())
        assert (error["event"], error["severity"], error["exit_code"]) == ("error", "ERROR", code)
        assert error["message"].endswith(error["what"] if code == 1 else error["cure"])
        assert error["error"] in ("SignatureNotFound", "InvalidRequest", "DataError")


def test_metrics_have_the_same_numbers(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    from headrace.pipeline.checks.preflight import prepare
    from headrace.pipeline.flags.beam_options import parse_flags
    from headrace.pipeline.flags.request import parse_request
    from headrace.pipeline.runners.graph import build_graph
    from headrace.pipeline.runners.launch import counters, open_pipeline

    options = parse_flags(argv)
    prepared = prepare(parse_request(options, "run"))
    for found in (0, SHARDS):
        progress.reset()
        meter, pipeline = Meter(), open_pipeline(options)
        build_graph(pipeline, prepared.job)
        counted = counters(pipeline.run())
        fields = meter.last().fields()
        both = {"shards_planned", "rows_planned", "shards", "shards_found_done", "rows", "rows_found_done", "bad_rows"}
        assert {name: counted[name] for name in both} == {name: fields[name] for name in both}
        assert counted["shards_found_done"] == found
        assert counted["shards_started"] == SHARDS - found
        assert counted["model_bytes"] == fields["model_bytes"]


def test_rates_and_what_is_left() -> None:
    progress.reset()
    at = 100.0
    meter = Meter(lambda: at)
    assert describe(meter.read()) == "planning, 0 s"
    progress.add(shards_planned=10, rows_planned=1000)
    load = progress.ModelProgress()
    load(0, 4 << 20)
    at += 1
    meter.read()
    at += 2
    load(1 << 20, 4 << 20)
    assert describe(meter.read()) == "model 1.0 of 4.0 MiB, 0.5 MiB/s, 0 of 10 shards, 0 of 1,000 rows"
    assert meter.read().model_seconds_left == pytest.approx(6)
    load(4 << 20, 4 << 20)
    progress.model_ready()
    at += 100
    meter.read()
    at += 2
    progress.add(rows_done=100, shards_done=1, bad_rows=3)
    # What went before the first row does not count.
    assert describe(meter.read()) == "1 of 10 shards, 100 of 1,000 rows, 3 to dead letters, 50 rows/s, 18 s left"
    assert "3 to dead letters, 1 row/s" in describe(replace(meter.last(), rows_per_second=1.2))
    at += 14
    progress.add(rows_done=140)
    meter.read()
    at += 10
    progress.add(rows_done=300)
    # Only the last moments do.
    assert meter.read().rows_per_second == pytest.approx(30)
    assert meter.last().rows_per_second == pytest.approx(540 / 26)
    progress.reset()


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.4, 59.6, 3599, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 05 min",
    ]


def stalled_argv(bucket: str) -> list[str]:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [ROWS] * SHARDS)
    return [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]


def wait_for(what: Callable[[], bool], terminal: Terminal) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, terminal.text()
        time.sleep(0.02)


def test_load_model_shows_its_progress_where_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{model_folder()}/saved_model"
    load_model(model)
    assert capsys.readouterr().err == ""
    load_model(model, progress=True)
    line = r"saved_model \[#{24}\] 0\.0 of 0\.0 MiB, [\d.]+ MiB/s, [\d.]+ s\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    with Terminal() as terminal, open(terminal.path, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        show = ProgressLine("model")
        show(0, 8 << 20)
        time.sleep(0.11)
        show(2 << 20, 8 << 20)
        wait_for(lambda: "2.0 of 8.0" in terminal.text(), terminal)
        assert re.fullmatch(r"model \[#{6} {18}\] 2\.0 of 8\.0 MiB, [\d.]+ MiB/s, .*", terminal.text())
        show(8 << 20, 8 << 20)
        monkeypatch.undo()
    assert re.fullmatch(r"model \[#{24}\] 8\.0 of 8\.0 MiB, [\d.]+ MiB/s, .*", terminal.text())
    assert terminal.screen.cursor.y == 1


def test_the_picture_in_the_docs_is_of_a_real_terminal(warm: Warm) -> None:
    """What `make pictures` writes, now and then; it loads nothing from anywhere."""
    committed = (Path(__file__).parents[3] / "docs" / "terminal.svg").read_text("utf-8")
    for picture in (committed, terminal_picture(warm)):
        # Spaces between pieces are but places.
        words = re.sub(r"<[^>]+>| ", "", picture.replace("&#160;", " "))
        streaming, predicting = re.split("#whilerowsarepredicted", words)
        assert "#whilethemodelstreams" in streaming
        assert re.search(r"model[━╸╺]+[\d.]+of17\.1MiB[\d.]+MiB/s", streaming)
        assert re.search(r"rows[━╸╺]+[\d,]+of32,768[\d,]+rows/s", predicting)
        assert re.search(r"shards\dof8done,[12]inflight", predicting)
        assert set(re.findall(r"https?://[^\"' <)]+", picture)) == {"http://www.w3.org/2000/svg"}


def test_a_job_that_has_ended_well_does_not_fail_for_want_of_its_counters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does it claim to have computed nothing."""

    def gone(_: object) -> None:
        raise ConnectionError("503")

    monkeypatch.setattr("headrace.pipeline.runners.launch.counters", gone)
    put_inputs(f"{tmp_path}/in", [10, 10])
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]
    assert main([*flags, "--report=none"]) == 0
    told = capsys.readouterr()
    assert "counters cannot be had: ConnectionError: 503" in told.err
    assert "Predictions of 20 rows" in told.out
    assert "2 shards in" in told.out
    assert "computed now is not known" in told.out
