"""Memory handed to TensorFlow without a copy. Every weight and every column passes through `to_tensor`."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

# TensorFlow trusts the address it is given: its vectorised kernels abort the process on a buffer that is not aligned to
# Eigen's widest vector, which is 64 bytes (EIGEN_MAX_ALIGN_BYTES with AVX-512).
ALIGNMENT = 64

# numpy asks for huge pages (MADV_HUGEPAGE) for arrays of 4 MiB or more. In a virtual machine their first touch cost three
# times the system time of plain pages (2.5 s against 0.8 s for 1 GiB), all of it while loading.
_OWN_MAPPING = 1 << 20

_BITS = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


def aligned_empty(nbytes: int) -> Any:
    """A uint8 array of `nbytes`, its address a multiple of `ALIGNMENT`; no page is touched until it is written."""
    if nbytes >= _OWN_MAPPING:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return np.frombuffer(mmap.mmap(-1, nbytes, flags=private), np.uint8)
    raw: Any = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + nbytes]


def to_tensor(array: Any, dtype: str | None = None) -> Any:
    """A `tf.Tensor` over the array's memory, or over an aligned copy where that memory cannot be used.

    An array that is C-contiguous and aligned to `ALIGNMENT` is not copied. The array must not change as long as
    the tensor lives; TensorFlow never writes through it (it does not own the buffer, so updates copy). `dtype` is the
    name of the tensor's dtype where the array holds only its bits as unsigned integers. Strings, float8 and the
    integers narrower than a byte are always copied: neither DLPack nor `tf.bitcast` carries them. Raises `TypeError`
    where the array's dtype is neither `dtype` nor its bits: values are never cast.
    """
    import tensorflow as tf

    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        return tf.constant(array, tf.string)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    target = tf.dtypes.as_dtype(array.dtype if dtype is None else dtype)
    wanted = np.dtype(target.as_numpy_dtype)
    if array.dtype not in (wanted, _BITS.get(wanted.itemsize)):
        raise TypeError(f"an array of {array.dtype} is neither {target.name} nor its bits")
    if wanted.isbuiltin == 1 and array.dtype == wanted:
        return _hand_over(array)
    if target.is_quantized or target == tf.bfloat16:
        return tf.bitcast(_hand_over(array.view(_BITS[wanted.itemsize])), target)
    return tf.constant(array.view(wanted))


def _hand_over(array: Any) -> Any:
    import tensorflow as tf

    address = array.__array_interface__["data"][0]  # array.ctypes.data makes two objects to say the same
    if address % ALIGNMENT or not array.flags.c_contiguous:
        copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
        np.copyto(copy, array)
        array = copy
    if not array.flags.writeable:
        array = np.asarray(_WritableView(array))
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


class _WritableView:
    """The same memory under a writable flag: numpy exports no read-only array, as DLPack cannot say that it is one."""

    def __init__(self, array: Any) -> None:
        interface = array.__array_interface__
        self.owner = array
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
