"""The cores that a process works on, and TensorFlow's threads on them."""

from __future__ import annotations

import logging
import os

_log = logging.getLogger(__name__)


def cores() -> int:
    """Cores that this process may use, which is also the number of shards it works on at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_tensorflow_threads() -> None:
    """One intra-op thread, since a shard per core keeps the cores busy, and then a batch gives the same bits everywhere;
    as many inter-op threads as shards in flight, since TensorFlow runs a function's operations in these.

    TensorFlow takes this only before its first operation: a process that has used it already keeps what it has.
    """
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores())
    except RuntimeError as error:
        _log.info("TensorFlow keeps its threads, %s intra-op: %s", intra_op_threads() or "as many as cores", error)


def intra_op_threads() -> int:
    """As in force in this process; 0 is TensorFlow's own choice. They change the bits of large matrix products."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads())
