"""The result of `headrace.run`: numbers of the run, and its predictions as tables."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.transforms.jobs.job import SUCCESS, stored_object
from headrace.transforms.output.manifest import manifest_outputs
from headrace.transforms.storage import StoreOptions, open_store
from headrace.transforms.storage.store import public_uri

if TYPE_CHECKING:
    import pandas
    import polars

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class JobResult:
    """A finished job, or one that was only submitted.

    `rows` are all that the output accounts for, `bad_rows` those of them in dead letters, `filtered_rows` those that `where`
    leaves out, `computed_rows` those that this run computed. Each is None where it is not known: for a submitted job, and
    where the runner does not report it. `report` is the URI of the HTML report, or None. `text` is the summary that the
    command prints, `document` what `--json` prints.
    """

    output: str
    rows: int | None
    bad_rows: int | None
    computed_rows: int | None
    report: str | None
    text: str
    document: dict[str, Any] = field(repr=False)
    storage: StoreOptions = field(default=StoreOptions(), repr=False)
    filtered_rows: int | None = None

    @property
    def manifest(self) -> list[str]:
        """URIs of the manifest's files."""
        store = open_store(self.output, self.storage)
        mark = stored_object(store, store.stat(f"{self.output}/{SUCCESS}"))
        return [f"{self.output}/{name}" for name in mark["manifest"]]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The predictions, file by file in the order of their inputs; memory holds one row group at a time."""
        import pyarrow.parquet as pq

        store = open_store(self.output, self.storage)
        for name in manifest_outputs(store, map(store.stat, self.manifest)):
            with store.open_arrow(store.stat(f"{self.output}/{name}")) as file:
                yield from pq.ParquetFile(file).iter_batches()

    def to_arrow(self) -> pa.Table:
        """All predictions in memory."""
        batches = list(self.batches())
        return pa.Table.from_batches(batches) if batches else pa.table({})

    def to_pandas(self) -> pandas.DataFrame:
        return self.to_arrow().to_pandas()

    def to_polars(self) -> polars.DataFrame:
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def head(self, rows: int = _SHOWN_ROWS) -> pa.Table:
        """The first rows; reads no more than the first files."""
        found: list[pa.RecordBatch] = []
        missing = rows
        for batch in self.batches():
            found.append(batch.slice(0, missing))
            missing -= found[-1].num_rows
            if not missing:
                break
        return pa.Table.from_batches(found) if found else pa.table({})

    def _repr_html_(self) -> str:
        """The summary, the first rows, and a link to the report, for a notebook."""
        first = self.head()
        names = "".join(f"<th>{html.escape(name)}</th>" for name in first.column_names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_short(value))}</td>" for value in row.values()) + "</tr>"
            for row in first.to_pylist()
        )
        link = ""
        if self.report is not None:
            link = f'<p><a href="{html.escape(_as_link(self.report), quote=True)}">Report</a></p>'
        return f"<pre>{html.escape(self.text)}</pre><table><tr>{names}</tr>{rows}</table>{link}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _as_link(uri: str) -> str:
    """A browser opens a bucket's page, not `gs://`."""
    if uri.startswith("gs://"):
        return f"https://storage.cloud.google.com/{uri.removeprefix('gs://')}"
    return public_uri(uri if "://" in uri else f"file://{uri}")
