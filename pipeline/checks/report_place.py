"""Where the run's report goes, and which report it is compared with: checked before anything is submitted."""

from __future__ import annotations

from headrace.transforms.errors import InvalidRequest, ObjectNotFound
from headrace.transforms.jobs.job import SUCCESS, Job, stored_object
from headrace.transforms.report.kept import read_report
from headrace.transforms.storage import StoreOptions, open_store
from headrace.transforms.storage.store import public_uri


def check_report(place: str | None, compare: str | None, options: StoreOptions) -> None:
    """Raises `InvalidRequest` where another object is at the report's place, or no report to compare with exists."""
    if place is not None:
        store = open_store(place, options)
        if (there := store.find(place)) is not None:
            read_report(store, there)
    if compare is not None:
        store = open_store(compare, options)
        try:
            read_report(store, store.stat(compare))
        except ObjectNotFound as error:
            raise InvalidRequest(
                f"--compare={public_uri(compare)} names no report",
                expected="the report of an earlier run",
                found="no such object",
                cure="Leave it out to compare with the report that this run's own replaces",
            ) from error


def report_written(job: Job) -> bool:
    """Whether the report at the job's place describes the output as it is, and not an earlier run."""
    output = open_store(job.output, job.storage)
    try:
        mark = stored_object(output, output.stat(f"{job.output}/{SUCCESS}"))
    except ObjectNotFound:
        return False
    return report_is_of(job, tuple(mark.get("manifest") or ()))


def report_is_of(job: Job, manifest: tuple[str, ...]) -> bool:
    """Whether the report at the job's place is from the run that wrote these files of the manifest."""
    assert job.report is not None
    store = open_store(job.report, job.storage)
    try:
        return read_report(store, store.stat(job.report)).manifest == manifest
    except (ObjectNotFound, InvalidRequest):
        return False


def report_line(job: Job, written: bool) -> str:
    """The summary's line about the report."""
    assert job.report is not None
    if not written:
        return "No report could be written; the predictions are complete all the same"
    return f"Report   {public_uri(job.report)}"
