"""All that keeps columns from feeding the models, where the first of it refused the job already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.transforms.errors import ColumnError, DataError, HeadraceError

from ..flags.request import Request
from .column_needs import Flags, Need, column_needs, flags_of_needs, refusal
from .input_sample import InputSample
from .inspection import Inspection, inspect_request

# Flags that are lacking, to the whole command or call with them.
Ready = Callable[[Flags], str]


def inspected_needs(request: Request, inspection: Inspection) -> tuple[Need, ...]:
    """None where another file is at fault: the job's own error is then the one to show."""
    if inspection.inputs is None or inspection.first is None:
        return ()
    signatures = [spec.signatures[name] for _, spec, name in inspection.models]
    table = inspection.inputs.table
    stored = inspection.first.schema if table is None else table.columns()
    try:
        return column_needs(request, signatures, InputSample(request, inspection.inputs, stored))
    except HeadraceError:
        return ()


def whole_refusal(request: Request, error: ColumnError, ready: Ready | None = None) -> DataError:
    """One error for everything that the job would stop at, one after the other, beginning with `error`."""
    needs = inspected_needs(request, inspect_request(request))
    refused = refusal(needs, error)
    command = command_of_needs(needs, error, ready) if ready and len(needs) > 1 else None
    if command is None:
        return refused
    return type(refused)(refused.what, expected=refused.expected, found=refused.found, cure=f"Call {command}")


def command_of_needs(needs: Sequence[Need], error: DataError | None, ready: Ready) -> str | None:
    """None where flags alone do not help: `error` is another than the needs', or one of these has no flag."""
    another = error is not None and error.what not in {need.error.what for need in needs}
    return ready(flags_of_needs(needs)) if needs and not another and all(need.flags for need in needs) else None
