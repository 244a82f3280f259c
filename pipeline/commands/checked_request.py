"""From flags to a `Request` that a command may work on: flags checked against each other, TensorFlow set up, packages open."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pyarrow as pa

from headrace.transforms.left_out import is_left_out, put_back
from headrace.transforms.models.gc_pause import modules_are_loaded
from headrace.transforms.predicting.devices import choose_devices, set_up_tensorflow

from ..flags.beam_options import PredictOptions, parse_flags, processes_of, runner_of
from ..flags.request import Request, parse_request
from ..packages.user_package import open_user_packages
from ..runners.dask_runner import check_dask
from ..runners.dataflow import check_dataflow
from ..runners.dataflow_workers import set_up_workers
from ..runners.portable import check_portable, timeout_note
from ..terminal.log import log_event, quiet_stderr

JOBS = ("run", "plan")


@contextmanager
def checked_request(argv: Sequence[str], command: str) -> Iterator[tuple[Request, PredictOptions]]:
    """`command` is one of run, plan, inspect and verify. The user's packages can be imported until the context ends.

    Raises `InvalidRequest` for flags that are wrong or contradict each other. Writes nothing.
    """
    options = parse_flags(argv)
    if command in JOBS:
        options = set_up_workers(options)
    elif options.device == "gpu":  # of the job's workers; here it is as it can be
        options.device = "auto"
    request = parse_request(options, command)
    if command in JOBS:
        check_dataflow(options, request)
        check_portable(options)
        processes_of(options)
        check_dask(options, request.user_packages)
        if note := timeout_note(options):
            log_event("note", f"{note}.", logging.WARNING)
    if command != "verify" or request.sample is not None:
        with nullcontext() if options.verbose else quiet_stderr():
            here = command != "inspect" and runner_of(options) is None
            # Before anything else uses TensorFlow, which sets its number of threads then.
            set_up_tensorflow(request.loading.device, whole_process=True)
            if here:
                choose_devices(request.loading.device)
            if command == "run" and here:
                importlib.import_module("apache_beam.runners.portability.fn_api_runner")
    if is_left_out("pandas"):
        pa.array([0.0]).to_numpy(zero_copy_only=False)  # Arrow looks for pandas once, with its first arrays
    put_back()
    modules_are_loaded()
    with open_user_packages(request.user_packages, request.named_modules) as packages:
        yield replace(request, packages=packages), options
