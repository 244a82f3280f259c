"""Functions that a SavedModel holds next to its signatures, as hubs share them: `__call__`, and others by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ...errors import UnsupportedModel
from ..direct_call import direct
from ..ref import ModelRef
from ..spec import Signature, TensorSpec
from .flat_inputs import as_output, parts_of, tensor_spec, type_specs
from .one_signature import held


@dataclass(frozen=True)
class Trace:
    """One concrete function: `arguments` are positional, `keywords` by name, nested, of `tf.TensorSpec` or plain values."""

    at: int
    name: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    outputs: Any

    def tensors(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Its tensor specs by the names that a person would call them."""
        found: dict[str, Any] = {}
        given = [(names[i] if i < len(names) else f"input_{i}", value) for i, value in enumerate(self.arguments)]
        for name, argument in [*given, *sorted(self.keywords.items())]:
            for spec in type_specs(argument):
                # Only a dense tensor's may have a name of its own.
                found[_free(getattr(spec, "name", None) or name, found)] = spec
        return found

    @property
    def trains(self) -> bool:
        import tensorflow as tf

        values = [*self.arguments, *self.keywords.values()]
        return any(value is True for value in tf.nest.flatten(values))


@dataclass(frozen=True)
class TracedFunction:
    """`names` are those of its positional arguments, where the model keeps them."""

    name: str
    names: tuple[str, ...]
    traces: tuple[Trace, ...]

    def chosen(self, ref: ModelRef) -> Trace:
        """The only trace, or the only one that is not for training. Raises `UnsupportedModel` where that is not clear."""
        if len(self._serving) != 1:
            raise UnsupportedModel(
                f"The function {self.name!r} of {ref.uri} was saved in {len(self.traces)} forms",
                expected="one form that is not for training",
                found="; ".join(
                    str({n: s.shape for n, s in trace.tensors(self.names).items()}) for trace in self.traces
                ),
                cure="Export the model with signatures=… for the one to serve.",
            )
        return self._serving[0]

    @property
    def _serving(self) -> Sequence[Trace]:
        return self.traces if len(self.traces) == 1 else [trace for trace in self.traces if not trace.trains]

    def signature(self, ref: ModelRef) -> Signature:
        trace = self.chosen(ref)
        inputs, outputs = trace.tensors(self.names), _named(trace.outputs)

        def described(name: str, spec: Any, given: bool) -> TensorSpec:
            found = tensor_spec(name, spec, tuple(_parts(name, spec)))
            if found is None:
                raise UnsupportedModel(
                    f"{name!r} of the function {self.name!r} of {ref.uri} is a {type(spec).__name__}",
                    expected="dense, ragged or sparse tensors",
                    cure="Export the model with dense inputs and outputs, e.g. x.to_tensor().",
                )
            return found if given else as_output(found)

        return Signature(
            self.name,
            {name: described(name, spec, True) for name, spec in inputs.items()},
            {name: described(name, spec, False) for name, spec in outputs.items()},
        )

    def _loaded(self, loaded: Any) -> Any:
        return attrgetter(self.name)(loaded)

    def restored(self, loaded: Any) -> Any:
        """The concrete function of the loaded model."""
        function, trace = self._loaded(loaded), self._serving[0]
        # Private: the loaded function keeps its concrete functions in the order of the saved one.
        return function.concrete_functions[trace.at] if hasattr(function, "concrete_functions") else function

    def call(self, loaded: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """{name: tensor} to {name: tensor}, as one graph."""
        import tensorflow as tf

        trace, function = self._serving[0], self._loaded(loaded)
        specs = trace.tensors(self.names)
        names = [part for name, spec in specs.items() for part in _parts(name, spec)]
        flat = [part for spec in specs.values() for part in tf.nest.flatten(spec, expand_composites=True)]

        def by_position(*tensors: Any) -> dict[str, Any]:
            left = iter(tf.nest.pack_sequence_as(list(specs.values()), tensors, expand_composites=True))
            arguments, keywords = tf.nest.map_structure(
                lambda value: next(left) if isinstance(value, tf.TypeSpec) else value,
                (trace.arguments, dict(trace.keywords)),
            )
            return _named(function(*arguments, **keywords))

        open_specs = [tf.TensorSpec(part.shape, part.dtype) for part in flat]
        concrete = tf.function(by_position, autograph=False).get_concrete_function(*open_specs)

        def usual(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return dict(concrete(*[tensors[name] for name in names]))

        # The concrete function captures the loaded one's variables: both live as long as the call.
        return direct(concrete, names, usual)


def traced_functions(objects: Any) -> dict[str, TracedFunction]:
    """Functions by their names from the root; those without a trace cannot be called. `objects` is the saved object graph."""
    found: dict[str, TracedFunction] = {}
    for child in objects.nodes[0].children if objects.nodes else ():
        if not 0 <= child.node_id < len(objects.nodes) or child.local_name.startswith("_default_save"):
            continue
        node = objects.nodes[child.node_id]
        if traces := tuple(_traces(objects, list(held(node)))):
            names = _argument_names(node.function.function_spec)
            found[child.local_name] = TracedFunction(child.local_name, names, traces)
    return found


def _traces(objects: Any, names: list[str]) -> list[Trace]:
    from tensorflow.python.saved_model import nested_structure_coder

    traces = []
    for at, name in enumerate(names):
        if name not in objects.concrete_functions:
            continue
        saved = objects.concrete_functions[name]
        if not saved.HasField("canonicalized_input_signature") or not saved.HasField("output_signature"):
            continue
        try:
            arguments, keywords = nested_structure_coder.decode_proto(saved.canonicalized_input_signature)
            outputs = nested_structure_coder.decode_proto(saved.output_signature)
        # Of a type that TensorFlow no longer has.
        except (nested_structure_coder.NotEncodableError, ValueError, TypeError):
            continue
        traces.append(Trace(at, name, tuple(arguments), dict(keywords), outputs))
    return traces


def _argument_names(spec: Any) -> tuple[str, ...]:
    from tensorflow.python.saved_model import nested_structure_coder

    if not spec.HasField("fullargspec"):
        return ()
    names = list(nested_structure_coder.decode_proto(spec.fullargspec).args)
    return tuple(names[1:] if spec.is_method and names[:1] == ["self"] else names)


def _parts(name: str, spec: Any) -> list[str]:
    """The names of the dense tensors that a ragged or sparse one is made of."""
    count = parts_of(spec)
    return [name] if count == 1 else [f"{name}.{i}" for i in range(count)]


def _free(name: str, taken: Mapping[str, Any]) -> str:
    found, n = name, 0
    while found in taken:
        n += 1
        found = f"{name}_{n}"
    return found


def _named(outputs: Any) -> dict[str, Any]:
    """As signatures name them (tensorflow/python/saved_model/signature_serialization.py)."""
    import tensorflow as tf

    if isinstance(outputs, Mapping) and all(isinstance(name, str) for name in outputs):
        return {str(name): outputs[name] for name in sorted(outputs)}
    return {f"output_{i}": output for i, output in enumerate(tf.nest.flatten(outputs))}
