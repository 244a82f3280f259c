"""templates/classic: staged once, then launched by a Dataflow on loopback with the parameters of each job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from apache_beam.error import RuntimeValueProviderError
from apache_beam.internal import pickler
from apache_beam.options.value_provider import RuntimeValueProvider
from google.auth.credentials import AnonymousCredentials
from google.cloud.dataflow import JobState
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError

from headrace.pipeline import cli
from headrace.pipeline.commands.stage_template import _Prepare, build_template, claimed_job, main
from headrace.pipeline.flags.beam_options import PredictOptions
from headrace.pipeline.flags.template_parameters import as_flags, as_parameters, classic_parameters, metadata
from headrace.pipeline.packages.user_package import UserPackage
from headrace.pipeline.runners.launch import open_pipeline
from headrace.transforms.errors import ColumnError, HeadraceError, InvalidRequest, OutputConflict
from headrace.transforms.storage import open_store
from tests.pipeline.packages.test_packaging import ROOT
from tests.support.dataflow_checks import OUR_DOFNS, STAGES, do_fns, graph_of, packages, workers
from tests.support.fake_dataflow import FakeDataflow, read, sent_options, staged_files
from tests.support.jobs import names_in, put, put_inputs, put_model, read_output

METADATA = ROOT / "templates" / "classic" / "metadata.json"
PARAMETERS = {one["name"] for one in classic_parameters()}
PLACE = ("--project=my-project", "--region=europe-west4")
# What was staged is not what is launched.
STAGED = ("--machine_type=n2-standard-4", "--keep=name", "--batch_size=8", "--incremental")
GIVEN = {"batch_size": "16", "keep": "id", "prediction": r"output_0=a\;b", "incremental": "false"}
FLAGS = ("--batch_size=16", "--keep=id", "--prediction=output_0=a;b")


@dataclass(frozen=True)
class Staged:
    """A template in a bucket that has a model in m and inputs in in/."""

    uri: str
    service: FakeDataflow
    flags: tuple[str, ...]

    @property
    def template(self) -> str:
        return f"{self.uri}/templates/headrace"

    def where(self, output: str) -> dict[str, str]:
        return {"model": f"{self.uri}/m", "input": f"{self.uri}/in/*.parquet", "output": f"{self.uri}/{output}"}

    def launch(self, parameters: Mapping[str, str], **environment: Any) -> tuple[str, Any]:
        """The job's last state, and the job; by Google's client for Dataflow."""
        endpoint = {"api_endpoint": self.service.endpoint}
        dataflow = build("dataflow", "v1b3", credentials=AnonymousCredentials(), client_options=endpoint)
        place = {"projectId": "my-project", "location": "europe-west4"}
        body = {"jobName": "nightly", "parameters": dict(parameters), "environment": environment}
        locations = dataflow.projects().locations()
        started = locations.templates().launch(**place, gcsPath=self.template, body=body).execute()["job"]
        state = "JOB_STATE_RUNNING"
        while state == "JOB_STATE_RUNNING":
            time.sleep(0.2)
            state = JobState(locations.jobs().get(**place, jobId=started["id"]).execute()["currentState"]).name
        return state, self.service.jobs[started["id"]]

    def counted(self, job: Any) -> dict[str, int]:
        counters = json.loads(self.service.output_of(job).splitlines()[-1])["counters"]
        return {one["name"]: one["value"] for one in counters if one["namespace"] == "headrace"}

    def command(self, output: str, *more: str) -> list[str]:
        return [*(f"--{name}={value}" for name, value in self.where(output).items()), *more]


@pytest.fixture(scope="module")
def staged(emulator: str) -> Iterator[Staged]:
    from google.cloud import storage

    storage.Client(project="test").create_bucket("test-classic")
    uri = "gs://test-classic"
    put_model("saved_model", f"{uri}/m")
    put_inputs(f"{uri}/in", [30, 20, 10])
    with FakeDataflow() as service:
        there = (f"--dataflow_endpoint={service.endpoint}", "--no_auth", f"--temp_location={uri}/tmp")
        flags = (*PLACE, *there, "--experiments=disable_logging_submission_environment", *STAGED)
        assert main([f"--template_location={uri}/templates/headrace", *flags]) == 0
        put(f"{uri}/templates/headrace_metadata", METADATA.read_bytes())
        yield Staged(uri, service, flags)


def run_here(parameters: Mapping[str, str]) -> None:
    """The graph in this process, where no launch gives a parameter: each is as it was staged."""
    pipeline = open_pipeline(PredictOptions([]))
    build_template(pipeline, {name: RuntimeValueProvider(name, str, value) for name, value in parameters.items()})
    pipeline.run().wait_until_finish()


def kept(folder: str) -> dict[str, str]:
    """Everything in the folder, and which version of it."""
    return {ref.uri: ref.version for ref in open_store(folder).list(f"{folder}/")}


def predictions(folder: str) -> set[str]:
    return {name for name in names_in(folder) if not name.startswith("_manifest/")}  # that holds timings


def claims(*numbers: int) -> list[str]:
    return [f"_headrace/claims/{number:08}.{kind}" for number in numbers for kind in ("claim", "started")]


def test_launched_with_other_parameters_it_does_what_the_command_does_and_each_goes_on_where_the_other_stopped(
    staged: Staged, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, plain = f"{staged.uri}/ours", f"{staged.uri}/plain"
    state, job = staged.launch(staged.where("ours") | GIVEN, machineType="n2-highmem-8", maxWorkers=3)
    assert state == "JOB_STATE_DONE", staged.service.errors_of(job)
    assert staged.counted(job)["rows"] == 60
    assert cli.main(staged.command("plain", *FLAGS)) == 0
    assert read_output(ours).column_names == ["id", "a;b"]
    assert read_output(ours).equals(read_output(plain))
    assert predictions(ours) == predictions(plain)
    assert read(f"{ours}/_headrace/job.json") == read(f"{plain}/_headrace/job.json")

    for folder in (ours, plain):
        store = open_store(folder)
        for name in ("_SUCCESS", next(name for name in sorted(predictions(folder)) if name.endswith(".parquet"))):
            store.delete(store.stat(f"{folder}/{name}"))
    before = kept(plain).items()
    state, job = staged.launch(staged.where("plain") | GIVEN)
    assert state == "JOB_STATE_DONE", staged.service.errors_of(job)
    assert staged.counted(job)["shards"] == 1
    anew = ("/_manifest/", "/_headrace/report.html")
    assert {pair for pair in before if not any(part in pair[0] for part in anew)} <= kept(plain).items()
    capsys.readouterr()
    assert cli.main(staged.command("ours", *FLAGS)) == 0
    assert "Going on: 2 shards are" in capsys.readouterr().err
    assert cli.main(["verify", f"--output={plain}"]) == cli.main(["verify", f"--output={ours}"]) == 0
    assert read_output(ours).equals(read_output(plain))
    assert read_output(ours).num_rows == 60

    before = kept(plain).items()
    run_here(staged.where("plain") | GIVEN)
    assert kept(plain).items() == before  # complete: nothing is touched


def test_a_wrong_parameter_ends_the_job_with_our_words_and_nothing_is_written(staged: Staged) -> None:
    state, job = staged.launch(staged.where("wrong") | {"keep": "ids"})
    assert state == "JOB_STATE_FAILED"
    told = staged.service.errors_of(job)
    assert "headrace.transforms.errors.ColumnError" in told
    assert "'ids'" in told
    assert names_in(f"{staged.uri}/wrong") == []


@pytest.mark.parametrize(
    ("more", "kind", "told"),
    [
        ({"feature": "y=id"}, ColumnError, "y"),
        ({"limit": "0"}, InvalidRequest, "--limit=0"),
        ({"incremental": "yes"}, InvalidRequest, "--incremental"),
        ({"input": "in/*.parquet"}, InvalidRequest, "is on this machine"),
        ({"input": "gs://test-classic/none/*.parquet"}, HeadraceError, "none"),
        ({"model": "gs://test-classic/in"}, HeadraceError, "gs://test-classic/in"),
        ({"output": ""}, InvalidRequest, "--output is missing"),
        ({"output": "gs://test-classic/in"}, HeadraceError, "gs://test-classic/in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_whatever_the_command_refuses_so_does_the_worker(
    staged: Staged, more: dict[str, str], kind: type[HeadraceError], told: str
) -> None:
    before = kept(staged.uri)
    with pytest.raises(kind, match=told):
        claimed_job(as_flags(staged.where("refused") | more))
    assert kept(staged.uri) == before


def test_a_step_that_runs_twice_removes_nothing_of_what_came_between(staged: Staged) -> None:
    flags = staged.command("twice")
    assert cli.main([*flags, "--limit=5"]) == 0
    with pytest.raises(OutputConflict, match="limit"):
        claimed_job(flags)
    job = claimed_job([*flags, "--overwrite"])
    assert names_in(job.output) == [*claims(1, 2), "_headrace/job.json", "_headrace/report.html"]
    assert cli.main(flags) == 0
    before = kept(job.output)
    assert claimed_job([*flags, "--overwrite"]) == job
    assert kept(job.output) == before


def test_a_launch_says_what_was_left_open_and_keeps_what_was_staged(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_functions.py").write_text("def same(batch):\n    return batch\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = UserPackage("own", str(tmp_path), tmp_path / "own-1-py3-none-any.whl", tmp_path, "0" * 64)
    defaults = as_parameters(
        PredictOptions(["--keep=id", "--batch_size=8", "--incremental", "--fill=x=;", "--fill=y=1"])
    )
    assert defaults == {"keep": "id", "batch_size": "8", "incremental": "true", "fill": r"x=\;;y=1"}
    del defaults["fill"]
    providers = {name: RuntimeValueProvider(name, str, defaults.get(name)) for name in PARAMETERS}
    step = pickler.loads(pickler.dumps(_Prepare(providers, (package,))))
    monkeypatch.setattr(RuntimeValueProvider, "runtime_options", None)
    with pytest.raises(RuntimeValueProviderError):
        next(step.process(None))
    given = {"keep": None, "limit": "", "batch_size": "16", "preprocess": "own_functions:same", "incremental": "false"}
    monkeypatch.setattr(RuntimeValueProvider, "runtime_options", {**staged.where("open"), **given})
    (job,) = step.process(None)
    assert (job.keep, job.batch_rows, job.incremental, job.limit) == (("id",), 16, False, None)
    assert job.user_packages == (("own", "0" * 64),)
    assert job.preprocess is not None
    assert names_in(job.output) == [*claims(1), "_headrace/job.json"]


def test_a_name_a_form_or_a_lack_is_refused_by_the_service_itself(staged: Staged) -> None:
    for parameters, told in (
        (staged.where("o") | {"kep": "id"}, "unexpected parameters: ..kep"),
        ({"model": "gs://b/m"}, "Missing required parameters: ..input., .output"),
        (staged.where("o") | {"limit": "few"}, "limit=few"),
        (staged.where("o") | {"user_package": "x"}, "unexpected"),
    ):
        with pytest.raises(HttpError, match=told):
            staged.launch(parameters)


def test_what_is_staged_is_a_whole_job_of_which_the_parameters_alone_are_open(staged: Staged, tmp_path: Path) -> None:
    from google.cloud import dataflow

    job = dataflow.Job.from_json(read(staged.template).decode(), ignore_unknown_fields=False)
    assert staged.service.jobs.keys() & {job.id} == set()
    flags = ["--runner=DataflowRunner", *staged.flags]
    assert [*workers(job, flags), *packages(job, staged_files(job, tmp_path))] == []
    sent = sent_options(job)
    assert {name for name in PARAMETERS if sent[name] is not None} == set()
    graph = graph_of(job)
    found = {transform.unique_name.split("/")[0] for transform in graph.components.transforms.values()}
    assert {"Parameters", "Prepare", *STAGES} <= found
    assert do_fns(graph).keys() >= {"headrace.pipeline.commands.stage_template._Prepare", *OUR_DOFNS}
    (job_of,) = do_fns(graph)["headrace.transforms.beam.predict._PredictShard"]
    assert type(job_of).__name__ == "ArgumentPlaceholder"


def test_the_metadata_are_those_of_the_flags_and_google_reads_them() -> None:
    from google.cloud.dataflow import TemplateMetadata

    text = METADATA.read_text("utf-8")
    assert json.loads(text) == metadata(classic_parameters())
    read_back = TemplateMetadata.from_json(text, ignore_unknown_fields=False)
    assert {one.name for one in read_back.parameters if not one.is_optional} == {"model", "input", "output"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "--template_location"),
        (("--template_location=gs://b/t", "--runner=FlinkRunner"), "for Dataflow"),
        (("--template_location=gs://b/t",), "--project is missing"),
        (("--template_location=gs://b/t", *PLACE, "--batch_size=few"), "--batch_size=few"),
        (("--template_location=gs://b/t", *PLACE, "--model=m.keras"), "is on this machine"),
        (("--template_location=gs://b/t", *PLACE, "--worker_accelerator=L4"), "--worker_accelerator=L4"),
        (("--template_locatio=gs://b/t",), "Did you mean --template_location"),
    ],
)
def test_what_cannot_be_staged_is_told(flags: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert told in capsys.readouterr().err
