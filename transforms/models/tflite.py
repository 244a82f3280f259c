"""TFLite flatbuffers: the whole file into memory, then interpreters over it.

An interpreter serves one call at a time: each call takes an idle one, or makes one where there is none; all read the
same bytes. A quantised model takes and gives its own integers, as the interpreter does: real = scale * (q - zero_point).
The peak is twice the file: the interpreter takes the bytes as an object of Python's own.

TFLite checks that a flatbuffer is complete, not that it is sane. Bits that were flipped on purpose, or by bad luck, can end the
process. Where the store knows a checksum, the interpreter gets only checked bytes; otherwise the file must be trusted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import CorruptModel, DataError, UnsupportedModel
from ..storage import Store
from .model import Model
from .operations import Found, check_outside, check_runnable
from .ref import ModelRef
from .saved_model.files import no_such_signature
from .spec import ModelSpec, Operations, Signature, TensorSpec
from .streaming.dlpack import to_tensor
from .streaming.shared_stream import say_once
from .streaming.tensor_stream import StreamOptions, TensorSlot, mask_crc, open_stream
from .streaming.whole_reads import say_unchecked

DEFAULT_SIGNATURE = "serving_default"


def describe(store: Store, ref: ModelRef, signature: str | None = None) -> ModelSpec:  # noqa: ARG001 - Reader
    """Reads the whole file, which is graph and weights in one; all its signatures, whichever is named."""
    flatbuffer = _Flatbuffer(ref, _read(store, ref, StreamOptions()))
    operations = dict.fromkeys(flatbuffer.signatures, flatbuffer.operations)
    for name in flatbuffer.signatures:
        flatbuffer.check_allocates(name)
    return ModelSpec("tflite", flatbuffer.signatures, flatbuffer.parameters, ref.objects[0].size, operations=operations)


def load(store: Store, ref: ModelRef, signature: str, stream: StreamOptions) -> Model:
    """Raises `SignatureNotFound`, `CorruptModel`, `UnsupportedModel` where the interpreter is not installed."""
    if stream.place is not None:
        say_once("TFLite's interpreter wants a copy of its own")
        stream = replace(stream, place=None)
    flatbuffer = _Flatbuffer(ref, _read(store, ref, stream))
    if signature not in flatbuffer.signatures:
        raise no_such_signature(ref, signature, list(flatbuffer.signatures))
    spec = flatbuffer.signatures[signature]
    check_runnable(ref, flatbuffer.operations)
    check_outside(ref, flatbuffer.operations)
    flatbuffer.check_allocates(signature)
    return Model(
        ref,
        signature,
        spec.inputs,
        spec.outputs,
        _Pool(flatbuffer, signature),
        parameters=flatbuffer.parameters,
        nbytes=ref.objects[0].size,
        operations=flatbuffer.operations,
    )


class _Flatbuffer:
    def __init__(self, ref: ModelRef, data: bytes) -> None:
        self.ref, self._data = ref, data
        names, self.keeps_state = _operation_names(ref, data)
        self.operations = _operations(names)
        first = self.interpreter()
        named = first.get_signature_list()
        self.has_signatures = bool(named)
        if named:
            runners = {name: first.get_signature_runner(name) for name in named}
            details: dict[str, Any] = {
                name: (r.get_input_details(), r.get_output_details()) for name, r in runners.items()
            }
        else:
            plain = first.get_input_details(), first.get_output_details()
            details = {DEFAULT_SIGNATURE: tuple({d["name"]: d for d in side} for side in plain)}
        for name, (inputs, outputs) in details.items():
            # What may not run when the model is loaded may not run here either.
            allowed = ref.unsafe or not self.operations.outside
            if allowed and any(not len(detail["shape_signature"]) for detail in outputs.values()):
                details[name] = inputs, self._seen(name, inputs, outputs)
        self.row_by_row = {name for name, sides in details.items() if _takes_one_row(*sides)}
        self.signatures = {
            name: Signature(name, *({n: self._spec(name, n, d) for n, d in side.items()} for side in sides))
            for name, sides in sorted(details.items())
        }
        self.parameters = _parameters(first)

    def interpreter(self) -> Any:
        make = _interpreter_class()
        try:
            with warnings.catch_warnings():
                # TensorFlow 2.21 says that 2.20 was to have none; `_interpreter_class` is ready for that.
                warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
                return make(model_content=self._data, num_threads=1)
        except (ValueError, RuntimeError) as error:
            raise CorruptModel(
                f"{self.ref.uri} cannot be read by TFLite's interpreter",
                expected="a whole flatbuffer of operations that it knows",
                found=str(error).partition("\n")[0],
                cure="Copy the file again, or convert the model with operations of TFLite's own.",
            ) from error

    def _seen(self, signature: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs with the shapes that those turn out to have which have none before the first call, as of
        post-processing: the model is called with one row of zeros, and with two where it takes any batch.
        """
        sizes = [detail["shape_signature"] for detail in inputs.values()]
        found: list[dict[str, Any]] = []
        for rows in (1, 2) if any(len(size) and size[0] < 0 for size in sizes) else (1,):
            zeros = {
                name: np.full(
                    [(1 if i else rows) if size < 0 else size for i, size in enumerate(detail["shape_signature"])],
                    *((b"", object) if _dtype(detail) == "string" else (0, detail["dtype"])),
                )
                for name, detail in inputs.items()
            }
            try:
                found.append(_Fresh(self, signature)(**zeros))
            except (ValueError, RuntimeError):  # which a call says again
                return dict(outputs)

        def described(name: str, detail: Any) -> Any:
            shapes = [np.shape(one[name]) for one in found]
            if len(detail["shape_signature"]) or not shapes[0]:
                return detail
            first = shapes[0][0] if shapes[0][0] == shapes[-1][0] else -1
            return {**detail, "shape_signature": np.array([first, *(-1 for _ in shapes[0][1:])])}

        return {name: described(name, detail) for name, detail in outputs.items()}

    def check_allocates(self, signature: str) -> None:
        """Raises `UnsupportedModel` for operations that nothing resolves, which TFLite looks for only here."""
        interpreter = self.interpreter()
        try:
            if self.has_signatures:
                # Private: a runner allocates only when it is called. tests/transforms/models/test_tflite_state.py breaks
                # where these change.
                runner = interpreter.get_signature_runner(signature)
                runner._interpreter_wrapper.AllocateTensors(runner._subgraph_index)
            else:
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            text = str(error).partition("\n")[0]
            # Shapes that the rows decide are not known before.
            if _lacks_code(text):
                raise unresolved(self.ref, text) from error

    def _spec(self, signature: str, name: str, detail: Any) -> TensorSpec:
        shape = [None if size < 0 else int(size) for size in detail["shape_signature"]]
        if signature in self.row_by_row:
            shape[0] = None
        return TensorSpec(name, _dtype(detail), tuple(shape))


class _Pool:
    """{name: tf.Tensor} -> {name: tf.Tensor}, from any number of threads."""

    def __init__(self, flatbuffer: _Flatbuffer, signature: str) -> None:
        self._flatbuffer, self._signature = flatbuffer, signature
        self._idle: list[Callable[..., dict[str, Any]]] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            # One operation of a list, which no other thread can come between.
            run = self._idle.pop()
        except IndexError:
            run = _Fresh(self._flatbuffer, self._signature)
        try:
            outputs = self._rows(run, arrays) if self._signature in self._flatbuffer.row_by_row else run(**arrays)
        except (ValueError, RuntimeError) as error:
            # An interpreter that failed during a call is not used again.
            text = str(error).partition("\n")[0]
            if _lacks_code(text):
                raise unresolved(self._flatbuffer.ref, text) from error
            raise DataError(
                f"TFLite's interpreter cannot run signature {self._signature!r}",
                expected="inputs that fit together",
                found=f"{text}, on { ({n: a.shape for n, a in arrays.items()}) }",
                cure="Look at the shapes of the inputs.",
            ) from error
        self._idle.append(run)
        return {name: to_tensor(one) if isinstance(one, np.ndarray) else one for name, one in outputs.items()}

    def _rows(self, run: Callable[..., dict[str, Any]], arrays: Mapping[str, Any]) -> dict[str, Any]:
        count = min((len(array) for array in arrays.values()), default=0)
        specs = self._flatbuffer.signatures[self._signature].outputs
        if not count:
            return {
                name: np.empty(
                    [0, *(size or 0 for size in (s.shape or ())[1:])], object if s.dtype == "string" else s.dtype
                )
                for name, s in specs.items()
            }
        rows = [run(**{name: array[i : i + 1] for name, array in arrays.items()}) for i in range(count)]
        return {name: _joined([row[name] for row in rows]) for name in specs}


def _joined(rows: list[np.ndarray[Any, Any]]) -> Any:
    """One array, or where rows differ in their size a `tf.RaggedTensor`."""
    import tensorflow as tf

    if len({row.shape[1:] for row in rows}) == 1:
        return np.concatenate(rows)
    return tf.ragged.stack([row[0] for row in rows])


class _Fresh:
    """Calls that know nothing of each other: recurrent operations keep their state in the interpreter."""

    def __init__(self, flatbuffer: _Flatbuffer, signature: str) -> None:
        self._flatbuffer, self._signature = flatbuffer, signature
        self._interpreter: Any = None
        self._run: Callable[..., dict[str, Any]]

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        if self._flatbuffer.keeps_state:
            # `reset_all_variables` leaves resource variables as they are: only another interpreter has fresh ones.
            self._interpreter = None
        if self._interpreter is not None:
            try:
                self._interpreter.reset_all_variables()
            except RuntimeError:  # those of another signature, which was never called
                self._interpreter = None
        if self._interpreter is None:
            self._interpreter = self._flatbuffer.interpreter()
            self._run = (
                self._interpreter.get_signature_runner(self._signature)
                if self._flatbuffer.has_signatures
                else _without_signature(self._interpreter)
            )
        return self._run(**arrays)


_ASSIGNS = frozenset({"ASSIGN_VARIABLE", "FlexAssignVariableOp", "FlexAssignAddVariableOp", "FlexAssignSubVariableOp"})
_RANDOM = frozenset({"RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"})


def _operation_names(ref: ModelRef, data: bytes) -> tuple[frozenset[str], bool]:
    """The name of every operation in the file: a builtin's as in TFLite's schema, else that of the custom one. Also whether
    calls assign to resource variables, other than in their initialisation.
    """
    schema = _schema()
    builtins = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    try:
        model = schema.Model.GetRootAs(data)
        names = []
        for i in range(model.OperatorCodesLength()):
            code = model.OperatorCodes(i)
            # Files of before 2020 have the code in a field of one byte.
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = (code.CustomCode() or b"").decode()
            names.append(custom if builtins.get(kind) == "CUSTOM" else builtins.get(kind, str(kind)))
        return frozenset(names), bool(_ASSIGNS.intersection(names)) and _assigns(schema, model, names, len(data))
    except Exception as error:  # damaged offsets may raise anything
        raise CorruptModel(
            f"{ref.uri} is damaged",
            expected="a flatbuffer that lists its operations",
            found=f"{type(error).__name__}: {error}",
            cure="Copy the file again, or convert the model again.",
        ) from error


def _assigns(schema: Any, model: Any, names: list[str], nbytes: int) -> bool:
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    used: dict[int, set[str]] = {}
    once: set[int] = set()
    visited = 0
    for at, graph in enumerate(graphs):
        used[at] = set()
        for i in range(graph.OperatorsLength()):
            visited += 1
            if visited > nbytes // 4:  # an operation takes as many bytes, unless many graphs claim the same ones
                raise ValueError("its graphs share operations")
            operator = graph.Operators(i)
            name = names[operator.OpcodeIndex()]
            used[at].add(name)
            if name == "CALL_ONCE":
                options = schema.CallOnceOptions()
                table = operator.BuiltinOptions()
                options.Init(table.Bytes, table.Pos)
                once.add(options.InitSubgraphIndex())
    return any(found & _ASSIGNS for at, found in used.items() if at not in once)


def _operations(names: frozenset[str]) -> Operations:
    """Operations that TensorFlow runs have its own names, after "Flex"."""
    found = Found()
    for name in sorted(names):
        if name.startswith("Flex"):
            found.add(_Operation(name.removeprefix("Flex")), ())
    # Each call has fresh variables: none is left by another call.
    found.writes.clear()
    found.random |= names & _RANDOM
    return found.operations


@dataclass(frozen=True, slots=True)
class _Operation:
    """Visits operations as `Found.add` does."""

    op: str
    attr: Mapping[str, Any] = field(default_factory=dict)


def _lacks_code(text: str) -> bool:
    """Whether TFLite's text is about an operation that is neither its own nor linked into this interpreter."""
    return "unresolved custom op" in text or text.startswith("Select TensorFlow op")


def unresolved(ref: ModelRef, text: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"TFLite's interpreter has no code for an operation of {ref.uri}",
        expected="operations of TFLite's own; TensorFlow's (SELECT_TF_OPS) only where the interpreter is built with Flex",
        found=text,
        cure="Use the SavedModel that it was made from, or convert that without custom operations and SELECT_TF_OPS",
    )


def _without_signature(interpreter: Any) -> Callable[..., dict[str, Any]]:
    """As a signature's runner, for a model without signatures: tensors have their own names."""
    inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}

    def run(**arrays: Any) -> dict[str, Any]:
        for name, array in arrays.items():
            interpreter.resize_tensor_input(inputs[name], array.shape)
        interpreter.allocate_tensors()
        for name, array in arrays.items():
            interpreter.set_tensor(inputs[name], array)
        interpreter.invoke()
        return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}

    return run


def _schema() -> Any:
    """TFLite's schema, as its own tools read it: private, and held by tests/transforms/models/test_tflite_state.py."""
    try:
        from tensorflow.lite.python import schema_py_generated
    except ImportError:
        from ai_edge_litert import schema_py_generated
    return schema_py_generated


def _interpreter_class() -> Any:
    import tensorflow as tf

    if hasattr(tf.lite, "Interpreter"):
        return tf.lite.Interpreter
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UnsupportedModel(
            "TFLite models need an interpreter",
            expected="tf.lite.Interpreter, or the package ai-edge-litert",
            found=f"TensorFlow {tf.__version__}, which has none",
            cure="Run: pip install 'headrace[tflite]'",
        ) from error
    return Interpreter


def _read(store: Store, ref: ModelRef, stream: StreamOptions) -> bytes:
    """The whole file over many connections, checked against its CRC-32C where the store knows it."""
    source = ref.objects[0]
    if source.crc32c is None:
        say_unchecked(source.name)
    crc = None if source.crc32c is None else mask_crc(source.crc32c)
    slot = TensorSlot(source.uri, "uint8", (source.size,), source, 0, source.size, crc)
    with open_stream(store, [slot], stream) as tensors:
        data: bytes = tensors.take(slot.name).tobytes()
    return data


def _takes_one_row(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Whether each tensor is fixed to a batch of one, as most converters leave it, or each output to one row for any batch:
    rows can go one by one.
    """
    first = [d["shape_signature"][0] if len(d["shape_signature"]) else None for d in outputs.values()]
    taken = [d["shape_signature"][0] if len(d["shape_signature"]) else None for d in inputs.values()]
    return bool(inputs) and set(first) == {1} and set(taken) <= {1, -1}


def _dtype(detail: Any) -> str:
    dtype = np.dtype(detail["dtype"])
    return "string" if dtype.kind in "SUO" else dtype.name


def _parameters(interpreter: Any) -> int:
    """Only constants have data before any tensor is allocated. Reading a string without data ends the process."""
    count = 0
    for detail in interpreter.get_tensor_details():
        if _dtype(detail) == "string":
            continue
        try:
            interpreter.get_tensor(detail["index"])
        except ValueError:
            continue
        count += math.prod(map(int, detail["shape"]))
    return count
