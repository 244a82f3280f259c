from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.models.streaming.dlpack import ALIGNMENT, aligned_empty, to_tensor

NATIVE = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NATIVE += ["float16", "float32", "float64", "complex64", "complex128"]
COPIED = ["float8_e5m2", "float8_e4m3fn", "int4", "uint4"]


def address(tensor: Any) -> int:
    return int(np.asarray(memoryview(tensor)).ctypes.data)


def aligned(array: Any) -> Any:
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


@given(st.integers(1, 4096) | st.integers((1 << 20) - 1, 5 << 20))
def test_aligned_empty_is_aligned(nbytes: int) -> None:
    buffer = aligned_empty(nbytes)
    assert buffer.nbytes == nbytes
    assert buffer.ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("shape", [(5, 3), (), (0, 3), (1,)])
@pytest.mark.parametrize("writable", [True, False])
def test_an_aligned_array_is_not_copied(dtype: str, shape: tuple[int, ...], writable: bool) -> None:
    array = aligned(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    array.flags.writeable = writable
    tensor = to_tensor(array)
    assert tensor.dtype.name == dtype
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(tensor.numpy(), array)
    if array.size:
        assert address(tensor) == array.ctypes.data


@pytest.mark.parametrize("dtype", [*NATIVE, *COPIED, "bfloat16"])
def test_a_misaligned_or_sliced_array_is_copied_into_an_aligned_buffer(dtype: str) -> None:
    import tensorflow as tf

    numpy_dtype = np.dtype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)
    raw = aligned_empty(64 * numpy_dtype.itemsize + 8)[8:].view(numpy_dtype)
    raw[:] = np.arange(64).astype(numpy_dtype)
    for array in (raw, raw.reshape(8, 8)[:, ::2], raw.reshape(8, 8).T, raw[::-1]):
        tensor = to_tensor(array)
        assert tensor.dtype.name == dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
        if dtype in NATIVE:
            assert address(tensor) % ALIGNMENT == 0


def test_vector_kernels_survive_a_misaligned_array() -> None:
    """TensorFlow itself aborts the process here when it is handed the unaligned buffer."""
    import tensorflow as tf

    array = aligned_empty(4 * 257 * 64 + 4)[4:].view(np.float32)[: 257 * 64].reshape(257, 64)
    array[:] = 1
    tensor = to_tensor(array)
    assert float(tf.reduce_sum(tf.matmul(tensor[1:], tensor[1:], transpose_b=True))) == 256 * 256 * 64
    assert float(tf.reduce_sum(tf.gather(tensor, [3, 4]))) == 128


def test_bfloat16_passes_as_bits_without_a_copy() -> None:
    import tensorflow as tf

    bits = aligned(np.array([0x3F80, 0x4000, 0xC040], np.uint16))
    tensor = to_tensor(bits, "bfloat16")
    assert tensor.dtype == tf.bfloat16
    assert tf.cast(tensor, tf.float32).numpy().tolist() == [1.0, 2.0, -3.0]
    assert address(tf.bitcast(tensor, tf.uint16)) == bits.ctypes.data
    assert to_tensor(bits.view(tf.bfloat16.as_numpy_dtype)).dtype == tf.bfloat16


def test_quantized_integers_pass_as_bits() -> None:
    import tensorflow as tf

    tensor = to_tensor(np.array([1, 255], np.uint8), "qint8")
    assert tensor.dtype == tf.qint8
    assert tf.bitcast(tensor, tf.int8).numpy().tolist() == [1, -1]


@pytest.mark.parametrize("array", [np.array([["a", "b"]], object), np.array(["ü", "b"]), np.array([b"x", b"yy"])])
def test_strings(array: Any) -> None:
    expected = [v if isinstance(v, bytes) else v.encode() for v in array.ravel()]
    assert to_tensor(array).numpy().ravel().tolist() == expected


def test_nothing_is_cast() -> None:
    with pytest.raises(TypeError, match="float64 is neither float32"):
        to_tensor(np.zeros(3), "float32")
    with pytest.raises(TypeError, match="int32 is neither float32"):
        to_tensor(np.zeros(3, np.int32), "float32")


def test_big_endian_values_keep_their_meaning() -> None:
    assert to_tensor(np.array([1, 2], ">i4")).numpy().tolist() == [1, 2]


def test_tensorflow_never_writes_through_a_read_only_array() -> None:
    import tensorflow as tf

    array = aligned(np.ones(100, np.float32))
    array.flags.writeable = False
    variables = [tf.Variable(tf.zeros(100)) for _ in range(3)]
    for variable in variables:
        variable.assign(to_tensor(array))
        assert address(variable.read_value()) == array.ctypes.data
    variables[0].assign_add(tf.ones(100))
    variables[1].scatter_nd_update([[1]], [5.0])

    @tf.function
    def update() -> Any:
        variables[2].assign(tf.nn.relu(variables[2] * -1.0))
        return variables[2].assign_sub(tf.ones(100))

    update()
    assert float(tf.exp(to_tensor(array))[0]) == pytest.approx(math.e)
    assert (array == 1).all()
    assert [float(v[1]) for v in variables] == [2.0, 5.0, -1.0]


def test_the_tensor_keeps_the_memory_alive() -> None:
    tensors = [to_tensor(aligned_empty(1 << 20).view(np.float32) * 0 + i) for i in range(8)]
    assert [float(t[-1]) for t in tensors] == list(range(8))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.dtype(d) for d in NATIVE if "complex" not in d]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
    ),
    st.data(),
)
def test_there_and_back_is_the_identity(array: Any, data: st.DataObject) -> None:
    if array.ndim:
        array = array[data.draw(st.slices(array.shape[0]))]
    np.testing.assert_array_equal(to_tensor(array).numpy(), array)
