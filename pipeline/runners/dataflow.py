"""A job on Dataflow: refuses early what it lacks, adds options to the user's own, and shows where to watch the job.

Beam 2.77 asks for Runner v2 by itself; GPUs and processes are in pipeline/runners/dataflow_workers.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions, WorkerOptions

from headrace.transforms.errors import InvalidRequest, JobError
from headrace.transforms.jobs.input_files import expand_lists, scheme_of
from headrace.transforms.models.spec import ModelSpec
from headrace.transforms.steps.finish import FINISHING_BYTES
from headrace.transforms.versions import __version__

from ..flags.beam_options import PredictOptions
from ..flags.request import Request
from .dataflow_workers import accelerators_by_service, for_dataflow_alone, is_dataflow

LABEL = "headrace"
# TensorFlow, Beam, the runner's own process and some batches, and what the last steps need, however many shards there are;
# in addition the weights, and half of them again while they load.
_BASE_BYTES = (5 << 29) + FINISHING_BYTES
# 1 GiB of input for each worker by default; a job that needs more workers than the most gets them by autoscaling.
_SHARDS_A_WORKER, _MOST_FIRST_WORKERS = 8, 10
_OF_THIS_MACHINE = ("file", "memory")
_MIN_RAM = re.compile(r"(min_?ram|beam:resources:min_ram_bytes:v1)=", re.IGNORECASE)


def check_dataflow(options: PredictOptions, request: Request) -> None:
    """Raises `InvalidRequest` for what workers elsewhere could not reach, for a missing project or region, and for --no_wait
    where no service would continue the job.
    """
    if not is_dataflow(options):
        if options.no_wait:
            raise for_dataflow_alone("--no_wait", options, "Leave it out: the job needs this process to its end")
        return
    check_place(options)
    check_reachable(options, request)


def check_place(options: PredictOptions) -> None:
    """Raises `InvalidRequest` where no project or region is named."""
    cloud = options.view_as(GoogleCloudOptions)
    for name in ("project", "region"):
        if not getattr(cloud, name):
            raise InvalidRequest(
                f"--{name} is missing",
                expected="--runner=DataflowRunner --project=… --region=…",
                cure="Add it; gcloud config list shows your defaults",
            )


def check_reachable(options: PredictOptions, request: Request) -> None:
    """Raises `InvalidRequest` for the first of the given places that is on a machine's own disk."""
    named = [("--model=", model.uri) for model in request.models]
    named += [("--weights=", model.weights) for model in request.models if model.weights]
    named += [("--input=", uri) for uri in request.inputs]
    named += [("--output=", request.output)] if request.output else []
    named += [("--dead_letters=", options.dead_letters)] if options.dead_letters else []
    named += [("--report=", options.report)] if options.report not in (None, "", "none") else []
    named += [("--compare=", options.compare)] if options.compare else []
    # No list is read here that is on this machine: that was refused before.
    listed = (
        (f"--input={pattern}: ", uri)
        for pattern in request.inputs
        if pattern.startswith("@")
        for uri in expand_lists((pattern,), request.storage)
    )
    for flag, uri in chain(named, listed):
        if scheme_of(uri.removeprefix("@")) in _OF_THIS_MACHINE:
            raise InvalidRequest(
                f"{flag}{uri} is on this machine, which Dataflow's workers do not see",
                expected="a bucket, as in gs://bucket/…",
                found=uri,
                cure=f"gcloud storage cp --recursive {uri.removeprefix('@')} gs://…"
                if flag not in ("--output=", "--report=", "--dead_letters=")
                else "Name a place in a bucket",
            )


def dataflow_options(options: PredictOptions, model_bytes: int | None, shards: int = 0) -> PredictOptions:
    """The options with a label, the number of workers to begin with and, if no machine type was chosen, the memory that the job
    needs. Given options stay.

    `model_bytes` is None where the model is not known yet; then the memory is not known either. `shards` are about those of
    the job; 0 where they are not known.
    """
    changed = deepcopy(options)
    cloud, standard = changed.view_as(GoogleCloudOptions), changed.view_as(StandardOptions)
    labels = list(cloud.labels or ())
    if not any(re.match(rf"{LABEL}(=|$)|.*['\"]{LABEL}['\"]\s*:", label) for label in labels):
        cloud.labels = [*labels, f"{LABEL}={version_label()}"]
    hints = list(standard.resource_hints or ())
    chosen = changed.view_as(WorkerOptions).machine_type or cloud.flexrs_goal
    # A hint turns right fitting on, which would exclude the service option.
    if model_bytes is not None and not (
        chosen or accelerators_by_service(changed) or any(_MIN_RAM.match(hint) for hint in hints)
    ):
        standard.resource_hints = [*hints, f"min_ram={min_ram_gb(model_bytes)}GB"]
    workers = changed.view_as(WorkerOptions)
    # Dataflow begins with one, and adds others only after it has watched that for minutes.
    first = min(-(-shards // _SHARDS_A_WORKER), workers.max_num_workers or _MOST_FIRST_WORKERS, _MOST_FIRST_WORKERS)
    if workers.num_workers is None and first > 1:
        workers.num_workers = first
    return changed


def detached(options: PredictOptions) -> bool:
    """Nobody waits for the job: that was asked for, or only its description is written, as a template."""
    return options.no_wait or (is_dataflow(options) and bool(options.view_as(GoogleCloudOptions).template_location))


def memory_nbytes(specs: Sequence[ModelSpec]) -> int:
    """Bytes of weights and two thirds of the graphs' memory: `min_ram_gb` adds half of the sum, as loading weights needs."""
    return sum(spec.nbytes + spec.graph_memory * 2 // 3 for spec in specs)


def min_ram_gb(model_bytes: int, elements_bytes: int = 0) -> int:
    """Gigabytes (10⁹ bytes) of a worker that has one process, rounded up. `elements_bytes` are what its runner holds, too."""
    return -(-(_BASE_BYTES + model_bytes * 3 // 2 + elements_bytes) // 10**9)


def version_label() -> str:
    """Labels have neither dots nor capitals."""
    return re.sub(r"[^a-z0-9_-]", "-", __version__.lower())


def submitted_text(options: PipelineOptions, result: Any) -> str:
    """`result` is what Beam's Dataflow runner returns."""
    cloud = options.view_as(GoogleCloudOptions)
    if not result.has_job:
        return f"Nothing was started: the job's description lies at {cloud.template_location}"
    page = f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"
    return f"Job {result.job_id()} is with Dataflow: {page}"


def not_taken(error: Exception) -> JobError:
    """The error for what Beam raises when staging or submitting fails; the service's answers have their status as `code`."""
    cures = {
        403: "Grant this account roles/dataflow.developer on the project and roles/iam.serviceAccountUser on the workers' one",
        409: "Wait for that job, or give this one another --job_name",
    }
    text = str(error).strip().splitlines() or [""]
    return JobError(
        "Dataflow did not take the job",
        expected="a job of that project and region",
        found=f"{type(error).__name__}: {text[0]}",
        cure=cures.get(getattr(error, "code", 0), "Look the message up in docs/dataflow.md"),
    )


def left_running_text(options: PipelineOptions, result: Any) -> str:
    cloud = options.view_as(GoogleCloudOptions)
    cancel = f"gcloud dataflow jobs cancel {result.job_id()} --project={cloud.project} --region={cloud.region}"
    return f"The job goes on without this command. {cancel} ends it; the same command then goes on from what is done."
