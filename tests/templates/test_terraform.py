"""templates/terraform, read by HashiCorp's own parser; by Terraform itself where there is one. Its provider cannot be had in
the tests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pygohcl
import pytest
from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest
from google.cloud.monitoring_dashboard_v1 import Dashboard
from google.cloud.monitoring_v3 import AlertPolicy
from google.cloud.scheduler_v1 import Job

from headrace.pipeline.flags.template_parameters import container_spec
from headrace.transforms.beam import metrics
from tests.support.launched import request_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "templates" / "terraform"
TERRAFORM = shutil.which("terraform") or shutil.which("tofu") or ""
IMAGE = "europe-west4-docker.pkg.dev/my-project/headrace/headrace:1"
WORKER, SCHEDULER = "google_service_account.worker.member", "google_service_account.scheduler.member"

needs_terraform = pytest.mark.skipif(
    not TERRAFORM, reason="NOT SHOWN what terraform makes of the files: there is neither terraform nor tofu"
)


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """`kind.name` -> the block, of resources; `var.NAME` and `local.NAME` likewise. Expressions are their own text, without
    the braces of those within text.
    """
    found: dict[str, Any] = {}
    for path in FOLDER.glob("*.tf"):
        parsed = pygohcl.loads(path.read_text())
        for kind, named in parsed.get("resource", {}).items():
            found |= {f"{kind}.{name}": block for name, block in named.items()}
        found |= {f"var.{name}": block for name, block in parsed.get("variable", {}).items()}
        found |= {f"local.{name}": value for name, value in parsed.get("locals", {}).items()}
    return found


def test_every_name_that_is_used_is_defined_and_every_variable_is_used(stack: dict[str, Any]) -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.tf"))
    used = set(re.findall(r"\b(?:var|local)\.\w+|\bgoogle_\w+\.\w+", text))
    assert used <= set(stack)
    assert {name for name in stack if name.startswith(("var.", "local."))} <= used
    for path in re.findall(r'file\("\$\{path\.module\}/([^"]+)"', text):
        assert (FOLDER / path).is_file(), path


def test_nobody_may_do_more_than_is_needed(stack: dict[str, Any]) -> None:
    granted = {
        (block["member"], block["role"], *([block["condition"]["expression"]] if "condition" in block else []))
        for name, block in stack.items()
        if "_iam_" in name
    }
    objects = "resource.name.startsWith('projects/_/buckets/google_storage_bucket.data.name/objects/"
    assert granted == {
        (WORKER, "roles/dataflow.worker"),
        (WORKER, "roles/artifactregistry.reader"),
        (WORKER, "roles/storage.objectViewer"),
        (WORKER, "roles/storage.objectUser", objects + "each.key/')"),
        (SCHEDULER, "roles/dataflow.developer"),
        (SCHEDULER, "roles/iam.serviceAccountUser"),
        (SCHEDULER, "roles/storage.objectViewer", objects + "templates/')"),
    }
    assert stack["google_storage_bucket_iam_member.worker_writes"]["for_each"] == 'toset([var.output, "tmp"])'
    assert stack["google_service_account_iam_member.scheduler"]["service_account_id"].endswith("worker.name")


def test_the_bucket_is_not_public_and_forgets_temporary_files_alone(stack: dict[str, Any]) -> None:
    bucket = stack["google_storage_bucket.data"]
    assert (bucket["uniform_bucket_level_access"], bucket["public_access_prevention"]) == (True, "enforced")
    rule = bucket["lifecycle_rule"]
    assert rule == {"condition": {"age": 7, "matches_prefix": ["tmp/"]}, "action": {"type": "Delete"}}
    assert stack["local.values"]["TEMP"] == "local.root/tmp"


def test_it_gives_every_value_that_the_scheduled_bodies_ask_for(stack: dict[str, Any]) -> None:
    asked = set()
    for name in ("launch", "job"):
        asked |= set(re.findall(r"\$\{(\w+)\}", (ROOT / "templates" / "scheduler" / f"{name}.json").read_text()))
    assert set(stack["local.values"]) == asked


def test_alerts_are_ones_that_monitoring_takes_and_somebody_hears_of_each(stack: dict[str, Any]) -> None:
    policies = {name: block for name, block in stack.items() if name.startswith("google_monitoring_alert_policy.")}
    assert len(policies) == 3
    for block in policies.values():
        (channels, condition) = (block.pop("notification_channels"), block["conditions"])
        assert "google_monitoring_notification_channel.mail" in str(channels)
        block.pop("for_each", None)
        for lasts in ("duration", "evaluation_interval"):
            condition.get("condition_prometheus_query_language", {}).pop(lasts, None)
        limit = block.pop("alert_strategy", None)
        assert ("condition_matched_log" in condition) == (limit is not None), "a log's alert has to have a limit"
        condition["condition_matched_log"] = condition.get("condition_matched_log")
        AlertPolicy({**block, "conditions": [{name: value for name, value in condition.items() if value}]})


def test_what_is_watched_are_counters_that_headrace_has(stack: dict[str, Any]) -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    queries = re.findall(r'metric_name=\\?"(\w+)', json.dumps(dashboard).replace('\\"', '"'))
    queries += re.findall(
        r'local\.counter\}?"(\w+)"', "".join(alert["query"] for alert in stack["local.alerts"].values())
    )
    counters = set(metrics._COUNTERS)
    assert len(queries) > 8
    assert set(queries) <= counters, set(queries) - counters
    tiles = Dashboard.from_json(json.dumps(dashboard)).mosaic_layout.tiles
    assert len(tiles) == 5
    assert all(tile.x_pos + tile.width <= 48 for tile in tiles)


def test_what_is_no_terraform_is_found() -> None:
    with pytest.raises(pygohcl.HCLParseError, match="Missing newline after argument"):
        pygohcl.loads((FOLDER / "main.tf").read_text().replace("= 7", "= 7 days"))


@needs_terraform
def test_terraform_would_write_it_so() -> None:
    done = terraform(FOLDER, "fmt", "-check", "-diff")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_terraform
def test_what_terraform_makes_of_the_bodies_is_read_by_their_services(stack: dict[str, Any], tmp_path: Path) -> None:
    folder = without_provider(tmp_path, stack)
    made = evaluate(folder, "{launch = local.launch, job = local.job, spec = local.spec}")
    asked = LaunchFlexTemplateRequest.from_json(json.dumps(made["launch"])).launch_parameter
    assert asked.container_spec_gcs_path == "gs://my-bucket/templates/headrace.json"
    assert asked.environment.service_account_email == "headrace-worker@my-project.iam.gserviceaccount.com"
    request = request_of(asked.parameters)
    assert (request.models[0].uri, request.inputs, request.output) == (
        "gs://my-bucket/models/digits",
        ("gs://my-bucket/in/**/*.parquet",),
        "gs://my-bucket/out",
    )
    job = Job.from_json(json.dumps(made["job"]))
    assert job.http_target.oauth_token.service_account_email.startswith("headrace-scheduler@")
    assert made["spec"] == container_spec(IMAGE)  # as `make template` has it


@needs_terraform
@pytest.mark.parametrize(("name", "value"), [("image", "gcr.io/my-project/headrace"), ("output", "out/")])
def test_a_value_of_the_wrong_form_is_refused(stack: dict[str, Any], tmp_path: Path, name: str, value: str) -> None:
    done = terraform(without_provider(tmp_path, stack), "plan", *variables(**{name: value}))
    assert done.returncode == 1
    assert "Invalid value for variable" in done.stderr


def without_provider(folder: Path, stack: dict[str, Any]) -> Path:
    """The variables and locals as they are; names and addresses in place of the resources that would have them."""
    shutil.copytree(ROOT / "templates", folder / "templates", ignore=shutil.ignore_patterns("*.tf"))
    out = folder / "templates" / "terraform"
    shutil.copy(FOLDER / "variables.tf", out)
    text = (FOLDER / "main.tf").read_text()
    (block,) = re.findall(r"^locals \{\n.*?^\}$", text, re.MULTILINE | re.DOTALL)
    (content,) = re.findall(r"^  content = (jsonencode\(\{\n.*?^  \}\))$", text, re.MULTILINE | re.DOTALL)
    block += f"\nlocals {{\n  spec = {content}\n}}\n"
    for resource, value in (
        ("storage_bucket.data.name", "var.bucket"),
        ("storage_bucket_object.template.name", json.dumps(stack["google_storage_bucket_object.template"]["name"])),
        ("service_account.worker.email", '"headrace-worker@${var.project}.iam.gserviceaccount.com"'),
        ("service_account.scheduler.email", '"headrace-scheduler@${var.project}.iam.gserviceaccount.com"'),
    ):
        block = block.replace(f"google_{resource}", value)
    (out / "bodies.tf").write_text(block)
    return out


def evaluate(folder: Path, expression: str) -> Any:
    done = terraform(folder, "console", *variables(), given=f"jsonencode({expression})\n")
    assert done.returncode == 0, done.stderr
    made = json.loads(json.loads(done.stdout))
    return {**made, "spec": json.loads(made["spec"])}


def variables(**changed: str) -> list[str]:
    values = {"project": "my-project", "bucket": "my-bucket", "image": IMAGE, **changed}
    return [f"-var={name}={value}" for name, value in values.items()]


def terraform(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [TERRAFORM, *arguments], cwd=folder, env=environment, input=given, capture_output=True, text=True, timeout=60
    )
