"""The inputs and outputs of a Keras model, under the names that its SavedModel would have, and the call itself.

It uses these private parts of Keras and TensorFlow, each checked by tests/transforms/models/keras_model/test_keras_private.py:

- `export_utils.get_input_signature`, `_infer_input_signature_from_model`, `make_tf_tensor_spec`: input names and shapes as
  `model.export` gives them to a SavedModel.
- TensorFlow's `ConcreteFunction._arg_keywords`: likewise.
- `Functional._outputs_struct`, `compute_output_spec`: outputs before there are weights.
- `Layer._flatten_layers`: every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UnsupportedModel
from ..spec import TensorSpec
from .refusals import brief


def input_signature(model: Any, uri: str) -> list[Any]:
    """The positional arguments of the model as nested `tf.TensorSpec`, batch unknown, named as `model.export` names them.

    Raises `UnsupportedModel` where the saved model does not say what it takes, or takes ragged or sparse tensors.
    """
    from keras import Sequential, tree
    from keras.src.export import export_utils
    from keras.src.models import Functional

    try:
        if isinstance(model, (Functional, Sequential)):
            signature = export_utils.get_input_signature(model)
        else:
            signature = export_utils._infer_input_signature_from_model(model)
    except Exception as error:
        raise _takes_unknown(uri, "inputs of known rank and dtype", brief(error)) from error
    if not signature:
        raise _takes_unknown(uri, "a model that was built before it was saved")
    for given in tree.flatten(getattr(model, "inputs", None) or []):
        if getattr(given, "sparse", False) or getattr(given, "ragged", False):
            raise UnsupportedModel(
                f"Input {given.name!r} of {uri} is sparse or ragged",
                expected="dense tensors",
                cure="Take dense inputs, e.g. padded, and convert inside the model.",
            )
    return _with_fixed_batch(model, list(tree.map_structure(export_utils.make_tf_tensor_spec, signature)))


def _takes_unknown(uri: str, expected: str, found: str = "") -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} does not say what its model takes",
        expected=expected,
        found=found,
        cure="Call the model once on real data before saving it, or export it with model.export(…).",
    )


def _with_fixed_batch(model: Any, signature: list[Any]) -> list[Any]:
    """Inputs that were made with a `batch_size` keep it: `model.export` opens it, and layers with a state cannot."""
    import tensorflow as tf
    from keras import tree

    inputs = tree.flatten(getattr(model, "inputs", None) or [])
    specs = tf.nest.flatten(signature)
    if len(inputs) != len(specs) or all(given.shape[0] is None for given in inputs):
        return signature
    fixed = [
        tf.TensorSpec([given.shape[0], *spec.shape[1:]], spec.dtype, spec.name)
        for given, spec in zip(inputs, specs, strict=True)
    ]
    return list(tf.nest.pack_sequence_as(signature, fixed))


def output_struct(model: Any, signature: list[Any]) -> Any:
    """The nested outputs as symbolic tensors with `shape` and `dtype`; no weight is needed."""
    import tensorflow as tf
    from keras import KerasTensor, Sequential, backend, tree
    from keras.src.backend import compute_output_spec
    from keras.src.models import Functional

    if isinstance(model, Sequential):
        return model.outputs[0]
    if isinstance(model, Functional):
        return model._outputs_struct
    symbolic = [
        tf.nest.map_structure(
            lambda spec: KerasTensor(spec.shape.as_list(), dtype=backend.standardize_dtype(spec.dtype)), argument
        )
        for argument in signature
    ]
    return tree.map_structure(lambda x: x, compute_output_spec(lambda *xs: model.call(*xs), *symbolic))


def needs_static_shapes(model: Any) -> bool:
    """Whether a graph that leaves the number of steps open would be wrong, as it is in the model's own export.

    `TimeDistributed.call` takes the size of the batch for an unknown number of steps (Keras 3.15).
    """
    from keras.layers import TimeDistributed

    def steps(layer: Any) -> int | None:
        try:
            return layer.input.shape[1]
        # Called several times, or by a subclassed model's own call.
        except (AttributeError, ValueError, IndexError, TypeError):
            return None

    return any(isinstance(layer, TimeDistributed) and steps(layer) is None for layer in model._flatten_layers())


def trace(function: Any, arguments: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.function(function, input_signature=arguments, autograph=False).get_concrete_function()


def input_specs(concrete: Any) -> dict[str, TensorSpec]:
    """By the names that `tf.saved_model.save` gives these inputs in a signature, in the order of the flattened arguments."""
    import tensorflow as tf

    specs = tf.nest.flatten(concrete.structured_input_signature[0])
    return {str(name): tensor_spec(str(name), spec) for name, spec in zip(concrete._arg_keywords, specs, strict=True)}


def tensor_spec(name: str, spec: Any) -> TensorSpec:
    return TensorSpec(name, spec.dtype.name, None if spec.shape.rank is None else tuple(spec.shape.as_list()))


def name_outputs(outputs: Any, uri: str) -> dict[str, Any]:
    """A model's outputs by the names that they have in its SavedModel (tensorflow signature_serialization.py)."""
    if isinstance(outputs, Mapping):
        named = {str(name): output for name, output in outputs.items()}
    else:
        several = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        named = {f"output_{i}": output for i, output in enumerate(several)}
    for name, output in named.items():
        if not hasattr(output, "dtype") or not hasattr(output, "shape"):
            raise UnsupportedModel(
                f"Output {name!r} of {uri} is nested",
                expected="a tensor, a list of tensors, or a dict of tensors",
                found=type(output).__name__,
                cure="Give the model a flat list or dict of outputs.",
            )
    return named
