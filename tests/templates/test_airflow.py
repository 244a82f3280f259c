"""templates/airflow in a real Airflow, from the environment that `make test-airflow` makes and names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest

from headrace.pipeline import demo
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.transforms.storage import open_store
from tests.support.launched import request_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "templates" / "airflow"
AIRFLOW = os.environ.get("HEADRACE_AIRFLOW", "")
DAY = "2026-11-22"
ASKED = ("gs://my-bucket/models/digits", (f"gs://my-bucket/in/dt={DAY}/*.parquet",), f"gs://my-bucket/out/dt={DAY}")

pytestmark = pytest.mark.skipif(not AIRFLOW, reason="make test-airflow runs these: Airflow takes minutes to install")


class Home:
    """Airflow with a database of its own, beside an environment of headrace in `bin`."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": "google-cloud-platform://",
            "HEADRACE_BIN": str(self.bin),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.script("headrace", f'export PYTHONPATH={ROOT}\nexec {sys.executable} -m headrace "$@"')

    def script(self, name: str, content: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{content}\n")
        (self.bin / name).chmod(0o755)

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [f"{AIRFLOW}/bin/{program}", *arguments], env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="module")
def loaded(home: Home) -> Any:
    """What tests/support/airflow_worker.py found."""
    home.script(
        "python",
        f"""[ "$1" = -c ] && exec {sys.executable} "$@"
printf '%s\\n' "$@" > {home.bin}/asked
echo 'INFO apache_beam: Created job with id: [2026-11-23_02_15_00-1]' >&2""",
    )
    told = home.run("python", str(ROOT / "tests" / "support" / "airflow_worker.py"), str(FOLDER), DAY)
    (line,) = [line for line in told.splitlines() if line.startswith('{"errors"')]
    return json.loads(line)


def test_each_variant_loads_is_verified_and_takes_the_day_that_ended(loaded: Any) -> None:
    assert loaded["errors"] == {}
    assert set(loaded["dags"]) == {"headrace_flex", "headrace_beam", "headrace_local"}
    for dag in loaded["dags"].values():
        assert (dag["order"], dag["follows"], dag["retries"]) == (["predict", "verify"], ["predict"], 2)
        assert dag["night"] == ["2026-11-23T02:15:00+00:00", DAY]
    assert [loaded["dags"][f"headrace_{name}"]["deferrable"] for name in ("flex", "beam", "local")] == [
        True,
        True,
        None,
    ]


def test_dataflow_reads_the_flex_variants_body(loaded: Any) -> None:
    asked = LaunchFlexTemplateRequest.from_json(json.dumps(loaded["flex"])).launch_parameter
    request = request_of(asked.parameters)
    assert (request.models[0].uri, request.inputs, request.output) == ASKED
    assert asked.job_name == "headrace-20261122"


def test_the_beam_variant_starts_headrace_and_waits_for_its_job_without_a_process(loaded: Any) -> None:
    module, flags = loaded["beam"]["command"][:2], loaded["beam"]["command"][2:]
    assert module == ["-m", "headrace"]
    options = parse_flags(flags)
    request = parse_request(options, "run")
    assert (request.models[0].uri, request.inputs, request.output) == ASKED
    assert {"--runner=DataflowRunner", "--job_name=headrace-20261122", "--no_wait"} <= set(flags)
    trigger = loaded["beam"]["trigger"]
    assert (trigger["job_id"], trigger["project_id"]) == ("2026-11-23_02_15_00-1", "my-project")


def test_airflow_runs_the_local_variant_and_a_damaged_file_fails_its_verify(
    home: Home, loaded: Any, tmp_path: Path
) -> None:
    assert set(loaded["dags"]) >= {"headrace_local"}  # so that the database knows it
    demo.fill(open_store(str(tmp_path)), str(tmp_path))
    (tmp_path / "in").rename(tmp_path / "day")
    (tmp_path / "in").mkdir()
    (tmp_path / "day").rename(tmp_path / "in" / f"dt={DAY}")
    folders = {"model": f"{tmp_path}/models/digits", "inputs": f"{tmp_path}/in", "outputs": f"{tmp_path}/it's out"}

    told = home.run("airflow", "dags", "test", "headrace_local", DAY, "--conf", json.dumps(folders))
    assert "Sound." in told
    assert "state=success, run_type=manual" in told
    out = tmp_path / "it's out" / f"dt={DAY}"
    assert json.loads((out / "_SUCCESS").read_text())["rows"] == 1797

    damaged = next(out.glob("part-00003*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[300] ^= 1
    damaged.write_bytes(content)
    told = home.run("airflow", "tasks", "test", "headrace_local", "verify", DAY, "--task-params", json.dumps(folders))
    assert damaged.name in told
    assert "new_state=up_for_retry" in told
