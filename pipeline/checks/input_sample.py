"""Some of an input's files, without reading them whole: the nulls that their footers record, and rows of one row group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from headrace.transforms.columns.column import Column
from headrace.transforms.columns.plan import ColumnChoice
from headrace.transforms.jobs.input_files import PassedOver, Survey, each_input, expand_lists
from headrace.transforms.jobs.user_functions import find_function
from headrace.transforms.models.spec import Signature
from headrace.transforms.parquet.footer import ParsedFooter, footer_of
from headrace.transforms.parquet.reader import read_batches
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import ObjectRef, open_store

from ..flags.request import Request
from .preflight import with_partitions

# So many files, spread evenly, and so many row groups of each; fewer of these where they have very many columns.
SAMPLED_FILES, SAMPLED_GROUPS = 16, 16
_MOST_CHUNKS = 40_000
# At most so many bytes of one row group are in memory.
_READ_BYTES, _READ_ROWS = 32 << 20, 1024


@dataclass(frozen=True, slots=True)
class NullCount:
    """Nulls that the footers of `files` record; `files_with` of them have some. `known`: whether all of them record nulls."""

    nulls: int
    files_with: int
    files: int
    known: bool


@dataclass(frozen=True, slots=True)
class _File:
    """`leaves` are numbers and paths of the leaves of each column; `nulls` is, by row group, nulls of each leaf."""

    ref: ObjectRef
    footer: ParsedFooter
    leaves: dict[str, list[tuple[int, str]]]
    nulls: dict[int, dict[int, int]]


class InputSample:
    """`stored` is the schema of the first file or of the table. `where` names the place that is searched for columns."""

    def __init__(self, request: Request, inputs: Survey, stored: pa.Schema) -> None:
        self.stored = stored
        self._request, self._inputs, self._files = request, inputs, list[_File]()
        self._function = None if request.preprocess is None else find_function(request.preprocess, "--preprocess")
        self.where = request.preprocess or inputs.first.uri
        self._schema: pa.Schema | None = None

    def schema(self, signature: Signature, choice: ColumnChoice, columns: Sequence[str]) -> pa.Schema:
        """What features choose from. Casting may turn partition `columns` into numbers."""
        if self._schema is not None and not set(columns) & set(self._inputs.partitions):
            return self._schema
        schema, _ = with_partitions(self._request, self._inputs, self.stored, [(signature, choice)])
        if self._function is not None:
            schema = self._function.applied(schema).output_schema
        self._schema = self._schema or schema
        return schema

    def count_nulls(self, columns: Iterable[str]) -> None:
        """Reads the footers of the sample for these columns."""
        names, storage = frozenset(columns), self._request.storage
        step = -(-self._inputs.files // SAMPLED_FILES)
        self._store = open_store(self._inputs.first.uri, storage)
        left = _MOST_CHUNKS
        for ref in islice(self._listed(), 0, None, step):
            footer = footer_of(self._store, ref)
            leaves: dict[str, list[tuple[int, str]]] = {}
            for i, (name, _) in enumerate(footer.columns.leaves):
                if name in names:
                    leaves.setdefault(name, []).append((i, footer.metadata.schema.column(i).path))
            wanted = {i for some in leaves.values() for i, _ in some}
            groups = footer.metadata.num_row_groups
            most = min(SAMPLED_GROUPS, max(1, left // (len(wanted) or 1)))
            sampled = range(0, groups, -(-groups // most) or 1)
            left -= len(sampled) * len(wanted)
            nulls = {group: footer.null_counts(group, wanted) for group in sampled}
            self._files.append(_File(ref, footer, leaves, nulls))

    def _listed(self) -> Iterator[ObjectRef]:
        """For a table, only files without deleted rows: footers count the nulls of deleted rows too."""
        storage, table = self._request.storage, self._inputs.table
        if table is not None:
            return (ref for ref in table.refs() if not len(table.deleted(ref.uri)))
        return each_input(expand_lists(self._request.inputs, storage), storage, PassedOver())

    def nulls_of(self, path: Sequence[str]) -> NullCount:
        """The statistics of the column or struct member at `path`."""
        nulls = with_some = 0
        known = True
        for file in self._files:
            leaves = _leaves(file, path)
            here = [[counts.get(leaf) for leaf in leaves] for counts in file.nulls.values()]
            known &= bool(leaves) and not any(None in counts for counts in here)
            found = sum(count or 0 for counts in here for count in counts)
            nulls, with_some = nulls + found, with_some + bool(found)
        return NullCount(nulls, with_some, len(self._files), known)

    def rows(self, names: Sequence[str], unsure: Iterable[Column]) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        """These columns' rows of one row group, with the file and the row at which a batch begins: of one with nulls of the
        `unsure` columns, else of the first.
        """
        paths = [column.path for column in unsure]
        for wanted_nulls in (True, False):
            for file in self._files:
                if not set(names) <= set(file.footer.columns.schema.names):
                    continue
                leaves = [leaf for path in paths for leaf in _leaves(file, path)]
                for group, counts in file.nulls.items():
                    some = any(counts.get(leaf) for leaf in leaves)
                    if file.footer.metadata.row_group(group).num_rows and (some or not wanted_nulls):
                        yield from self._read(file, group, names)
                        return

    def _read(self, file: _File, group: int, names: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        sizes = [file.footer.metadata.row_group(i).num_rows for i in range(group + 1)]
        row, nbytes = sum(sizes[:-1]), 0
        shard = Shard("", file.ref, row, sizes[-1], (group, group + 1), file.ref.size)
        for batch in read_batches(self._store, shard, names, _READ_ROWS):
            yield batch, file.ref.uri, row
            row, nbytes = row + batch.num_rows, nbytes + batch.nbytes
            if nbytes > _READ_BYTES:
                return


def _leaves(file: _File, path: Sequence[str]) -> list[int]:
    name = ".".join(path)
    return [leaf for leaf, at in file.leaves.get(path[0], ()) if at == name or at.startswith(f"{name}.")]
