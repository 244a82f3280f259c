from __future__ import annotations

import io
import itertools
import math
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel, ModelError, StorageError, UnsupportedModel
from headrace.transforms.models.keras_model.hdf5 import VALUE_BYTES, Hdf5File
from headrace.transforms.models.keras_model.hdf5_types import Dataset
from headrace.transforms.models.streaming.ranges import BLOCK, RangeFile, Ranges, Resident
from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import OBJECTS, put

_names = itertools.count()


def written(fill: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


@contextmanager
def opened(data: bytes, before: int = 5000) -> Iterator[tuple[Hdf5File, Ranges, Any]]:
    """The file within a larger object, as it lies in an archive."""
    uri = f"memory://hdf5/{next(_names)}"
    ref = put(uri, b"\xaa" * before + data + b"\xbb" * 100)
    store = open_store(uri)
    try:
        with Ranges(store, ref) as ranges:
            yield Hdf5File(RangeFile(ranges, before, len(data)), "the file"), ranges, store
    finally:
        del OBJECTS[uri]


def layers(count: int, width: int) -> bytes:
    """As Keras lays out a model's weights, and its optimizer's after them."""

    def fill(file: Any) -> None:
        for part in ("layers", "optimizer"):
            for i in range(count):
                group = file.create_group(f"{part}/dense_{i}").create_group("vars")
                group.attrs["name"] = f"dense_{i}"
                group["0"] = np.full((width, width), i, np.float32)
                group["1"] = np.full((width,), -i, np.float32)

    return written(fill)


def test_every_dataset_lies_where_it_is_said_to_lie() -> None:
    arrays: dict[str, Any] = {
        "f4": np.arange(12, dtype="f4").reshape(3, 4),
        "f8": np.arange(5, dtype="f8"),
        "f2": np.arange(7, dtype="f2"),
        "i1": np.arange(3, dtype="i1"),
        "u8": np.arange(3, dtype="u8"),
        "c8": np.arange(3, dtype="c8"),
        "b": np.array([True, False, True]),
        "scalar": np.float32(3),
    }
    data = written(lambda file: [file.create_dataset(f"g/{name}", data=value) for name, value in arrays.items()])
    with opened(data) as (file, _, _):
        found = file.group("g")
        assert found is not None
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            dataset = found[name]
            assert (dataset.dtype, dataset.shape) == (value.dtype.name, value.shape)
            assert dataset.offset is not None
            assert data[dataset.offset : dataset.offset + dataset.nbytes] == value.tobytes()
            np.testing.assert_array_equal(file.read(dataset), value)


def test_bfloat16_is_known_by_its_attribute() -> None:
    import ml_dtypes

    value = np.array([1.5, -2, 3], ml_dtypes.bfloat16)

    def fill(file: Any) -> None:
        file.create_dataset("g/0", data=value).attrs["dtype"] = "bfloat16"
        file.create_dataset("g/1", data=value, chunks=(2,)).attrs["dtype"] = "bfloat16"

    with opened(data := written(fill)) as (file, _, _):
        found = file.group("g") or {}
        assert found["0"].dtype == found["1"].dtype == "bfloat16"
        assert found["0"].offset is not None
        assert data[found["0"].offset :][:6] == value.tobytes()
        assert found["1"].offset is None
        np.testing.assert_array_equal(file.read(found["1"]).view(np.uint16), value.view(np.uint16))


@pytest.mark.parametrize("how", ["chunked", "gzip", "compact", "big-endian", "empty"])
def test_small_values_in_other_layouts_are_read(how: str) -> None:
    value = np.arange(0 if how == "empty" else 20, dtype=">f4" if how == "big-endian" else "<f4")

    def fill(file: Any) -> None:
        if how == "compact":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(value.shape)
            group = file.create_group("g")
            h5py.h5d.create(group.id, b"0", h5py.h5t.NATIVE_FLOAT, space, plist).write(space, space, value)
        else:
            options: dict[str, dict[str, Any]] = {"chunked": {"chunks": (7,)}, "gzip": {"compression": "gzip"}}
            file.create_dataset("g/0", data=value, **options.get(how, {}))

    with opened(written(fill)) as (file, _, _):
        dataset = (file.group("g") or {})["0"]
        assert dataset.offset is None
        read = file.read(dataset)
        np.testing.assert_array_equal(read, value)
        assert read.dtype == np.float32
        assert read.dtype.isnative


def test_a_large_value_in_pieces_is_refused() -> None:
    data = written(lambda f: f.create_dataset("g/0", data=np.zeros(VALUE_BYTES + 1, "u1"), compression="gzip"))
    with opened(data) as (file, _, _), pytest.raises(UnsupportedModel, match=r"g/0.*stored in pieces"):
        file.read((file.group("g") or {})["0"])


def test_what_is_not_there_is_none() -> None:
    with opened(layers(2, 4)) as (file, _, _):
        assert file.group("layers/dense_9/vars") is None
        assert file.group("layers/dense_1/vars/0") is None
        assert not file.has("layers/dense_9")
        assert file.has("layers/dense_1/vars")
        assert file.has("")


def test_metadata_takes_few_round_trips_and_no_weights() -> None:
    data = layers(50, 256)
    with opened(data) as (file, ranges, store):
        file.locate([f"layers/dense_{i}/vars" for i in range(50)])
        trips, requests, nbytes = ranges.round_trips, store.counters.requests, store.counters.bytes_read
        for i in range(50):
            found = file.group(f"layers/dense_{i}/vars") or {}
            assert found["0"].offset is not None
            assert data[found["0"].offset :][:4] == np.float32(i).tobytes()
            assert found["1"].shape == (256,)
        assert ranges.round_trips == trips, "located once, known from then on"
        assert trips <= 5
        assert requests <= 110
        assert nbytes <= 5 << 20 < len(data) / 5


def test_locating_together_finds_what_one_by_one_finds() -> None:
    data = layers(30, 64)
    paths = [f"{part}/dense_{i}/vars" for part in ("layers", "optimizer", "nothing") for i in range(30)]
    with opened(data) as (together, _, _), opened(data) as (single, _, _):
        together.locate(paths)
        assert [together.group(path) for path in paths] == [single.group(path) for path in paths]


def test_walking_goes_where_it_is_wanted_and_ends() -> None:
    def fill(file: Any) -> None:
        for path in ("layers/a/vars", "layers/b/vars", "optimizer/vars", "vars"):
            file[f"{path}/0"] = np.zeros(3)
        file["layers/a/again"] = file["layers"]
        file["self"] = file["/"]

    with opened(written(fill)) as (file, _, _):
        walked = file.walk(lambda name: name != "optimizer")
        assert walked[0] == ""
        assert {"layers", "layers/a/vars", "layers/b/vars", "vars"} <= set(walked)
        assert not any("optimizer" in path for path in walked)
        assert len(walked) == len(set(walked)) < 20


def test_walking_takes_few_round_trips() -> None:
    with opened(data := layers(50, 256)) as (file, ranges, store):
        walked = file.walk(lambda name: name != "optimizer")
        assert set(walked) >= {f"layers/dense_{i}/vars" for i in range(50)}
        assert ranges.round_trips <= 5
        assert store.counters.requests <= 110
        assert store.counters.bytes_read <= 5 << 20 < len(data) / 5


@pytest.mark.parametrize("kind", ["soft", "external"])
def test_links_are_not_followed(kind: str) -> None:
    def fill(file: Any) -> None:
        file["real/0"] = np.zeros(3)
        file["linked"] = h5py.SoftLink("/real") if kind == "soft" else h5py.ExternalLink("/etc/passwd", "/real")
        file["g/0"] = h5py.SoftLink("/real/0") if kind == "soft" else h5py.ExternalLink("other.h5", "/0")

    with opened(written(fill)) as (file, _, _):
        for path in ("linked", "g"):
            with pytest.raises(UnsupportedModel, match=f"an? {kind} link at"):
                file.group(path)
        with pytest.raises(UnsupportedModel, match=f"an? {kind} link at"):
            file.has("linked")


def test_data_outside_the_file_is_refused() -> None:
    def fill(file: Any) -> None:
        file.create_dataset("external/0", (4,), "f4", external=[("/etc/passwd", 0, 16)])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("virtual/0", layout)

    with opened(written(fill)) as (file, _, _):
        for path in ("external", "virtual"):
            with pytest.raises(UnsupportedModel, match="is in another file"):
                file.group(path)


def test_kinds_that_no_weight_has_are_refused() -> None:
    def fill(file: Any) -> None:
        file["strings/0"] = np.array(["a", "b"], dtype=object)
        file["records/0"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["opaque/0"] = np.zeros(2, "V2")
        file["nothing/0"] = h5py.Empty("f4")

    with opened(written(fill)) as (file, _, _):
        for path in ("strings", "records", "opaque"):
            with pytest.raises(UnsupportedModel, match=f"{path}/0"):
                file.group(path)
        with pytest.raises(CorruptModel, match="nothing/0"):
            file.group("nothing")


def test_a_shape_without_data_is_no_bomb() -> None:
    def fill(file: Any) -> None:
        file.create_dataset("late/0", (1 << 50,), "f4")
        file.create_dataset("chunked/0", (1 << 40, 1 << 9), "f4", chunks=(64, 64), fillvalue=1)

    with opened(written(fill)) as (file, _, _):
        for path in ("late", "chunked"):
            with pytest.raises(CorruptModel, match=f"{path}/0"):
                file.group(path)


@pytest.mark.parametrize("shape", [(0, 1 << 62), (1 << 40, 0, 1 << 40)])
def test_a_shape_without_values_may_be_none_of_an_array(shape: tuple[int, ...]) -> None:
    data = written(lambda file: file.create_dataset("g/0", shape, "f4"))
    with opened(data) as (file, _, _), pytest.raises(CorruptModel, match=r"'g/0' a shape that no array has"):
        file.read((file.group("g") or {})["0"])


def many_times(text: str, count: int) -> bytes:
    """A list of names that all lead to one long text, in a file not much larger than that."""

    def fill(file: Any) -> None:
        file["pad"] = np.zeros(300_000)
        file.attrs.create("layer_names", [text, *(f"b{i:05d}" for i in range(count - 1))], dtype=h5py.string_dtype())

    data = bytearray(written(fill))
    # A reference is the text's length, the address of its heap, and its number there: theirs is the one that others follow.
    length = struct.pack("<I", len(text))
    starts = [match.start() for match in re.finditer(re.escape(length), bytes(data))]
    (at,) = [i for i in starts if data[i + 16 : i + 20] == struct.pack("<I", 6) == data[i + 32 : i + 36]]
    data[at : at + 16 * count] = data[at : at + 16] * count
    return bytes(data)


def test_a_text_that_many_names_lead_to_is_no_bomb() -> None:
    file = texts_of(many_times("A" * (1 << 20), 5))
    assert file.texts("")["layer_names"] == ("A" * (1 << 20),) * 5
    file = texts_of(many_times("A" * (1 << 20), 250))
    with pytest.raises(
        CorruptModel, match=r"too much text in 'layer_names'.*at most 67108864 bytes.*250 strings of 262144000"
    ):
        file.texts("")


@pytest.mark.parametrize("library", ["earliest", "latest"])
def test_names_of_layers_are_read_from_either_kind_of_header(library: str) -> None:
    names = [f"a_layer_with_a_name_{i}" for i in range(300)]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=library) as file:
        for i in range(6):
            file.attrs.create(f"other_{i}", ["x", "y"], dtype=h5py.string_dtype())
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype())
    assert texts_of(buffer.getvalue()).texts("")["layer_names"] == tuple(names)


def texts_of(data: bytes) -> Hdf5File:
    return Hdf5File(RangeFile(Resident(data), 0, len(data)), "the file", re.compile("layer_names"))


def test_a_chunk_that_unpacks_to_much_more_than_its_dataset_is_no_bomb() -> None:
    def fill(file: Any) -> None:
        file.create_dataset("x", (10,), "f4", maxshape=(None,), chunks=(4 << 20,), compression="gzip")[:] = 1

    with opened(written(fill)) as (file, _, _):
        (dataset,) = (file.group("") or {}).values()
        with pytest.raises(CorruptModel, match=r"'x' in chunks too large for it.*16777216 bytes"):
            file.read(dataset)


def test_an_unknown_filter_is_refused() -> None:
    data = written(lambda file: file.create_dataset("g/0", data=np.zeros(100), compression="lzf"))
    with opened(data) as (file, _, _), pytest.raises(UnsupportedModel, match="HDF5 filter 32000"):
        file.group("g")


def test_truncated_at_any_length() -> None:
    data = layers(3, 8)
    for length in [*range(64), *range(64, len(data), 211), len(data) - 1]:
        with pytest.raises(CorruptModel, match="the file"), opened(data[:length], before=0):
            pass


def test_storage_errors_pass_through() -> None:
    with opened(layers(30, 64)) as (file, ranges, _):
        put(ranges.ref.uri, b"rewritten")
        with pytest.raises(StorageError, match="rewritten while"):
            file.locate([f"layers/dense_{i}/vars" for i in range(30)])


def check_damaged(data: bytes, whole: bytes) -> None:
    """Either a `ModelError`, or datasets that lie inside the file and are as large as they say."""
    try:
        with opened(data, before=BLOCK + 1) as (file, _, _):
            paths = ["layers/dense_0/vars", "layers/dense_1/vars", "layers/dense_2/vars", "values"]
            file.locate(paths)
            for path in {*paths, *file.walk(lambda name: True)}:
                for dataset in (file.group(path) or {}).values():
                    check_dataset(file, dataset, len(whole))
    except ModelError:
        return


def check_dataset(file: Hdf5File, dataset: Dataset, size: int) -> None:
    from headrace.transforms.models.streaming.tensor_stream import numpy_dtype

    assert dataset.nbytes == math.prod(dataset.shape) * numpy_dtype(dataset.dtype).itemsize
    if dataset.offset is not None:
        assert 0 <= dataset.offset <= dataset.offset + dataset.nbytes <= size
    else:
        assert file.read(dataset).shape == dataset.shape


def fuzz(examples: int) -> None:
    """Run in a process of its own: what HDF5 makes of hostile bytes may end it."""
    extra: dict[str, Any] = {"chunks": (3,), "compression": "gzip", "shuffle": True}

    def fill(file: Any) -> None:
        for i in range(3):
            group = file.create_group(f"layers/dense_{i}/vars")
            group["0"] = np.arange(12, dtype="f4").reshape(3, 4)
            group["1"] = np.arange(4, dtype="f4")
        file.create_dataset("values/0", data=np.arange(10, dtype="f4"), **extra).attrs["dtype"] = "bfloat16"
        file.create_dataset("values/1", data=np.arange(6, dtype="u2")).attrs["dtype"] = np.arange(4)

    whole = written(fill)
    check_damaged(whole, whole)
    interesting = [i for i, byte in enumerate(whole) if byte]
    numbers = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 127, 128, 255]) | st.integers(0, 255)
    flips = st.lists(st.tuples(st.sampled_from(interesting) | st.integers(0, len(whole) - 1), numbers), max_size=4)
    words = st.lists(
        st.tuples(st.sampled_from([i for i in interesting if i < len(whole) - 8]), st.integers(0, 2**64 - 1)),
        max_size=2,
    )

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(flips, words, st.none() | st.integers(0, len(whole)))
    def run(flips: list[tuple[int, int]], words: list[tuple[int, int]], length: int | None) -> None:
        data = bytearray(whole)
        for at, value in flips:
            data[at] = value
        for at, word in words:
            data[at : at + 8] = word.to_bytes(8, "little")
        check_damaged(bytes(data[:length]), whole)

    check_damaged(whole, whole)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"peak memory grew by {grown} KiB"


@pytest.mark.timeout(180)
def test_hostile_bytes_end_in_an_error_or_a_sound_answer() -> None:
    code = "from tests.transforms.models.keras_model.test_hdf5 import fuzz; fuzz(600)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
