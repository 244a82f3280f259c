"""Run by Airflow's Python: makes its database, loads the DAGs of a folder, renders them for a day and starts the Beam variant.

    HEADRACE_BIN=folder python airflow_worker.py FOLDER DAY

`HEADRACE_BIN/python` stands for headrace's environment: it records its arguments, one on each line, and logs a job's id as
Beam does. The last line that is printed is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from airflow.__main__ import main as command
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
from pendulum import parse


class Pushed:
    """What an operator tells Airflow's database of its job."""

    def xcom_push(self, key: str, value: Any) -> None: ...


def airflow(*words: str) -> None:
    """The command, in this process: each of its own imports Airflow anew."""
    sys.argv = ["airflow", *words]
    command()


def main(folder: str, day: str) -> dict[str, Any]:
    airflow("db", "migrate")
    airflow("dags", "reserialize")
    bag = DagBag(folder)
    context = {"ds": day, "ds_nodash": day.replace("-", ""), "ti": Pushed(), "task_instance": Pushed()}
    told: dict[str, Any] = {"errors": {str(path): text for path, text in bag.import_errors.items()}, "dags": {}}
    for dag in bag.dags.values():
        params = dag.params.dump()
        for task in dag.tasks:
            task.render_template_fields({**context, "params": params, "dag": dag, "task": task})
        told["dags"][dag.dag_id] = {
            "order": [task.task_id for task in dag.topological_sort()],
            "follows": sorted(dag.get_task("verify").upstream_task_ids),
            "deferrable": getattr(dag.get_task("predict"), "deferrable", None),
            "retries": dag.get_task("predict").retries,
            "night": night(dag),
        }
    told["flex"] = bag.dags["headrace_flex"].get_task("predict").body
    told["local"] = {task.task_id: [task.bash_command, task.env] for task in bag.dags["headrace_local"].tasks}
    beam = bag.dags["headrace_beam"].get_task("predict")
    try:
        beam.execute(context)
    except TaskDeferred as deferred:
        told["beam"] = {"trigger": deferred.trigger.serialize()[1]}
        told["beam"]["command"] = Path(os.environ["HEADRACE_BIN"], "asked").read_text().splitlines()
    return told


def night(dag: Any) -> list[str]:
    """The moment of the first run of 2026-11-23 as the scheduler has it, and the day that `{{ ds }}` then is."""
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    since = TimeRestriction(earliest=parse("2026-11-22"), latest=None, catchup=True)
    run = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=since)
    return [run.run_after.isoformat(), run.logical_date.strftime("%Y-%m-%d")]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
