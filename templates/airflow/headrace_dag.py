"""headrace every night over the day that ended, one folder of Parquet for each day, in three ways: take one, delete two.

`{{ ds }}` is the day that ended, since the timetable is one of intervals; Airflow 3 makes a plain cron string one of moments,
whose `{{ ds }}` is the day that has just begun.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.providers.google.cloud.operators.dataflow import DataflowConfiguration, DataflowStartFlexTemplateOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable

PROJECT = "my-project"
REGION = "europe-west4"
TEMPLATE = "gs://my-bucket/templates/headrace.json"
WORKER_ACCOUNT = "headrace-worker@my-project.iam.gserviceaccount.com"
TEMP = "gs://my-bucket/tmp"
# A run that is started by hand may give others.
PARAMS = {"model": "gs://my-bucket/models/digits", "inputs": "gs://my-bucket/in", "outputs": "gs://my-bucket/out"}
SCHEDULE = CronDataIntervalTimetable("15 2 * * *", timezone="UTC")
# The environment that headrace is installed in, apart from Airflow's own.
BIN = os.environ.get("HEADRACE_BIN", "/opt/headrace/bin")

FLAGS = {
    "model": "{{ params.model }}",
    "input": "{{ params.inputs }}/dt={{ ds }}/*.parquet",
    "output": "{{ params.outputs }}/dt={{ ds }}",
}
# Fixed for a day: Dataflow has one active job of a name at most.
JOB_NAME = "headrace-{{ ds_nodash }}"


def nightly(name: str) -> DAG:
    return DAG(
        f"headrace_{name}",
        schedule=SCHEDULE,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params=PARAMS,
        # The same command goes on where a failed one ended.
        default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
        tags=["headrace"],
    )


def command(task: str, flags: str) -> BashOperator:
    """Values reach the shell as variables, so that it reads nothing in them."""
    return BashOperator(
        task_id=task,
        bash_command=f"exec {BIN}/headrace {flags}",
        env={name.upper(): value for name, value in FLAGS.items()},
        append_env=True,
    )


def verify() -> BashOperator:
    return command("verify", 'verify --output="$OUTPUT"')


with nightly("flex"):
    (
        DataflowStartFlexTemplateOperator(
            task_id="predict",
            project_id=PROJECT,
            location=REGION,
            body={
                "launchParameter": {
                    "jobName": JOB_NAME,
                    "containerSpecGcsPath": TEMPLATE,
                    "parameters": FLAGS,
                    "environment": {"serviceAccountEmail": WORKER_ACCOUNT, "tempLocation": TEMP, "maxWorkers": 10},
                }
            },
            append_job_name=False,
            deferrable=True,
        )
        >> verify()
    )

with nightly("beam"):
    (
        BeamRunPythonPipelineOperator(
            task_id="predict",
            runner="DataflowRunner",
            py_interpreter=f"{BIN}/python",
            py_options=["-m"],
            py_file="headrace",
            # The operator finds the job's id in what Beam logs, and then waits for it without a process.
            pipeline_options={
                **FLAGS,
                "temp_location": TEMP,
                "max_num_workers": 10,
                "no_wait": True,
                "verbose": True,
            },
            dataflow_config=DataflowConfiguration(
                job_name=JOB_NAME,
                append_job_name=False,
                project_id=PROJECT,
                location=REGION,
                service_account=WORKER_ACCOUNT,
            ),
            deferrable=True,
        )
        >> verify()
    )

with nightly("local"):
    command("predict", '--model="$MODEL" --input="$INPUT" --output="$OUTPUT"') >> verify()
