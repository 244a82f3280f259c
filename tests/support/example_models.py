"""Models that parse serialized tf.train.Example, and Examples as their own library writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def specs() -> dict[str, Any]:
    """Every kind that `tf.io.parse_example` has."""
    import tensorflow as tf

    io = tf.io
    return {
        "age": io.FixedLenFeature([], tf.int64),
        "half": io.FixedLenFeature([], tf.float32, 0.5),
        "pair": io.FixedLenFeature([2], tf.float32, [7.0, 8.0]),
        "word": io.FixedLenFeature([], tf.string, b"none"),
        "ids": io.VarLenFeature(tf.int64),
        "tags": io.VarLenFeature(tf.string),
        "steps": io.RaggedFeature(tf.float32),
        "twos": io.FixedLenSequenceFeature([2], tf.int64, allow_missing=True),
    }


def outputs(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """All of what was parsed, as dense tensors."""
    import tensorflow as tf

    return {
        **{name: parsed[name] for name in ("age", "half", "pair", "word", "twos")},
        "ids": tf.sparse.to_dense(parsed["ids"], -99),
        "tags": tf.sparse.to_dense(parsed["tags"], b"?"),
        "steps": parsed["steps"].to_tensor(-99.0),
    }


def every_kind(folder: Path) -> str:
    """The parser within a function within the signature."""
    import tensorflow as tf

    parse = tf.function(lambda strings: tf.io.parse_example(strings, specs()))
    call = tf.function(lambda strings: outputs(parse(tf.identity(strings))))
    spec = tf.TensorSpec([None], tf.string, "examples")
    tf.saved_model.save(tf.Module(), str(folder), signatures=call.get_concrete_function(spec))
    return str(folder)


def example(features: Mapping[str, tuple[str, Any]]) -> bytes:
    """As tf.train.Example writes it: dtypes and values by key; values of None are left out."""
    import tensorflow as tf

    def feature(dtype: str, values: Any) -> Any:
        if dtype == "string":
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if dtype == "float32":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    told = {name: feature(*one) for name, one in features.items() if one[1] is not None}
    return bytes(tf.train.Example(features=tf.train.Features(feature=told)).SerializeToString(deterministic=True))


def sequence_specs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Context and feature lists, every kind that `tf.io.parse_sequence_example` has."""
    import tensorflow as tf

    io = tf.io
    context = {"user": io.FixedLenFeature([], tf.int64), "tags": io.VarLenFeature(tf.string)}
    return context, {
        "clicks": io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "pairs": io.FixedLenSequenceFeature([2], tf.float32),
        "spans": io.VarLenFeature(tf.int64),
        "names": io.RaggedFeature(tf.string),
    }


def sequence_example(row: Mapping[str, Any], features: Sequence[Any]) -> bytes:
    """As tf.train.SequenceExample writes it: the row's values by key; values of None are left out."""
    import tensorflow as tf

    def feature(dtype: str, values: Any) -> Any:
        some = values if isinstance(values, list) else [values]
        some = [value.encode() if isinstance(value, str) else value for value in some]
        named = {"string": "bytes_list", "float32": "float_list", "int64": "int64_list"}[dtype]
        kinds = {"bytes_list": tf.train.BytesList, "float_list": tf.train.FloatList, "int64_list": tf.train.Int64List}
        return tf.train.Feature(**{named: kinds[named](value=some)})

    kept = [one for one in features if row[one.name] is not None]
    context = {one.name: feature(one.dtype, row[one.name]) for one in kept if not one.steps}
    lists = {
        one.name: tf.train.FeatureList(feature=[feature(one.dtype, step) for step in row[one.name]])
        for one in kept
        if one.steps
    }
    message = tf.train.SequenceExample()
    if any(not one.steps for one in features):
        message.context.SetInParent()
        message.context.MergeFrom(tf.train.Features(feature=context))
    message.feature_lists.SetInParent()
    message.feature_lists.MergeFrom(tf.train.FeatureLists(feature_list=lists))
    return bytes(message.SerializeToString(deterministic=True))
