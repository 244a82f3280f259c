"""A worker of tests/support/fake_dataflow.py, started as by `python -I`: the staged site, the staged graph and the
job's options are all it has. The options are taken up by what Beam's own workers start with.

Runs the graph as it was sent, but for its containers, whose place this process takes. Its last line tells the counters and
where each module of ours came from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SITE, GRAPH, OPTIONS = sys.argv[1:]
sys.path.insert(0, SITE)


def main() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability import python_urns
    from apache_beam.portability.api import beam_runner_api_pb2
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.worker.sdk_worker_main import create_harness

    create_harness({"PIPELINE_OPTIONS": Path(OPTIONS).read_text(), "CONTROL_API_SERVICE_DESCRIPTOR": ""}, dry_run=True)
    graph = beam_runner_api_pb2.Pipeline.FromString(Path(GRAPH).read_bytes())
    for environment in graph.components.environments.values():
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    result = FnApiRunner().run_via_runner_api(graph, PipelineOptions([]))
    result.wait_until_finish()
    counters = [
        {"namespace": one.key.metric.namespace, "name": one.key.metric.name, "value": one.result}
        for one in result.metrics().query()["counters"]
    ]
    ours = {
        name: str(module.__file__)
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] == "headrace"
    }
    strangers = [path for path in ours.values() if not path.startswith(SITE)]
    if strangers or not ours:
        sys.exit(f"Modules that were not staged: {strangers or 'all'}")
    print(json.dumps({"counters": counters, "modules": ours}))


if __name__ == "__main__":
    main()
