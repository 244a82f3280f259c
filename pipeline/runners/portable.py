"""A job on a portable runner (Flink, Prism, any job service). Refuses what it lacks before anything is written, and reports a
failed worker by the cause that the runner's message has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from typing import Any

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    WorkerOptions,
)

from headrace.transforms.errors import InvalidRequest, JobError

from ..flags.beam_options import runner_of

_NEEDED = {"EXTERNAL": "external_service_address", "PROCESS": "process_command", "DOCKER": "docker_container_image"}
_EXAMPLES = {
    "EXTERNAL": "--environment_config=HOST:PORT of a worker pool",
    "PROCESS": '--environment_config=\'{"command": "/opt/apache/beam/boot"}\'',
    "DOCKER": "--environment_config=IMAGE with headrace in it, as templates/flex/Dockerfile makes",
}
_ANSWER_S = 10.0
_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_OF_GRPC = re.compile(r'details = "(.*)"')


def portable_runner(options: PipelineOptions) -> str | None:
    """flink, prism or portable; None for any other runner."""
    name = (runner_of(options) or "").rpartition(".")[2].lower().removesuffix("runner")
    return name if name in ("flink", "prism", "portable") else None


def check_portable(options: PipelineOptions) -> None:
    """Raises `InvalidRequest` for a job service that does not answer, what starts one that is missing, and workers that would
    have no headrace.
    """
    runner = portable_runner(options)
    if runner is None:
        return
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint:
        if endpoint != "embed":
            _check_answers(endpoint)
    elif runner == "portable":
        raise InvalidRequest(
            "--job_endpoint is missing",
            expected="--runner=PortableRunner --job_endpoint=HOST:PORT of a job service",
            cure="Add it, or name a runner that starts one: --runner=FlinkRunner, --runner=PrismRunner",
        )
    elif runner == "flink":
        _check_flink(options)
    elif (prism := options.view_as(PrismRunnerOptions).prism_location) and _is_missing_file(prism):
        raise InvalidRequest(
            f"--prism_location={prism} is not there",
            expected="the binary prism",
            cure="go install github.com/apache/beam/sdks/v2/go/cmd/prism@latest puts it into $(go env GOPATH)/bin",
        )
    _check_environment(options, starts_here=runner in ("flink", "prism") and not endpoint)


def _check_answers(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidRequest(
            f"--job_endpoint={endpoint} is not an address",
            expected="HOST:PORT",
            found=endpoint,
            cure="As in localhost:8099",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"No job service answers at --job_endpoint={endpoint}",
            expected="Beam's job service, for Flink its job server",
            found=str(error),
            cure="Start it, or correct the address; docs/portable.md and docs/flink.md have the commands",
        ) from error


def _check_flink(options: PipelineOptions) -> None:
    jar = options.view_as(FlinkRunnerOptions).flink_job_server_jar
    if jar and _is_missing_file(jar):
        raise InvalidRequest(
            f"--flink_job_server_jar={jar} is not there",
            expected="the jar of beam-runners-flink-…-job-server",
            cure="Leave it out, and Beam fetches it from Maven; docs/flink.md shows how to fetch it by hand",
        )
    java = options.view_as(JobServerOptions).job_server_java_launcher
    if shutil.which(java) is None:
        raise InvalidRequest(
            f"There is no {java}, which runs Flink's job server",
            expected="Java 11 or 17 on the PATH",
            cure="Install it (apt-get install openjdk-17-jre-headless), or name one with --job_server_java_launcher",
        )


def _is_missing_file(location: str) -> bool:
    return "://" not in location and not os.path.exists(location)


def _check_environment(options: PipelineOptions, *, starts_here: bool) -> None:
    """`starts_here`: where nothing is said, workers are threads of this process, as Beam's Flink and Prism runners do."""
    portable = options.view_as(PortableOptions)
    kind = (portable.environment_type or "").upper()
    local_flink = options.view_as(FlinkRunnerOptions).flink_master in ("[local]", "[auto]")
    if kind == "LOOPBACK" or (not kind and starts_here and local_flink):
        return
    kind = kind or "DOCKER"
    if kind not in _NEEDED:
        return
    given = portable.environment_config or portable.lookup_environment_option(_NEEDED[kind])
    if kind == "PROCESS" and portable.environment_config:
        try:
            given = json.loads(portable.environment_config).get("command")
        except (ValueError, AttributeError) as error:
            raise InvalidRequest(
                "--environment_config cannot be read", expected=_EXAMPLES[kind], found=str(error), cure="Quote the JSON"
            ) from error
    if not given:
        said = f"--environment_type={kind} says" if portable.environment_type else "Nothing says"
        raise InvalidRequest(
            f"{said} no {'image' if kind == 'DOCKER' else 'address' if kind == 'EXTERNAL' else 'command'} of workers",
            expected="workers that have headrace"
            + (", which Beam's own image, the default, has not" if kind == "DOCKER" else ""),
            cure=f"{_EXAMPLES[kind]}; where runner and workers share this machine, --environment_type=LOOPBACK",
        )


def cancelled_text(result: Any) -> str:
    """Asks the runner to end a job that was stopped here, and says what came of it."""
    try:
        result.cancel()
        asked = "The runner was asked to cancel the job; that its workers have stopped, only the runner itself can say."
    except Exception as error:  # each runner has its own
        asked = f"The job may go on without this command: its runner could not be asked to cancel it ({error})."
    return f"{asked} Start nothing else on this output before; the same command then goes on from what is done."


def timeout_note(options: PipelineOptions) -> str:
    """Empty, or what comes of a bound on one element's time: an element is a shard, or several small ones."""
    minutes = options.view_as(WorkerOptions).element_processing_timeout_minutes
    if minutes is None or runner_of(options) is None:
        return ""
    return (
        f"--element_processing_timeout_minutes={minutes} ends a worker, with all its shards, when one shard takes longer, and "
        "that shard starts anew: a job with such a shard never ends. Leave it out, or make shards smaller with --shard_bytes"
    )


def forget_counters(result: Any) -> None:
    """Beam's portable runners answer `metrics()` with their first answer for ever, though the job runs on.

    A private name of Beam 2.77, `portable_runner.PipelineResult._metrics`; other runners' results have none of it.
    """
    from apache_beam.runners.portability.portable_runner import PipelineResult

    if isinstance(result, PipelineResult):
        result._metrics = None


def portable_error(text: str) -> JobError | None:
    """The cause in a runner's report of a failed job: a module that a worker lacks, or a process that did not answer."""
    if lacking := _MODULE.findall(text):
        name = lacking[-1].partition(".")[0]
        ours = name in ("headrace", "tensorflow", "keras", "pyarrow", "apache_beam")
        return JobError(
            f"A worker has no module {lacking[-1]!r}",
            expected="headrace on every worker, in the launcher's version"
            if ours
            else "your own modules on every worker",
            cure="Install it there: pip install headrace, or an image that has it"
            if ours
            else "Name it with --user_package; a worker pool or process that does not install what is staged needs it itself",
        )
    if said := _OF_GRPC.findall(text):
        return JobError(
            "A part of the runner did not answer",
            found=said[-1],
            cure="See that job service and worker pools run and reach each other, then run the same command again",
        )
    return None
