"""Dataflow's REST service on loopback, as far as Beam calls it, with workers that have nothing but what was staged.

Requests and responses are those of https://cloud.google.com/dataflow/docs/reference/rest, parsed and written by Google's own
messages: a field that the service does not know is an error. A job runs when it is first asked for, in a process without
this checkout on its path.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from headrace.transforms.storage import open_store
from tests.support.warm import Warm

WORKER = Path(__file__).with_name("dataflow_worker.py")
_PATH = re.compile(
    r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/"
    r"(jobs(/(?P<id>[^/?]+))?(/(?P<of>\w+))?|templates:launch)"
)


@cache
def _workers() -> Warm:
    """Their processes have imported others' packages before, as a worker's image may have, and nothing of ours."""
    warm = Warm(ours=False)
    atexit.register(warm.__exit__)
    return warm


class Refused(Exception):
    """Status and text."""


class FakeDataflow:
    """`jobs` are what was sent, by id. `image` is what workers have on their path where a job names a container of that name;
    `damage`, where it is given, is done to the folder that a worker starts with. `refuses` is the status and the text with
    which no job is taken.
    """

    def __init__(self, image: Path | None = None) -> None:
        self.jobs: dict[str, Any] = {}
        self.requests: list[str] = []
        self.damage: Callable[[Path], object] | None = None
        self.refuses: tuple[int, str] | None = None
        self._image = image
        self._runs: dict[str, tuple[int, Path]] = {}
        self._ended: dict[str, tuple[int, str, str]] = {}
        self._server = ThreadingHTTPServer(("localhost", 0), _handler(self))
        self._lock = threading.Lock()

    def __enter__(self) -> FakeDataflow:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for job in self._runs.keys() - self._ended.keys():
            number = self._runs[job][0]
            os.kill(number, signal.SIGKILL)
            _workers().wait(number)

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def answer(self, method: str, path: str, body: bytes) -> Any:
        from google.cloud import dataflow

        match = _PATH.fullmatch(path.partition("?")[0])
        if match is None:
            raise LookupError(path)
        self.requests.append(f"{method} {match['of'] or 'job'}")
        if method == "POST" and self.refuses:
            raise Refused(*self.refuses)
        if path.partition("?")[0].endswith("templates:launch"):
            (template,) = parse_qs(urlsplit(path).query)["gcsPath"]
            asked = dataflow.LaunchTemplateParameters.from_json(body.decode(), ignore_unknown_fields=False)
            job = self.create(launched(template, asked), match["project"], match["region"])
            return dataflow.LaunchTemplateResponse(job=job)
        if method == "POST":
            job = dataflow.Job.from_json(body.decode(), ignore_unknown_fields=False)
            return self.create(job, match["project"], match["region"])
        job = self.jobs[match["id"]]
        if match["of"] == "messages":
            return dataflow.ListJobMessagesResponse(job_messages=self._messages(job))
        if match["of"] == "metrics":
            return self._metrics(job)
        if method == "PUT":
            job.requested_state = dataflow.Job.from_json(body.decode()).requested_state
        with self._lock:
            job.current_state = self._state(job)
        return job

    def create(self, job: Any, project: str, region: str) -> Any:
        job.id, job.project_id, job.location = f"2026-01-01_00_00_00-{len(self.jobs) + 1}", project, region
        self.jobs[job.id] = job
        return job

    def _state(self, job: Any) -> Any:
        from google.cloud.dataflow import JobState

        if job.requested_state == JobState.JOB_STATE_CANCELLED:
            return JobState.JOB_STATE_CANCELLED
        if job.id not in self._runs:
            self._runs[job.id] = self._start(job)
        if job.id not in self._ended:
            number, work = self._runs[job.id]
            if (code := _workers().poll(number)) is None:
                return JobState.JOB_STATE_RUNNING
            self._ended[job.id] = (code, (work / "out.txt").read_text("utf-8"), (work / "err.txt").read_text("utf-8"))
        return JobState.JOB_STATE_FAILED if self._ended[job.id][0] else JobState.JOB_STATE_DONE

    def _start(self, job: Any) -> tuple[int, Path]:
        work = Path(tempfile.mkdtemp(prefix="headrace-test-dataflow-"))
        site = staged_site(job, work / "site")
        if self._image is not None and pool(job).worker_harness_container_image == self._image.name:
            site = self._image
        if self.damage:
            self.damage(site)
        (work / "pipeline.pb").write_bytes(read(sent_options(job)["pipelineUrl"]))
        keep = {name: os.environ[name] for name in ("STORAGE_EMULATOR_HOST", "PATH", "NO_GCE_CHECK")}
        # Whole numbers as Go's JSON has them, which is what starts a worker.
        options = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in sent_options(job).items()
        }
        (work / "options.json").write_text(json.dumps({"options": options}))
        script = [str(WORKER), str(site), str(work / "pipeline.pb"), str(work / "options.json")]
        return _workers().run(script, work, keep), work

    def output_of(self, job: Any) -> str:
        return self._ended[job.id][1]

    def errors_of(self, job: Any) -> str:
        return self._ended[job.id][2]

    def _messages(self, job: Any) -> list[dict[str, Any]]:
        code, _, errors = self._ended.get(job.id, (0, "", ""))
        texts = [("JOB_MESSAGE_ERROR", errors)] if code else []
        return [{"id": "1", "message_importance": kind, "message_text": text} for kind, text in texts]

    def _metrics(self, job: Any) -> Any:
        from google.cloud.dataflow import JobMetrics

        code, out, _ = self._ended.get(job.id, (1, "", ""))
        counters = json.loads(out.splitlines()[-1])["counters"] if not code else []
        updates = [
            {
                "name": {
                    "origin": "user",
                    "name": one["name"],
                    "context": {"namespace": one["namespace"], **tentative},
                },
                "scalar": one["value"],
            }
            for one in counters
            for tentative in ({}, {"tentative": "true"})
        ]
        return JobMetrics.from_json(json.dumps({"metrics": updates}))


def launched(template: str, asked: Any) -> Any:
    """The job of a classic template. Raises `ValueError` for parameters that are not as its metadata say.

    https://cloud.google.com/dataflow/docs/guides/templates/creating-templates#metadata
    """
    from google.cloud import dataflow

    job = dataflow.Job.from_json(read(template).decode(), ignore_unknown_fields=False)
    metadata = dataflow.TemplateMetadata.from_json(read(f"{template}_metadata").decode(), ignore_unknown_fields=False)
    known = {one.name: one for one in metadata.parameters}
    given = dict(asked.parameters)
    if strange := given.keys() - known.keys():
        raise ValueError(f"Found unexpected parameters: {sorted(strange)}")
    if missing := {name for name, one in known.items() if not one.is_optional} - given.keys():
        raise ValueError(f"Missing required parameters: {sorted(missing)}")
    for name, value in given.items():
        if not all(re.search(form, value) for form in known[name].regexes):
            raise ValueError(f"{name}={value} is of another form than {list(known[name].regexes)}")
    type(job).pb(job).environment.sdk_pipeline_options["options"].update(given)
    job.name = asked.job_name
    workers, environment = job.environment.worker_pools[0], asked.environment
    workers.machine_type = environment.machine_type or workers.machine_type
    if environment.max_workers:
        workers.autoscaling_settings.max_num_workers = environment.max_workers
    job.environment.service_account_email = environment.service_account_email
    job.labels.update(dict(environment.additional_user_labels))
    return job


def pool(job: Any) -> Any:
    return job.environment.worker_pools[0]


def sent_options(job: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    return json_format.MessageToDict(type(job).pb(job).environment.sdk_pipeline_options)["options"]


def read(uri: str) -> bytes:
    store = open_store(uri)
    return store.read(store.stat(uri))


def staged_files(job: Any, folder: Path) -> list[Path]:
    """Downloads what the job's environment names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for package in pool(job).packages:
        path = folder / package.name
        path.write_bytes(read(package.location.replace("storage.googleapis.com/", "gs://", 1)))
        paths.append(path)
    return paths


def staged_site(job: Any, folder: Path) -> Path:
    """What a worker's pip would make of the staged packages, without what they require."""
    files = {path.name: path for path in staged_files(job, folder.with_name("staged"))}
    folder.mkdir(parents=True)
    listed = files["extra_packages.txt"].read_text().split() if "extra_packages.txt" in files else []
    for name in listed:
        zipfile.ZipFile(files[name]).extractall(folder)
    if "workflow.tar.gz" in files:
        with tarfile.open(files["workflow.tar.gz"]) as archive:
            archive.extractall(folder / "sdist", filter="data")
        return next((folder / "sdist").iterdir())
    return folder


def _handler(service: FakeDataflow) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                answer = service.answer(self.command, self.path, body)
                code, data = 200, type(answer).to_json(answer).encode()
            except Refused as error:
                code, text = error.args
                data = json.dumps({"error": {"code": code, "message": text}}).encode()
            except Exception as error:  # whatever is wrong with a request is told to whoever sent it
                text = f"{type(error).__name__}: {error}"
                code, data = 400, json.dumps({"error": {"code": 400, "message": text}}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler
