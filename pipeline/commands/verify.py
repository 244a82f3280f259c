"""`headrace verify`: whether a finished job's output is sound, and with --sample, whether batches come out the same again."""

from __future__ import annotations

from headrace.transforms.jobs.job import Job, check_same_job

from ..checks.preflight import prepare
from ..checks.recomputed_sample import verify_sample
from ..checks.soundness import verdict_document, verdict_lines
from ..checks.soundness import verify as verify_folder
from ..flags.request import Request
from ..terminal.answer import Answer


def sampled_job(request: Request) -> Job | None:
    """The job whose batches `verify` computes again; None without --sample. Raises what `prepare` raises."""
    return prepare(request).job if request.sample is not None else None


def verify(request: Request, job: Job | None) -> Answer:
    """`job` is what `sampled_job` returned. The output is sound where the answer's document says so.

    Raises `OutputIncomplete` where there is no finished job, and `NotParquet` for a damaged part of its manifest.
    """
    verdict, record, manifest = verify_folder(request.output, request.storage)
    if job is not None and request.sample is not None:
        check_same_job(request.output, record, job.record())
        if job.differs_from_run_to_run:
            verdict.notes += [f"{why}, so that no sample can be compared." for why in job.differs_from_run_to_run]
        else:
            verify_sample(verdict, job, manifest, request.sample)
    return Answer(verdict_lines(verdict), verdict_document(verdict))
