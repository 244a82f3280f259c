"""Ragged and sparse inputs of signatures, which TensorFlow saves flat: `x` of a `tf.RaggedTensorSpec` as `x` and `x_1`.

Nothing in the signature marks them (tensorflow/python/saved_model/signature_serialization.py). But its function calls the one
that was exported. The object graph keeps what that takes, nested as it was, if the model holds that function. If not, the three
parts of a sparse input are known by their shapes, and the name that Python gave them; a ragged one stays flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ..spec import Composite, Signature, TensorSpec

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def nested_inputs(signature: Signature, graph_def: Any, objects: Any) -> Signature:
    """The signature with each such input in the place of its parts."""
    function, names = function_of(signature.name, objects)
    library = {one.signature.name: one for one in graph_def.library.function}
    if function not in library or len(library[function].signature.input_arg) < len(names):
        return signature
    own = {arg.name: name for arg, name in zip(library[function].signature.input_arg, names, strict=False)}
    for node in library[function].node_def:
        if node.op not in _CALLS or "f" not in node.attr:
            continue
        called = node.attr["f"].func.name
        fed = [own.get(taken) for taken in node.input]
        for kinds in (_kept(objects, called), _named(library.get(called), fed, signature.inputs)):
            if kinds and (inputs := _grouped(signature.inputs, fed, kinds)) is not None:
                return replace(signature, inputs=inputs)
    return signature


def function_of(signature: str, objects: Any) -> tuple[str, list[str]]:
    """The name of its function, and those of its inputs in the order in which that takes them."""
    node = 0
    for name in ("signatures", signature):
        found = [child.node_id for child in objects.nodes[node].children if child.local_name == name]
        if not found or not 0 <= found[0] < len(objects.nodes):
            return "", []
        node = found[0]
    function = objects.nodes[node].bare_concrete_function
    return function.concrete_function_name, list(function.argument_keywords)


def _kept(objects: Any, function: str) -> list[Any]:
    """The types of what the function takes, as the object graph has them, in order; [] where it has none."""
    from tensorflow.python.saved_model import nested_structure_coder

    if function not in objects.concrete_functions:
        return []
    saved = objects.concrete_functions[function]
    if not saved.HasField("canonicalized_input_signature"):
        return []
    try:
        return type_specs(nested_structure_coder.decode_proto(saved.canonicalized_input_signature))
    except (nested_structure_coder.NotEncodableError, ValueError, TypeError):  # of a type that TensorFlow has no more
        return []


def _named(function: Any, fed: Sequence[str | None], inputs: Mapping[str, TensorSpec]) -> list[Any]:
    """The types that arguments of one name in Python must have had, where no others are possible."""
    import tensorflow as tf

    if function is None:
        return []
    found: list[Any] = []
    own = [at for at, name in enumerate(fed) if name in inputs]
    for name, group in groupby(own, lambda at: _name_in_python(function, at)):
        parts = [inputs[fed[at] or ""] for at in group]
        sparse = _sparse_of(parts) if name else None
        found += [sparse] if sparse is not None else [tf.TensorSpec(part.shape, part.dtype) for part in parts]
    return found


def _sparse_of(parts: Sequence[TensorSpec]) -> Any:
    """Indices, values and a dense shape of their rank can be nothing else; values and splits could be two dense tensors of a
    dict.
    """
    import tensorflow as tf

    if len(parts) != 3 or any(part.shape is None for part in parts):
        return None
    indices, values, dense = parts
    rank = dense.shape[0] if dense.shape is not None and len(dense.shape) == 1 else None
    if rank is None or indices.shape != (None, rank) or values.shape != (None,):
        return None
    return tf.SparseTensorSpec([None] * rank, values.dtype) if indices.dtype == dense.dtype == "int64" else None


def _name_in_python(function: Any, at: int) -> str:
    if at not in function.arg_attr or "_user_specified_name" not in function.arg_attr[at].attr:
        return ""
    return str(function.arg_attr[at].attr["_user_specified_name"].s.decode(errors="replace"))


def _grouped(
    inputs: Mapping[str, TensorSpec], fed: Sequence[str | None], kinds: Sequence[Any]
) -> dict[str, TensorSpec] | None:
    """None where there is nothing to group, or where the function is not fed with each part in turn."""
    found, left = {}, list(fed)
    for kind in kinds:
        names, left = left[: (count := parts_of(kind))], left[count:]
        if len(names) != count or None in names:
            return None
        parts = tuple(str(name) for name in names)
        spec = tensor_spec(parts[0], kind, parts)
        found[parts[0]] = spec if spec is not None and spec.composite is not None else inputs[parts[0]]
    used = [name for spec in found.values() for name in (spec.composite.parts if spec.composite else (spec.name,))]
    if sorted(used) != sorted(inputs) or len(found) == len(inputs):
        return None
    return {name: found[name] for name in sorted(found)}


def type_specs(nested: Any) -> list[Any]:
    import tensorflow as tf

    return [one for one in tf.nest.flatten(nested) if isinstance(one, tf.TypeSpec)]


def parts_of(kind: Any) -> int:
    import tensorflow as tf

    return len(tf.nest.flatten(kind, expand_composites=True))


def tensor_spec(name: str, kind: Any, parts: tuple[str, ...]) -> TensorSpec | None:
    """None for anything but a dense, ragged or sparse tensor."""
    import tensorflow as tf

    composite = None
    if isinstance(kind, tf.RaggedTensorSpec) and len(parts) > 1:
        composite = Composite("ragged", parts, kind.row_splits_dtype.name)
    elif isinstance(kind, tf.SparseTensorSpec):
        composite = Composite("sparse", parts)
    elif not isinstance(kind, tf.TensorSpec | tf.RaggedTensorSpec):
        return None
    shape = None if kind.shape.rank is None else tuple(kind.shape.as_list())
    return TensorSpec(name, kind.dtype.name, shape, composite=composite)


def as_output(spec: TensorSpec) -> TensorSpec:
    """Lists of an output may have any length. Which outputs are ragged is known by what they are when they come."""
    if spec.composite is None:
        return spec
    if spec.composite.kind == "sparse":
        return replace(spec, composite=Composite("sparse"))
    varying = range(1, spec.lists + 1)
    shape = None if spec.shape is None else tuple(None if i in varying else size for i, size in enumerate(spec.shape))
    return replace(spec, shape=shape, composite=None)
