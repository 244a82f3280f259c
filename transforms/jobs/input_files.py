"""Patterns to input files. Listings are streamed: memory does not grow with the number of files. No Beam."""

from __future__ import annotations

import glob
import heapq
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any

import numpy as np

from ..errors import HeadraceError, InvalidRequest, NotParquet, ObjectNotFound
from ..image_names import cure_of_images
from ..shards.partition_types import PartitionTypes
from ..shards.partitions import long_partitions, partition_values
from ..shards.shard import common_folder, source_digest
from ..storage import ObjectRef, Store, StoreOptions, open_store
from ..storage.store import HIDDEN, public_uri, split_glob
from ..tables.snapshot import TableSnapshot
from .table_formats import Tables

_STATS_AT_ONCE = 32
# An output's list of its files travels with it as one element of a runner.
# Lines for some millions of files.
_LIST_BYTES = 1 << 30
MOST_JOINED = 4096


@dataclass(slots=True)
class PassedOver:
    """Files that match but are not read: names that start with `_` or `.`, objects of zero bytes, and `others`, which are not
    files: folders, and links back to a folder above. `first_other` is a sentence about the first of them.
    """

    hidden: int = 0
    empty: int = 0
    first_empty: str = ""
    others: int = 0
    first_other: str = ""

    def note(self, what: str) -> None:
        self.others += 1
        self.first_other = self.first_other or what


@dataclass(frozen=True, slots=True)
class Survey:
    """The results of one pass over the listing, in eight bytes for each file.

    `first` is the first by URI. `sources` are the `source_digest`s of all files, or of those that are joined together, uint64,
    sorted. `partitions` are the keys of the folders `key=value` that contain every file, in that order. `too_long` are keys of
    folders that the output cannot have as `key=value`, each with a file in such a folder. `types` are of folders' values.
    `table` is the table that the files belong to, if any. `nbytes` are of all files, as they are stored.
    """

    first: ObjectRef
    files: int
    passed: PassedOver
    sources: np.ndarray[Any, np.dtype[np.uint64]]
    partitions: tuple[str, ...]
    too_long: Mapping[str, str] = field(default_factory=dict)
    types: PartitionTypes = field(default_factory=PartitionTypes)
    table: TableSnapshot | None = None
    nbytes: int = 0

    def includes(self, sources: Iterable[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each `source_digest` is that of one of the files."""
        asked = np.fromiter(sources, np.uint64)
        at = np.searchsorted(self.sources, asked)
        return self.sources[np.minimum(at, len(self.sources) - 1)] == asked


def absolute_uri(uri: str) -> str:
    """One name for each local file, however it was given; other URIs, and text that is not a path, stay as they are."""
    path = uri.removeprefix("file://")
    local = path.startswith("/") if uri.startswith("file://") else path and "://" not in path
    return os.path.abspath(path) if local else uri


def scheme_of(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else "file"


def check_one_store(patterns: Iterable[str]) -> None:
    if len(schemes := {scheme_of(pattern) for pattern in patterns}) > 1:
        raise InvalidRequest(
            "--input names files in several stores",
            expected="all of one kind",
            found=", ".join(sorted(schemes)),
            cure="Run a job for each, or copy the files into one store",
        )


def expand_lists(inputs: tuple[str, ...], options: StoreOptions) -> tuple[str, ...]:
    """The patterns themselves: a folder is all Parquet files in it and below, and each `@URI` gives way to the lines of that
    file, a URI or glob each. Blank lines, and those that start with `#`, say nothing; a relative line starts in the list's own
    folder.
    """
    patterns = tuple(
        chain.from_iterable(
            _read_list(pattern[1:], options) if pattern.startswith("@") else (_with_folder(pattern, options),)
            for pattern in inputs
        )
    )
    check_one_store(patterns)
    return patterns


def _with_folder(uri: str, options: StoreOptions) -> str:
    if split_glob(uri)[1] or uri.startswith(("http://", "https://")):
        return uri
    store, folder = open_store(uri, options), uri.rstrip("/")
    if uri == folder and store.find(uri) is not None:
        return uri
    inside = next(iter(store.list(f"{folder}/")), None)
    return uri if inside is None else glob.escape(folder) + "/**/*.parquet"


def _read_list(uri: str, options: StoreOptions) -> Iterator[str]:
    store = open_store(uri, options)
    try:
        ref = store.stat(uri)
        if ref.size > _LIST_BYTES:
            raise InvalidRequest(
                f"--input=@{uri} is not a list of files",
                expected=f"text of at most {_LIST_BYTES:,} bytes",
                found=f"{ref.size:,} bytes",
                cure="Split it into several lists, or name the files by a glob",
            )
        data = store.read(ref)
    except ObjectNotFound as error:
        raise ObjectNotFound(
            f"--input=@{uri} names no file",
            expected="a text file with one URI or glob on each line, where workers can read it too",
            found=str(error),
        ) from error
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError(f"a NUL at byte {text.index(chr(0)):,}")
    except ValueError as error:
        raise InvalidRequest(
            f"--input=@{uri} is not a list of files",
            expected="UTF-8 text with one URI or glob on each line",
            found=str(error),
            cure="Name a Parquet file itself without the @",
        ) from error
    lines = [line for raw in text.split("\n") if (line := raw.strip()) and not line.startswith("#")]
    if not lines or any(line.startswith("@") for line in lines):
        raise InvalidRequest(
            f"--input=@{uri} is not a list of files",
            expected="one URI or glob on each line",
            found="a list within a list" if lines else "no line",
        )
    if uri.startswith(("http://", "https://")):
        uri = re.split(r"[?#]", uri)[0]
    folder = uri[: uri.rfind("/") + 1]
    return (absolute_uri(line if "://" in line or line.startswith("/") else folder + line) for line in lines)


def each_input(patterns: tuple[str, ...], options: StoreOptions, passed: PassedOver) -> Iterator[ObjectRef]:
    """Every file that a pattern matches, once, in the order of its URI. Passes over names that start with `_` or `.` below
    a pattern's literal folder, as Parquet readers do, and objects of zero bytes; `passed` counts them.

    Raises `ObjectNotFound` where a pattern matches nothing, and `NotParquet` where a file of zero bytes is named without one.
    """
    for pattern in patterns:
        if pattern != public_uri(pattern):
            raise InvalidRequest(
                f"--input={public_uri(pattern)} has a query or a user, which would show in the output's names and records",
                cure="Give it without, or copy the file to a bucket.",
            )
    store = open_store(patterns[0], options)
    named = sorted({pattern for pattern in patterns if not split_glob(pattern)[1]})
    sources = [_matching(store, pattern, passed.note) for pattern in patterns if split_glob(pattern)[1]]
    sources += [_named(store, named)] if named else []
    found = False
    for ref, hidden in _merged(sources):
        _check_name(ref)
        if hidden:
            passed.hidden += 1
        elif ref.size == 0:
            passed.empty += 1
            passed.first_empty = passed.first_empty or ref.uri
        else:
            found = True
            yield ref
    if not found:
        raise ObjectNotFound(
            f"Nothing is left to read of --input={', '.join(patterns[:3])}{', …' * (len(patterns) > 3)}",
            expected="at least one Parquet file of more than zero bytes whose name starts with neither '_' nor '.'",
            found=f"{passed.hidden} hidden and {passed.empty} empty files"
            + f", the first of zero bytes {passed.first_empty}" * bool(passed.empty),
            cure="Fix the pattern, or write the files first",
        )


def _merged(sources: list[Iterator[tuple[ObjectRef, bool]]]) -> Iterator[tuple[ObjectRef, bool]]:
    """Each file once, in URI order; hidden where every source says so."""
    if len(sources) == 1:  # a store names an object once, in order: a third of the time of a long listing
        yield from sources[0]
        return
    for _, same in groupby(heapq.merge(*sources, key=_uri), key=_uri):
        refs = list(same)
        yield refs[0][0], all(hidden for _, hidden in refs)


def _uri(found: tuple[ObjectRef, bool]) -> str:
    return found[0].uri


def _matching(store: Store, pattern: str, noted: Callable[[str], None]) -> Iterator[tuple[ObjectRef, bool]]:
    """Each file with whether it is hidden."""
    folder, matched = split_glob(pattern)[0], False
    tables = Tables(store, pattern)
    for ref in tables.watch(store.glob(pattern, noted, tables.note)):
        matched = True
        yield ref, HIDDEN.search(ref.uri, len(folder) - 1) is not None
    if not matched:
        near = _what_is_near(store, folder)
        raise ObjectNotFound(
            f"No file matches --input={pattern}",
            expected="at least one Parquet file",
            found=near,
            cure=cure_of_images(near)
            or "Fix the pattern (quote it in a shell; ** crosses folders), or write the files first",
        )


def _named(store: Store, uris: list[str]) -> Iterator[tuple[ObjectRef, bool]]:
    """Files named without a wildcard; a few are asked for at once."""
    left = iter(uris)
    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        while some := list(islice(left, _STATS_AT_ONCE)):
            for ref in threads.map(lambda uri: _stat(store, uri), some):
                hidden = ref.uri.rpartition("/")[2].startswith((".", "_"))
                if not (ref.size or hidden):
                    raise NotParquet(
                        f"{ref.uri} is not a Parquet file",
                        expected="a file of more than zero bytes",
                        found="zero bytes",
                        cure="Write the file again, or leave it out of --input",
                    )
                yield ref, hidden


def _stat(store: Store, uri: str) -> ObjectRef:
    folder = uri.rstrip("/")
    try:
        if uri != folder:
            raise ObjectNotFound(f"{uri} is the name of a folder")
        return store.stat(uri)
    except ObjectNotFound:
        try:
            inside = next(iter(store.list(f"{folder}/")), None)
        except HeadraceError:  # a store that lists nothing has no folders
            inside = None
        if inside is None:
            raise
        raise ObjectNotFound(
            f"--input={uri} is a folder",
            expected="a file or a glob",
            found=f"{inside.uri} in it",
            cure=cure_of_images(inside.uri)
            or f"Say --input='{folder}/*.parquet', or '{folder}/**/*.parquet' for the folders below it too",
        ) from None


def _check_name(ref: ObjectRef) -> None:
    try:
        if not ref.uri.isascii():
            ref.uri.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"An input file's name is not UTF-8: {ref.uri!a}",
            cure="Rename it: its output's name and the manifest could not hold it",
        ) from error


def _what_is_near(store: Store, folder: str) -> str:
    near = [ref.uri for _, ref in zip(range(3), store.list(folder), strict=False)]
    return f"in {folder}: {', '.join(near)}, …" if near else f"nothing in {folder}"


def together(files: Iterable[ObjectRef], joined_bytes: int | None) -> Iterator[tuple[ObjectRef, ...]]:
    """The files of one output each: neighbours of one folder up to `joined_bytes` and 4096 files, or each alone where that is
    None. A pure function of the listing: the same files are always joined in the same way.
    """
    if joined_bytes is None:
        yield from ((ref,) for ref in files)
        return
    for _, neighbours in groupby(files, key=lambda ref: ref.uri.rpartition("/")[0]):
        yield from join_small(neighbours, joined_bytes, MOST_JOINED)


def join_small(files: Iterable[ObjectRef], most_bytes: int, most: int) -> Iterator[tuple[ObjectRef, ...]]:
    """Neighbours together, up to `most` and `most_bytes` in all; what is larger alone stays alone."""
    unit: list[ObjectRef] = []
    nbytes = 0
    for ref in files:
        if unit and (nbytes + ref.size > most_bytes or len(unit) == most):
            yield tuple(unit)
            unit, nbytes = [], 0
        unit.append(ref)
        nbytes += ref.size
    if unit:
        yield tuple(unit)


def survey_inputs(
    patterns: tuple[str, ...],
    options: StoreOptions,
    check: Callable[[ObjectRef], None],
    joined_bytes: int | None = None,
    table: TableSnapshot | None = None,
) -> Survey:
    """Lists the input once; `check` is called with each file. `joined_bytes` as in `together`. A table's folders are not
    partitions.
    """
    folder, passed = common_folder(patterns), PassedOver()
    first: ObjectRef | None = None
    keys: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    place: str | None = None  # the folder of the last file, whose keys are `own`
    too_long: dict[str, str] = {}
    types = PartitionTypes()
    sources, files, nbytes = array("Q"), 0, 0
    listed = each_input(patterns, options, passed) if table is None else table.refs()
    for refs in together(listed, joined_bytes):
        for ref in refs:
            check(ref)
            if place is not None and ref.uri.startswith(place) and ref.uri.find("/", len(place)) < 0:
                continue
            place = ref.uri[: ref.uri.rfind("/") + 1]
            values = partition_values(ref.uri, folder) if table is None else ()
            own = tuple(key for key, _ in values)
            for key, value in values:
                types.add(key, value)
            for key in long_partitions(ref.uri, folder) if table is None else ():
                too_long.setdefault(key, ref.uri)
            if first is None:
                first, keys = ref, own
            elif own != keys and keys:
                keys = keys if set(own) == set(keys) else ()
        files += len(refs)
        nbytes += sum(ref.size for ref in refs)
        sources.append(source_digest(*refs))
    assert first is not None  # else each_input has raised
    digests = np.frombuffer(sources, np.uint64)
    digests.sort()
    return Survey(first, files, passed, digests, keys, too_long, types, table, nbytes)
