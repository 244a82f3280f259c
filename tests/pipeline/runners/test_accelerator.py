"""What a Dataflow job is sent to be like, as Beam's own options read it."""

from __future__ import annotations

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import PredictOptions, parse_flags
from headrace.pipeline.runners.dataflow import dataflow_options
from headrace.pipeline.runners.dataflow_workers import is_dataflow, set_up_workers
from headrace.transforms.errors import InvalidRequest

L4 = "type:nvidia-l4;count:1;install-nvidia-driver"


def workers(*flags: str, runner: str = "DataflowRunner") -> tuple[list[str], list[str], list[str], str]:
    """Service options, resource hints, experiments, and the device."""
    before = parse_flags([f"--runner={runner}", *flags])
    kept = before.get_all_options()
    after = set_up_workers(before)
    assert before.get_all_options() == kept, "the options given were changed"
    return (
        after.view_as(GoogleCloudOptions).dataflow_service_options or [],
        after.view_as(StandardOptions).resource_hints,
        after.view_as(DebugOptions).experiments or [],
        after.device,
    )


def test_every_dataflow_job_has_one_process_a_machine() -> None:
    assert workers() == ([], [], ["no_use_multiple_sdk_containers"], "auto")
    assert workers("--experiments=a,b")[2] == ["a", "b", "no_use_multiple_sdk_containers"]
    for chosen in ("use_multiple_sdk_containers", "no_use_multiple_sdk_containers"):
        assert workers(f"--experiments={chosen}")[2] == [chosen]


@pytest.mark.parametrize(
    ("flag", "form"),
    [
        ("nvidia-l4:1", L4),
        ("nvidia-tesla-t4:4", "type:nvidia-tesla-t4;count:4;install-nvidia-driver"),
        ("nvidia-tesla-t4:1:5xx", "type:nvidia-tesla-t4;count:1;install-nvidia-driver:5xx"),
    ],
)
def test_an_accelerator_is_a_service_option_with_its_driver(flag: str, form: str) -> None:
    services, hints, experiments, device = workers(f"--worker_accelerator={flag}")
    assert (services, hints, device) == ([f"worker_accelerator={form}"], [], "gpu")
    assert experiments == ["no_use_multiple_sdk_containers"]
    assert workers(f"--worker_accelerator={flag}", "--dataflow_service_options=enable_prime")[0][0] == "enable_prime"


@pytest.mark.parametrize(
    ("flags", "machine"),
    [
        (["--worker_accelerator=nvidia-l4:1"], "g2-standard-8"),
        (["--worker_accelerator=nvidia-l4:2:5xx"], "g2-standard-24"),
        (["--worker_accelerator=nvidia-a100-80gb:4"], "a2-ultragpu-4g"),
        (["--worker_accelerator=nvidia-tesla-t4:1"], None),
        (["--worker_accelerator=nvidia-l4:3"], None),
        (["--worker_accelerator=nvidia-l4:1", "--machine_type=g2-standard-16"], "g2-standard-16"),
        (["--worker_accelerator=nvidia-l4:1", "--dataflow_service_options=enable_prime"], None),
        (["--worker_accelerator=nvidia-l4:1", "--resource_hints=min_ram=20GB"], None),
        ([], None),
    ],
)
def test_gpus_of_a_series_get_a_machine_of_it(flags: list[str], machine: str | None) -> None:
    options = set_up_workers(parse_flags(["--runner=DataflowRunner", *flags]))
    assert options.view_as(WorkerOptions).machine_type == machine


@pytest.mark.parametrize(
    ("flags", "shards", "workers"),
    [
        ([], 0, None),
        ([], 8, None),
        ([], 9, 2),
        ([], 10**6, 10),
        (["--max_num_workers=4"], 10**6, 4),
        (["--num_workers=1"], 10**6, 1),
        (["--num_workers=50", "--max_num_workers=100"], 10**6, 50),
    ],
)
def test_a_job_begins_with_workers_for_its_shards(flags: list[str], shards: int, workers: int | None) -> None:
    options = dataflow_options(parse_flags(["--runner=DataflowRunner", *flags]), 1 << 30, shards)
    assert options.view_as(WorkerOptions).num_workers == workers


def test_beside_other_resource_hints_it_is_one_itself() -> None:
    """They turn on right fitting, which excludes the service option."""
    services, hints, _, device = workers("--worker_accelerator=nvidia-l4:1", "--resource_hints=min_ram=20GB")
    assert (services, hints, device) == ([], ["min_ram=20GB", f"accelerator={L4}"], "gpu")


@pytest.mark.parametrize(
    "own",
    [
        f"--dataflow_service_options=worker_accelerator={L4}",
        f"--experiments=worker_accelerator={L4}",
        f"--resource_hints=accelerator={L4}",
        f"--resource_hints=beam:resources:accelerator:v1={L4}",
    ],
)
def test_an_accelerator_of_the_users_own_form_stays_and_is_never_doubled(own: str) -> None:
    before = parse_flags(["--runner=DataflowRunner", own])
    after = set_up_workers(before)
    assert after.device == "gpu"
    assert after.view_as(StandardOptions).resource_hints == before.view_as(StandardOptions).resource_hints
    cloud = after.view_as(GoogleCloudOptions).dataflow_service_options
    assert cloud == before.view_as(GoogleCloudOptions).dataflow_service_options
    with pytest.raises(InvalidRequest, match="given twice"):
        workers(own, "--worker_accelerator=nvidia-l4:1")
    hint = f"--resource_hints=accelerator={L4}"
    if own != hint:
        with pytest.raises(InvalidRequest, match="given twice"):
            workers(own, hint)
    if "resource_hints" not in own:
        assert dataflow_options(after, 1 << 30).view_as(StandardOptions).resource_hints == []
        with pytest.raises(InvalidRequest, match="excludes an accelerator as a service option"):
            workers(own, "--resource_hints=min_ram=8GB")


def test_memory_asked_for_in_beams_own_words_is_not_asked_for_again() -> None:
    given = "beam:resources:min_ram_bytes:v1=8GB"
    options = parse_flags(["--runner=DataflowRunner", f"--resource_hints={given}"])
    assert dataflow_options(options, 1 << 30).view_as(StandardOptions).resource_hints == [given]


@pytest.mark.parametrize("flag", ["nvidia-l4", "nvidia-l4:0", "nvidia-l4:1:", ":1", "type:nvidia-l4;count:1", "L4:1"])
def test_an_accelerator_that_dataflow_could_not_read_is_refused(flag: str) -> None:
    with pytest.raises(InvalidRequest, match="TYPE:COUNT"):
        workers(f"--worker_accelerator={flag}")


def test_a_gpu_is_not_paid_for_in_vain() -> None:
    with pytest.raises(InvalidRequest, match="paid for"):
        workers("--worker_accelerator=nvidia-l4:1", "--device=cpu")


def test_no_other_runner_is_told_anything(capsys: pytest.CaptureFixture[str]) -> None:
    for runner in ("DirectRunner", "FlinkRunner", "PortableRunner"):
        assert workers(runner=runner) == ([], [], [], "auto")
    assert main(["--model=m", "--input=i", "--output=o", "--worker_accelerator=nvidia-l4:1"]) == 2
    assert "for Dataflow alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runner", "dataflow"),
    [
        ("DataflowRunner", True),
        ("dataflow", True),
        ("TestDataflowRunner", True),
        ("apache_beam.runners.dataflow.dataflow_runner.DataflowRunner", True),
        ("FlinkRunner", False),
        (None, False),
    ],
)
def test_dataflow_is_known_by_its_names(runner: str | None, dataflow: bool) -> None:
    assert is_dataflow(PredictOptions([f"--runner={runner}"] if runner else [])) is dataflow
    assert is_dataflow(PipelineOptions([f"--runner={runner}"] if runner else [])) is dataflow
