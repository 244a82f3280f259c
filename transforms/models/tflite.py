"""TFLite flatbuffers: the whole file into memory, then interpreters over it.

An interpreter serves one call at a time, so each call takes an idle one, or makes one where there is none; all read the
same bytes. A quantised model takes and gives its own integers, as the interpreter does: real = scale * (q - zero_point).
The peak is twice the file: the interpreter takes the bytes as an object of Python's own.

TFLite checks that a flatbuffer is whole, not that it is sane: one of bits flipped with care, or by bad luck, can end the
process. Where the store knows a checksum, nothing else reaches the interpreter; else only trust can tell.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import CorruptModel, DataError, UnsupportedModel
from ..storage import Store
from .model import Model
from .ref import ModelRef
from .saved_model.files import no_such_signature
from .spec import ModelSpec, Signature, TensorSpec
from .streaming.dlpack import to_tensor
from .streaming.shared_stream import say_once
from .streaming.tensor_stream import StreamOptions, TensorSlot, mask_crc, open_stream
from .streaming.whole_reads import say_unchecked

DEFAULT_SIGNATURE = "serving_default"


def describe(store: Store, ref: ModelRef) -> ModelSpec:
    """Reads the whole file, which is graph and weights in one."""
    flatbuffer = _Flatbuffer(ref, _read(store, ref, StreamOptions()))
    return ModelSpec("tflite", flatbuffer.signatures, flatbuffer.parameters, ref.objects[0].size)


def load(store: Store, ref: ModelRef, signature: str, stream: StreamOptions) -> Model:
    """Raises `SignatureNotFound`, `CorruptModel`, `UnsupportedModel` where the interpreter is not installed."""
    if stream.place is not None:
        say_once("TFLite's interpreter wants a copy of its own")
        stream = replace(stream, place=None)
    flatbuffer = _Flatbuffer(ref, _read(store, ref, stream))
    if signature not in flatbuffer.signatures:
        raise no_such_signature(ref, signature, list(flatbuffer.signatures))
    spec = flatbuffer.signatures[signature]
    return Model(
        ref,
        signature,
        spec.inputs,
        spec.outputs,
        _Pool(flatbuffer, signature),
        parameters=flatbuffer.parameters,
        nbytes=ref.objects[0].size,
    )


class _Flatbuffer:
    def __init__(self, ref: ModelRef, data: bytes) -> None:
        self._ref, self._data = ref, data
        first = self.interpreter()
        named = first.get_signature_list()
        if named:
            runners = {name: first.get_signature_runner(name) for name in named}
            details: dict[str, Any] = {
                name: (r.get_input_details(), r.get_output_details()) for name, r in runners.items()
            }
        else:
            plain = first.get_input_details(), first.get_output_details()
            details = {DEFAULT_SIGNATURE: tuple({d["name"]: d for d in side} for side in plain)}
        self.has_signatures = bool(named)
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
                f"{self._ref.uri} cannot be read by TFLite's interpreter",
                expected="a whole flatbuffer of operations that it knows",
                found=str(error).partition("\n")[0],
                cure="Copy the file again, or convert the model with operations of TFLite's own.",
            ) from error

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
            # What failed in the midst of a call is not used again.
            raise DataError(
                f"TFLite's interpreter cannot run signature {self._signature!r}",
                expected="inputs that fit together",
                found=str(error).partition("\n")[0] + f", on { ({n: a.shape for n, a in arrays.items()}) }",
                cure="Look at the shapes of the inputs.",
            ) from error
        self._idle.append(run)
        return {name: to_tensor(array) for name, array in outputs.items()}

    def _rows(self, run: Callable[..., dict[str, Any]], arrays: Mapping[str, Any]) -> dict[str, Any]:
        count = min((len(array) for array in arrays.values()), default=0)
        specs = self._flatbuffer.signatures[self._signature].outputs
        if not count:
            return {
                name: np.empty((0, *(s.shape or ())[1:]), object if s.dtype == "string" else s.dtype)
                for name, s in specs.items()
            }
        rows = [run(**{name: array[i : i + 1] for name, array in arrays.items()}) for i in range(count)]
        return {name: np.concatenate([row[name] for row in rows]) for name in specs}


class _Fresh:
    """Calls that know nothing of each other: recurrent operations keep their state in the interpreter."""

    def __init__(self, flatbuffer: _Flatbuffer, signature: str) -> None:
        self._flatbuffer, self._signature = flatbuffer, signature
        self._interpreter: Any = None
        self._run: Callable[..., dict[str, Any]]

    def __call__(self, **arrays: Any) -> dict[str, Any]:
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
                else _Plain(self._interpreter)
            )
        return self._run(**arrays)


class _Plain:
    """What a signature's runner does, for a model without signatures: tensors go by their own names."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        for name, array in arrays.items():
            self._interpreter.resize_tensor_input(self._inputs[name], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {d["name"]: self._interpreter.get_tensor(d["index"]) for d in self._interpreter.get_output_details()}


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
    """The whole file over many connections, held against its CRC-32C where the store knows that."""
    source = ref.objects[0]
    if source.crc32c is None:
        say_unchecked(source.name)
    crc = None if source.crc32c is None else mask_crc(source.crc32c)
    slot = TensorSlot(source.uri, "uint8", (source.size,), source, 0, source.size, crc)
    with open_stream(store, [slot], stream) as tensors:
        data: bytes = tensors.take(slot.name).tobytes()
    return data


def _takes_one_row(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Where each tensor is fixed to a batch of one, as most converters leave it: rows can go one by one."""
    tensors = [*inputs.values(), *outputs.values()]
    return bool(inputs) and all(len(d["shape_signature"]) and d["shape_signature"][0] == 1 for d in tensors)


def _dtype(detail: Any) -> str:
    dtype = np.dtype(detail["dtype"])
    return "string" if dtype.kind in "SUO" else dtype.name


def _parameters(interpreter: Any) -> int:
    """Only constants have data before any tensor is allocated. To ask for a string that has none ends the process."""
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
