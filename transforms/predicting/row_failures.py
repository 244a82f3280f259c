"""Whether a shard failed because of its own rows, so other shards may succeed. No Beam."""

from __future__ import annotations

import pyarrow as pa

from ..errors import DataError, HeadraceError

# Exceptions for values that code cannot take. Clients of services derive theirs from `Exception` or `OSError`.
_OF_VALUES = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError, MemoryError),
    pa.ArrowException,
)


def blames_rows(error: BaseException) -> bool:
    """True for errors of data, unless a cause of them is anything but values: a store, a network, a device, a missing module.

    Everything else is not of one shard: a store that does not answer, a model that cannot be loaded, a lost claim.
    """
    if not isinstance(error, DataError):
        return False
    cause = error.__cause__
    while cause is not None:
        if not _is_of_values(cause):
            return False
        cause = cause.__cause__
    return True


def _is_of_values(cause: BaseException) -> bool:
    import tensorflow as tf

    if isinstance(cause, HeadraceError):
        return isinstance(cause, DataError)
    if isinstance(cause, tf.errors.OpError):
        kinds = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, tf.errors.ResourceExhaustedError)
        return isinstance(cause, kinds)
    if isinstance(cause, OSError):  # Arrow's for a page that it cannot decode; the system's have a number
        return type(cause) is OSError and cause.errno is None
    return isinstance(cause, _OF_VALUES) or type(cause) is RuntimeError  # as TFLite's interpreter raises
