"""Compares a model's signature with columns, tensor by tensor, for display: preflight stops at the first mismatch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace.transforms.columns.composite_inputs import CompositeInput
from headrace.transforms.columns.example_inputs import ExampleInput, encoded_features, row_inputs
from headrace.transforms.columns.inputs import AnyInput, plan_inputs, plan_outputs
from headrace.transforms.columns.plan import ColumnChoice, of_whole_batch, selected, varying_batch
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.columns.struct_paths import known_name, member_type, path_of
from headrace.transforms.columns.top_k import plan_best_classes
from headrace.transforms.columns.wording import nearest
from headrace.transforms.errors import HeadraceError
from headrace.transforms.models.spec import Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class Link:
    """A link from columns to a tensor or back. `kind` is "feature", "prediction", "kept", "unused", or "aside" for a tensor
    without a column: a constant, or an output that becomes no column, or whose dimensions the first row shows.

    `model` is its name, "" for an only model. `columns` are names and types; the type is None for a missing column. `how` is
    "" where values stay as they are, else "widened", "cast", "decoded", "packed", "encoded", or why a tensor has no column.
    `problem` says why it does not fit, "" where it does, and `cure` how to fix it.
    """

    kind: str
    model: str
    columns: tuple[tuple[str, pa.DataType | None], ...]
    tensor: TensorSpec | None
    how: str = ""
    problem: str = ""
    cure: str = ""

    def fields(self) -> dict[str, Any]:
        tensor = self.tensor
        kind = {"kind": tensor.composite.kind} if tensor is not None and tensor.composite is not None else {}
        shape = None if tensor is None or tensor.shape is None else list(tensor.shape)
        return {
            "kind": self.kind,
            "model": self.model,
            "columns": [{"name": name, "type": None if kind is None else str(kind)} for name, kind in self.columns],
            "tensor": None if tensor is None else {"name": tensor.name, "dtype": tensor.dtype, "shape": shape} | kind,
            "how": self.how,
            "problem": self.problem,
            "cure": self.cure,
        }


def link_columns(
    schema: pa.Schema,
    models: Sequence[tuple[Signature, ColumnChoice]],
    keep: Sequence[str] | None,
    partition_columns: Collection[str] = (),
) -> list[Link]:
    """Every input and output of every model, then the columns that are kept, then those that nothing reads."""
    links = [link for signature, choice in models for link in _of_model(schema, signature, choice)]
    features = {name for link in links if link.kind == "feature" for name, kind in link.columns if kind is not None}
    aside = features.union(partition_columns)
    kept = list(keep) if keep is not None else [name for name in schema.names if name not in aside]
    known = set(schema.names)
    kept = [known_name(name, known) for name in kept]
    for name in kept:
        problem = ("", "")
        if name not in known:
            problem = f"--keep names no column of the input: {name!r}", nearest(name, schema.names)
        links.append(Link("kept", "", ((name, _type(schema, name)),), None, "", *problem))
    read = {(path_of(schema, name) or (name,))[0] for name in features}.union(kept)
    links += [Link("unused", "", ((field.name, field.type),), None) for field in schema if field.name not in read]
    return links


def _of_model(schema: pa.Schema, signature: Signature, choice: ColumnChoice) -> Iterator[Link]:
    constants = {name: spec for name, spec in signature.inputs.items() if name in dict(choice.constants)}
    inputs, outputs = varying_batch(choice.fed(signature), choice)
    features, predictions = dict(choice.features), dict(choice.predictions)
    best = {asked.output: asked for asked in choice.top_k}
    fed = row_inputs(inputs, choice.rules)
    for tensor in [*features, *predictions]:
        if tensor not in fed and tensor not in outputs:
            kind, known = ("feature", fed) if tensor in features else ("prediction", outputs)
            problem = f"The model has no {'input' if tensor in features else 'output'} {tensor!r}"
            yield Link(kind, choice.name, (), TensorSpec(tensor, "", ()), "", problem, nearest(tensor, known))
    encoded = encoded_features(inputs, choice.rules)
    try:
        plan = plan_inputs(schema, inputs, features, rules=choice.rules)
        planned = {model_input.spec.name: model_input for model_input in plan.inputs}
    except HeadraceError:  # then plan each input alone
        planned = {}
    for name, spec in inputs.items():
        if name in planned:
            yield _fed(planned[name], choice.name)
            continue
        tensors = encoded.get(name) or (name,)
        wanted = {tensor: features.get(tensor) or (tensor,) for tensor in tensors}
        chosen, rules = wanted if features or len(inputs) > 1 else {}, rules_of(choice.rules, name, *tensors)
        try:
            (model_input,) = plan_inputs(schema, {name: spec}, chosen, rules=rules).inputs
        except HeadraceError as error:
            columns = tuple((column, _type(schema, column)) for some in wanted.values() for column in some)
            yield Link("feature", choice.name, columns, spec, "", error.what, error.cure)
            continue
        yield _fed(model_input, choice.name)
    for name, spec in constants.items():
        yield Link("aside", choice.name, (), spec, f"constant {dict(choice.constants)[name]}")
    try:
        some = selected(outputs, choice)
    except HeadraceError as error:
        yield Link("prediction", choice.name, (), TensorSpec("--outputs", "", ()), "", error.what, error.cure)
        some = outputs
    for name, spec in outputs.items():
        if name not in some and name in best:
            continue
        if name not in some:
            why = "one value for the whole batch" if of_whole_batch(spec) else "left out"
            yield Link("aside", choice.name, (), spec, why)
            continue
        if spec.shape is None:
            yield Link("aside", choice.name, (), spec, "of the first row")
            continue
        column = predictions.get(name) or (f"{choice.name}_{name}" if choice.name else name)
        try:
            (out,) = plan_outputs({name: spec}, {name: column}, rules=choice.rules).outputs
        except HeadraceError as error:
            yield Link("prediction", choice.name, ((column, None),), spec, "", error.what, error.cure)
            continue
        yield Link("prediction", choice.name, ((column, out.field.type),), spec)
    for name, asked in best.items():
        column = asked.column or predictions.get(name) or (f"{choice.name}_{name}" if choice.name else name)
        try:
            fields = plan_best_classes(outputs, replace(asked, column=column)).fields
        except HeadraceError as error:
            yield Link("prediction", choice.name, (), outputs.get(name), "", error.what, error.cure)
            continue
        yield Link("prediction", choice.name, tuple((field.name, field.type) for field in fields), outputs[name])


def _fed(model_input: AnyInput, model: str) -> Link:
    columns = tuple((column.name, member_type(column.type, column.path)) for column in model_input.columns)
    return Link("feature", model, columns, model_input.spec, _how(model_input))


def rules_of(rules: ColumnRules, *tensors: str) -> ColumnRules:
    of_pairs: dict[str, Any] = {
        flag: tuple(pair for pair in getattr(rules, flag) if pair[0] in tensors)
        for flag in ("pad", "fill", "decode_image", "tf_example")
    }
    return replace(rules, cast=tuple(name for name in rules.cast if name in tensors), **of_pairs)


def _how(model_input: AnyInput) -> str:
    if isinstance(model_input, ExampleInput):
        return "encoded"
    if isinstance(model_input, CompositeInput) and len(model_input.columns) > 1:
        return "packed"
    if any(column.rule.image is not None for column in model_input.columns):
        return "decoded"
    if any(column.leaf.dtype != model_input.spec.dtype or not column.leaf.exact for column in model_input.columns):
        return "cast" if any(column.rule.cast for column in model_input.columns) else "widened"
    return "packed" if len(model_input.columns) > 1 else ""


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    path = path_of(schema, name)
    if path is None or len(schema.get_all_field_indices(path[0])) != 1:
        return None
    return member_type(schema.field(path[0]).type, path)
