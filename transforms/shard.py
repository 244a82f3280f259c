"""A Shard: the unit of work, of output and of resuming. Pure values and pure names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from urllib.parse import quote

from transforms.storage.base import ObjectRef, split_glob

_OUTPUT_NAME = re.compile(r"(?P<stem>.*)-(?P<first>\d{12})-(?P<end>\d{12})-(?P<job>[0-9a-f]{8})(?P<shard>[0-9a-f]{12})")

# A file system's names end at 255 bytes: quoting makes nine of a Chinese character, and `output_name` adds 54.
_SEGMENT_BYTES = 200


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Rows `first_row` (inclusive) to `first_row + rows` (exclusive) of one input file, counted from 0.

    `row_groups` is (first inclusive, end exclusive), of `nbytes` compressed bytes; `skip` rows of the first row group
    come before `first_row`.
    Shards sort in the order of their outputs' names. `source` and the row span are what the shard is; `output` follows.
    """

    output: str
    source: ObjectRef
    first_row: int
    rows: int
    row_groups: tuple[int, int]
    nbytes: int
    skip: int = 0

    @property
    def end_row(self) -> int:
        return self.first_row + self.rows


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard. `seconds` are of one thread, by stage; unknown where the output stood there already."""

    shard: Shard
    output_bytes: int
    output_version: str
    output_crc32c: int | None
    computed: bool
    intra_op_threads: int | None = None
    batches: int = 0
    read_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def common_folder(patterns: tuple[str, ...]) -> str:
    """The deepest folder (with its trailing slash) above all patterns' wildcards; "" where they share none."""
    folders = [split_glob(pattern)[0].split("/")[:-1] for pattern in patterns]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "".join(f"{parts[0]}/" for parts in shared)


def relative_stem(uri: str, folder: str) -> str:
    """The input's place below `folder`, without `.parquet`; no segment leaves the output folder or hides in it."""
    relative = uri.removeprefix(folder).removesuffix(".parquet").replace("://", "/").strip("/")
    return "/".join(_safe_segment(segment) for segment in relative.split("/") if segment)


def _safe_segment(segment: str) -> str:
    quoted = quote(segment, safe="=-_.~+,@ ")
    if quoted[0] in "._":
        quoted = f"%{ord(quoted[0]):02X}{quoted[1:]}"
    if len(quoted) <= _SEGMENT_BYTES:
        return quoted
    return f"{quoted[: _SEGMENT_BYTES - 25]}~{hashlib.sha256(segment.encode()).hexdigest()[:24]}"


def output_name(stem: str, source: ObjectRef, first_row: int, rows: int, fingerprint: str) -> str:
    """Sorts in input order, and says what it holds: input and version, row span, and the job that made it."""
    what = f"{source.uri}\t{source.version}\t{first_row}\t{rows}\t{fingerprint}"
    digest = hashlib.sha256(what.encode()).hexdigest()
    return f"{stem}-{first_row:012d}-{first_row + rows:012d}-{fingerprint[:8]}{digest[:12]}.parquet"


@dataclass(frozen=True, slots=True)
class OutputName:
    """What an output's name tells without opening it."""

    stem: str
    first_row: int
    end_row: int
    job: str


def parse_output_name(relative: str) -> OutputName | None:
    """None where no shard of headrace has such a name."""
    match = _OUTPUT_NAME.fullmatch(relative.removesuffix(".parquet")) if relative.endswith(".parquet") else None
    if match is None:
        return None
    return OutputName(match["stem"], int(match["first"]), int(match["end"]), match["job"])


def split_file(
    source: ObjectRef,
    stem: str,
    row_group_rows: list[int],
    row_group_bytes: list[int],
    shard_bytes: int,
    fingerprint: str,
) -> Iterator[Shard]:
    """Shards of whole row groups, each of at most `shard_bytes` compressed bytes unless one row group alone exceeds it.

    A file without rows is one shard without rows, so that its output exists and has the schema.
    """
    first_group = first_row = 0
    while first_group < len(row_group_rows) or first_row == first_group == 0:
        end_group, size = first_group, 0
        while end_group < len(row_group_rows) and (
            end_group == first_group or size + row_group_bytes[end_group] <= shard_bytes
        ):
            size += row_group_bytes[end_group]
            end_group += 1
        rows = sum(row_group_rows[first_group:end_group])
        name = output_name(stem, source, first_row, rows, fingerprint)
        yield Shard(name, source, first_row, rows, (first_group, end_group), size)
        if end_group >= len(row_group_rows):
            return
        first_group, first_row = end_group, first_row + rows
