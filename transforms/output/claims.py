"""Which run may change an output folder: numbered claims, each created once or not at all. No Beam.

A claim records the job and the inputs that the folder is being written for. Runs of one job over the same inputs make the same
files: they share a claim and need not be distinguished. Every other run creates the next number. The newest claim is the one
whose next number does not exist: one request shows it, on every store, without a listing.

Why a run that was paused at any point does no harm:

*The mark.* `_SUCCESS` is first prepared under a name of its own, then published: the store gives that very object the name
`_SUCCESS`, atomically, and only while it exists. The next run that claims the folder removes the prepared marks before anything
else. After that, no older run can publish one.

*Removing.* A run removes exact versions only, and only what it listed while its claim was the newest. Each prediction file
holds its claim's number: the same rows written under another claim are another version, even where a version is a digest of
the content. What an older claim did not own may still be removed by one of its runs at any time: the next claim does not keep
it, but removes it and computes it again (`Adoptable`).

*Adding.* A shard's commit checks the claim first, and again afterwards: a run that lost its claim meanwhile removes the file
that it has just added, unless the newest claim owns a file of that name, which then has the same rows. A run plans
the files of its own claim only, so that it keeps no file that its claim does not own.

Why numbers, and not one object that changes by compare-and-swap: every store can create an object only where none exists, but
not every store can replace a certain version. Local files cannot, and services that speak S3 often lack `If-Match` on writes.
Claims also stay readable: what a new run may keep depends on all claims since the last that had started. Why a mark is prepared
first: a run that checks the claim and then writes `_SUCCESS` can be paused between the two for as long as another whole run
takes, and no store makes a write depend on another object. But a store can give an object a further name on condition that this
very object still exists. Removing the object therefore decides, once and for all (a store that lacks this writes the mark, and
removes it if the prepared object was gone afterwards: `Store.publish`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import AlreadyExists, ClaimLost, ObjectChanged, ObjectNotFound, OutputConflict, StorageError
from ..shards.shard import OutputName, parse_output_name
from ..storage.store import ObjectRef, Store

if TYPE_CHECKING:
    from ..jobs.job import Job

CLAIMS_FOLDER = "_headrace/claims"
CLAIM_KEY = "headrace.claim"
_CLAIM = re.compile(CLAIMS_FOLDER + r"/(\d{8})\.claim")
_PREPARED = re.compile(CLAIMS_FOLDER + r"/(\d{8})-[0-9a-f]{16}\.mark")
# Fields that two records must have in common, in addition to the fingerprint, for their runs to share a claim.
_POLICY = ("on_error", "dead_letters", "max_bad_rows")

Sources: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


def holds(ascending: Sources, number: int) -> bool:
    at = int(np.searchsorted(ascending, np.uint64(number)))
    return at < len(ascending) and int(ascending[at]) == number


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """`number` is from 1. `record` is the job's; `sources` are the `source_digest`s of its inputs, sorted. `clears` says that
    its run removes files before it computes any, `overwrites` that it removes all files that it finds. `by` names the run to
    people.
    """

    number: int
    record: dict[str, Any]
    sources: Sources
    clears: bool
    overwrites: bool
    by: str

    def owns(self, made: OutputName) -> bool:
        """Whether this claim's runs make a file of that name."""
        return made.job == str(self.record["fingerprint"])[:8] and self.has_source(made.source)

    def has_source(self, digest: int) -> bool:
        """Whether the `source_digest` is of one of its inputs, or of those that are joined."""
        return holds(self.sources, digest)

    def is_equal(self, record: dict[str, Any], sources: Sources) -> bool:
        """Whether a run of that job over these inputs makes the same files."""
        same = all(self.record.get(key) == record.get(key) for key in ("fingerprint", *_POLICY))
        return same and np.array_equal(self.sources, sources)

    def describe(self) -> str:
        return f"claim {self.number} of job {str(self.record['fingerprint'])[:8]}, by {self.by}"


def claim_uri(output: str, number: int) -> str:
    return f"{output}/{CLAIMS_FOLDER}/{number:08d}.claim"


def _started_uri(output: str, number: int) -> str:
    return f"{output}/{CLAIMS_FOLDER}/{number:08d}.started"


def claim_number(name: str) -> int:
    """The number in an object's name below the output folder; 0 where it is not a claim."""
    match = _CLAIM.fullmatch(name)
    return int(match[1]) if match else 0


def newest_claim(store: Store, output: str, known: int = 0) -> int:
    """Its number, searched from `known` on, which was one; 0 where the folder is unclaimed."""
    while store.find(claim_uri(output, known + 1)) is not None:
        known += 1
    return known


def read_claim(store: Store, output: str, number: int) -> Claim:
    """Raises `ObjectNotFound`, and `OutputConflict` where it is damaged."""
    uri = claim_uri(output, number)
    head, _, rest = store.read(store.stat(uri)).partition(b"\n")
    try:
        said = json.loads(head)
        sources = np.frombuffer(rest, "<u8").astype(np.uint64)
        record = said["record"]
        if not isinstance(record["fingerprint"], str):
            raise TypeError("the fingerprint is no text")
        return Claim(number, record, sources, bool(said["clears"]), bool(said["overwrites"]), str(said["by"]))
    except (ValueError, KeyError, TypeError) as error:
        raise OutputConflict(
            f"{uri} is not a claim of a run",
            expected="a line of JSON, and 8 bytes for each input",
            found=f"{type(error).__name__}: {error}",
            cure="Name another --output",
        ) from error


def create_claim(
    store: Store, output: str, number: int, record: dict[str, Any], sources: Sources, *, clears: bool, overwrites: bool
) -> Claim:
    """Raises `AlreadyExists` where another run was first, and `StorageError` where the store lets a second one be created."""
    by = f"process {os.getpid()} on {platform.node()}, {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"
    claim = Claim(number, record, sources, clears, overwrites, by)
    said = {"record": record, "clears": clears, "overwrites": overwrites, "by": by, "token": secrets.token_hex(8)}
    uri = claim_uri(output, number)
    store.put(uri, json.dumps(said, sort_keys=True).encode() + b"\n" + sources.astype("<u8").tobytes())
    try:
        store.put(uri, b"a second claim of one number")
    except AlreadyExists:
        return claim
    raise StorageError(
        f"The store of {output} replaced an object that it was asked to create only where none exists",
        expected="a store that honours If-None-Match: *",
        found=f"{uri} written twice",
        cure="Write to another store; in this one, runs could overwrite each other's files.",
    )


def has_started(store: Store, output: str, number: int) -> bool:
    """Whether a run of that claim has removed what it had to, and may have added files."""
    return store.find(_started_uri(output, number)) is not None


def note_started(store: Store, output: str, number: int) -> None:
    with suppress(AlreadyExists):  # by an equal run
        store.put(_started_uri(output, number), b"")


class Adoptable:
    """The existing files that a new claim may keep: those that no run of an earlier claim may still remove.

    These are what each earlier claim owned, back to the last that had started: that one has itself removed what it could not
    keep.
    """

    def __init__(self, store: Store, output: str, number: int) -> None:
        self._nothing, self._owners = False, list[Claim]()
        for earlier in range(number - 1, 0, -1):
            claim = read_claim(store, output, earlier)
            started = has_started(store, output, earlier)
            self._owners.append(claim)
            self._nothing = self._nothing or (claim.overwrites and not started)
            if started or self._nothing:
                return

    def __contains__(self, made: OutputName) -> bool:
        return not self._nothing and all(claim.owns(made) for claim in self._owners)


def check_claim(job: Job, store: Store) -> None:
    """Raises `ClaimLost` where another run has claimed the folder since: one request."""
    if (winner := _winner(job, store)) is not None:
        raise _claim_lost(job, winner)


def _winner(job: Job, store: Store) -> Claim | None:
    """The newest claim, if another run has claimed the folder since."""
    if store.find(claim_uri(job.output, job.claim + 1)) is None:
        return None
    return read_claim(store, job.output, newest_claim(store, job.output, job.claim + 1))


def _claim_lost(job: Job, winner: Claim) -> ClaimLost:
    return ClaimLost(
        f"{job.output} was claimed by another run while this one was at work",
        expected=f"claim {job.claim} to be the newest" if job.claim else "no claim",
        found=winner.describe(),
        cure="Look at what that run makes; to have this job's output, name another --output",
    )


def confirm_added(job: Job, store: Store, added: ObjectRef, also: Iterable[tuple[Store, ObjectRef]] = ()) -> None:
    """Called after a prediction file was committed. If the claim was lost meanwhile, it removes that file and `also`, unless
    the newest claim owns a file of that name, and raises `ClaimLost` either way.
    """
    if (winner := _winner(job, store)) is None:
        return
    made = parse_output_name(added.uri.removeprefix(f"{job.output}/"))
    if made is not None and not winner.owns(made):
        remove_own(store, added)
        for where, ref in also:
            remove_own(where, ref)
    raise _claim_lost(job, winner)


def remove_own(store: Store, ref: ObjectRef) -> None:
    """That version; what another has put in its place stays."""
    with suppress(ObjectChanged):
        store.delete(ref)


def prepare_mark(job: Job, store: Store, data: bytes) -> ObjectRef:
    return store.put(f"{job.output}/{CLAIMS_FOLDER}/{job.claim:08d}-{secrets.token_hex(8)}.mark", data)


def withdraw_marks(store: Store, output: str, number: int) -> None:
    """Removes what runs of claims before `number` have prepared: they can no longer publish it.

    Raises `StorageError` where the listing lacks claim `number`: the listing is then out of date.
    """
    listed = {ref.uri.removeprefix(f"{output}/") for ref in store.list(f"{output}/{CLAIMS_FOLDER}/")}
    if claim_uri(output, number).removeprefix(f"{output}/") not in listed:
        raise StorageError(
            f"The store of {output} does not list what it holds",
            expected=f"{claim_uri(output, number)}, which was created before, among what it lists",
            found=f"{len(listed)} other objects",
            cure="Start again; if this comes again, write to a store whose listings are up to date.",
        )
    for name in listed:
        match = _PREPARED.fullmatch(name)
        if match is not None and int(match[1]) < number:
            discard(store, f"{output}/{name}")


def discard(store: Store, uri: str) -> None:
    """Removes any version: on local files, publishing changes it. For names that are never used twice."""
    while (ref := store.find(uri)) is not None:
        with suppress(ObjectChanged):
            store.delete(ref)
            return


def mark_claim(data: bytes) -> int:
    """The claim that a `_SUCCESS` of this content belongs to; 0 where an earlier version, or somebody else, wrote it."""
    try:
        said = json.loads(data)["claim"]
    except (ValueError, KeyError, TypeError):
        return 0
    return said if isinstance(said, int) else 0


def remove_mark(store: Store, output: str, number: int) -> None:
    """Takes `_SUCCESS` away, unless it is of claim `number`. Only once the marks of older claims are withdrawn."""
    while (ref := store.find(f"{output}/_SUCCESS")) is not None:
        # A local file changes as the name goes under which it was prepared.
        with suppress(ObjectNotFound, ObjectChanged):
            if mark_claim(store.read(ref)) != number:
                store.delete(ref)
            return
