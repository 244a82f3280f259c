"""Inputs of serialized tf.train.Example and SequenceExample that are encoded from columns, and whether a column holds such
messages itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ColumnError, UnsupportedModel
from ..models.spec import ExampleFeature, TensorSpec
from .column import Column
from .example_wire import encode_examples, encode_sequences
from .rules import ColumnRules, TensorRule, by_tensor
from .struct_paths import path_names, path_of
from .values import Bytes
from .wording import described, listed, nearest, within

if TYPE_CHECKING:
    import tensorflow as tf

SEQUENCE = "tf.train.SequenceExample"
_SAMPLED_ROWS = 16
_SHOWN_BYTES = 40


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """How one input is encoded: each of `columns` is a feature of the row's Example. `names` are the features' as tensors."""

    spec: TensorSpec
    features: tuple[ExampleFeature, ...]
    names: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def mapping(self) -> dict[str, tuple[str, ...]]:
        return {name: (column.name,) for name, column in zip(self.names, self.columns, strict=True)}

    @property
    def row_nbytes(self) -> int | None:
        """Bytes that one row's Example takes at most; None where strings or lists vary."""
        total = 0
        for feature in self.features:
            if feature.varies or feature.dtype == "string":
                return None
            values = math.prod(size or 0 for size in feature.shape)
            total += 16 + len(feature.name) + values * (4 if feature.dtype == "float32" else 10)
        return total

    def tensors(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[str, tf.Tensor]:
        """Strings, of one dimension or as many of one as the tensor has."""
        rows, read = batch.num_rows, list(zip(self.features, self.columns, strict=True))
        features = [
            (feature.name, feature.dtype, column.row_values(batch, where, first_row))
            for feature, column in read
            if not feature.steps
        ]
        if self.spec.example is not None and self.spec.example.message == SEQUENCE:
            lists = [
                (feature.name, feature.dtype, *column.step_values(batch, where, first_row))
                for feature, column in read
                if feature.steps
            ]
            encoded = encode_sequences(rows, features, lists)
        else:
            encoded = encode_examples(rows, features)
        shape = (rows, *(1 for _ in (self.spec.shape or (None,))[1:]))
        return {self.spec.name: Bytes("string").tensor(encoded, shape)}


def encoded_features(inputs: Mapping[str, TensorSpec], rules: ColumnRules) -> dict[str, dict[str, ExampleFeature]]:
    """For each input to encode, its features by their names as tensors: their keys, or `TENSOR.KEY` where several inputs have
    that key. Raises `ColumnError` where an input cannot be encoded.
    """
    chosen = {
        tensor: _chosen(inputs[tensor], keys)
        for tensor, keys in by_tensor("--tf_example", rules.tf_example, inputs).items()
    }
    known = Counter(name for name in inputs if name not in chosen)
    known.update(feature.name for some in chosen.values() for feature in some)
    return {
        tensor: {feature.name if known[feature.name] == 1 else f"{tensor}.{feature.name}": feature for feature in some}
        for tensor, some in chosen.items()
    }


def row_inputs(inputs: Mapping[str, TensorSpec], rules: ColumnRules) -> dict[str, TensorSpec]:
    """The tensors that columns feed, by their names in flags: inputs, and the features of encoded inputs in their place."""
    encoded = encoded_features(inputs, rules)
    found: dict[str, TensorSpec] = {}
    for tensor, spec in inputs.items():
        if tensor in encoded:
            found |= {
                name: TensorSpec(name, feature.dtype, (None, *feature.shape))
                for name, feature in encoded[tensor].items()
            }
        else:
            found[tensor] = spec
    return found


def feature_rule(rule: TensorRule, feature: ExampleFeature) -> TensorRule:
    """The rule, plus what the parser accepts. Raises `ColumnError` for flags that mean nothing here."""
    for flag, given in (("--decode_image", rule.image), ("--pad", rule.pad if feature.varies else None)):
        if given is not None:
            raise ColumnError(
                f"{flag} names the feature '{rule.tensor}' of serialized examples, which needs none",
                expected=f"a feature of other values than {feature}",
                cure=f"Leave {flag} for '{rule.tensor}' out.",
            )
    optional = not feature.required and rule.fill is None
    if feature.steps:
        return replace(rule, optional=optional, lists=feature.lists)
    if not feature.varies:
        return replace(rule, optional=optional)
    return replace(rule, optional=optional, ragged=True, pad=b"" if feature.dtype == "string" else 0)


def check_feature_column(
    schema: pa.Schema, tensor: str, feature: ExampleFeature, spec: TensorSpec, names: Sequence[str], where: str
) -> None:
    """Raises `ColumnError` where several columns are named for the feature, or an optional feature's column is missing."""
    if len(names) > 1:
        raise ColumnError(
            f"Several columns are named for the feature '{spec.name}' of '{tensor}'",
            expected="one column",
            found=", ".join(names),
            cure="Put the values into one column of lists.",
        )
    if not feature.required and path_of(schema, names[0].strip()) is None:
        raise ColumnError(
            f"There is no column '{names[0]}'{within(where)} for the feature '{spec.name}' of '{tensor}'",
            expected=described(spec),
            found=listed("columns", schema.names),
            cure=f"{nearest(names[0], path_names(schema))} Say --feature {spec.name}=COLUMN; or, to do without it, name the "
            "features to encode in --tf_example.".strip(),
        )


def _chosen(spec: TensorSpec, keys: Sequence[str]) -> tuple[ExampleFeature, ...]:
    found = spec.example
    if found is None:
        raise ColumnError(
            f"--tf_example names '{spec.name}', which no parser of the model takes serialized tf.train.Example from",
            expected="an input whose strings the model's graph parses",
            found=described(spec),
            cure="Leave --tf_example out.",
        )
    if found.problem:
        raise UnsupportedModel(
            f"Columns cannot be encoded for the input '{spec.name}'",
            expected=f"{found.message} of features that the graph names",
            found=f"{found}: {found.problem}",
            cure="Encode the rows with --preprocess=MODULE:FUNCTION, and name its column with --feature.",
        )
    known = {feature.name: feature for feature in found.features}
    for key in keys:
        if key not in known:
            raise ColumnError(
                f"--tf_example names a feature '{key}' that the model does not parse from '{spec.name}'",
                expected="one of its features",
                found=listed("features", known),
                cure=nearest(key, known) or "Name some of these instead.",
            )
    needed = [feature.name for feature in found.features if feature.required and keys and feature.name not in keys]
    if needed:
        raise ColumnError(
            f"--tf_example leaves out the feature '{needed[0]}' of '{spec.name}', for which the model has no default",
            expected=listed("features", [*keys, *needed]),
            found=listed("features", keys),
            cure=f"Add {needed[0]} to it.",
        )
    return tuple(feature for feature in found.features if not keys or feature.name in keys)


def example_cure(spec: TensorSpec) -> str:
    """An alternative where no column fits an input that takes serialized examples; "" for any other input."""
    if spec.example is None or spec.example.problem:
        return ""
    return f" To encode columns as {spec.example.message}, say --tf_example={spec.name}."


def check_held_examples(spec: TensorSpec, column: Column, batch: pa.RecordBatch, where: str) -> None:
    """Raises `ColumnError` where most values in the batch's first rows are not messages that the input takes. A few among
    messages are bad rows, which the job names or puts into dead letters.
    """
    array: Any = batch.column(column.path[0]).slice(0, _SAMPLED_ROWS)
    for member in column.path[1:]:
        array = pc.struct_field(array, [array.type.get_field_index(member)])
    values = [(row, value) for row, value in enumerate(array.to_pylist()) if value is not None]
    others = [
        (row, value)
        for row, value in values
        if not _is_message(value.encode() if isinstance(value, str) else value, spec)
    ]
    if 2 * len(others) > len(values):
        row, value = others[0]
        raise ColumnError(
            f"Column '{column.name}'{within(where)} holds no serialized messages for the input '{spec.name}'",
            expected=described(spec),
            found=f"{value[:_SHOWN_BYTES]!r} in row {row}",
            cure=f"If it feeds the input all the same, say --feature={spec.name}={column.name}." + example_cure(spec),
        )


def _is_message(data: bytes, spec: TensorSpec) -> bool:
    """Any text may be a message of unknown fields: at least one feature must be present."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    assert spec.example is not None
    if not data:
        return not any(feature.required for feature in spec.example.features)
    try:
        if spec.example.message == SEQUENCE:
            sequence = tf.train.SequenceExample.FromString(data)
            return bool(sequence.context.feature or sequence.feature_lists.feature_list)
        return bool(tf.train.Example.FromString(data).features.feature)
    except DecodeError:
        return False
