"""What the harness of `tests/support/fuzzing.py` tries: each parser of a file that anybody may have written."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import random
import re
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

from tests.support.fuzzing import Target, mutated, mutated_json

_uris = itertools.count()


def _put(data: bytes, name: str) -> tuple[Any, Any]:
    from headrace.transforms.storage import open_store
    from headrace.transforms.storage.memory import OBJECTS, put

    OBJECTS.clear()
    uri = f"memory://fuzz/{next(_uris)}/{name}"
    return open_store(uri), put(uri, data)


def _hdf5_seeds() -> list[bytes]:
    import h5py
    import numpy as np

    made: list[bytes] = []
    for library in ("earliest", "earliest", "v108", "latest"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=library) as file:
            for i in range(12 if len(made) != 1 else 2):
                group = file.create_group(f"layers/dense_{i}/vars")
                group["0"], group["1"] = np.full((3, 4), i, "f4"), np.arange(4, dtype=">i8")
            file["values/0"] = np.float16(1)
            if library in ("earliest", "v108"):
                packed: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}
                file.create_dataset("values/1", data=np.arange(35, dtype="f4").reshape(5, 7), chunks=(2, 3), **packed)
            file.attrs["model_config"], file.attrs["keras_version"] = '{"class_name": "Sequential"}', "3.15.0"
            file.attrs["layer_names"] = np.array([b"dense_0", b"dense_1"])
            for i in range(12):
                texts = [f"dense_{i}/kernel", f"dense_{i}/bias"]
                file["layers"].attrs.create(f"weight_names{i}", texts, dtype=h5py.string_dtype())
        made.append(buffer.getvalue())
    return made


def _hdf5(data: bytes) -> None:
    from headrace.transforms.models.keras_model.hdf5 import VALUE_BYTES, Hdf5File
    from headrace.transforms.models.streaming.ranges import RangeFile, Ranges, Resident

    names = re.compile(r"(layer_names|weight_names)\d*|model_config|keras_version")

    def read(source: Any) -> None:
        file = Hdf5File(RangeFile(source, 0, len(data)), "the file", names)
        for path in file.walk(lambda name: True):
            file.texts(path)
            for dataset in (file.group(path) or {}).values():
                if dataset.nbytes <= VALUE_BYTES:
                    assert file.read(dataset).shape == dataset.shape
                if dataset.offset is not None:
                    assert 0 <= dataset.offset <= dataset.offset + dataset.nbytes <= len(data)

    if sum(data[-64:]) % 8:
        read(Resident(data))
        return
    store, ref = _put(data, "weights.h5")
    with Ranges(store, ref) as ranges:
        read(ranges)


def _repair_hdf5(data: bytes) -> bytes:
    """The checksums of the newer layout."""
    from headrace.transforms.models.keras_model.hdf5_format import lookup3

    made = bytearray(data)
    for match in re.finditer(rb"OHDR|FRHP|BTHD|BTLF", data):
        at = match.start()
        length = {b"FRHP": 142, b"BTHD": 34}.get(match[0], 0)
        if match[0] == b"OHDR" and at + 40 < len(data):
            flags = data[at + 5]
            width, first = 1 << (flags & 3), 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            length = first + width + int.from_bytes(data[at + first : at + first + width], "little")
        if 0 < length < 4000 and at + length + 4 <= len(data):
            made[at + length : at + length + 4] = lookup3(bytes(made[at : at + length])).to_bytes(4, "little")
    return bytes(made)


def _bundle_seeds() -> list[bytes]:
    from headrace.transforms.models.saved_model.tensor_bundle import read_table
    from tests.transforms.models.saved_model.test_tensor_bundle import real_bundle, write_table

    index = real_bundle()[0]
    table = read_table(index, "real")
    return [index, write_table(table, compressed=True, per_block=4), write_table(table, per_block=3)]


def _bundle(data: bytes) -> None:
    from headrace.transforms.models.saved_model.tensor_bundle import Bundle
    from headrace.transforms.storage.store import ObjectRef

    store, ref = _put(data, "variables.index")
    bundle = Bundle(store, ref, lambda i, n: ObjectRef(f"memory://fuzz/{i}-{n}", 40_000, "1", None))
    for key in list(bundle._table)[:200]:
        bundle.entry(key.decode("utf-8", "replace"))


def _mutated_bundle(noise: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Mostly within the values of the table, which is written again, so that its checksums hold."""
    from headrace.transforms.models.saved_model.tensor_bundle import read_table
    from tests.transforms.models.saved_model.test_tensor_bundle import write_table

    if noise.random() < 0.4:
        return mutated(noise, data, seeds)
    table = read_table(data, "seed")
    keys = sorted(table)
    for _ in range(noise.choice((1, 1, 3))):
        key = noise.choice(keys)
        if noise.random() < 0.15:
            table[mutated(noise, key, keys)] = table[key]
        else:
            table[key] = mutated(noise, table[key], list(table.values()))
    return write_table(dict(sorted(table.items())), compressed=noise.random() < 0.3, per_block=noise.randrange(1, 20))


def _repair_bundle(data: bytes) -> bytes:
    """The checksums of the blocks, where the footer still leads to them."""
    import crc32c

    from headrace.transforms.errors import HeadraceError
    from headrace.transforms.models.saved_model.tensor_bundle import _varint
    from headrace.transforms.models.streaming.tensor_stream import mask_crc

    made = bytearray(data)

    def sign(offset: int, size: int) -> None:
        if offset + size + 5 <= len(made):
            crc = mask_crc(crc32c.crc32c(bytes(made[offset : offset + size + 1])))
            made[offset + size + 1 : offset + size + 5] = struct.pack("<I", crc)

    try:
        at, numbers = len(data) - 48, []
        for _ in range(4):
            number, at = _varint(data, at, "")
            numbers.append(number)
        sign(*numbers[2:])
    except (HeadraceError, IndexError):
        pass
    return bytes(made)


@functools.cache
def _databases() -> tuple[tuple[bytes, bytes], ...]:
    """Manifests, each with the root of its tree: a leaf, and a node above others."""
    from headrace.transforms.models.orbax.ocdbt import MANIFEST, Place, keys_and_values
    from tests.transforms.models.orbax.test_ocdbt import database, read

    made = []
    for node_bytes in (300, 100_000):
        files = database({f"tree.{i}/zarr.json": b"{}" * i for i in range(20)}, node_bytes=node_bytes, level=None)
        nodes: list[bytes] = []

        def noted(place: Place, files: Any = files, nodes: list[bytes] = nodes) -> bytes:
            nodes.append(read(files, place))
            return nodes[-1]

        keys_and_values(files[MANIFEST], noted)
        made.append((files[MANIFEST], nodes[0]))
    return tuple(made)


def _ocdbt_seeds() -> list[bytes]:
    return [part for database in _databases() for part in database]


def _ocdbt(data: bytes) -> None:
    from headrace.transforms.errors import HeadraceError
    from headrace.transforms.models.orbax.arrays import reported
    from headrace.transforms.models.orbax.ocdbt import MANIFEST_MAGIC, keys_and_values

    is_manifest, refused = data[:4] == MANIFEST_MAGIC.to_bytes(4, "big"), []
    for manifest, node in _databases():
        parts = (data, node) if is_manifest else (manifest, data)
        try:
            with reported("memory://fuzz"):
                keys_and_values(parts[0], lambda _, parts=parts: parts[1])  # type: ignore[misc]
        except HeadraceError as error:
            refused.append(error)
    if len(refused) == len(_databases()):  # what is sound fits to one of them
        raise refused[0]


def _repair_ocdbt(data: bytes) -> bytes:
    """The length, and the checksum at the end."""
    import crc32c

    made = data[:4] + struct.pack("<Q", len(data)) + data[12:-4]
    return made + struct.pack("<I", crc32c.crc32c(made))


def _zarr_seeds() -> list[bytes]:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import numpy as np

    from tests.support.orbax_checkpoints import Form, write_tree

    made = []
    with TemporaryDirectory() as folder:
        for i, form in enumerate((Form(ocdbt=False), Form(ocdbt=False, zarr3=False, packed=False))):
            write_tree(Path(folder, str(i)), {("w",): np.zeros((3, 4), np.float32)}, form)
        made += [path.read_bytes() for path in Path(folder).rglob("*") if path.name in (".zarray", "zarr.json")]
    return made


def _zarr(data: bytes) -> None:
    from headrace.transforms.models.orbax.arrays import reported
    from headrace.transforms.models.orbax.zarr import parse_array

    with reported("memory://fuzz"):
        array = parse_array(data)
        assert array.nbytes >= 0
        next(array.places(), None)


def _archive_seeds() -> list[bytes]:
    made = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packed) as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0", "date_saved": "2026"}))
            archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": []}}))
            archive.writestr("model.weights.h5", _hdf5_seeds()[1])
            archive.writestr("assets/layer/vocabulary.txt", "a\nb\n" * 50)
        made.append(buffer.getvalue())
    sharded = io.BytesIO()
    with zipfile.ZipFile(sharded, "w") as archive:
        archive.writestr("config.json", "{}")
        index = {
            "weight_map": {
                "/layers/dense_0/vars": "model_00000.weights.h5",
                "/layers/dense_1/vars": ["model_00000.weights.h5"],
            }
        }
        archive.writestr("model.weights.json", json.dumps(index))
        archive.writestr("model_00000.weights.h5", _hdf5_seeds()[1])
    return [*made, sharded.getvalue()]


def _mutated_archive(noise: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Mostly within its members, which are packed again, so that their checksums hold."""
    if noise.random() < 0.5:
        return mutated(noise, data, seeds)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as sound, zipfile.ZipFile(buffer, "w", noise.choice((0, 8))) as made:
        chosen = noise.choice(sound.infolist()).filename
        for info in sound.infolist():
            member = sound.read(info)
            if info.filename == chosen:
                if noise.random() < 0.05:
                    continue
                change = mutated_json if chosen.endswith(".json") else mutated
                member = change(noise, member, [member])
            made.writestr(info.filename, member)
    return buffer.getvalue()


def _archive(data: bytes) -> None:
    from headrace.transforms.models.keras_model.files import (
        CONFIG,
        CONFIG_BYTES,
        ZipFiles,
        assets,
        keras_version,
        weights_of,
    )
    from headrace.transforms.models.streaming.ranges import Ranges

    store, ref = _put(data, "model.keras")
    with Ranges(store, ref) as ranges:
        files = ZipFiles(store, ranges)
        keras_version(files)
        if CONFIG in files.names:
            files.read(CONFIG, CONFIG_BYTES)
        assets(files)
        weights = weights_of(files)
        weights.slots(weights.guess())
        if weights.legacy_root is not None:
            weights.legacy_layers()


def _tflite_seeds() -> list[bytes]:
    """A root table, a description and buffers; the interpreter itself is not asked, see `docs/security.md`."""
    head = struct.pack("<I4s", 24, b"TFL3") + bytes(range(60))
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    return [
        head,
        lfs,
        b"<!DOCTYPE html><html>",
        b"\x0a\x10\x0a\x01x\x12\x0bPlaceholder",
        b"PK\3\4" + bytes(40),
        b'{"class_name": 1}',
    ]


def _pin(data: bytes) -> None:
    from headrace.transforms.models.pin import pin_model

    for name in ("model.tflite", "model"):
        _, ref = _put(data, name)
        pin_model(ref.uri)


def _record() -> dict[str, Any]:
    model = {
        "uri": "gs://b/m",
        "format": "keras",
        "digest": "ab" * 32,
        "signature": "serving_default",
        "feature": {"x": ["x"]},
    }
    record: dict[str, Any] = {
        "headrace_format": 1,
        "models": {"": {**model, "prediction": {"y": "y"}}},
        "input": ["gs://b/in/*.parquet"],
        "partition_columns": [],
        "keep": ["id"],
        "schema": "cd" * 32,
        "batch_size": 1024,
        "limit": None,
        "versions": {"tensorflow": "2.21.0"},
        "on_error": "fail",
        "first_input": {"uri": "gs://b/in/a.parquet", "version": "1", "schema": "////"},
    }
    return {**record, "fingerprint": "ef" * 32}


def _record_seeds() -> list[bytes]:
    from headrace.transforms.jobs.job import dump_record

    several = _record()
    several["models"] = {"a": several["models"][""], "b": several["models"][""]}
    return [dump_record(_record()), dump_record(several)]


def _job_record(data: bytes) -> None:
    from headrace.pipeline.checks.output_folder import read_record
    from headrace.transforms.jobs.job import check_same_job, stored_object

    store, ref = _put(data, "_headrace/job.json")
    stored_object(store, ref)
    kept = read_record(store, ref)
    assert kept is not None
    check_same_job("memory://fuzz", kept, _record())


def _keras_json_seeds() -> list[bytes]:
    return [
        json.dumps(
            {"metadata": {}, "weight_map": {"/layers/a/vars": "m_00000.weights.h5", "b": ["m_00001.weights.h5"]}}
        ).encode(),
        json.dumps({"keras_version": "3.15.0"}).encode(),
    ]


def _keras_json(data: bytes) -> None:
    from headrace.transforms.errors import HeadraceError
    from headrace.transforms.models.keras_model.files import weight_map

    store, ref = _put(data, "model.weights.json")
    try:
        weight_map(data, ref.uri)
    except HeadraceError:
        from headrace.transforms.jobs.job import stored_object

        stored_object(store, ref)


def _manifest_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []
    for rows, options in (
        (3, {}),
        (40, {"compression": "zstd"}),
        (40, {"use_dictionary": False, "data_page_version": "2.0"}),
    ):
        names = pa.array([f"part-{i:05d}.parquet" for i in range(rows)])
        letters = pa.array([None if i % 3 else f"memory://fuzz/_dead_letters/{i}" for i in range(rows)], pa.string())
        table = pa.table({"output": names, "rows": pa.array(range(rows)), "dead_letters": letters})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({b"headrace.job": b"{}"}), sink, **options)
        made.append(sink.getvalue().to_pybytes())
    return made


def _manifest(data: bytes) -> None:
    from headrace.transforms.output.manifest import add_name, manifest_dead_letters, manifest_outputs

    store, ref = _put(data, "_manifest/part-0.parquet")
    names = hashlib.sha256()
    for name in manifest_outputs(store, [ref]):
        add_name(names, name)
    for _ in manifest_dead_letters(store, [ref]):
        pass


def _list_seeds() -> list[bytes]:
    return [
        b"# files\nmemory://fuzz/a.parquet\n\n  memory://fuzz/in/*.parquet\r\n",
        "\ufeffmemory://fuzz/\u00e4/\u4e2d.parquet\nmemory://fuzz/**/x.parquet".encode(),
        b"memory://fuzz/**/b.parquet\nmemory://fuzz/year=2026/month=*/*.parquet",
    ]


def _list(data: bytes) -> None:
    from headrace.transforms.jobs.input_files import PassedOver, each_input, expand_lists
    from headrace.transforms.storage import StoreOptions
    from headrace.transforms.storage.memory import put

    _, ref = _put(data, "list.txt")
    for name in ("a", "b", "in/a", "year=2026/month=1/x", "\u00e4/\u4e2d"):
        put(f"memory://fuzz/{name}.parquet", b"PAR1" + bytes(20))
    patterns = expand_lists((f"@{ref.uri}",), StoreOptions())
    for _ in each_input(patterns, StoreOptions(), PassedOver()):
        pass


TARGETS = [
    Target("hdf5", _hdf5_seeds, _hdf5, repair=_repair_hdf5),
    Target("archive", _archive_seeds, _archive, mutate=_mutated_archive),
    Target("bundle", _bundle_seeds, _bundle, mutate=_mutated_bundle, repair=_repair_bundle),
    Target("ocdbt", _ocdbt_seeds, _ocdbt, repair=_repair_ocdbt),
    Target("zarr", _zarr_seeds, _zarr, mutate=mutated_json),
    Target("first_bytes", _tflite_seeds, _pin),
    Target("job_record", _record_seeds, _job_record, mutate=mutated_json),
    Target("keras_json", _keras_json_seeds, _keras_json, mutate=mutated_json),
    Target("manifest", _manifest_seeds, _manifest),
    Target("list_file", _list_seeds, _list),
]
