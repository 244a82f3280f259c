"""Where the run's report goes, and which one it is held against: checked before anything is submitted."""

from __future__ import annotations

from headrace.transforms.errors import InvalidRequest, ObjectNotFound
from headrace.transforms.jobs.input_files import absolute_uri, scheme_of
from headrace.transforms.jobs.job import REPORT, SUCCESS, Job, stored_object
from headrace.transforms.report.kept import read_report
from headrace.transforms.storage import StoreOptions, open_store
from headrace.transforms.storage.store import public_uri

from ..flags.beam_options import PredictOptions

_WRITABLE = ("gs", "s3", "s3a", "file", "memory")


def report_place(options: PredictOptions, output: str) -> str | None:
    """None where no report is wanted. Raises `InvalidRequest` where none can be written there."""
    if options.report is None:
        return f"{output}/{REPORT}"
    if options.report in ("none", ""):
        if options.compare is not None:
            raise InvalidRequest(
                f"--compare={public_uri(options.compare)} has no meaning without a report",
                expected="--report=URI with --compare",
                found="--report=none",
                cure="Leave one of them out",
            )
        return None
    place = absolute_uri(options.report)
    if scheme_of(place) not in _WRITABLE or not place.endswith(".html"):
        raise InvalidRequest(
            f"--report={public_uri(options.report)} is no place for a report",
            expected=f"a name that ends in .html, in one of {', '.join(_WRITABLE)}",
            found=public_uri(options.report),
            cure=f"Leave it out, and the report is {output}/{REPORT}",
        )
    return place


def check_report(place: str | None, compare: str | None, options: StoreOptions) -> None:
    """Raises `InvalidRequest` where something else stands at its place, or there is no report to compare with."""
    if place is not None:
        store = open_store(place, options)
        try:
            there = store.stat(place)
        except ObjectNotFound:
            pass
        else:
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
    """Whether the report that stands at the job's place is of the output as it is, and not of a run before."""
    assert job.report is not None
    output, store = open_store(job.output, job.storage), open_store(job.report, job.storage)
    try:
        mark = stored_object(output, output.stat(f"{job.output}/{SUCCESS}"))
        return read_report(store, store.stat(job.report)).manifest == tuple(mark.get("manifest") or ())
    except (ObjectNotFound, InvalidRequest):
        return False


def report_line(job: Job, written: bool) -> str:
    """What the summary says of it."""
    assert job.report is not None
    if not written:
        return "No report could be written; the predictions are complete all the same"
    return f"Report   {public_uri(job.report)}"
