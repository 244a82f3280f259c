"""Examines what the output folder already holds, and claims it: resume, refuse or overwrite."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from headrace.transforms.bounded_json import parse_json_object
from headrace.transforms.errors import (
    AlreadyExists,
    HeadraceError,
    JobError,
    NotParquet,
    ObjectChanged,
    ObjectNotFound,
    OutputConflict,
)
from headrace.transforms.jobs.input_files import scheme_of
from headrace.transforms.jobs.job import (
    ASIDE,
    JOB_RECORD,
    MANIFEST_FOLDER,
    SUCCESS,
    Job,
    check_same_job,
    dump_record,
)
from headrace.transforms.output.claims import (
    Adoptable,
    Claim,
    check_claim,
    claim_number,
    create_claim,
    has_started,
    mark_claim,
    newest_claim,
    note_started,
    read_claim,
    remove_mark,
    remove_own,
    withdraw_marks,
)
from headrace.transforms.output.manifest import add_name, each_finished, manifest_outputs
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.shards.deleted_rows import stored_version
from headrace.transforms.shards.shard import OutputName, parse_output_name
from headrace.transforms.storage import ObjectRef, Store, open_store
from headrace.transforms.storage.local import check_writable

from .earlier_job import objects_of_earlier_job, written_by_headrace
from .preflight import Prepared
from .table_input import check_same_version

_NAMES_AT_ONCE = 4096
# Tries to be the newest: more runs than that do not start on one folder in the same second.
_MOST_CLAIMS = 20
# Later than every claim.
NO_CLAIM = 10**8


@dataclass(frozen=True)
class OutputState:
    """What the output folder holds of this job before it runs.

    `kept` is the record of the job in the folder: this one, or one to overwrite. `record` and `mark` are the objects of that
    record and of `_SUCCESS`. `done` counts this job's shards in the folder; `superseded` counts outputs of inputs that changed
    or vanished. `complete` says that nothing is left to do. `claim` is the number of the newest claim, 0 where there is none.
    `takes_over` says that the folder's job is a different one, which left no rows.
    """

    kept: dict[str, Any] | None = None
    record: ObjectRef | None = None
    mark: ObjectRef | None = None
    done: int = 0
    superseded: int = 0
    complete: bool = False
    claim: int = 0
    takes_over: bool = False


class _Folder:
    """One listing of the output folder. It keeps little: the records, and a digest of the outputs' names."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._job = prepared, prepared.job.fingerprint[:8]
        self.record: ObjectRef | None = None
        self.mark: ObjectRef | None = None
        self.parts: dict[str, ObjectRef] = {}
        self.claim = 0
        self.holds_outputs = False
        self.names = hashlib.sha256()
        self.sources = array("Q")
        self.stranger: str | None = None
        self.changed: tuple[str, ObjectRef] | None = None
        self.strange = self.outputs = self.superseded = 0

    def read(self, refs: Iterable[ObjectRef]) -> None:
        folder, left = f"{self._prepared.job.output}/", iter(refs)
        while some := list(islice(left, _NAMES_AT_ONCE)):
            outputs = []
            for ref in some:
                name = ref.uri.removeprefix(folder)
                if (made := parse_output_name(name)) is not None:
                    outputs.append((name, made, ref))
                self._note(name, ref)
            self._hold_against_inputs(outputs)

    def _note(self, name: str, ref: ObjectRef) -> None:
        if name == JOB_RECORD:
            self.record = ref
        elif name.startswith(f"{MANIFEST_FOLDER}/"):
            self.parts[name] = ref
        elif name == SUCCESS:
            self.mark = ref
        else:
            self.claim = max(self.claim, claim_number(name))
        if name == SUCCESS or name.endswith((".parquet", ASIDE)):
            self.strange += 1
            self.stranger = self.stranger or name

    def _hold_against_inputs(self, outputs: list[tuple[str, OutputName, ObjectRef]]) -> None:
        self.holds_outputs = self.holds_outputs or bool(outputs)
        known = self._prepared.inputs.includes(made.source for _, made, _ in outputs)
        for (name, made, ref), is_known in zip(outputs, known, strict=True):
            add_name(self.names, name)
            if is_known and made.job == self._job:
                self.outputs += 1
                self.sources.append(made.source)
            elif self._prepared.job.incremental and made.job == self._job:
                self.superseded += 1
            elif self.changed is None:
                self.changed = name, ref


def examine_output(prepared: Prepared, *, overwrite: bool) -> OutputState:
    """Raises `OutputConflict` where the folder holds anything that is not part of this job, unless it may be overwritten, and
    `StorageError` where a local one cannot be written. A job that has left no rows there does not own the folder.
    """
    job = prepared.job
    store = open_store(job.output, job.storage)
    folder = _Folder(prepared)
    folder.read(store.list(f"{job.output}/"))
    folder.claim = newest_claim(store, job.output, folder.claim)
    kept = read_record(store, folder.record)
    if kept is None and folder.claim:  # its run ended between claim and record
        kept = read_claim(store, job.output, folder.claim).record
    if kept is None:
        if folder.stranger is not None:
            raise OutputConflict(
                f"{job.output} holds {folder.stranger}, and no record of a job of headrace",
                expected="an empty folder, or one that headrace wrote",
                found=f"{folder.strange} Parquet files or marks without {JOB_RECORD}",
                cure="Name another --output; these files are not headrace's to remove",
            )
        if scheme_of(job.output) == "file":
            check_writable(job.output)
        return OutputState(claim=folder.claim)
    if overwrite:
        return OutputState(kept, folder.record, folder.mark, claim=folder.claim)
    try:
        check_same_job(job.output, kept, job.record())
        check_same_version(kept, job)
    except OutputConflict:
        if folder.holds_outputs or folder.mark is not None:
            raise
        return OutputState(kept, folder.record, claim=folder.claim, takes_over=True)
    if folder.changed is not None:
        _refuse_changed(prepared, store, *folder.changed)
    complete = _is_complete(prepared, store, folder)
    done, superseded = folder.outputs, folder.superseded
    return OutputState(kept, folder.record, folder.mark, done, superseded, complete, claim=folder.claim)


def read_record(store: Store, ref: ObjectRef | None) -> dict[str, Any] | None:
    if ref is None:
        return None
    try:
        record = parse_json_object(store.read(ref))
        digests = [model["digest"] for model in record["models"].values()]
        if not all(isinstance(text, str) for text in (record["fingerprint"], *digests)) or not digests:
            raise TypeError("fingerprint and digest are not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputConflict(
            f"{ref.uri} is not a record of a job",
            expected="JSON with a model and a fingerprint",
            found=f"{type(error).__name__}: {error}",
            cure="Name another --output",
        ) from error
    return dict(record)


def _refuse_changed(prepared: Prepared, store: Store, name: str, output: ObjectRef) -> None:
    job = prepared.job
    made = parse_output_name(name)
    assert made is not None
    if made.job != job.fingerprint[:8]:
        raise OutputConflict(
            f"{job.output}/{name} is the output of another job than the one in the folder's record",
            expected=f"files of job {job.fingerprint[:8]}",
            found=f"one of job {made.job}",
            cure="Name another --output, or add --overwrite to replace all of it",
        )
    kept = read_footer(store, output).key_values
    if b"headrace.joined" in kept:
        raise OutputConflict(
            f"{job.output}/{name} joins files other than --compact joins now: one was rewritten, is gone or new since",
            expected=f"the files from {kept.get(b'headrace.input', b'?').decode()} on, as they were",
            found=f"{prepared.inputs.files} files that match, joined otherwise",
            cure="Add --incremental to predict only outputs whose files are new, changed or joined otherwise, or --overwrite "
            "to predict everything again; or name another --output",
        )
    was_uri, was_version = (kept.get(f"headrace.{key}".encode(), b"?").decode() for key in ("input", "input_version"))
    there = open_store(job.folder, job.storage).find(was_uri)
    now = stored_version(was_version) if there is None else there.version
    rewritten = now != stored_version(was_version)
    raise OutputConflict(
        f"{job.output}/{name} was made from an input that has {'been rewritten' if rewritten else 'gone'} since: {was_uri}",
        expected=f"version {was_version} of it",
        found=f"version {now}" if rewritten else f"no such file among the {prepared.inputs.files} that match",
        cure="Add --incremental to predict only what is new or changed, or --overwrite to predict everything again; or "
        "name another --output",
    )


def _is_complete(prepared: Prepared, store: Store, folder: _Folder) -> bool:
    """`_SUCCESS` exists, its manifest names exactly the outputs in the folder, and these cover exactly today's inputs."""
    if folder.mark is None or folder.superseded:
        return False
    try:
        mark = store.read(folder.mark)
        if mark_claim(mark) != folder.claim:  # another run was at work since
            return False
        parts = [str(part) for part in parse_json_object(mark)["manifest"]]
    except (ValueError, KeyError, TypeError):  # a mark of somebody else's making
        return False
    if not parts or any(part not in folder.parts for part in parts):
        return False
    names = hashlib.sha256()
    try:
        for name in manifest_outputs(store, (folder.parts[part] for part in parts)):
            add_name(names, name)
    except NotParquet:  # damaged by another program: the next run writes it again
        return False
    made_from, inputs = np.unique(np.frombuffer(folder.sources, np.uint64)), np.unique(prepared.inputs.sources)
    covered = prepared.job.limit is not None or np.array_equal(made_from, inputs)
    return names.digest() == folder.names.digest() and covered


def check_overwritten(prepared: Prepared, state: OutputState, *, overwrite: bool) -> None:
    """Raises `OutputConflict` where `claim_output` would meet what it may not remove, before it removes anything."""
    if overwrite and state.kept is not None:
        job = prepared.job
        written = written_by_headrace(open_store(job.output, job.storage), job.output, state.kept, NO_CLAIM)
        deque(written, maxlen=0)  # checks each of them


def claim_output(prepared: Prepared, state: OutputState, *, overwrite: bool) -> Job:
    """The first write of a job: claims the folder, removes `_SUCCESS` and what is to be overwritten, and writes the job's
    record. Returns the job with its claim.

    If a run of the same job over the same inputs is unfinished, this run joins it, unless this one overwrites: both make the
    same files. Raises `OutputConflict` where another job appeared meanwhile, `ClaimLost` where another run claims the folder
    during this call, and `JobError` where something was removed before the call finished.
    """
    job, record = prepared.job, prepared.job.record()
    store = open_store(job.output, job.storage)
    clears = overwrites = state.kept is not None and (overwrite or state.takes_over)
    for _ in range(_MOST_CLAIMS):
        if newest_claim(store, job.output, state.claim) > state.claim:
            state = examine_output(prepared, overwrite=overwrite)
            clears = overwrites = state.kept is not None and (overwrite or state.takes_over)
        joined = None if overwrites or clears else _to_join(prepared, state, store, record)
        number = state.claim + (joined is None)
        if joined is None:
            try:
                create_claim(
                    store, job.output, number, record, prepared.inputs.sources, clears=clears, overwrites=overwrites
                )
            except AlreadyExists:
                continue
        ours = replace(job, claim=number)
        withdraw_marks(store, job.output, number)
        check_claim(ours, store)
        remove_mark(store, job.output, number)
        if joined is None or not has_started(store, job.output, number):
            doomed = _to_remove(prepared, state, store, number, overwrites=overwrites)
            if doomed is not None and not clears:
                if not has_started(store, job.output, number):
                    clears = True  # said with a claim of its own, before anything goes
                    state = replace(state, claim=number)
                    continue
                doomed = None  # an equal run has begun meanwhile: these are its files
            if doomed is not None:
                _clear(ours, store, doomed)
        write_record(store, ours)
        note_started(store, job.output, number)
        return ours
    raise OutputConflict(
        f"{job.output} is claimed by one run after the other",
        expected="a claim that stays the newest",
        found=f"{_MOST_CLAIMS} newer ones",
        cure="Start it when these have ended, or name another --output",
    )


def _to_join(prepared: Prepared, state: OutputState, store: Store, record: dict[str, Any]) -> Claim | None:
    """The newest claim, where its runs make what this one makes and are not done."""
    if not state.claim:
        return None
    newest = read_claim(store, prepared.job.output, state.claim)
    if not newest.is_equal(record, prepared.inputs.sources):
        return None
    if newest.clears and not has_started(store, prepared.job.output, newest.number):
        return None
    done = state.mark is not None and mark_claim(store.read(state.mark)) == newest.number
    return None if done and not state.complete else newest


def _clear(job: Job, store: Store, doomed: Iterable[tuple[Store, ObjectRef]]) -> None:
    removed = 0
    try:
        left = iter(doomed)
        while some := list(islice(left, _NAMES_AT_ONCE)):
            check_claim(job, store)  # after it was listed: nothing in it is of a newer claim
            for remover, ref in some:
                remove_own(remover, ref)
                removed += 1
    except HeadraceError as error:
        if not removed:
            raise
        raise JobError(
            f"{job.output} is neither the earlier output nor free for this one",
            expected="all that the earlier job wrote to be removed",
            found=f"{removed:,} objects were removed before it failed: {error}",
            cure="Fix that, and run the same command again",
        ) from error


def _to_remove(
    prepared: Prepared, state: OutputState, store: Store, number: int, *, overwrites: bool
) -> Iterator[tuple[Store, ObjectRef]] | None:
    """What to remove before anything is computed; None where there is nothing to remove."""
    if overwrites and state.kept is not None:
        return objects_of_earlier_job(prepared.job, state.kept, store, number)
    adoptable = Adoptable(store, prepared.job.output, number)
    mine = Claim(number, prepared.job.record(), prepared.inputs.sources, clears=True, overwrites=False, by="")
    refs = []
    for name, ref in each_finished(prepared.job.output, prepared.job.storage):
        made = parse_output_name(name)
        if made is not None and mine.owns(made) and made not in adoptable:
            refs.append((store, ref))
    return iter(refs) if refs else None


def write_record(store: Store, job: Job) -> None:
    """Raises `OutputConflict` where another job's record exists, and `ClaimLost` where another run has claimed the folder."""
    uri, wanted = f"{job.output}/{JOB_RECORD}", job.record()
    while True:
        try:
            store.put(uri, dump_record(wanted))
        except AlreadyExists:
            try:
                there = store.stat(uri)
                kept = read_record(store, there) or {}
            except (ObjectNotFound, ObjectChanged):
                continue
            if all(kept.get(key) == wanted.get(key) for key in ("fingerprint", "on_error", "dead_letters", "table")):
                return
            if not job.claim:
                check_same_job(job.output, kept, wanted)
            check_claim(job, store)
            remove_own(store, there)  # the claim holds the record too, until the new one exists
            continue
        return
