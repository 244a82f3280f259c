"""What a request says about each model's columns, before any schema is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from headrace.transforms.columns.example_inputs import row_inputs
from headrace.transforms.columns.inputs import ColumnRules
from headrace.transforms.columns.plan import ColumnChoice
from headrace.transforms.columns.struct_paths import known_name
from headrace.transforms.columns.top_k import TopK, read_labels
from headrace.transforms.errors import ColumnError
from headrace.transforms.models.spec import Signature

from ..flags.request import Request

Value = TypeVar("Value")


def choose_columns(request: Request, signatures: Sequence[Signature]) -> list[ColumnChoice]:
    """What the request says about each model's columns: `NAME.TENSOR` means that model, `TENSOR` every other.

    Raises `ColumnError` where several models are requested and none has such a tensor. Planning checks a single model.
    """
    names = [model.name for model in request.models]
    labels = {uri: read_labels(uri, request.storage) for _, uri in request.top_k.values() if uri}
    tensors, outputs = (
        set().union(*(getattr(signature, what) for signature in signatures)) for what in ("inputs", "outputs")
    )

    def of(name: str, given: Mapping[str, Value], flag: str, own: Iterable[str], every: set[str]) -> dict[str, Value]:
        general: dict[str, Value] = {}
        specific: dict[str, Value] = {}
        for written, value in given.items():
            key = written if written in every else known_name(written, every)
            model, dot, tensor = key.partition(".")
            if dot and model and model in names:
                specific |= {tensor: value} if model == name else {}
            elif len(names) == 1 or key in own:
                general[key] = value
            elif key not in every:
                raise ColumnError(
                    f"{flag} names {key!r}, which no model has",
                    expected=f"one of {', '.join(sorted(every))}, or NAME.TENSOR of one model",
                    found=key,
                )
        return general | specific

    encoded = [
        ColumnRules(tf_example=_sorted(of(name, request.tf_example, "--tf_example", signature.inputs, tensors)))
        for name, signature in zip(names, signatures, strict=True)
    ]
    rows = [row_inputs(signature.inputs, some) for signature, some in zip(signatures, encoded, strict=True)]
    inputs = set().union(*rows)

    def choice(name: str, signature: Signature, own: Iterable[str], encoding: ColumnRules) -> ColumnChoice:
        features = of(name, request.features, "--feature", own, inputs)
        rules: dict[str, Any] = {
            flag: _sorted(of(name, getattr(request, flag), f"--{flag}", own, inputs))
            for flag in ("fill", "pad", "decode_image")
        }
        rules["ignore_exif"] = request.ignore_exif and bool(rules["decode_image"])
        named = of(name, every_input(request.cast, names, own, name), "--cast", own, inputs)
        covered = {"*", f"{name}.*"} & request.cast.keys()
        cast = tuple(sorted(named.keys() - (dict(rules["decode_image"]) if covered else {})))
        predictions = of(name, request.predictions, "--prediction", signature.outputs, outputs)
        asked = dict.fromkeys(request.outputs or (), True)
        some = tuple(of(name, asked, "--outputs", signature.outputs, outputs))
        top_k = of(name, request.top_k, "--top_k", signature.outputs, outputs)
        constants = of(name, request.constants, "--constant", signature.inputs, tensors)
        return ColumnChoice(
            name,
            tuple(features.items()),
            tuple(predictions.items()),
            replace(encoding, cast=cast, prediction_type=request.prediction_type, **rules),
            some or None,
            _sorted(constants),
            tuple(TopK(output, k, labels[uri] if uri else None) for output, (k, uri) in sorted(top_k.items())),
            row_by_row=request.batch_rows == 1,
        )

    return [choice(*parts) for parts in zip(names, signatures, rows, encoded, strict=True)]


def _sorted(given: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(given.items()))


def every_input(given: Mapping[str, bool], models: Sequence[str], own: Iterable[str], name: str) -> dict[str, bool]:
    """`*` means every input of every model, `NAME.*` every input of one, unless an input has that name."""
    stars = {f"{model}.*" for model in models if model}
    named = {key: value for key, value in given.items() if key != "*" and key not in stars}
    if "*" in given or f"{name}.*" in given:
        named |= {f"{name}.{tensor}" if name else tensor: True for tensor in own}
    return named
