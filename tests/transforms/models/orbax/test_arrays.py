"""Arrays as Orbax stores them, in every form that it writes: found, fetched and unpacked to the bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel, UnsupportedModel
from headrace.transforms.models.orbax import array_store
from headrace.transforms.models.orbax.array_store import ArrayStore
from headrace.transforms.models.orbax.arrays import Tree
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, numpy_dtype, open_stream
from headrace.transforms.storage import ObjectRef, open_store
from tests.support.orbax_checkpoints import Form, write_tree

_TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32, np.int64, np.bool_]
_FORMS = st.builds(
    Form,
    zarr3=st.booleans(),
    ocdbt=st.booleans(),
    packed=st.booleans(),
    parts=st.integers(1, 3),
    node_bytes=st.sampled_from([500, 100_000_000]),
)


def objects(folder: Path) -> dict[str, ObjectRef]:
    return {ref.uri.removeprefix(f"{folder}/"): ref for ref in open_store(str(folder)).list(f"{folder}/")}


def streamed(folder: Path, options: StreamOptions = StreamOptions()) -> dict[str, Any]:
    store = open_store(str(folder))
    arrays = Tree(store, str(folder), objects(folder)).by_name()
    with (
        ArrayStore(store, arrays.values(), options) as made,
        open_stream(made, [one.slot for one in arrays.values()], options) as stream,
    ):
        return {name: stream.take(stored.slot.name) for name, stored in arrays.items()}


@given(
    form=_FORMS,
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=3),
    kind=st.sampled_from(_TYPES),
    small=st.booleans(),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_every_form(
    tmp_path_factory: Any, form: Form, shapes: list[list[int]], kind: Any, small: bool, data: Any
) -> None:
    noise = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays: dict[tuple[str, ...], Any] = {
        ("tree", f"array {i}"): (9 * noise.standard_normal(math.prod(shape))).astype(kind).reshape(shape)
        for i, shape in enumerate(shapes)
    }
    folder = tmp_path_factory.mktemp("tree") / "t"
    write_tree(folder, arrays, form)
    # Pieces and the memory for copies are small here: both are divided.
    options = StreamOptions(connections=3, in_flight_bytes=60, piece_bytes=7) if small else StreamOptions()
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(array_store, "_ASIDE_BYTES", 8)
        found = streamed(folder, options)
    assert found.keys() == {".".join(keys) for keys in arrays}
    for keys, array in arrays.items():
        value = found[".".join(keys)]
        assert (value.dtype, value.shape, value.tobytes()) == (array.dtype, array.shape, array.tobytes())


class TestDamage:
    @pytest.fixture(params=[Form(), Form(zarr3=False), Form(ocdbt=False, packed=False)])
    def folder(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        array = np.random.default_rng(0).standard_normal((60, 70)).astype(np.float32)
        write_tree(tmp_path / "t", {("w",): array}, request.param)
        return tmp_path / "t"

    def test_bytes_that_are_missing(self, folder: Path) -> None:
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        data = largest.read_bytes()
        largest.write_bytes(data[: len(data) // 2])
        with pytest.raises(CorruptModel, match="Copy the"):
            streamed(folder)
        largest.unlink()
        with pytest.raises(CorruptModel, match=r"no (file|chunk)"):
            streamed(folder)


@pytest.fixture
def zarr(tmp_path: Path) -> Any:
    """Changes the metadata of the only array, as no database of nodes hides it."""
    write_tree(tmp_path / "t", {("w",): np.zeros((6, 7), np.float32)}, Form(zarr3=False, ocdbt=False))
    path = tmp_path / "t/w/.zarray"

    def changed(**fields: Any) -> Path:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return tmp_path / "t"

    return changed


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"compressor": {"id": "blosc"}}, "chunks packed by 'blosc'"),
        ({"dtype": ">f4"}, "elements of type >f4"),
        ({"dtype": "|S4"}, "elements of type"),
        ({"order": "F"}, "order of elements"),
        ({"filters": [{"id": "delta"}]}, "filters"),
        ({"zarr_format": 4}, "Zarr of version 4"),
    ],
)
def test_what_is_not_known_is_refused(zarr: Any, fields: dict[str, Any], found: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{found}(.|\n)*model\.save\('….keras'\)"):
        streamed(zarr(**fields))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"chunks": [6, 8]}, "bytes too few"),
        ({"chunks": [6, 6]}, "no chunk|chunks of w"),
        ({"chunks": [0, 7]}, "chunks of"),
        ({"shape": [-1, 7]}, "whole numbers"),
        ({"dtype": "<f8"}, "bytes too few"),
        ({"dtype": "<f2"}, "more bytes"),
        ({"shape": [1 << 40, 7], "chunks": [1 << 40, 7]}, "bytes that claim to unpack to"),
        ({"shape": [1 << 40, 7], "chunks": [1, 1]}, "more than there are keys"),
        ({"shape": "wide"}, "no shape"),
    ],
)
def test_metadata_that_is_not_true(zarr: Any, fields: dict[str, Any], found: str) -> None:
    with pytest.raises(CorruptModel, match=found):
        streamed(zarr(**fields))


def test_types_are_those_of_tensorflow() -> None:
    from headrace.transforms.models.orbax import zarr as formats

    for name in {*formats._SHORT.values(), *formats._LONG.values()}:
        assert numpy_dtype(name).itemsize >= 1
