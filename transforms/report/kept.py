"""A report kept within a report: the next run compares itself with it. It is read as data, and never run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..bounded_json import parse_json
from ..errors import InvalidRequest
from ..printable import printable_json
from ..shards.column_statistics import Column
from ..storage import ObjectRef, Store

FORM = 1
MOST_BYTES = 4 << 20
_KEPT = re.compile(rb'<script type="application/json" id="headrace-report">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Kept:
    """`manifest` are the names of the run's parts, `written` an ISO 8601 time, `model` the digests of its models.

    `rows` are its input's, `bad_rows` those of them in dead letters.
    """

    manifest: tuple[str, ...]
    written: str
    model: str
    rows: int
    bad_rows: int
    rows_per_second: float | None
    columns: tuple[Column, ...]

    def dump(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("written", "model", "rows", "bad_rows", "rows_per_second")}
        columns = [column.dump() for column in self.columns]
        return {"headrace_report": FORM, "manifest": list(self.manifest), **fields, "columns": columns}


def embedded(data: Any) -> str:
    """JSON that cannot end the element that contains it."""
    return printable_json(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def read_report(store: Store, ref: ObjectRef) -> Kept:
    """Raises `InvalidRequest` where the object is not a report of headrace."""
    try:
        if ref.size > MOST_BYTES:
            raise ValueError(f"{ref.size:,} bytes")
        found = _KEPT.search(store.read(ref))
        if found is None:
            raise ValueError("a page without a report's data, or no page")
        fields = parse_json(found[1], most_bytes=MOST_BYTES)
        if fields["headrace_report"] != FORM:
            raise ValueError(f"a report of form {fields['headrace_report']}")
        rate = fields["rows_per_second"]
        return Kept(
            tuple(str(name) for name in fields["manifest"]),
            str(fields["written"]),
            str(fields["model"]),
            int(fields["rows"]),
            int(fields["bad_rows"]),
            None if rate is None else float(rate),
            tuple(Column.load(column) for column in fields["columns"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            f"{ref.name} is not a report of headrace",
            expected="a page that an earlier run wrote",
            found=str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
            cure="Name another place with --report or --compare; headrace replaces nothing but its own reports",
        ) from error
