"""A Shard: the unit of work, of output and of resuming. Pure values and pure names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ..storage.store import ObjectRef, split_glob
from .partitions import partition_folder, quote_name, visible

if TYPE_CHECKING:
    from ..errors import DataError
    from .measuring import ShardMeasurements

_OUTPUT_NAME = re.compile(
    r"(?P<stem>.*)-(?P<first>\d{12})-(?P<end>\d{12})-(?P<job>[0-9a-f]{8})(?P<source>[0-9a-f]{12})\.parquet"
)

# A file system's names end at 255 bytes: a mark is one, `output_name` adds 55, and a file of dead letters 17.
_SEGMENT_BYTES = 182

# Replaces what a stem leaves out; in a segment itself it is quoted: different inputs have different stems.
_MARK = "@"

_REASON_LETTERS = 4000

# A reader decodes a row group from its start: n spans of one cost (n + 1) / 2 times its decoding: twice, for 3.
_SPANS_OF_A_ROW_GROUP = 3


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Rows `first_row` (inclusive) to `first_row + rows` (exclusive) of one input file, counted from 0.

    `row_groups` is (first inclusive, end exclusive), of `nbytes` compressed bytes; `skip` rows of the first row group
    come before `first_row`. `partitions` are the columns from the input's folders: name and value, null as None.
    `renamed` are columns of a table that the file has under another name: the table's and the file's.
    `deleted` are packed numbers of rows, from the first row group's first, that are not read and count nowhere else.
    `batch_rows` are rows per batch where these are fewer than the job's, for rows that are large.
    `drift` says how the file's schema differs from the job's: a sentence, expected, found; () where it does not.
    `joined` are whole files whose rows follow in the same output: `rows` and `nbytes` count theirs too.
    Shards sort in the order of their outputs' names. `source` and the row span identify the shard; `output` follows.
    """

    output: str
    source: ObjectRef
    first_row: int
    rows: int
    row_groups: tuple[int, int]
    nbytes: int
    skip: int = 0
    partitions: tuple[tuple[str, str | None], ...] = ()
    drift: tuple[str, ...] = ()
    joined: tuple[Shard, ...] = ()
    batch_rows: int | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    deleted: bytes = b""

    @property
    def end_row(self) -> int:
        return self.first_row + self.rows

    @property
    def parts(self) -> tuple[Shard, ...]:
        """A shard for each input file, in the order of their rows; none of them has others joined to it."""
        if not self.joined:
            return (self,)
        rows, nbytes = (sum(getattr(part, name) for part in self.joined) for name in ("rows", "nbytes"))
        return replace(self, rows=self.rows - rows, nbytes=self.nbytes - nbytes, joined=()), *self.joined

    @property
    def sources(self) -> tuple[ObjectRef, ...]:
        return self.source, *(part.source for part in self.joined)

    @property
    def where(self) -> str:
        """The input, for a person."""
        more = len(self.joined)
        return self.source.uri if not more else f"{self.source.uri} and the {more} files after it"


WorkUnit = tuple[Shard, ...]
"""What a runner hands to a worker at once: one large shard, or a few small ones."""


PartOutcome = tuple[int, int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The outcome of a shard. `seconds` are of one thread, by stage; unknown where the output existed already.

    Its rows are `predicted_rows` in the output, `filtered_rows` that the job's condition leaves out, and `bad_rows` in the file
    `dead_letters` (its URI). `batch_splits` records where batches differ from the planned size: from row (inclusive), at
    most so many rows; see `headrace.transforms.predicting.bisection`. Where the shard joins files, `of_parts` are the bad rows,
    the filtered rows and the batch splits of each (() where none has any), and `batch_splits` is empty. `measurements` are for
    the report, if one is written.
    """

    shard: Shard
    output_bytes: int
    output_version: str
    output_crc32c: int | None
    computed: bool
    predicted_rows: int
    bad_rows: int = 0
    filtered_rows: int = 0
    dead_letters: str | None = None
    batch_splits: tuple[tuple[int, int], ...] = ()
    of_parts: tuple[PartOutcome, ...] = ()
    intra_op_threads: int | None = None
    device: str | None = None
    batches: int = 0
    batches_halved: int = 0
    read_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    measurements: ShardMeasurements | None = None


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that has no output, and what its rows or its file failed on."""

    shard: Shard
    error: DataError

    @property
    def reason(self) -> str:
        """A bounded text: an error may quote what a function of the user's said."""
        return str(self.error)[:_REASON_LETTERS]


def common_folder(patterns: tuple[str, ...]) -> str:
    """The deepest folder (with its trailing slash) above all patterns' wildcards; "" where they share none."""
    folders = [split_glob(pattern)[0].split("/")[:-1] for pattern in patterns]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "".join(f"{parts[0]}/" for parts in shared)


def relative_stem(uri: str, folder: str) -> str:
    """The input's place below `folder`, without `.parquet`; no segment leaves the output folder or hides in it.

    Different inputs have different stems, except for folders `key=value` that say the same in other ways: a name that does not
    end in `.parquet` gets a mark, as does a nameless folder.
    """
    relative = uri.removeprefix(folder).replace("://", "/")
    if not folder:
        relative = relative.lstrip("/")
    bare = relative.removesuffix(".parquet")
    *folders, name = bare.split("/")
    segments = [_safe_folder(segment) if segment else _MARK for segment in folders]
    segments.append(_safe_segment(name) if name else _MARK)
    return "/".join(segments) + _MARK * (bare == relative)


def _safe_segment(segment: str) -> str:
    quoted = visible(quote_name(segment))
    if len(quoted.encode()) <= _SEGMENT_BYTES:
        return quoted
    return _cut(quoted, segment)


def _safe_folder(folder: str) -> str:
    """Readers take columns from a folder `key=value`. One that is too long for that is cut, and no `key=value` any more: the
    job is refused then, unless the column is in the files.
    """
    if "=" not in folder:
        return _safe_segment(folder)
    return partition_folder(folder) or _cut(visible(quote_name(folder)), folder)


def _cut(quoted: str, name: str) -> str:
    begin = quoted.encode()[: _SEGMENT_BYTES - 25].decode(errors="ignore")
    return f"{begin}~{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def output_name(
    stem: str, source: ObjectRef, first_row: int, rows: int, fingerprint: str, joined: Sequence[ObjectRef] = ()
) -> str:
    """Sorts in input order, and says what it holds: input and version, row span, and the job that made it."""
    return named_output(stem, first_row, rows, fingerprint, source_digest(source, *joined))


def named_output(stem: str, first_row: int, rows: int, fingerprint: str, sources: int) -> str:
    """`output_name` for inputs that are known only by their `source_digest`."""
    return f"{stem}-{first_row:012d}-{first_row + rows:012d}-{fingerprint[:8]}{sources:012x}.parquet"


def source_digest(*sources: ObjectRef) -> int:
    """48 bits of the SHA-256 of the inputs' URIs and versions: what an output's name says of its input."""
    return int.from_bytes(_sources_hash(sources).digest()[:6], "big")


def sources_sha256(*sources: ObjectRef) -> str:
    """SHA-256 of the inputs' URIs and versions in their order, in hexadecimal."""
    return _sources_hash(sources).hexdigest()


def _sources_hash(sources: Sequence[ObjectRef]) -> hashlib._Hash:
    return hashlib.sha256("\n".join([f"{source.uri}\t{source.version}" for source in sources]).encode())


def join_shards(parts: Sequence[Shard], stem: str, fingerprint: str) -> Shard:
    """One shard of whole files, each a shard, in their order. `stem` is the first one's."""
    first, *others = parts
    if not others:
        return first
    rows, joined = sum(part.rows for part in parts), [part.source for part in others]
    name = output_name(stem, first.source, first.first_row, rows, fingerprint, joined)
    others = [replace(part, output=name) for part in others]
    return replace(first, output=name, rows=rows, nbytes=sum(part.nbytes for part in parts), joined=tuple(others))


@dataclass(frozen=True, slots=True)
class OutputName:
    """What an output's name shows without opening it. `job` are eight hex digits; `source` is its `source_digest`."""

    stem: str
    first_row: int
    end_row: int
    job: str
    source: int


def parse_output_name(relative: str) -> OutputName | None:
    """None where no shard of headrace has such a name."""
    if (match := _OUTPUT_NAME.fullmatch(relative)) is None:
        return None
    return OutputName(match["stem"], int(match["first"]), int(match["end"]), match["job"], int(match["source"], 16))


def split_file(
    source: ObjectRef,
    stem: str,
    row_group_rows: list[int],
    row_group_bytes: list[int],
    shard_bytes: int,
    fingerprint: str,
    partitions: tuple[tuple[str, str | None], ...] = (),
    drift: tuple[str, ...] = (),
) -> Iterator[Shard]:
    """Shards of whole row groups, each of at most `shard_bytes` compressed bytes unless one row group alone exceeds it;
    a row group of more than twice as many bytes is cut into spans of its rows.

    A file without rows is one shard without rows: its output exists and has the schema.
    """

    def shard(first_row: int, rows: int, groups: tuple[int, int], nbytes: int, skip: int = 0) -> Shard:
        name = output_name(stem, source, first_row, rows, fingerprint)
        return Shard(name, source, first_row, rows, groups, nbytes, skip, partitions, drift)

    first_group = first_row = 0
    while first_group < len(row_group_rows) or first_row == first_group == 0:
        end_group, size = first_group, 0
        while end_group < len(row_group_rows) and (
            end_group == first_group or size + row_group_bytes[end_group] <= shard_bytes
        ):
            size += row_group_bytes[end_group]
            end_group += 1
        rows, groups = sum(row_group_rows[first_group:end_group]), (first_group, end_group)
        spans = max(1, min(_SPANS_OF_A_ROW_GROUP, rows)) if size > 2 * shard_bytes else 1
        starts = [rows * i // spans for i in range(spans + 1)]
        cuts = [size * i // spans for i in range(spans + 1)]
        for i in range(spans):
            yield shard(first_row + starts[i], starts[i + 1] - starts[i], groups, cuts[i + 1] - cuts[i], starts[i])
        if end_group >= len(row_group_rows):
            return
        first_group, first_row = end_group, first_row + rows
