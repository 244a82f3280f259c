"""Dataflow jobs submitted without a checkout, from what the flex template's image has of headrace: by that template's launcher,
and by the command headrace.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.template_parameters import parameters
from headrace.pipeline.packages.own_wheel import build_wheel
from tests.pipeline.runners.test_dataflow import Data
from tests.support.dataflow_checks import do_fns, faults, graph_of
from tests.support.fake_dataflow import FakeDataflow, read, sent_options, staged_files
from tests.support.flex_image import build_image
from tests.support.jobs import put_inputs, put_model, read_output

IMAGE = "europe-docker.pkg.dev/my-project/headrace/headrace:1"
PARAMETERS = {"keep": "id", "incremental": "true", "overwrite": "false", "batch_size": "16", "limit": ""}


@dataclass(frozen=True)
class Launched:
    """A launcher that ended with exit code 0: what it printed, the command line it stands for, and the job."""

    out: str
    flags: list[str]
    job: Any


def start(work: Path, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Apart from the checkout, and without what tells a process of it."""
    env = {
        name: os.environ[name] for name in ("STORAGE_EMULATOR_HOST", "PATH", "NO_GCE_CHECK", "CLOUDSDK_CONFIG", "HOME")
    }
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.Popen(command, cwd=work, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def launched(emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Launched]]:
    from google.cloud import dataflow, storage

    storage.Client(project="test").create_bucket("test-launchers")
    uri = "gs://test-launchers"
    put_model("saved_model", f"{uri}/m")
    put_inputs(f"{uri}/in", [30, 20])
    work = tmp_path_factory.mktemp("launcher")
    os.environ.setdefault("CLOUDSDK_CONFIG", str(work / "no-gcloud"))
    image = build_image(work, IMAGE)
    program = work / image.variables["FLEX_TEMPLATE_PYTHON_PY_FILE"].lstrip("/")
    with FakeDataflow() as service:
        data = Data(uri, service)
        # As the launcher's log shows it: parameters beside what the launch itself says.
        spec = f"{uri}/staging/job_object"
        asked = data.flags("flex", f"--template_location={spec}", "--job_name=nightly", "--max_num_workers=5")
        given = [f"--{name}={value}" for name, value in PARAMETERS.items()]
        flex = start(work, image.bin / "python", program, *asked, *given, **image.variables)
        typed = data.flags("wheel", "--keep=id")
        wheel = start(work, image.bin / "headrace", *typed)
        outs = {}
        for name, run in {"flex": flex, "wheel": wheel}.items():
            out, err = run.communicate(timeout=900)
            assert run.returncode == 0, err
            outs[name] = out
        described = dataflow.Job.from_json(read(spec).decode())
        asked += ["--keep=id", "--incremental", "--batch_size=16", f"--sdk_container_image={IMAGE}", "--no_wait"]
        sent = next(iter(service.jobs.values()))
        yield {
            "flex": Launched(outs["flex"], asked, service.create(described, "my-project", "europe-west4")),
            "wheel": Launched(outs["wheel"], typed, sent),
        }


@pytest.mark.parametrize("launcher", ["flex", "wheel"])
def test_what_is_sent_is_what_was_asked_for(launched: dict[str, Launched], launcher: str, tmp_path: Path) -> None:
    one = launched[launcher]
    assert faults(one.job, one.flags, staged_files(one.job, tmp_path)) == []


def test_the_launcher_writes_the_job_and_submits_none(launched: dict[str, Launched]) -> None:
    one = launched["flex"]
    assert "gs://test-launchers/staging/job_object" in one.out
    assert one.job.name == "nightly"
    assert "limit" not in sent_options(one.job)
    assert sent_options(one.job)["overwrite"] is False
    (job,) = do_fns(graph_of(one.job))["headrace.transforms.beam.predict._PredictShard"]
    assert (job.keep, job.batch_rows, job.incremental) == (("id",), 16, True)


def test_an_installed_headrace_hands_over_what_a_checkout_does_and_that_runs(
    launched: dict[str, Launched], tmp_path: Path
) -> None:
    one = launched["wheel"]
    assert "50 rows computed" in one.out
    (wheel,) = (path for path in staged_files(one.job, tmp_path) if path.suffix == ".whl")
    assert wheel.read_bytes() == build_wheel(tmp_path).read_bytes()
    assert (
        main([*(flag for flag in one.flags if re.match("--(model|input|keep)=", flag)), f"--output={tmp_path}/out"])
        == 0
    )
    assert read_output("gs://test-launchers/wheel").equals(read_output(f"{tmp_path}/out"))


def test_the_parameters_tried_are_parameters() -> None:
    assert PARAMETERS.keys() <= {one["name"] for one in parameters()}
