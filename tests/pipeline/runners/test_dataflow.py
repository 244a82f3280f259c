"""A job submitted to a Dataflow on loopback: what it is told, what it is handed, and that this runs and is right."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import PredictOptions
from headrace.pipeline.runners.dataflow import detached, min_ram_gb
from headrace.pipeline.terminal.signals import STOPPED
from headrace.transforms.jobs.job import OnError
from headrace.transforms.models.loading import Loading
from tests.pipeline.packages.test_packaging import PACKAGES, ROOT
from tests.support.dataflow_checks import do_fns, faults, graph_of, options
from tests.support.fake_dataflow import FakeDataflow, pool, read, staged_files
from tests.support.jobs import names_in, put_inputs, put_model, read_output

GPU = ("--worker_accelerator=nvidia-l4:2", "--machine_type=g2-standard-24")
OURS = (
    *("--feature=x=x", "--prediction=output_0=score", "--fill=x=0", "--prediction_type=list", "--jit_compile"),
    *("--limit=40", "--shard_bytes=1000000", "--incremental", "--on_error=dead_letter", "--max_bad_rows=5%"),
    *("--model_sharing=process", "--connections=3", "--in_flight_bytes=2000000"),
)
MORE = ("--max_num_workers=7", "--labels=team=search", "--experiments=enable_prime", "--batch_size=16", "--keep=id")


@dataclass(frozen=True)
class Data:
    """A bucket with a model in m and inputs in in/; `service` takes jobs."""

    uri: str
    service: FakeDataflow

    def flags(self, output: str, *more: str) -> list[str]:
        job = [f"--model={self.uri}/m", f"--input={self.uri}/in/*.parquet", f"--output={self.uri}/{output}"]
        where = ["--project=my-project", "--region=europe-west4", f"--temp_location={self.uri}/tmp"]
        there = [f"--dataflow_endpoint={self.service.endpoint}", "--no_auth"]
        # Else Beam runs `pip freeze` for each job.
        there.append("--experiments=disable_logging_submission_environment")
        return [*job, "--runner=DataflowRunner", *where, *there, *more]

    def submit(self, *more: str) -> tuple[Any, list[str]]:
        """The job as sent, and the command line."""
        flags = self.flags(f"out-{len(self.service.jobs)}", "--no_wait", *more)
        assert main(flags) == 0
        return list(self.service.jobs.values())[-1], flags


@pytest.fixture(scope="module")
def data(emulator: str) -> Iterator[Data]:
    from google.cloud import storage

    client = storage.Client(project="test")
    client.create_bucket("test-dataflow")
    put_model("saved_model", "gs://test-dataflow/m")
    put_inputs("gs://test-dataflow/in", [30, 20])
    with FakeDataflow() as service:
        yield Data("gs://test-dataflow", service)


def test_the_graph_that_was_sent_runs_on_what_was_staged_and_gives_what_a_local_run_gives(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = data.flags("remote")
    assert main(flags) == 0
    told = capsys.readouterr()
    job = list(data.service.jobs.values())[-1]
    assert faults(job, flags, staged_files(job, tmp_path)) == []
    page = f"https://console.cloud.google.com/dataflow/jobs/europe-west4/{job.id}?project=my-project"
    assert f"Job {job.id} is with Dataflow: {page}" in told.err
    assert "2 shards, 50 rows predicted, " in told.err
    assert "50 rows computed" in told.out
    imported = json.loads(data.service.output_of(job).splitlines()[-1])["modules"]
    assert {
        "headrace.transforms.beam.predict",
        "headrace.transforms.beam.finalize",
        "headrace.pipeline.runners.graph",
    } <= imported.keys()
    local = data.flags("local")
    assert main([flag for flag in local if flag.startswith(("--model", "--input", "--output"))]) == 0
    assert read_output(f"{data.uri}/remote").equals(read_output(f"{data.uri}/local"))
    remotely, locally = (
        {name for name in names_in(f"{data.uri}/{output}") if not name.startswith("_manifest/")}  # holds timings
        for output in ("remote", "local")
    )
    assert remotely == locally


@pytest.mark.parametrize(
    "more",
    [
        (*MORE, "--resource_hints=min_ram=9GB"),
        ("--experiments=use_multiple_sdk_containers", "--machine_type=n2-highmem-8", "--labels=headrace=mine"),
        ("--sdk_container_image=europe-docker.pkg.dev/p/r/headrace:1",),
    ],
    ids=["more", "overridden", "image"],
)
def test_what_is_sent_is_what_was_asked_for(
    data: Data, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(data.service.requests)
    job, flags = data.submit(*more)
    assert faults(job, flags, staged_files(job, tmp_path)) == []
    page = f"https://console.cloud.google.com/dataflow/jobs/europe-west4/{job.id}?project=my-project"
    assert capsys.readouterr().out == f"Job {job.id} is with Dataflow: {page}\n"
    assert data.service.requests[before:] == ["POST job"]


def test_a_setup_file_stands_for_the_wheel(data: Data, tmp_path: Path) -> None:
    """As a launcher passes on what FLEX_TEMPLATE_PYTHON_SETUP_FILE names. Beam builds it in its own folder: in a copy here."""
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    job, flags = data.submit(f"--setup_file={source}/setup.py")
    staged = staged_files(job, tmp_path / "staged")
    assert faults(job, flags, staged) == []
    assert faults(job, flags, [path for path in staged if path.name != "workflow.tar.gz"]) != []


@pytest.mark.parametrize(
    ("status", "told"),
    [(403, "roles/dataflow.developer"), (409, "--job_name"), (400, "docs/dataflow.md")],
)
def test_a_job_that_is_not_taken(
    data: Data, status: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.service, "refuses", (status, "the service's own words"))
    assert main(data.flags(f"refused-{status}", "--no_wait")) == 1
    text = capsys.readouterr().err
    assert "The job failed: Dataflow did not take the job" in text
    assert "the service's own words" in text
    assert told in text


def test_a_template_is_written_and_not_waited_for(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(data.service.requests)
    assert main(data.flags("template", f"--template_location={data.uri}/templates/job")) == 0
    assert f"{data.uri}/templates/job" in capsys.readouterr().out
    assert json.loads(read(f"{data.uri}/templates/job"))["type"] == "JOB_TYPE_BATCH"
    assert len(data.service.requests) == before


def test_a_place_for_a_template_is_nothing_to_other_runners(data: Data, tmp_path: Path) -> None:
    """Such a job runs here, and is waited for."""
    flags = data.flags(str(tmp_path / "out"), f"--template_location={data.uri}/templates/none", "--runner=DirectRunner")
    assert not detached(PredictOptions(flags))
    assert detached(PredictOptions([*flags, "--runner=DataflowRunner"]))


def test_who_stops_waiting_is_told_how_to_end_the_job(
    data: Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud.dataflow import JobState

    def stop(site: Path) -> None:
        shutil.rmtree(site)  # the worker ends at once
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    monkeypatch.setattr(data.service, "damage", stop)
    # Tests that a shell has put into the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(data.flags("left")) == STOPPED
    finally:
        signal.signal(signal.SIGINT, before)
    job = list(data.service.jobs.values())[-1]
    job.requested_state = JobState.JOB_STATE_CANCELLED  # Beam's own thread asks on until it sees an end
    cancel = f"gcloud dataflow jobs cancel {job.id} --project=my-project --region=europe-west4"
    assert f"The job goes on without this command. {cancel} ends it" in capsys.readouterr().err


def test_memory_grows_with_the_model() -> None:
    assert [min_ram_gb(size) for size in (0, 1 << 30, 10 << 30)] == [4, 5, 20]


def _drop(name: str) -> Callable[[Any, list[Path]], None]:
    def change(job: Any, _: list[Path]) -> None:
        del type(job).pb(job).environment.sdk_pipeline_options["options"][name]

    return change


def _service(option: str) -> Callable[[Any, list[Path]], None]:
    def change(job: Any, _: list[Path]) -> None:
        job.environment.service_options = [option]

    return change


def _without_module(name: str) -> Callable[[Any, list[Path]], None]:
    def change(_: Any, staged: list[Path]) -> None:
        (wheel,) = (path for path in staged if path.suffix == ".whl")
        with zipfile.ZipFile(wheel) as archive:
            kept = {entry: archive.read(entry) for entry in archive.namelist() if entry != name}
        with zipfile.ZipFile(wheel, "w") as archive:
            for entry, content in kept.items():
                archive.writestr(entry, content)

    return change


def _experiments(change: Callable[[list[str]], list[str]]) -> Callable[[Any, list[Path]], None]:
    def apply(job: Any, _: list[Path]) -> None:
        job.environment.experiments = change(list(job.environment.experiments))

    return apply


CHANGES: dict[str, Callable[[Any, list[Path]], Any]] = {
    **{f"--{name} dropped": _drop(name) for name in ("output", "keep", "batch_size", "region", "worker_accelerator")},
    "--device dropped": _drop("device"),
    "no GPU": lambda job, _: setattr(job.environment, "service_options", []),
    "no driver": _service("worker_accelerator=type:nvidia-l4;count:2"),
    "another count": _service("worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"),
    "a type that is none": _service("worker_accelerator=type:nvidia-l40;count:2;install-nvidia-driver"),
    "= for :": _service("worker_accelerator=type=nvidia-l4;count=2;install-nvidia-driver"),
    "another option's name": _service("worker_accelerators=type:nvidia-l4;count:2;install-nvidia-driver"),
    "a process for each core": _experiments(lambda given: [one for one in given if "containers" not in one]),
    "another hint": lambda job, _: (
        type(job).pb(job).environment.sdk_pipeline_options["options"].update({"resource_hints": ["min_ram=4GB"]})
    ),
    "no runner v2": _experiments(lambda given: [one for one in given if one != "use_runner_v2"]),
    "machines dropped": lambda job, _: setattr(pool(job), "machine_type", ""),
    "label dropped": lambda job, _: setattr(job, "labels", {}),
    "a label with dots": lambda job, _: setattr(job, "labels", {"headrace": "0.1.0"}),
    "a module missing": _without_module("headrace/transforms/columns/struct_paths.py"),
    "py.typed missing": _without_module("headrace/py.typed"),
    "nothing staged": lambda _, staged: staged.clear(),
    "not installed": lambda _, staged: next(p for p in staged if p.suffix == ".txt" and "extra" in p.name).write_text(
        ""
    ),
}


@pytest.fixture(scope="module")
def with_gpu(data: Data) -> tuple[Any, list[str]]:
    return data.submit(*GPU, "--keep=id", "--batch_size=16")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_these_checks_see_what_is_wrong(
    with_gpu: tuple[Any, list[str]], tmp_path: Path, change: Callable[[Any, list[Path]], Any]
) -> None:
    sent, flags = with_gpu
    job, staged = type(sent)(), staged_files(sent, tmp_path)
    type(job).copy_from(job, sent)
    assert faults(job, flags, staged) == []
    change(job, staged)
    assert len(faults(job, flags, staged)) >= 1


def test_any_flag_that_is_dropped_is_missed_and_each_has_come_to_the_workers(data: Data, tmp_path: Path) -> None:
    job, flags = data.submit(*MORE, *OURS, *GPU, f"--dead_letters={data.uri}/dead")
    assert faults(job, flags, staged_files(job, tmp_path)) == []
    given = PredictOptions(flags).get_all_options(drop_default=True).keys()
    assert {one.partition("=")[0].removeprefix("--") for one in (*MORE, *OURS)} <= given
    for name in given:
        changed = type(job)()
        type(job).copy_from(changed, job)
        _drop(name)(changed, [])
        assert list(options(changed, flags)) != [], name
    (ours,) = do_fns(graph_of(job))["headrace.transforms.beam.predict._PredictShard"]
    (model,) = ours.models
    assert (model.columns.features, model.columns.predictions) == ((("x", ("x",)),), (("output_0", "score"),))
    assert (model.columns.rules.fill, model.columns.rules.prediction_type) == ((("x", "0"),), "list")
    assert (ours.keep, ours.batch_rows, ours.shard_bytes, ours.limit) == (("id",), 16, 1000000, 40)
    assert (ours.jit_compile, ours.incremental) == (True, True)
    assert ours.loading == Loading(3, 2000000, "process", "gpu")
    assert ours.on_error == OnError(f"{data.uri}/dead", "5%")


def test_a_worker_without_a_module_fails_the_job_by_its_name(
    data: Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a person sees it: through Dataflow's messages."""
    monkeypatch.setattr(
        data.service, "damage", lambda site: (site / "headrace/transforms/steps/predict_shard.py").unlink()
    )
    assert main(data.flags("damaged")) == 1
    told = capsys.readouterr().err
    assert "no module 'headrace.transforms.steps.predict_shard'" in told
    assert "pip install headrace" in told
    assert "headrace.transforms.steps.predict_shard" in sys.modules
