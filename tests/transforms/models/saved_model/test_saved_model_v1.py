from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, HeadraceError, ObjectChanged, SignatureNotFound, UnsupportedModel
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.saved_model import tf2 as saved_model
from headrace.transforms.models.streaming.tensor_stream import StreamOptions
from headrace.transforms.storage.local import LocalStore
from tests.support import zoo_v1
from tests.support.model_zoo import Inputs, data_files
from tests.transforms.models.saved_model.test_saved_model import assert_same_bits, in_ram
from tests.transforms.models.saved_model.test_tensor_bundle import read_index, write_table


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Inputs]]:
    made: dict[str, tuple[Path, Inputs]] = {}

    def export(name: str) -> tuple[Path, Inputs]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            made[name] = folder, zoo_v1.ZOO[name](folder)
        return made[name]

    return export


@pytest.fixture
def copied(exported: Callable[[str], tuple[Path, Inputs]], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(exported(name)[0], tmp_path / name))


@pytest.fixture(autouse=True)
def _nothing_left_in_memory_file_system() -> Any:
    yield
    assert in_ram() == []


def native(folder: Path, signature: str, inputs: Any) -> dict[str, Any]:
    import tensorflow as tf

    function = tf.saved_model.load(str(folder), tags=["serve"]).signatures[signature]
    return {k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()}


@pytest.mark.parametrize("name", zoo_v1.ZOO)
def test_outputs_equal_the_natively_loaded_models(name: str, exported: Any) -> None:
    folder, inputs = exported(name)
    spec = describe_model(str(folder))
    assert spec.signatures.keys() == inputs.keys()
    for signature, arrays in inputs.items():
        model = load_model(str(folder), signature)
        assert in_ram() == []
        assert_same_bits(model.predict(arrays), native(folder, signature, arrays))
        assert (model.inputs, model.outputs) == (spec.signatures[signature].inputs, spec.signatures[signature].outputs)
        told = describe_model(str(folder), signature)
        assert (told.parameters, told.nbytes) == (model.parameters, model.nbytes)


@pytest.mark.parametrize("name", ["resource_variables", "reference_variables"])
def test_only_what_the_signature_uses_is_fetched(name: str, exported: Any) -> None:
    folder, _ = exported(name)
    ref, store = pin_model(str(folder)), LocalStore()
    model = saved_model.load(store, ref, "serving_default", StreamOptions())
    numbers = 4 * 6 + 6 * 3 + 1
    assert model.parameters == numbers + 3
    graph = sum(o.size for o in ref.objects if "/variables/variables.data" not in o.uri)
    assert store.counters.bytes_read <= graph + model.nbytes + 200
    assert load_model(str(folder), "bias").nbytes == 4


def test_models_of_the_same_names_do_not_meet(exported: Any) -> None:
    cases = [exported(name) for name in ("reference_variables", "scaled_reference_variables") * 2]
    models = [load_model(str(folder)) for folder, _ in cases]
    for model, (folder, inputs) in zip(models, cases, strict=True):
        arrays = inputs["serving_default"]
        assert_same_bits(model.predict(arrays), native(folder, "serving_default", arrays))


def test_values_are_what_was_saved(exported: Any) -> None:
    """Not only the same as the native loader's."""
    folder, inputs = exported("main_op")
    found = load_model(str(folder)).predict(inputs["serving_default"])
    assert found["local"].tolist() == [6, 8, 10]
    assert load_model(str(folder)).predict({"x": np.array([2], np.int64)})["y"].tolist() == [-1]
    folder, inputs = exported("mutable_tables")
    found = load_model(str(folder)).predict(inputs["serving_default"])
    assert found["id"].tolist() == [5, -1, 6]
    assert found["row"].tolist() == [[1.5, 2.5], [0.0, 0.0]]
    folder, inputs = exported("several_graphs")
    assert load_model(str(folder)).predict(inputs["serving_default"])["y"].tolist() == [14.0, -28.0]


def test_a_flipped_byte_names_the_tensor(copied: Callable[[str], Path]) -> None:
    for name in ("resource_variables", "reference_variables"):
        folder = copied(name)
        data = data_files(folder)[0]
        raw = bytearray(data.read_bytes())
        raw[bytes(raw).index(np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32).tobytes()) + 5] ^= 1
        data.write_bytes(raw)
        with pytest.raises(CorruptModel, match=r"'net/w' in .*data-00000-of-00001 is damaged"):
            load_model(str(folder))
        assert load_model(str(folder), "bias").nbytes == 4


def test_a_truncated_data_file(copied: Callable[[str], Path]) -> None:
    folder = copied("estimator")
    data = data_files(folder)[0]
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CorruptModel, match=r"data-00000-of-00001.*(outside|truncated)"):
        load_model(str(folder))


def test_a_model_that_changed_since_it_was_pinned(copied: Callable[[str], Path]) -> None:
    folder = copied("reference_variables")
    ref = pin_model(str(folder))
    os.utime(data_files(folder)[0], ns=(0, 0))
    with pytest.raises(ObjectChanged):
        load_model(ref)


def test_a_checkpoint_that_does_not_fit(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("reference_variables")
    zoo_v1._matrices(tmp_path / "other", False, width=5)
    shutil.rmtree(folder / "variables")
    shutil.copytree(tmp_path / "other" / "variables", folder / "variables")
    for use in (load_model, describe_model):
        with pytest.raises(CorruptModel, match=r"does not fit.*'net/w'.*float32 \(4, 6\).*float32 \[5, 6\]"):
            use(str(folder), "serving_default")


def test_a_value_that_is_missing_is_never_silent(copied: Callable[[str], Path]) -> None:
    folder = copied("resource_variables")
    index = folder / "variables" / "variables.index"
    entries = read_index(index)
    del entries[b"net/bias"]
    index.write_bytes(write_table(entries))
    with pytest.raises(CorruptModel, match="'net/bias' has no value"):
        load_model(str(folder))


def changed(folder: Path, change: Callable[[Any], object]) -> str:
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return str(folder)


def node(proto: Any, name: str) -> Any:
    return next(n for n in proto.meta_graphs[0].graph_def.node if n.name.endswith(name))


def test_a_variable_that_nothing_fills_is_named(copied: Callable[[str], Path]) -> None:
    def forgotten(proto: Any) -> None:
        proto.meta_graphs[0].ClearField("saver_def")
        for key in ("variables", "trainable_variables"):
            proto.meta_graphs[0].collection_def.pop(key, None)

    folder = changed(copied("reference_variables"), forgotten)
    for use in (load_model, describe_model):
        with pytest.raises(UnsupportedModel, match="Nothing gives a value to the variable 'net/bias'"):
            use(folder, "serving_default")


def test_a_signature_of_other_composites_is_refused_when_it_is_asked_for(copied: Callable[[str], Path]) -> None:
    def slices(proto: Any) -> None:
        kind = proto.meta_graphs[0].signature_def["bias"].inputs["i"].composite_tensor.type_spec
        kind.type_spec_class = kind.INDEXED_SLICES_SPEC
        kind.type_spec_class_name = "IndexedSlicesSpec"

    folder = changed(copied("resource_variables"), slices)
    assert list(describe_model(folder).signatures) == ["serving_default"]
    with pytest.raises(UnsupportedModel, match=r"'i' of .* is a IndexedSlicesSpec"):
        load_model(folder, "bias")
    with pytest.raises(SignatureNotFound, match="'nope'"):
        load_model(folder, "nope")
    assert load_model(folder).parameters == 46


def test_which_graph_serves_must_be_clear(copied: Callable[[str], Path]) -> None:
    def two(proto: Any) -> None:
        proto.meta_graphs[0].meta_info_def.tags[:] = ["serve"]

    with pytest.raises(UnsupportedModel, match="not clear which graph"):
        load_model(changed(copied("several_graphs"), two))


def test_checkpoints_of_version_1_are_refused(copied: Callable[[str], Path]) -> None:
    def old(proto: Any) -> None:
        for n in proto.meta_graphs[0].graph_def.node:
            if n.op == "RestoreV2":
                n.op = "RestoreSlice"

    with pytest.raises(UnsupportedModel, match="checkpoint of version 1"):
        load_model(changed(copied("reference_variables"), old))


@pytest.mark.parametrize("spec", ["6 3 0,7:0,3", "6 3 -1,2:0,3", "6 3 0,3", "5 3 0,3:0,3", "x", "6 3 0,3:0"])
def test_hostile_slices(copied: Callable[[str], Path], spec: str) -> None:
    def slices(proto: Any) -> None:
        tensor = node(proto, "save/RestoreV2/shape_and_slices").attr["value"].tensor
        tensor.string_val[:] = [spec.encode() if value else b"" for value in tensor.string_val]

    with pytest.raises(CorruptModel, match="restores the slice"):
        load_model(changed(copied("reference_variables"), slices))


def test_a_graph_that_leads_nowhere(copied: Callable[[str], Path]) -> None:
    def dangling(proto: Any) -> None:
        node(proto, "save/restore_all").input[:] = ["^nowhere"]

    with pytest.raises(CorruptModel, match="'nowhere', which it does not hold"):
        load_model(changed(copied("reference_variables"), dangling))


@pytest.mark.parametrize("name", ["reference_variables", "main_op", "mutable_tables"])
def test_a_mutated_graph_is_read_or_refused(copied: Callable[[str], Path], name: str) -> None:
    """Only read: what TensorFlow's own parser and kernels make of a graph is theirs."""
    folder = copied(name)
    path = folder / "saved_model.pb"
    whole, rng = path.read_bytes(), random.Random(name)
    ends: Counter[str] = Counter()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            describe_model(str(folder), "serving_default")
            ends["read"] += 1
        except HeadraceError as error:
            ends[type(error).__name__] += 1
    assert ends["read"] > 10
    assert ends["CorruptModel"] > 10


@pytest.mark.parametrize("part", ["inputs", "attributes", "names", "dtypes"])
def test_nodes_that_lack_what_they_need(copied: Callable[[str], Path], part: str) -> None:
    def strip(proto: Any) -> None:
        restore = node(proto, "save/RestoreV2")
        if part == "inputs":
            del restore.input[1:]
        elif part == "attributes":
            restore.attr.clear()
        elif part == "names":
            node(proto, "save/RestoreV2/tensor_names").attr["value"].tensor.string_val[:] = [b"\xff"] * 5
        else:
            restore.attr["dtypes"].list.type[:] = [23] * len(restore.attr["dtypes"].list.type)

    with pytest.raises(CorruptModel):
        load_model(changed(copied("reference_variables"), strip))
