"""What Dataflow would do with a submitted job, held against the command line that was typed."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headrace import __version__
from headrace.pipeline.flags.beam_options import PredictOptions
from tests.pipeline.packages.test_packaging import SHIPPED, SOURCES
from tests.support.fake_dataflow import pool, read, sent_options

# https://cloud.google.com/dataflow/docs/gpu/gpu-support
GPUS = (
    "nvidia-tesla-t4",
    "nvidia-tesla-p4",
    "nvidia-tesla-v100",
    "nvidia-tesla-p100",
    "nvidia-l4",
    "nvidia-tesla-a100",
    "nvidia-a100-80gb",
    "nvidia-h100-80gb",
    "nvidia-h100-mega-80gb",
)
_GPU = re.compile(rf"worker_accelerator=type:({'|'.join(GPUS)});count:([1-9]\d?);install-nvidia-driver(:[\w.]+)?")
# Beam gives each job a folder of its own below them, and a worker has no use for credentials' flags.
_BEAMS_OWN = (
    "temp_location",
    "staging_location",
    "labels",
    "experiments",
    "dataflow_service_options",
    "extra_packages",
)
OUR_DOFNS = {
    "headrace.transforms.beam.predict._PredictShard",
    "headrace.pipeline.runners.graph._DropDone",
    "headrace.transforms.beam.finalize._Account",
}
STAGES = {"Plan", "PlanByName", "Output", "ListOutput", "JoinByName", "Resume", "Spread", "Predict"}


def faults(job: Any, flags: Sequence[str], staged: Sequence[Path]) -> list[str]:
    """`staged` are the files that the job names, downloaded. Empty where all is right."""
    return [*options(job, flags), *workers(job, flags), *packages(job, staged), *_graph(job)]


def options(job: Any, flags: Sequence[str]) -> Iterator[str]:
    asked, sent = PredictOptions(list(flags)), sent_options(job)
    for name, value in asked.get_all_options(drop_default=True).items():
        if name not in _BEAMS_OWN and sent.get(name) != value:
            yield f"--{name}={value} was sent as {sent.get(name)}"
    for name in ("temp_location", "experiments", "dataflow_service_options", "labels"):
        given = asked.get_all_options()[name] or []
        there = sent.get(name) or []
        if isinstance(given, str) and not str(there).startswith(f"{given}/"):
            yield f"--{name}={given} was sent as {there}"
        if isinstance(given, list) and not set(given) <= set(there):
            yield f"--{name}={given} was sent as {there}"
    accelerated = asked.worker_accelerator or "accelerator" in "".join(flags)
    if sent.get("device") != ("gpu" if accelerated else asked.device):
        yield f"--device was sent as {sent.get('device')}"


def workers(job: Any, flags: Sequence[str]) -> Iterator[str]:
    asked, environment = PredictOptions(list(flags)).get_all_options(), job.environment
    experiments = set(environment.experiments)
    if missing := {"use_runner_v2"} - experiments:
        yield f"experiments {missing} are missing"
    if "use_multiple_sdk_containers" not in (asked["experiments"] or ()) and (
        "no_use_multiple_sdk_containers" not in experiments or "use_multiple_sdk_containers" in experiments
    ):
        yield "a worker would have a process for each core, and in each the model"
    label = __version__.replace(".", "-")
    if not any("headrace=" in one for one in asked["labels"] or ()) and job.labels.get("headrace") != label:
        yield f"the label headrace is {job.labels.get('headrace')!r}"
    for key, value in job.labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            yield f"{key}={value} is no label"
    hints = sent_options(job).get("resource_hints") or []
    chosen = asked["machine_type"] or asked["worker_accelerator"]
    if hints != (asked["resource_hints"] or ([] if chosen else ["min_ram=4GB"])):
        yield f"the resource hints are {hints}"
    services = list(environment.service_options)
    gpus = [one for one in services if "accelerator" in one]
    if asked["worker_accelerator"]:
        kind, count = asked["worker_accelerator"].split(":")[:2]
        match = _GPU.fullmatch(gpus[0]) if len(gpus) == 1 else None
        if match is None or (match[1], match[2]) != (kind, count):
            yield f"Dataflow would make of {gpus} no {count} of {kind}"
        if hints:
            yield "resource hints turn right fitting on, which excludes the accelerator's service option"
    elif gpus:
        yield f"nobody asked for {gpus}"
    machines = pool(job)
    for name, value in (
        ("machine_type", machines.machine_type),
        ("max_num_workers", machines.autoscaling_settings.max_num_workers),
        ("num_workers", machines.num_workers),
        ("disk_size_gb", machines.disk_size_gb),
        ("sdk_container_image", machines.worker_harness_container_image),
    ):
        if asked[name] and asked[name] != value:
            yield f"--{name}={asked[name]} makes machines with {value}"


def packages(job: Any, staged: Sequence[Path]) -> Iterator[str]:
    names = [path.name for path in staged]
    if sent_options(job).get("sdk_container_image"):
        if any(name.startswith("headrace") for name in names):
            yield "the image has headrace, which is staged all the same"
        return
    if sent_options(job).get("setup_file"):
        yield from _source_archive(staged)
        return
    listed = next((path.read_text().split() for path in staged if path.name == "extra_packages.txt"), [])
    wheels = [path for path in staged if re.match(r"headrace-.*\.whl", path.name) and path.name in listed]
    if len(wheels) != 1:
        yield f"workers would not install headrace: staged are {names}, of which {listed} are installed"
        return
    with zipfile.ZipFile(wheels[0]) as archive:
        if missing := SHIPPED - set(archive.namelist()):
            yield f"the wheel lacks {sorted(missing)}"
        metadata = archive.read(f"headrace-{__version__}.dist-info/METADATA").decode()
    for name in ("tensorflow", "keras", "pyarrow"):
        if not re.search(rf"^Requires-Dist: {name}(\[[\w-]+\])?==[\w.]+$", metadata, re.MULTILINE):
            yield f"the wheel does not say which {name}"


def _source_archive(staged: Sequence[Path]) -> Iterator[str]:
    archives = [path for path in staged if path.name == "workflow.tar.gz"]
    if len(staged_code := [path for path in staged if path.suffix != ".txt"]) != 1 or len(archives) != 1:
        yield f"workers would install {[path.name for path in staged_code]}"
        return
    with tarfile.open(archives[0]) as archive:
        if missing := (SOURCES | {"setup.py", "pyproject.toml"}) - {
            name.partition("/")[2] for name in archive.getnames()
        }:
            yield f"the source archive lacks {sorted(missing)}"


def graph_of(job: Any) -> Any:
    from apache_beam.portability.api import beam_runner_api_pb2

    return beam_runner_api_pb2.Pipeline.FromString(read(sent_options(job)["pipelineUrl"]))


def do_fns(graph: Any) -> dict[str, tuple[Any, ...]]:
    """What every DoFn that workers would unpickle is called with, by its class: a stand-in for each side input."""
    from apache_beam.internal import pickler
    from apache_beam.portability import common_urns, python_urns
    from apache_beam.portability.api import beam_runner_api_pb2

    found = {}
    for transform in graph.components.transforms.values():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            if payload.do_fn.urn == python_urns.PICKLED_DOFN_INFO:
                do_fn, arguments, *_ = pickler.loads(payload.do_fn.payload)
                found[f"{type(do_fn).__module__}.{type(do_fn).__qualname__}"] = tuple(arguments)
    return found


def _graph(job: Any) -> Iterator[str]:
    graph = graph_of(job)
    names = {transform.unique_name for transform in graph.components.transforms.values()}
    if missing := {stage for stage in STAGES if not any(name.split("/")[0] == stage for name in names)}:
        yield f"the graph lacks {missing}"
    sent, there = sent_options(job), do_fns(graph)
    if missing := OUR_DOFNS - there.keys():
        yield f"the graph has no {missing}, but {sorted(there)}"
        return
    (ours,) = there["headrace.transforms.beam.predict._PredictShard"]
    if (list(ours.inputs), ours.output) != (sent.get("input"), sent.get("output")):
        yield f"the graph predicts {ours.inputs} into {ours.output}"
    environments = graph.components.environments.values()
    hinted = {value.decode() for one in environments for value in one.resource_hints.values()}
    hints = {one.partition("=")[2].replace("GB", "000000000") for one in sent.get("resource_hints") or ()}
    if hints != hinted:
        yield f"the workers' resource hints are {hinted}, not {hints}"
