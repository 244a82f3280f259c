"""A model in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from ..data_in_memory import as_array, hold
from ..errors import DataError, InvalidRequest, UnsupportedModel
from ..storage.store import public_uri
from .device_placement import placed
from .ref import ModelRef
from .spec import Operations, TensorSpec
from .streaming.dlpack import to_tensor


class Model:
    """One signature of a loaded model; every method may be called from many threads at once.

    `parameters` counts the numbers and `nbytes` the bytes of the weights that the signature uses.
    """

    def __init__(
        self,
        ref: ModelRef,
        signature: str,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        call: Callable[[Mapping[str, Any]], dict[str, Any]],
        *,
        parameters: int,
        nbytes: int,
        keep: object = None,
        operations: Operations = Operations(),
    ) -> None:
        """`call` takes and gives tensors by name; `keep` is held as long as the model lives."""
        self.operations = operations
        self.ref, self.signature = ref, signature
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self.parameters, self.nbytes = parameters, nbytes
        self.call = call
        """{name: tf.Tensor} -> {name: tf.Tensor}, unchecked: the hot path. It does not choose the device: see `placed`."""
        self.device: str | None = None
        """The device of its variables; None where TensorFlow chose it."""
        self._keep = keep
        self._process = os.getpid()
        self.loads_again = True
        """Whether its reference says all that is needed to load it: not custom objects that were given as classes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its reference: the process that unpickles it loads its own copy, once.

        Raises `InvalidRequest` where the reference lacks something that loading needs.
        """
        if not self.loads_again:
            raise InvalidRequest(
                f"The loaded model {self.ref.uri} cannot be pickled: its custom objects were given as classes",
                expected="custom_objects as 'module:name', which another process can import",
                cure="Call load_model where the model is used, e.g. in a DoFn's setup(), or use Predict",
            )
        return import_module("headrace.transforms.models.process_cache").load_again, (
            self.ref,
            self.signature,
            self.device,
        )

    def check_process(self) -> None:
        """Raises `UnsupportedModel` in a forked child, in which TensorFlow's threads do not run: a call would never end."""
        if os.getpid() != self._process:
            raise UnsupportedModel(
                f"The model {self.ref.uri} was loaded before this process was forked",
                expected="a model that is used in the process that loaded it",
                found=f"loaded in process {self._process}, used in process {os.getpid()}",
                cure="Start the process with multiprocessing's 'spawn', and call load_model in it",
            )

    @property
    def format(self) -> str:
        return self.ref.format

    def __repr__(self) -> str:
        def side(specs: Mapping[str, TensorSpec]) -> str:
            return ", ".join(map(_describe, specs.values())) or "nothing"

        return (
            f"<headrace.Model {public_uri(self.ref.uri)} ({self.format}, {self.signature}): {side(self.inputs)} -> "
            f"{side(self.outputs)}; {self.parameters:,} parameters, {self.nbytes:,} bytes>"
        )

    def predict(self, data: Any) -> dict[str, Any]:
        """{name: ndarray} -> {name: ndarray}. Strings are arrays of `str` or `bytes`, and come back as `bytes`.

        A ragged input takes nested lists or a `tf.RaggedTensor`, a sparse one a `tf.SparseTensor`. Of ragged outputs rows are
        arrays themselves; a sparse output is a `tf.SparseTensor`.

        `data` is a dict of arrays, or a pandas or polars DataFrame, an Arrow table or record batch that has a column for each
        input, under its name; other columns are ignored. Raises `DataError` where names, dtypes or shapes are not the
        signature's: nothing is cast. `headrace.predict(model, data, cast=..., fill=...)` converts columns, and keeps others.
        """
        arrays = data if isinstance(data, Mapping) else self._of_columns(hold(data).table)
        if arrays.keys() != self.inputs.keys():
            missing, unknown = sorted(self.inputs.keys() - arrays), sorted(arrays.keys() - self.inputs)
            raise DataError(
                f"The inputs are not those of signature {self.signature!r} of {self.ref.uri}",
                expected=", ".join(map(_describe, self.inputs.values())) or "no input",
                found="; ".join(
                    f"{word} {', '.join(names)}"
                    for word, names in (("missing", missing), ("unknown", unknown))
                    if names
                ),
                cure="Pass one array for each input, under its name." + self._encoding(),
            )
        self.check_process()
        tensors: dict[str, Any] = {}
        for name, spec in self.inputs.items():
            whole = spec.composite is None
            tensors |= {name: self._tensor(spec, arrays[name])} if whole else self._parts(spec, arrays[name])
        try:
            found = placed(self.call, self.device)(tensors)
            return {name: tensor.numpy() if hasattr(tensor, "numpy") else tensor for name, tensor in found.items()}
        except UnicodeDecodeError as error:
            raise DataError(
                f"Signature {self.signature!r} of {self.ref.uri} fails on these inputs", found=said(error)
            ) from error

    def _encoding(self) -> str:
        names = [name for name, spec in self.inputs.items() if spec.example is not None and not spec.example.problem]
        return f" Columns are encoded by headrace.predict(model, data, tf_example={names})." if names else ""

    def _of_columns(self, table: pa.Table) -> dict[str, Any]:
        """A column holds one value for each row, where an input may want [rows, 1]."""
        arrays = {name: as_array(table[name], equal_lists=True) for name in self.inputs if name in table.column_names}
        for name, array in arrays.items():
            shape = self.inputs[name].shape
            if shape is not None and shape[1:] == (1,) and array.ndim == 1:
                arrays[name] = array.reshape(-1, 1)
        return arrays

    def _tensor(self, spec: TensorSpec, given: Any) -> Any:
        array = as_whole_array(given)
        fits = array.dtype.kind in "OSU" if spec.dtype == "string" else array.dtype.name == spec.dtype
        if not fits or not _shape_fits(spec.shape, array.shape):
            cure = f"Convert it first, e.g. .astype({spec.dtype!r})" if not fits else "Reshape it first"
            raise self._misfit(spec, f"{array.dtype.name} {list(array.shape)}", f"{cure}.")
        return to_tensor(array)

    def _parts(self, spec: TensorSpec, given: Any) -> dict[str, Any]:
        """The dense tensors that a ragged or sparse one is made of."""
        import tensorflow as tf

        composite = spec.composite
        assert composite is not None
        kind: Any = tf.RaggedTensor if composite.kind == "ragged" else tf.SparseTensor
        if kind is tf.RaggedTensor and isinstance(given, np.ndarray | list | tuple):
            try:
                given = tf.ragged.constant(_as_lists(given), spec.dtype, spec.lists, row_splits_dtype=composite.splits)
            except (TypeError, ValueError) as error:
                raise self._misfit(
                    spec, str(error).partition("\n")[0], "Give lists of lists of such values."
                ) from error
        if kind is tf.RaggedTensor and isinstance(given, kind):
            given = given.with_row_splits_dtype(composite.splits)
        flat = tf.nest.flatten(given, expand_composites=True) if isinstance(given, kind) else []
        fits = len(flat) == len(composite.parts) and given.shape.is_compatible_with(spec.shape)
        if not fits or given.dtype.name != spec.dtype:
            found = f"{type(given).__name__} {getattr(given, 'shape', '')}".strip()
            raise self._misfit(spec, found, f"Give a tf.{kind.__name__} of that dtype and shape.")
        return dict(zip(composite.parts, flat, strict=True))

    def _misfit(self, spec: TensorSpec, found: str, cure: str) -> DataError:
        return DataError(
            f"The array for input {spec.name!r} of signature {self.signature!r} of {self.ref.uri} does not fit",
            expected=_describe(spec),
            found=found,
            cure=cure,
        )


def said(error: BaseException) -> str:
    """An error's text. TensorFlow's own texts quote values that may be any bytes, which Python then cannot decode."""
    if isinstance(error, UnicodeDecodeError):
        return f"TensorFlow: {error.object.decode(errors='backslashreplace')}"
    return f"{type(error).__name__}: {error}"


def as_whole_array(given: Any) -> np.ndarray[Any, Any]:
    """As an array, with the zero bytes at a text's end, which numpy's own texts lose."""
    array = np.asarray(given)
    lossy = array.dtype.kind in "SU" and not isinstance(given, np.ndarray)
    return np.asarray(given, object) if lossy else array


def _as_lists(given: Any) -> Any:
    """Arrays within arrays, as of ragged outputs, as nested lists."""
    return [_as_lists(one) for one in given] if isinstance(given, np.ndarray | list | tuple) else given


def _shape_fits(expected: tuple[int | None, ...] | None, found: tuple[int, ...]) -> bool:
    if expected is None:
        return True
    return len(expected) == len(found) and all(e in (None, f) for e, f in zip(expected, found, strict=True))


def _describe(spec: TensorSpec) -> str:
    shape = (
        "any shape" if spec.shape is None else "[" + ", ".join("?" if d is None else str(d) for d in spec.shape) + "]"
    )
    kind = f"{spec.composite.kind} " if spec.composite is not None else ""
    return f"{spec.name}: {kind}{spec.dtype} {shape}"
