"""The classic template: a graph that is staged without data, and finds out on a worker what its job is.

`python -m headrace.pipeline.commands.stage_template --project=… --region=… --template_location=gs://… [flags]` stages
it. Each flag that is given is what that parameter is where a launch does not give it. The graph begins with the step
Prepare, which does what the launcher does of an ordinary job: every check, then `_headrace/job.json`. All other steps
have the job from there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.pvalue import AsSingleton

from headrace.transforms.errors import HeadraceError, InvalidRequest, OutputConflict
from headrace.transforms.jobs.job import Job
from headrace.transforms.predicting.devices import set_up_tensorflow
from headrace.transforms.storage import open_store

from ..checks.output_folder import OutputState, claim_output, examine_output
from ..checks.preflight import Prepared, prepare
from ..flags.beam_options import parse_flags, runner_of
from ..flags.request import parse_request
from ..flags.template_parameters import as_flags, as_parameters, classic_parameters
from ..packages.own_wheel import own_package
from ..packages.user_package import UserPackage, open_user_packages
from ..runners.dataflow import check_place, check_reachable, dataflow_options, not_taken, submitted_text
from ..runners.dataflow_workers import is_dataflow, set_up_workers
from ..runners.graph import build_graph
from ..runners.launch import open_pipeline
from ..terminal.log import log_error, own_process, set_up_logs, wants_json

_log = logging.getLogger(__name__)


def build_template(
    pipeline: beam.Pipeline, parameters: Mapping[str, RuntimeValueProvider], packages: Sequence[UserPackage] = ()
) -> None:
    """The graph of an ordinary job, with a step before it that finds out which job it is."""
    prepare_job = beam.ParDo(_Prepare(dict(parameters), tuple(packages)))
    job = pipeline | "Parameters" >> beam.Create([None]) | "Prepare" >> prepare_job
    build_graph(pipeline, AsSingleton(job))


class _Prepare(beam.DoFn):
    def __init__(self, parameters: dict[str, RuntimeValueProvider], packages: tuple[UserPackage, ...]) -> None:
        self._parameters, self._packages = parameters, packages

    def process(self, _: None) -> Iterator[Job]:
        given = {name: provider.get() for name, provider in self._parameters.items()}
        flags = as_flags({name: value for name, value in given.items() if value is not None})
        yield claimed_job(flags, self._packages)


def claimed_job(flags: Sequence[str], packages: tuple[UserPackage, ...] = ()) -> Job:
    """What the command does before it submits. Raises a `HeadraceError` for everything that it would refuse, before any write.

    A runner may run this again. The folder then holds this job's own record, and the job resumes.
    """
    options = parse_flags(flags)
    request = replace(parse_request(options, "run"), packages=packages)
    check_reachable(options, request)
    set_up_tensorflow(request.loading.device, whole_process=True)
    prepared = prepare(request)
    job = prepared.job
    state, overwrite = _output_state(prepared, overwrite=request.overwrite)
    if request.clean:
        _log.info("%d interrupted uploads removed", open_store(job.output, job.storage).clean(f"{job.output}/"))
    _log.info("Shards that stand in %s already: %d", job.output, state.done)
    if state.complete:  # every shard is found done, and all stays as it is
        return replace(job, claim=state.claim)
    return claim_output(prepared, state, overwrite=overwrite)


def _output_state(prepared: Prepared, *, overwrite: bool) -> tuple[OutputState, bool]:
    """Also returns whether to overwrite: only what cannot be resumed. A second run of the step then keeps what was computed
    since the first.
    """
    try:
        return examine_output(prepared, overwrite=False), False
    except OutputConflict:
        if not overwrite:
            raise
        return examine_output(prepared, overwrite=True), True


def stage(argv: Sequence[str]) -> str:
    """Writes the template, and returns where. Raises `InvalidRequest` for mistakes that show without data."""
    options = parse_flags([*argv, *([] if runner_of(parse_flags(argv)) else ["--runner=DataflowRunner"])])
    cloud = options.view_as(GoogleCloudOptions)
    location = cloud.template_location
    if not is_dataflow(options) or not location:
        raise InvalidRequest(
            "A classic template is for Dataflow, and is stored in a bucket",
            expected="--template_location=gs://…",
            found=f"--runner={runner_of(options)}, --template_location={location}",
        )
    check_place(options)
    # A launch needs these files: keep them out of folders where temporary files are deleted.
    cloud.staging_location = cloud.staging_location or f"{location}_staged"
    options = dataflow_options(set_up_workers(options), None)
    request = parse_request(options, "stage")
    check_reachable(options, request)
    staged = as_parameters(options)
    # A pipeline that ran in this process before would let the template hold what is each launch's own.
    RuntimeValueProvider.set_runtime_options(None)
    names = [parameter["name"] for parameter in classic_parameters()]
    parameters = {name: RuntimeValueProvider(name, str, staged.get(name)) for name in names}
    with ExitStack() as opened:
        packages = opened.enter_context(open_user_packages(request.user_packages, request.named_modules))
        gpu = request.loading.device == "gpu"
        wheels = opened.enter_context(own_package(options, elsewhere=is_dataflow(options), gpu=gpu))
        for name, provider in parameters.items():
            setattr(options, name, provider)  # what Beam says of them in the template is null, as of any such
        pipeline = open_pipeline(options, packages, own=wheels)
        build_template(pipeline, parameters, packages)
        try:
            return submitted_text(options, pipeline.run())
        except Exception as error:
            raise not_taken(error) from error


def main(argv: Sequence[str]) -> int:
    verbose = "--verbose" in argv
    set_up_logs(as_json=wants_json(argv), verbose=verbose)
    try:
        print(stage(argv))
    except HeadraceError as error:
        log_error("Cannot stage", error, 2, verbose=verbose)
        return 2
    return 0


if __name__ == "__main__":
    # Imported under its own name: workers must find its classes.
    from .stage_template import main as staging

    own_process()
    sys.exit(staging(sys.argv[1:]))
