"""Arrow arrays over tensors' memory: their types, and how they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import DataError, UnsupportedModel
from ..models.spec import TensorSpec
from ..nested_arrow import buffer_of, value_type
from .casts import NUMERIC
from .wording import shown

if TYPE_CHECKING:
    import tensorflow as tf

ARROW_TYPES: dict[str, pa.DataType] = {
    **{dtype: pa.from_numpy_dtype(np.dtype(dtype)) for dtype in NUMERIC if dtype != "bfloat16"},
    "bfloat16": pa.float32(),
    "string": pa.binary(),
}


POSITION, VALUE = "index", "value"
"""What the members of a sparse tensor's values are called."""


def list_type(kind: pa.DataType, size: int) -> pa.DataType:
    """Lists of such values, none of them null; of any size where it is -1."""
    return pa.list_(pa.field("element", kind, nullable=False), size)


def check_shape(spec: TensorSpec, tensor: tf.Tensor, rows: int) -> tuple[int, ...]:
    """The tensor's shape. Raises `UnsupportedModel` where that is not what rows and signature say."""
    expected = (rows, *(spec.shape or ())[1:])
    shape = tuple(tensor.shape.as_list())
    if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
        raise UnsupportedModel(
            f"The model's output '{spec.name}' has another shape than its rows and its signature say",
            expected=shown(expected),
            found=shown(shape),
            cure="Predict row by row, as --batch_size=1 (batch_size=1): the model makes one row of a batch."
            if shape[:1] == (1,) and rows > 1
            else "Export the model with an output of one row per row of the input, or leave this one out, as --outputs=A,B "
            "(outputs=[…]).",
        )
    return shape


def leaf_array(tensor: tf.Tensor, count: int) -> pa.Array[Any]:
    """All `count` values of the tensor, row-major, in its own memory (kept alive) except for bool and string."""
    import tensorflow as tf

    dtype = tensor.dtype.name
    if dtype == "string":
        flat = tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
        joined = tf.raw_ops.ReduceJoin(inputs=flat, reduction_indices=[0])
        texts = tf.raw_ops.DecodeRaw(bytes=joined, out_type=tf.uint8)
        refuse_large(texts.shape[0], "bytes of strings")
        offsets = np.zeros(count + 1, np.int32)
        np.cumsum(memoryview(tf.raw_ops.StringLength(input=flat, unit="BYTE")), out=offsets[1:])
        return pa.Array.from_buffers(ARROW_TYPES[dtype], count, [None, buffer_of(offsets), buffer_of(texts)])
    data: Any = tensor  # the buffer protocol lends its memory; numpy() would copy it
    if dtype == "bool":
        data = np.packbits(np.asarray(memoryview(tensor)).reshape(-1), bitorder="little")
    elif dtype == "bfloat16":
        # Its bits are a float32's upper half; TensorFlow's own cast would make zeros of the numbers nearest to zero.
        data = tensor.numpy().view(np.uint16).astype(np.uint32) << np.uint32(16)
    return pa.Array.from_buffers(ARROW_TYPES[dtype], count, [None, buffer_of(data)])


def nested(kind: pa.DataType, values: pa.Array[Any], shape: tuple[int, ...]) -> pa.Array[Any]:
    """The values as an array of `shape[0]` rows of type `kind`, which is `_column_type`'s for `shape[1:]`."""
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.Array.from_buffers(kind.storage_type, shape[0], [None], children=[values])
        return pa.ExtensionArray.from_storage(kind, storage)
    if len(shape) == 1:
        return values
    child = nested(value_type(kind), values, (shape[0] * shape[1], *shape[2:]))
    if pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, shape[0], [None], children=[child])
    refuse_large(shape[0] * shape[1], "values in lists")
    offsets = np.arange(shape[0] + 1, dtype=np.int32) * np.int32(shape[1])
    return pa.Array.from_buffers(kind, shape[0], [None, buffer_of(offsets)], children=[child])


def pairs_type(kind: pa.DataType) -> pa.DataType:
    """Of a sparse tensor's rows: lists of each value with its position."""
    members = [pa.field(POSITION, pa.int64(), nullable=False), pa.field(VALUE, kind, nullable=False)]
    return list_type(pa.struct(members), -1)


def pairs(kind: pa.DataType, tensor: tf.SparseTensor, rows: int) -> pa.Array[Any]:
    """The rows of a sparse tensor of two dimensions as an array of that `pairs_type`, by rising positions."""
    import tensorflow as tf

    ordered = tf.sparse.reorder(tensor)
    indices = np.asarray(memoryview(ordered.indices))
    count = len(indices)
    refuse_large(count, "values in lists")
    places = pa.Array.from_buffers(pa.int64(), count, [None, buffer_of(np.ascontiguousarray(indices[:, 1]))])
    values = [places, leaf_array(ordered.values, count)]
    structs = pa.Array.from_buffers(value_type(kind), count, [None], children=values)
    edges = np.searchsorted(indices[:, 0], np.arange(rows + 1)).astype(np.int32)
    return pa.Array.from_buffers(kind, rows, [None, buffer_of(edges)], children=[structs])


def refuse_large(size: int, what: str) -> None:
    if size > np.iinfo(np.int32).max:
        raise DataError(
            "The predictions of one batch are too large for a column",
            expected=f"at most {np.iinfo(np.int32).max} {what}",
            found=str(size),
            cure="Choose a smaller --batch_size.",
        )
