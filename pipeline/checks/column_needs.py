"""All that keeps columns from feeding the models, and the flags that allow it: a run stops at the first, `plan` goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace.transforms.columns.casts import casts_exactly
from headrace.transforms.columns.column import Column
from headrace.transforms.columns.example_inputs import encoded_features
from headrace.transforms.columns.image_sizes import OWN_SIZE, parse_image_size
from headrace.transforms.columns.inputs import AnyInput, plan_inputs
from headrace.transforms.columns.nesting import FixedLists, Member
from headrace.transforms.columns.plan import ColumnChoice, varying_batch
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.columns.wording import counted, listed
from headrace.transforms.errors import ColumnError, DataError, HeadraceError, NullFeature
from headrace.transforms.models.spec import Signature, TensorSpec

from ..flags.names import quote_name
from ..flags.request import Request
from .column_choices import choose_columns
from .column_links import rules_of
from .input_sample import InputSample
from .inspection import Inspection, inspect_request

# Flags in the order in which they are tried, alone and then together.
_OF_TYPES = (("cast",), ("decode_image",))
_OF_ROWS = (("fill",), ("pad",), ("fill", "pad"))
# Listed in the error; `plan` prints all of them.
_MOST_SHOWN = 20

Flags = tuple[tuple[str, str], ...]
# Flags that are lacking, to the whole command or call with them.
Ready = Callable[[Flags], str]


@dataclass(frozen=True, slots=True)
class Need:
    """Why an input of a model cannot be fed. `tensor` is its name in flags; `flags` (name and value of each) would allow it,
    and are empty where only other columns or other data would.
    """

    tensor: str
    error: DataError
    flags: Flags

    def fields(self) -> dict[str, Any]:
        error = self.error
        fields = {"problem": error.what, "expected": error.expected, "found": error.found, "cure": error.cure}
        return {"tensor": self.tensor, **fields, "flags": [list(flag) for flag in self.flags]}


def column_needs(request: Request, signatures: Sequence[Signature], sample: InputSample) -> tuple[Need, ...]:
    """The needs of all models' inputs, from the first file's schema, a sample of footers, and rows of one row group.
    Behind --preprocess only types are checked: a function may change values in any way.
    """
    tensors: list[_Tensor] = []
    for signature, choice in zip(signatures, choose_columns(request, signatures), strict=True):
        inputs, _ = varying_batch(choice.fed(signature), choice)
        # For encoded inputs, the run names the first column that does not fit.
        encoded = encoded_features(inputs, choice.rules)
        tensors += (_Tensor(sample, signature, inputs, name, choice) for name in inputs if name not in encoded)
    planned = [(tensor, columns) for tensor in tensors if (columns := tensor.columns())]
    if request.preprocess is None:
        sample.count_nulls({column.path[0] for _, columns in planned for column in columns})
        for tensor, columns in planned:
            tensor.check_values(columns)
    return tuple(need for tensor in tensors for need in tensor.found)


class _Tensor:
    """One input of one model. Its rules grow with each need that is discovered; `found` holds these needs."""

    def __init__(
        self,
        sample: InputSample,
        signature: Signature,
        inputs: Mapping[str, TensorSpec],
        name: str,
        choice: ColumnChoice,
    ) -> None:
        self._sample, self._signature, self._choice = sample, signature, choice
        self._name, self._spec, self._rules = name, inputs[name], rules_of(choice.rules, name)
        features = dict(choice.features)
        named = bool(features) or len(inputs) > 1
        self._chosen = {name: features.get(name) or (name,)} if named else {}
        self.found: list[Need] = []

    def columns(self) -> tuple[Column, ...]:
        """The columns that feed it; none where its type is out of reach."""
        try:
            try:
                return self._planned(self._rules).columns
            except DataError as error:
                if not self._allow(error, _OF_TYPES, self._planned, in_rows=False):
                    return ()
                columns = self._planned(self._rules).columns
                self._name_all(columns)
                return columns
        except HeadraceError:  # the model's own fault, at which the run stops
            return ()

    def check_values(self, columns: Sequence[Column]) -> None:
        """Reads rows where footers do not suffice, until no flag helps or no rows are left."""
        stored = [column for column in columns if column.path[0] in self._sample.stored.names]
        bounded = bool(self._rules.cast) and self._spec.dtype not in ("float32", "float64")
        unsure = [column for column in stored if not self._settled_by_footers(column) or bounded]
        if not unsure:
            return
        names = list(dict.fromkeys(column.path[0] for column in self._planned(self._rules).columns))
        try:
            for batch, where, first_row in self._sample.rows(names, unsure):
                if not self._fits(batch, where, first_row):
                    return
        except DataError as error:  # such as a null that Arrow cannot read
            self._note(error, ())

    def _planned(self, rules: ColumnRules) -> AnyInput:
        choice, where = replace(self._choice, rules=rules), self._sample.where
        schema = self._sample.schema(self._signature, choice, self._chosen.get(self._name, ()))
        (model_input,) = plan_inputs(schema, {self._name: self._spec}, self._chosen, rules=rules, where=where).inputs
        return model_input

    def _allow(
        self,
        error: DataError,
        tried: Iterable[tuple[str, ...]],
        works: Callable[[ColumnRules], object],
        *,
        in_rows: bool,
    ) -> bool:
        """Notes the error with the first flags under which `works` raises none; whether there are such. Where there are none,
        of rows what is wrong even with all of them.
        """
        left = error
        for names in tried:
            flags = self._values(names)
            if len(flags) < len(names):
                continue
            rules = _with(self._rules, self._name, flags)
            try:
                works(rules)
            except HeadraceError as still:
                left = still if in_rows and isinstance(still, DataError) else left
                continue
            self._rules = rules
            self._note(error, flags)
            return True
        self._note(left, ())
        return False

    def _note(self, error: DataError, flags: Flags) -> None:
        tensor = f"{self._choice.name}.{self._name}" if self._choice.name else self._name
        self.found.append(Need(tensor, error, flags))

    def _values(self, names: Iterable[str]) -> Flags:
        """The values of --fill and --pad are placeholders. Skips flags that were already given or cannot have a value."""
        rules, shape, dtype = self._rules, self._spec.shape or (), self._spec.dtype
        empty = {"string": "", "bool": "false"}.get(dtype, "0")
        values = {"cast": "", "fill": empty, "pad": empty, "decode_image": _image_size(shape[1:3])}
        return tuple(
            (name, value) for name in names if (value := values[name]) is not None and not getattr(rules, name)
        )

    def _name_all(self, columns: Sequence[Column]) -> None:
        """Where several columns are packed into the tensor, a type error names the first that does not fit."""
        wanted, need = self._spec.dtype, self.found[-1]
        wrong = [
            column.name
            for column in columns
            if not column.leaf.exact or (column.leaf.dtype != wanted and not casts_exactly(column.leaf.dtype, wanted))
        ]
        if len(wrong) > 1 and need.flags[0][0] == "cast":
            what, kinds = need.error, dict.fromkeys(str(column.type) for column in columns if column.name in wrong)
            found = f"{listed('columns', map(repr, wrong))} of {', '.join(kinds)}"
            error = ColumnError(what.what, expected=what.expected, found=found, cure=what.cure)
            self.found[-1] = replace(need, error=error)

    def _settled_by_footers(self, column: Column) -> bool:
        """Whether reading rows is unnecessary: footers record all nulls, and no lists may differ."""
        counts = self._sample.nulls_of(column.path)
        flat = all(isinstance(level, Member) for level in column.levels)
        fixed = all(isinstance(level, FixedLists | Member) for level in column.levels)
        if not counts.known or not fixed or (counts.nulls and not flat):
            return False
        if counts.nulls and not rules_of(self._choice.rules, self._name).fill:
            error = NullFeature(
                f"Column '{column.name}' holds nulls",
                expected="a value in every row: it is a feature of the model",
                found=f"{counted(counts.nulls, 'null')} in {counts.files_with} of {counted(counts.files, 'file')} looked at",
                cure="Drop rows without an image, or leave them out with --on_error=dead_letter"
                if column.rule.image is not None
                else f"Say --fill {self._name}=VALUE, or leave these rows out with --on_error=dead_letter",
            )
            if self._rules.fill:  # for another column of this tensor
                self._note(error, tuple(("fill", value) for _, value in self._rules.fill))
            else:
                self._allow(error, [("fill",)], self._planned, in_rows=True)
        return True

    def _fits(self, batch: pa.RecordBatch, where: str, first_row: int) -> bool:
        """Whether flags, including those found to be necessary, make a tensor of the rows."""

        def works(rules: ColumnRules) -> None:
            planned = self._planned(rules)
            most = 1 if rules.own_sizes([self._name]) else max(1, batch.num_rows)
            for start in range(0, batch.num_rows, most):
                planned.tensors(batch.slice(start, most), where, first_row + start)

        try:
            works(self._rules)
        except DataError as error:
            return self._allow(error, _OF_ROWS, works, in_rows=True)
        return True


def _image_size(inner: tuple[int | None, ...]) -> str | None:
    """The value of --decode_image for a tensor of this height and width. None if only one of them is fixed."""
    if inner == (None, None):
        return OWN_SIZE
    return None if len(inner) < 2 or None in inner else "x".join(map(str, inner))


def _with(rules: ColumnRules, tensor: str, flags: Flags) -> ColumnRules:
    for name, value in flags:
        given: Any = (*getattr(rules, name), tensor if name == "cast" else (tensor, value))
        if name == "decode_image":
            given = (*rules.decode_image, (tensor, parse_image_size(tensor, value)))
        grown: dict[str, Any] = {name: given}
        rules = replace(rules, **grown)
    return rules


def refusal(needs: Sequence[Need], first: DataError | None) -> DataError:
    """One error for all of them; `first` is what the run would stop at, which may be another than theirs."""
    errors = [need.error for need in needs]
    if first is not None and first.what not in (error.what for error in errors):
        errors.insert(0, first)
    if len(errors) == 1:
        return _with_flags(errors[0], flags_of_needs(needs))
    problems = [f"{error.what.rstrip('.')}" + (f" ({error.found})" if error.found else "") for error in errors]
    return ColumnError(
        f"The input does not fit the model in {len(errors):,} ways",
        expected="columns that feed every input of the model",
        found="; ".join(problems[:_MOST_SHOWN])
        + (f"; and {len(problems) - _MOST_SHOWN:,} more" * (len(problems) > _MOST_SHOWN)),
        cure=" ".join(dict.fromkeys(f"{error.cure.rstrip('.')}." for error in errors if error.cure))
        if len(errors) > len(needs) or not all(need.flags for need in needs)
        else f"Say {' '.join(f'--{name}={value}' for name, value in flags_of_needs(needs))}",
    )


def _with_flags(error: DataError, flags: Flags) -> DataError:
    """Its fix with these flags, where it names none of them."""
    if not flags or any(f"--{name}" in error.cure for name, _ in flags):
        return error
    cure = f"{error.cure.rstrip('.')}, or say {' '.join(f'--{name}={value}' for name, value in flags)}"
    return type(error)(error.what, expected=error.expected, found=error.found, cure=cure)


def flags_of_needs(needs: Iterable[Need]) -> Flags:
    """Each flag once, with its value as the command line has it: one list of all casts, a name and a value of each other."""
    found: dict[tuple[str, str], str] = {(name, need.tensor): value for need in needs for name, value in need.flags}
    casts = [quote_name(tensor) for name, tensor in found if name == "cast"]
    others = [(name, f"{quote_name(tensor)}={value}") for (name, tensor), value in found.items() if name != "cast"]
    return ((("cast", ",".join(casts)),) if casts else ()) + tuple(sorted(others))


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
