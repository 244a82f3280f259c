"""Sets up Dataflow's workers: GPUs from --worker_accelerator, and one SDK process on each machine.

The form of the service option and of the resource hint, and the rule that a job must not use both, are from Dataflow's pages
"Run a pipeline with GPUs", "Right fitting" and "Service options"; the experiments from Beam's Dataflow runner. One process is
right for machines of up to some twenty cores, which it keeps busy; the number of cores is not known here.
"""

from __future__ import annotations

import re
from copy import deepcopy

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from headrace.transforms.errors import InvalidRequest

from ..flags.beam_options import PredictOptions, runner_of

_ONE_PROCESS, _MANY_PROCESSES = "no_use_multiple_sdk_containers", "use_multiple_sdk_containers"
_SERVICE_OPTION, _HINT = "worker_accelerator=", "accelerator="
_HINTS = re.compile(r"(accelerator|beam:resources:accelerator:v1)=")
# https://cloud.google.com/compute/docs/gpus: GPUs that only machines of their own series have, and these by how many they have.
_MACHINES = {
    "nvidia-l4": {1: "g2-standard-8", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
    "nvidia-tesla-a100": {count: f"a2-highgpu-{count}g" for count in (1, 2, 4, 8)},
    "nvidia-a100-80gb": {count: f"a2-ultragpu-{count}g" for count in (1, 2, 4, 8)},
}
_PRIME = "enable_prime"
_FORM = re.compile(r"(?P<type>[a-z0-9-]+):(?P<count>[1-9]\d?)(:(?P<driver>[\w.]+))?")


def set_up_workers(options: PredictOptions) -> PredictOptions:
    """Adds the options that a Dataflow job lacks. Given options stay, and so do those of another runner.

    Raises `InvalidRequest` for an accelerator that is given twice, that Dataflow could not read, or that no runner uses.
    """
    flag = options.worker_accelerator
    if not is_dataflow(options):
        if flag:
            cure = "Leave it out, and choose machines with GPUs; --device=gpu makes sure that they are used"
            raise for_dataflow_alone(f"--worker_accelerator={flag}", options, cure)
        return options
    changed = deepcopy(options)
    cloud, debug, standard = (changed.view_as(kind) for kind in (GoogleCloudOptions, DebugOptions, StandardOptions))
    services, hints, experiments = (
        list(given or ()) for given in (cloud.dataflow_service_options, standard.resource_hints, debug.experiments)
    )
    if _MANY_PROCESSES not in experiments and _ONE_PROCESS not in experiments:
        debug.experiments = [*experiments, _ONE_PROCESS]
    by_service = accelerators_by_service(changed)
    own = [*by_service, *(f"--resource_hints={hint}" for hint in hints if _HINTS.match(hint))]
    if len(own) > 1 or (own and flag):
        raise InvalidRequest(
            "The workers' accelerator is given twice",
            expected="one of --worker_accelerator, --dataflow_service_options=worker_accelerator=…, "
            "--resource_hints=accelerator=…",
            found=" and ".join([*([f"--worker_accelerator={flag}"] if flag else []), *own]),
            cure="Leave out all but one",
        )
    if by_service and hints:
        raise InvalidRequest(
            "A resource hint turns on right fitting, which excludes an accelerator as a service option",
            expected="the accelerator as --worker_accelerator, or as --resource_hints=accelerator=…",
            found=f"{by_service[0]} and --resource_hints={hints[0]}",
            cure="Give it as --worker_accelerator=TYPE:COUNT: next to a hint, it becomes one too",
        )
    if flag:
        # Any resource hint turns on right fitting, which excludes the service option.
        if hints:
            standard.resource_hints = [*hints, _HINT + _accelerator(flag)]
        else:
            cloud.dataflow_service_options = [*services, _SERVICE_OPTION + _accelerator(flag)]
            machines = changed.view_as(WorkerOptions)
            if machines.machine_type is None and _PRIME not in (*services, *experiments):
                # Dataflow's default machine could not have these. None where it could, or no machine has so many.
                kind, count, *_ = flag.split(":")
                machines.machine_type = _MACHINES.get(kind, {}).get(int(count))
    if flag or own:
        if changed.device == "cpu":
            raise InvalidRequest(
                "--device=cpu would leave the accelerator unused that is paid for",
                expected="--device=gpu or auto",
                found="--device=cpu",
                cure="Leave out --device, or the accelerator",
            )
        # A worker whose driver is missing is to fail, not to go on slowly.
        changed.device = "gpu"
    return changed


def accelerators_by_service(options: PipelineOptions) -> list[str]:
    """As service options, or as what these become: experiments."""
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or ()
    experiments = options.view_as(DebugOptions).experiments or ()
    return [option for option in (*services, *experiments) if option.startswith(_SERVICE_OPTION)]


def for_dataflow_alone(flag: str, options: PipelineOptions, cure: str) -> InvalidRequest:
    return InvalidRequest(
        f"{flag} is for Dataflow alone",
        expected="--runner=DataflowRunner",
        found=f"--runner={runner_of(options) or 'none: the job runs in this process'}",
        cure=cure,
    )


def is_dataflow(options: PipelineOptions) -> bool:
    """By the runner's short name, or by its class's."""
    name = (runner_of(options) or "").rpartition(".")[2].lower()
    return name.removesuffix("runner").removeprefix("test") == "dataflow"


def _accelerator(flag: str) -> str:
    match = _FORM.fullmatch(flag)
    if match is None:
        raise InvalidRequest(
            f"--worker_accelerator={flag} does nothing here",
            expected="TYPE:COUNT or TYPE:COUNT:DRIVER, as in nvidia-l4:1",
            found=flag,
            cure="gcloud compute accelerator-types list shows the types",
        )
    driver = f":{match['driver']}" if match["driver"] else ""
    return f"type:{match['type']};count:{match['count']};install-nvidia-driver{driver}"
