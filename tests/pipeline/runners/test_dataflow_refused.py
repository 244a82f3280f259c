"""What a Dataflow job cannot be is told before anything is submitted, by us or by Beam."""

from __future__ import annotations

import re

import pytest
from apache_beam.internal.gcp import auth

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.dataflow import check_dataflow
from headrace.pipeline.runners.launch import open_pipeline
from headrace.transforms.errors import InvalidRequest
from tests.support.jobs import put

RUNNER = ("--runner=DataflowRunner",)
WHERE = ("--project=my-project", "--region=europe-west4")
JOB = {"model": "gs://b/m", "input": "gs://b/in/*.parquet", "output": "gs://b/out"}


def flags(*more: str, **changed: str) -> list[str]:
    return [*(f"--{name}={value}" for name, value in {**JOB, **changed}.items()), *more]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (flags(*RUNNER, "--region=europe-west4"), "--project is missing"),
        (flags(*RUNNER, "--project=my-project"), "--region is missing"),
        (flags(*RUNNER, *WHERE, model="model.keras"), "--model=.*/model.keras is on this machine"),
        (flags(*RUNNER, *WHERE, input="in/*.parquet"), "--input=.* is on this machine"),
        (flags(*RUNNER, *WHERE, input="@list.txt"), "--input=@.*/list.txt is on this machine"),
        (flags(*RUNNER, *WHERE, output="file:///out"), "--output=.* is on this machine.*Name a place in a bucket"),
        (
            flags(*RUNNER, *WHERE, "--on_error=dead_letter", "--dead_letters=bad"),
            "--dead_letters=.* is on this machine.*Name a place in a bucket",
        ),
        (flags(*RUNNER, *WHERE, "--report=r.html"), "--report=.* is on this machine.*Name a place in a bucket"),
        (flags(*RUNNER, *WHERE, "--compare=r.html"), "--compare=.* is on this machine"),
        (flags("--no_wait"), "--no_wait is for Dataflow alone"),
        (flags("--no_wait", "--runner=FlinkRunner"), "--no_wait is for Dataflow alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_it_is_told_at_once(command: str, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *argv]) == 2
    text = capsys.readouterr().err
    assert re.search(told, text, re.DOTALL)
    assert "Traceback" not in text


@pytest.mark.parametrize("lines", ["/data/a.parquet", "file:///data/*.parquet"])
def test_a_list_in_a_bucket_of_files_on_this_machine(
    bucket: str, lines: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(f"{bucket}/list.txt", lines.encode())
    assert main(["plan", *flags(*RUNNER, *WHERE, input=f"@{bucket}/list.txt")]) == 2
    assert re.search(rf"--input=@{bucket}/list.txt: /data/\S+ is on this machine", capsys.readouterr().err)


def test_what_lies_in_buckets_is_let_through() -> None:
    options = parse_flags(flags(*RUNNER, *WHERE, "--no_wait", model="https://example.com/m.keras"))
    check_dataflow(options, parse_request(options, "run"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--project=My_Project", "--region=europe-west4", "--temp_location=gs://{bucket}/tmp"), "Invalid Project ID"),
        (("--project=12345", "--region=europe-west4", "--temp_location=gs://{bucket}/tmp"), "Invalid Project ID"),
        ((*WHERE, "--temp_location=gs://{bucket}/tmp", "--job_name=Nightly_Job"), "Invalid job_name"),
        ((*WHERE, "--temp_location=gs://{bucket}/tmp", "--num_workers=9", "--max_num_workers=3"), "num_workers"),
        ((*WHERE, "--temp_location=gs://{bucket}/tmp"), None),
    ],
)
def test_beams_own_checks_are_told_in_one_line_too(
    bucket: str, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], told: str | None
) -> None:
    """They are skipped where the endpoint is on loopback. Beam asks the bucket about its retention, hence the emulator."""
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)  # found out: there are none
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    options = parse_flags(flags(*RUNNER, *(one.format(bucket=bucket.removeprefix("gs://")) for one in more)))
    if told is None:
        open_pipeline(options)
        return
    with pytest.raises(InvalidRequest, match="Beam refuses these options") as refused:
        open_pipeline(options)
    assert told in str(refused.value)
