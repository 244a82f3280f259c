"""Beam's job service in Python, which runs a job on as many workers as it is told: `python -m tests.support.job_service
PORT WORKERS`.

Beam's own entry point has no way to say how many, and runs on one.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import Any

from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer

PORT, WORKERS = map(int, sys.argv[1:])


class _ManyWorkers(BeamJob):
    def _invoke_runner(self) -> Any:
        runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
        # What run_pipeline takes from --direct_num_workers, and run_via_runner_api from nowhere.
        runner._num_workers = WORKERS
        return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO)
    service = LocalJobServicer(beam_job_type=_ManyWorkers)
    service.start_grpc_server(PORT)
    try:
        while True:
            time.sleep(60)
    finally:
        service.stop()
