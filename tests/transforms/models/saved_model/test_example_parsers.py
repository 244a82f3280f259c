"""What inputs are parsed as, read from graphs: every parser, behind functions and loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.transforms.models.load import describe_model
from headrace.transforms.models.spec import ExampleFormat
from tests.support import model_zoo, zoo_v1
from tests.support.example_models import every_kind, sequence_specs


def parsed(folder: str, signature: str = "serving_default") -> dict[str, ExampleFormat | None]:
    inputs = describe_model(folder).signatures[signature].inputs
    return {name: spec.example for name, spec in inputs.items()}


def export(folder: Path, call: Any, *shape: int | None) -> str:
    import tensorflow as tf

    concrete = tf.function(call).get_concrete_function(tf.TensorSpec(list(shape), tf.string, "e"))
    tf.saved_model.save(tf.Module(), str(folder), signatures=concrete)
    return str(folder)


def test_every_kind_of_feature(tmp_path: Path) -> None:
    found = parsed(every_kind(tmp_path / "m"))["examples"]
    assert found is not None
    assert str(found) == (
        "serialized tf.train.Example of age int64, half float32, ids int64 [?], pair float32 [2], steps float32 [?], "
        "tags string [?], twos int64 [?, 2], word string"
    )
    assert [one.name for one in found.features if one.required] == ["age"]


def test_a_model_of_tensorflow_1(tmp_path: Path) -> None:
    zoo_v1.estimator(tmp_path / "m")
    for signature, name in (("serving_default", "inputs"), ("predict", "examples")):
        found = parsed(str(tmp_path / "m"), signature)[name]
        assert str(found) == "serialized tf.train.Example of number float32 [2], word string [1]"
        assert found is not None
        assert [one.required for one in found.features] == [False, True]
    assert set(parsed(str(tmp_path / "m"), "raw").values()) == {None}


def test_other_inputs_of_strings_are_none(tmp_path: Path) -> None:
    model_zoo.vocabulary(tmp_path / "m")
    assert set(parsed(str(tmp_path / "m")).values()) == {None}


def test_parsers_of_single_examples_within_a_loop(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(e: Any) -> Any:
        one = {"n": tf.io.FixedLenFeature([3], tf.int64)}
        return tf.map_fn(lambda x: tf.io.parse_single_example(x, one)["n"], e, fn_output_signature=tf.int64)

    assert str(parsed(export(tmp_path / "m", call, None))["e"]) == "serialized tf.train.Example of n int64 [3]"


def test_the_first_form_of_the_operation_and_a_branch(tmp_path: Path) -> None:
    import tensorflow as tf

    def parse(e: Any) -> Any:
        found = tf.raw_ops.ParseExample(
            serialized=tf.reshape(e, [-1]),
            names=[],
            sparse_keys=["s"],
            dense_keys=["d", "x"],
            dense_defaults=[tf.constant([], tf.float32), tf.constant(2, tf.int64)],
            sparse_types=[tf.string],
            dense_shapes=[[], []],
        )
        return found.dense_values[0]

    def call(e: Any) -> Any:
        return tf.cond(tf.size(e) > 0, lambda: parse(e), lambda: tf.zeros([0]))

    found = parsed(export(tmp_path / "m", call, None, 1))["e"]
    assert str(found) == "serialized tf.train.Example of d float32, s string [?], x int64"
    assert found is not None
    assert [one.required for one in found.features] == [True, False, False]


def test_several_parsers_of_one_input(tmp_path: Path) -> None:
    import tensorflow as tf

    io = tf.io

    def call(e: Any) -> Any:
        one = io.parse_example(e, {"a": io.FixedLenFeature([], tf.int64, 1), "b": io.VarLenFeature(tf.int64)})
        other = io.parse_example(
            e, {"a": io.FixedLenFeature([], tf.int64), "b": io.FixedLenFeature([2], tf.int64, [0, 0])}
        )
        return one["a"] + other["a"]

    found = parsed(export(tmp_path / "m", call, None))["e"]
    assert found is not None
    assert [(str(one), one.required) for one in found.features] == [("a int64", True), ("b int64 [2]", False)]

    def contradicting(e: Any) -> Any:
        one = io.parse_example(e, {"a": io.VarLenFeature(tf.string)})["a"].values
        return {"x": io.parse_example(e, {"a": io.FixedLenFeature([], tf.int64, 0)})["a"], "y": tf.size(one)}

    found = parsed(export(tmp_path / "n", contradicting, None))["e"]
    assert found is not None
    assert "parses 'a' as" in found.problem


def test_sequences(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(e: Any) -> Any:
        context, lists, _ = tf.io.parse_sequence_example(e, *sequence_specs())
        return {"user": context["user"], "clicks": lists["clicks"]}

    found = parsed(export(tmp_path / "m", call, None))["e"]
    assert found is not None
    assert str(found) == (
        "serialized tf.train.SequenceExample of clicks int64 [steps], names string [steps, ?], pairs float32 [steps, 2], "
        "spans int64 [steps, ?], tags string [?], user int64"
    )
    assert [one.name for one in found.features if one.required] == ["pairs", "user"]
    assert not found.problem

    def single(e: Any) -> Any:
        one = {
            "s": tf.io.FixedLenSequenceFeature([], tf.int64),
            "t": tf.io.FixedLenSequenceFeature([3], tf.int64, True),
        }
        context = {"c": tf.io.FixedLenFeature([2], tf.float32, [0.0, 1.0])}
        parse = lambda x: tf.io.parse_single_sequence_example(x, context, one)[1]["s"]  # noqa: E731
        return tf.map_fn(parse, e, fn_output_signature=tf.RaggedTensorSpec([None], tf.int64, 0)).to_tensor()

    found = parsed(export(tmp_path / "n", single, None))["e"]
    assert found is not None
    assert [(str(one), one.required) for one in found.features] == [
        ("c float32 [2]", False),
        ("s int64 [steps]", True),
        ("t int64 [steps, 3]", False),
    ]


def test_parsers_of_both_kinds_contradict_each_other(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(e: Any) -> Any:
        steps = {"s": tf.io.FixedLenSequenceFeature([], tf.int64)}
        lists = tf.io.parse_sequence_example(e, sequence_features=steps)[1]["s"]
        return {"s": lists, "n": tf.io.parse_example(e, {"n": tf.io.FixedLenFeature([], tf.int64)})["n"]}

    found = parsed(export(tmp_path / "m", call, None))["e"]
    assert found is not None
    assert "both tf.train.Example and tf.train.SequenceExample" in found.problem


def test_computed_keys_cannot_be_encoded(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(e: Any) -> Any:
        key = tf.strings.join(["n", tf.strings.as_string(tf.size(e))])
        return tf.raw_ops.ParseExampleV2(
            serialized=e,
            names=[],
            sparse_keys=[],
            dense_keys=[key],
            ragged_keys=[],
            dense_defaults=[tf.constant([], tf.int64)],
            num_sparse=0,
            sparse_types=[],
            ragged_value_types=[],
            ragged_split_types=[],
            dense_shapes=[[]],
        ).dense_values[0]

    found = parsed(export(tmp_path / "m", call, None))["e"]
    assert found is not None
    assert "computes the keys" in found.problem


def test_a_function_without_a_signature(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = {"n": tf.io.FixedLenFeature([], tf.int64)}
    module.serve = tf.function(
        lambda e: tf.io.parse_example(e, spec)["n"], input_signature=[tf.TensorSpec([None], tf.string, "e")]
    )
    tf.saved_model.save(module, str(tmp_path / "m"))
    one = describe_model(str(tmp_path / "m"), "serve").signatures["serve"].inputs["e"]
    assert str(one.example) == "serialized tf.train.Example of n int64"
