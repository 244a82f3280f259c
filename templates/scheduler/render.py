"""The bodies in this folder with the values of a file of NAME=VALUE lines, as Google's APIs take them.

    python templates/scheduler/render.py templates/scheduler/values.env build/scheduler

writes `job.json` for Cloud Scheduler, whose request body is base64 of `launch.json`, and `pipeline.json` for Dataflow's data
pipelines; `classic-job.json` and `classic-pipeline.json` likewise, of `classic.json`, for the classic template. It prints the
command that creates each.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).resolve().parent
_CLASSIC = (
    "https://dataflow.googleapis.com/v1b3/projects/{projectId}/locations/{location}/templates:launch?gcsPath={gcsPath}"
)
_APIS = {"job": "https://cloudscheduler.googleapis.com/v1", "pipeline": "https://datapipelines.googleapis.com/v1"}


def read_values(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    values = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    if empty := [name for name, value in values.items() if not value]:
        raise SystemExit(f"{path} gives {empty[0]} no value. Write {empty[0]}=VALUE.")
    return values


def body(name: str, values: dict[str, str]) -> Any:
    """Filled in after parsing, so that no value can change the JSON around it."""
    return _filled(json.loads((HERE / f"{name}.json").read_text("utf-8")), values)


def _filled(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    try:
        return Template(node).substitute(values) if isinstance(node, str) else node
    except KeyError as missing:
        raise SystemExit(
            f"The values lack {missing.args[0]}, which {node!r} needs. Add {missing.args[0]}=VALUE."
        ) from None


def _encoded(launch: Any) -> str:
    return base64.b64encode(json.dumps(launch).encode()).decode()


def main(values_file: str, out: str) -> None:
    values = read_values(Path(values_file))
    launch, classic, job, pipeline = (body(name, values) for name in ("launch", "classic", "job", "pipeline"))
    flex = {"body": _encoded(launch)}
    other = {"uri": _CLASSIC.format_map(classic), "body": _encoded(classic["launchParameters"])}
    pipeline["workload"]["dataflowFlexTemplateRequest"] |= launch
    made = {
        "job": job | {"httpTarget": job["httpTarget"] | flex},
        "pipeline": pipeline,
        "classic-job": job | {"httpTarget": job["httpTarget"] | other},
        "classic-pipeline": pipeline | {"workload": {"dataflowLaunchTemplateRequest": classic}},
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        url = f"{_APIS[name.rpartition('-')[2]]}/{content['name'].rpartition('/')[0]}"
        sys.stdout.write(
            f"""
# {content["name"]}
curl --fail-with-body -H "Authorization: Bearer $(gcloud auth print-access-token)" -H 'Content-Type: application/json' \\
  --data @{path} {url}
"""
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python templates/scheduler/render.py VALUES.env FOLDER")
    main(*sys.argv[1:])
