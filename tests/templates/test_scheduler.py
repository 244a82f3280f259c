"""What templates/scheduler sends, read by the client libraries of the services that it is for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.dataflow_v1beta3 import (
    LaunchFlexTemplateRequest,
    LaunchTemplateParameters,
    LaunchTemplateRequest,
)
from google.cloud.scheduler_v1 import HttpMethod, Job
from googleapiclient.discovery import build
from googleapiclient.discovery_cache import get_static_doc

from tests.support.launched import request_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "templates" / "scheduler"
PLACE = "projects/my-project/locations/europe-west4"
CRON = r"[\d*/,-]+( [\d*/,-]+){4}"


def render(values: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "render.py"), str(values), str(out)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The texts of `classic-job.json` and `classic-pipeline.json`."""
    out = tmp_path_factory.mktemp("rendered")
    assert render(FOLDER / "values.env", out).returncode == 0
    return (out / "classic-job.json").read_text(), (out / "classic-pipeline.json").read_text()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """The texts of `job.json` and `pipeline.json`, and what was printed."""
    out = tmp_path_factory.mktemp("rendered")
    done = render(FOLDER / "values.env", out)
    assert done.returncode == 0, done.stderr
    return (out / "job.json").read_text(), (out / "pipeline.json").read_text(), done.stdout


def values() -> dict[str, str]:
    return dict(line.split("=", 1) for line in (FOLDER / "values.env").read_text().splitlines())


def unknown(body: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str = "") -> Iterator[str]:
    """Fields that the API's own description lacks, and values that are none of theirs."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if schema["type"] == "object":
        for name, value in body.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if inner is None:
                yield f"{at}.{name}"
            else:
                yield from unknown(value, inner, schemas, f"{at}.{name}")
    elif type(body).__name__[:3] != schema["type"][:3] or body not in schema.get("enum", [body]):
        yield f"{at}={body!r}"


def test_scheduler_and_dataflow_read_the_job_and_its_body(rendered: tuple[str, str, str]) -> None:
    job = Job.from_json(rendered[0])
    target = job.http_target
    dataflow = build("dataflow", "v1b3", credentials=AnonymousCredentials())
    launch = dataflow.projects().locations().flexTemplates().launch(projectId="my-project", location="europe-west4")
    assert (target.uri, target.http_method) == (launch.uri.removesuffix("?alt=json"), HttpMethod[launch.method])
    assert target.oauth_token.service_account_email == values()["SCHEDULER_ACCOUNT"]
    assert target.oauth_token.scope == "https://www.googleapis.com/auth/cloud-platform"

    asked = LaunchFlexTemplateRequest.from_json(target.body).launch_parameter
    assert asked.container_spec_gcs_path == values()["TEMPLATE"]
    assert asked.environment.service_account_email == values()["WORKER_ACCOUNT"]
    assert asked.environment.temp_location == values()["TEMP"]
    assert re.fullmatch("[a-z]([-a-z0-9]{0,1022}[a-z0-9])?", asked.job_name)
    request = request_of(asked.parameters)
    assert (request.models[0].uri, request.inputs, request.output, request.incremental) == (
        values()["MODEL"],
        (values()["INPUT"],),
        values()["OUTPUT"],
        True,
    )


def test_the_job_starts_at_a_time_of_day_and_is_tried_again(rendered: tuple[str, str, str]) -> None:
    job = Job.from_json(rendered[0])
    assert job.name == f"{PLACE}/jobs/headrace-nightly"
    assert re.fullmatch(CRON, job.schedule)
    assert ZoneInfo(job.time_zone)
    assert 15 <= job.attempt_deadline.total_seconds() <= 30 * 60  # what Scheduler allows an HTTP target
    assert job.retry_config.retry_count == 3
    assert job.retry_config.min_backoff_duration < job.retry_config.max_backoff_duration


def test_a_data_pipeline_launches_the_same(rendered: tuple[str, str, str]) -> None:
    pipeline = json.loads(rendered[1])
    schemas = json.loads(get_static_doc("datapipelines", "v1"))["schemas"]
    assert list(unknown(pipeline, {"$ref": "GoogleCloudDatapipelinesV1Pipeline"}, schemas)) == []
    job = Job.from_json(rendered[0])
    assert (pipeline["scheduleInfo"]["schedule"], pipeline["scheduleInfo"]["timeZone"]) == (job.schedule, job.time_zone)
    asked = LaunchFlexTemplateRequest.from_json(json.dumps(pipeline["workload"]["dataflowFlexTemplateRequest"]))
    assert (asked.project_id, asked.location) == ("my-project", "europe-west4")
    assert asked.launch_parameter == LaunchFlexTemplateRequest.from_json(job.http_target.body).launch_parameter


def test_the_classic_template_is_launched_by_a_body_of_its_own_at_the_same_time(
    classic: tuple[str, str], rendered: tuple[str, str, str]
) -> None:
    job, flex = Job.from_json(classic[0]), Job.from_json(rendered[0])
    dataflow = build("dataflow", "v1b3", credentials=AnonymousCredentials())
    launch = dataflow.projects().locations().templates().launch
    place = {"projectId": "my-project", "location": "europe-west4", "gcsPath": values()["CLASSIC_TEMPLATE"]}
    target = job.http_target
    assert (unquote(launch(**place).uri).removesuffix("&alt=json"), HttpMethod[launch(**place).method]) == (
        target.uri,
        target.http_method,
    )
    asked = LaunchTemplateParameters.from_json(target.body, ignore_unknown_fields=False)
    by_flex = LaunchFlexTemplateRequest.from_json(flex.http_target.body).launch_parameter
    assert dict(asked.parameters) == dict(by_flex.parameters)
    assert (asked.job_name, asked.environment.max_workers) == (by_flex.job_name, by_flex.environment.max_workers)
    assert asked.environment.service_account_email == values()["WORKER_ACCOUNT"]
    assert asked.environment.temp_location == values()["TEMP"]
    assert request_of(asked.parameters, classic=True) == request_of(by_flex.parameters)
    for one in (job, flex):
        target = one.http_target
        target.uri, target.body = "", b""
    assert job == flex


def test_a_data_pipeline_launches_the_classic_template_with_that_body(classic: tuple[str, str]) -> None:
    pipeline = json.loads(classic[1])
    schemas = json.loads(get_static_doc("datapipelines", "v1"))["schemas"]
    assert list(unknown(pipeline, {"$ref": "GoogleCloudDatapipelinesV1Pipeline"}, schemas)) == []
    workload = json.dumps(pipeline["workload"]["dataflowLaunchTemplateRequest"])
    asked = LaunchTemplateRequest.from_json(workload, ignore_unknown_fields=False)
    assert (asked.project_id, asked.location) == ("my-project", "europe-west4")
    assert asked.gcs_path == values()["CLASSIC_TEMPLATE"]
    body = Job.from_json(classic[0]).http_target.body
    assert asked.launch_parameters == LaunchTemplateParameters.from_json(body, ignore_unknown_fields=False)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (
            ("workload", "dataflowFlexTemplateRequest", "launchParameter", "environment"),
            {"stagingLocation": "x"},
            "staging",
        ),
        (
            ("workload", "dataflowFlexTemplateRequest", "launchParameter", "environment"),
            {"maxWorkers": "10"},
            "maxWorkers",
        ),
        ((), {"type": "BATCH"}, "type='BATCH'"),
    ],
)
def test_what_a_data_pipeline_does_not_know_is_found(
    rendered: tuple[str, str, str], where: tuple[str, ...], value: dict[str, Any], told: str
) -> None:
    pipeline = part = json.loads(rendered[1])
    for name in where:
        part = part[name]
    part |= value
    schemas = json.loads(get_static_doc("datapipelines", "v1"))["schemas"]
    (found,) = unknown(pipeline, {"$ref": "GoogleCloudDatapipelinesV1Pipeline"}, schemas)
    assert told in found


def test_each_printed_command_goes_where_its_api_creates(rendered: tuple[str, str, str]) -> None:
    anonymous = AnonymousCredentials()
    jobs = build("cloudscheduler", "v1", credentials=anonymous).projects().locations().jobs()
    pipelines = build("datapipelines", "v1", credentials=anonymous).projects().locations().pipelines()
    for name, create in (
        ("job", jobs),
        ("pipeline", pipelines),
        ("classic-job", jobs),
        ("classic-pipeline", pipelines),
    ):
        (url,) = re.findall(rf"--data @\S+/{name}\.json (https://\S+)$", rendered[2], re.MULTILINE)
        assert f"{url}?alt=json" == create.create(parent=PLACE, body={}).uri


def test_a_value_cannot_change_the_body_around_it_and_a_missing_one_is_named(tmp_path: Path) -> None:
    text = (FOLDER / "values.env").read_text()
    file = tmp_path / "values.env"
    file.write_text(text.replace(f"INPUT={values()['INPUT']}", 'INPUT=gs://b/"x", "y": $z'))
    assert render(file, tmp_path).returncode == 0
    body = Job.from_json((tmp_path / "job.json").read_text()).http_target.body
    assert LaunchFlexTemplateRequest.from_json(body).launch_parameter.parameters["input"] == 'gs://b/"x", "y": $z'
    file.write_text(text.replace("TEMPLATE=", "TEMPLAT="))
    assert "The values lack TEMPLATE" in render(file, tmp_path).stderr
    file.write_text("PROJECT=\n")
    assert "PROJECT no value" in render(file, tmp_path).stderr
