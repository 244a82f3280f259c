"""Pinning a model: what is at a URI, and which objects belong to it, each at the version seen now."""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ..errors import AccessDenied, CorruptModel, InvalidRequest, NotAModel, ObjectNotFound
from ..storage import ObjectRef, Store, StoreOptions, open_store
from ..storage.store import public_uri
from .first_bytes import FIRST_BYTES, other_file
from .ref import ModelRef, file_name

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_BELONGS = (*_GRAPHS, "fingerprint.pb", "keras_metadata.pb")
_FOLDERS = ("variables/", "assets/")
_KERAS_WEIGHTS = ("model.weights.h5", "model.weights.json", "model.weights.npz")
_WEB = ("http://", "https://")
_PAGED = ("gs://", "s3://")
# Enough to say what a folder holds; a bucket may hold millions.
_GLANCE = 500


def pin_model(
    uri: str | os.PathLike[str],
    storage: StoreOptions = StoreOptions(),
    *,
    weights: str | os.PathLike[str] | None = None,
    custom_objects: Sequence[str] = (),
    unsafe: bool = False,
    allow_stateful: bool = False,
    import_modules: Sequence[str] = (),
) -> ModelRef:
    """The model at `uri`, each of its objects at the version seen now.

    That is a SavedModel's folder, a `.keras` file or the folder of its members, a KerasHub preset's folder, a folder of Orbax
    checkpoints or one step's, an HDF5 file that holds a whole model, or a TFLite flatbuffer. With `weights`, `uri` is a Keras
    model's config.json (or a folder that holds one), and `weights` a file of its weights: `….weights.h5`, `….weights.json`
    with its shards next to it, `.h5`, or a `.keras` file.

    Raises `NotAModel` where there is no such model, `InvalidRequest` for weights or custom objects that its format does not
    use, `AccessDenied`, `ObjectNotFound` for a missing bucket.
    """
    weights = None if weights is None else os.fspath(weights)
    uri, kind, objects = _found(os.fspath(uri), storage, weights)
    names, modules = tuple(custom_objects), tuple(import_modules)
    ref = ModelRef(uri, kind, objects, storage, weights, names, unsafe, allow_stateful, modules)
    if ref.custom_objects and not ref.is_keras:
        raise unused_custom_objects(ref, ref.custom_objects)
    return ref


def unused_custom_objects(ref: ModelRef, names: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"--custom_objects (custom_objects) does not go with {public_uri(ref.uri)}",
        expected="a Keras model",
        found=f"a model of the format {ref.format}, and custom objects {', '.join(names)}",
        cure="Leave it out; --import_module (import_modules) imports a module that registers TensorFlow operations",
    )


def _found(uri: str, storage: StoreOptions, weights: str | None) -> tuple[str, str, tuple[ObjectRef, ...]]:
    """The URI without what means nothing, the format, and the objects."""
    store = open_store(uri, storage)
    # A signed URL is for one object, never a folder, and is passed on unchanged.
    signed = uri.startswith(_WEB) and "?" in uri
    uri = uri if signed else uri.rstrip("/")
    if weights is not None:
        config = _config(store, uri)
        return uri, "keras_config", (config, *_weights(weights, storage))
    one_object = signed or uri.endswith((".keras", ".h5", ".hdf5", ".tflite"))
    if not one_object and (found := _folder(store, uri)):
        return uri, *found
    try:
        file = store.stat(uri)
    except ObjectNotFound:
        if uri.endswith(".keras") and (found := _folder(store, uri)):
            return uri, *found
        raise _no_model(store, uri) from None
    head = store.read(file, 0, min(FIRST_BYTES, file.size))
    if kind := _format_of_file(head):
        return uri, kind, (file,)
    if head[:8].lstrip()[:1] == b"{":
        raise NotAModel(
            f"{uri} is a model's configuration at most, without weights",
            expected="a whole model, or the weights named next to it",
            cure="Name its weights too (--weights, weights=…).",
        )
    raise other_file(public_uri(uri), file.size, head) or NotAModel(
        f"{uri} is not a `.keras` file",
        expected="a zip archive as keras.Model.save writes it, an HDF5 file, or a SavedModel's folder",
        found=f"a file of {file.size} bytes that does not begin like a zip or HDF5",
        cure="Save the model as `.keras`, or name the folder that holds saved_model.pb.",
    )


def _format_of_file(head: bytes) -> str | None:
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras_h5"
    if head.startswith(b"PK\x03\x04"):
        return "keras"
    return "tflite" if head[4:8] == b"TFL3" else None


def _folder(store: Store, uri: str) -> tuple[str, tuple[ObjectRef, ...]] | None:
    """The format and the objects of a model that is a folder."""
    if objects := _saved_model(store, uri):
        return "saved_model", objects
    config = store.find(f"{uri}/config.json")
    for name in _KERAS_WEIGHTS if config is not None else ():
        if (weights := store.find(f"{uri}/{name}")) is not None and config is not None:
            shards = _shards(store, weights) if name.endswith(".json") else []
            metadata = store.find(f"{uri}/metadata.json")
            task = _of_hub_task(store, uri)
            if not uri.startswith(_WEB):
                assets = list(store.list(f"{uri}/assets/"))
            else:
                assets = _hub_assets(store, uri, task[0]) if task else []
            objects = (config, weights, *shards, *task, *assets, *([metadata] if metadata is not None else []))
            return "keras_hub" if task else "keras", tuple(sorted(objects, key=lambda ref: ref.uri))
    if checkpoint := _checkpoint(store, uri):
        return "keras_orbax", checkpoint
    return None


def _checkpoint(store: Store, uri: str) -> tuple[ObjectRef, ...]:
    if uri.startswith(_WEB):
        from .orbax.over_http import step_objects_over_http

        return step_objects_over_http(store, uri)
    from .orbax.steps import step_objects

    try:
        return step_objects(store, uri)
    except AccessDenied:
        # Who may read objects may not be allowed to list them, and this may be one.
        return ()


def _of_hub_task(store: Store, uri: str) -> list[ObjectRef]:
    """The files that make a backbone's folder a KerasHub task: its description, and its own layers' weights, if any."""
    task = store.find(f"{uri}/task.json")
    weights = None if task is None else store.find(f"{uri}/task.weights.h5")
    return [ref for ref in (task, weights) if ref is not None]


def _hub_assets(store: Store, uri: str, task: ObjectRef) -> list[ObjectRef]:
    """The vocabularies of a KerasHub task, where a store lists no folders."""
    from .keras_model.files import CONFIG_BYTES, asset_names

    if task.size > CONFIG_BYTES:
        raise CorruptModel(f"{task.uri} is too large", expected=f"at most {CONFIG_BYTES} bytes")
    found = (store.find(f"{uri}/{name}") for name in asset_names(store.read(task)))
    return [ref for ref in found if ref is not None]


def _config(store: Store, uri: str) -> ObjectRef:
    config = (None if file_name(uri).endswith(".json") else store.find(f"{uri}/config.json")) or store.find(uri)
    if config is None:
        if any(store.find(f"{uri}/{name}") is not None for name in _GRAPHS):
            raise _unused_weights(uri, "a SavedModel, which holds its own weights")
        raise _no_model(store, uri)
    head = store.read(config, 0, min(FIRST_BYTES, config.size))
    if _format_of_file(head):
        raise _unused_weights(uri, "a file that holds a whole model")
    other = other_file(public_uri(uri), config.size, head)
    if other is not None or head.lstrip()[:1] != b"{":
        raise other or NotAModel(
            f"{uri} is not a configuration of a Keras model with its weights elsewhere",
            expected="JSON, as model.to_json() gives it, or the config.json of a `.keras` file",
            found=f"a file of {config.size} bytes that is not a JSON object",
            cure="Leave the weights out if this file holds the whole model; else name its config.json.",
        )
    return config


def _unused_weights(uri: str, found: str) -> InvalidRequest:
    return InvalidRequest(
        f"--weights (weights) does not go with {public_uri(uri)}",
        expected="the config.json of a Keras model, whose weights are elsewhere",
        found=found,
        cure="Leave it out, or name the config.json that the weights belong to",
    )


def _weights(uri: str, storage: StoreOptions) -> list[ObjectRef]:
    store = open_store(uri, storage)
    file = store.find(uri)
    if file is None:
        raise NotAModel(
            f"There are no weights at {uri}",
            expected="a file that model.save_weights wrote",
            cure="Look at the spelling.",
        )
    if file_name(uri).endswith(".json"):
        return [file, *_shards(store, file)]
    head = store.read(file, 0, min(FIRST_BYTES, file.size))
    if _format_of_file(head) not in ("keras", "keras_h5"):
        raise other_file(public_uri(uri), file.size, head) or NotAModel(
            f"{uri} holds no weights of Keras",
            expected="an HDF5 file, as model.save_weights writes it, or a `.keras` file",
            found=f"a file of {file.size} bytes that begins with {head[:8]!r}",
            cure="Name the file that model.save_weights('….weights.h5') wrote.",
        )
    return [file]


def _shards(store: Store, index: ObjectRef) -> list[ObjectRef]:
    from .keras_model.files import SHARD_INDEX_BYTES, weight_map

    if index.size > SHARD_INDEX_BYTES:
        raise CorruptModel(f"{index.uri} is too large", expected=f"at most {SHARD_INDEX_BYTES} bytes")
    mapped = weight_map(store.read(index), index.uri)
    address, mark, query = index.uri.partition("?") if index.uri.startswith(_WEB) else (index.uri, "", "")
    folder = address.rpartition("/")[0]
    found = []
    for name in sorted({name for names in mapped.values() for name in names}):
        shard = store.find(f"{folder}/{name}{mark}{query}")
        if shard is None:
            raise CorruptModel(
                f"{index.uri} names {name}, which is not next to it", cure="Copy all files that save_weights wrote."
            )
        found.append(shard)
    return found


def _saved_model(store: Store, uri: str) -> tuple[ObjectRef, ...]:
    # Stat by name too: listing a folder that is not a model may take forever, and is then given up.
    no_model = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="headrace-list") as thread:
        # A bucket's pages come in their order; a local folder is walked whole before its first name.
        listed = thread.submit(_belonging, store, uri, no_model) if uri.startswith(_PAGED) else None
        graph = next((ref for name in _GRAPHS if (ref := store.find(f"{uri}/{name}")) is not None), None)
        if graph is None:
            no_model.set()
            return ()
        if listed is not None:
            return listed.result()
    if uri.startswith(_WEB):
        from .saved_model.over_http import saved_model_objects

        return saved_model_objects(store, uri, graph)
    return _belonging(store, uri, no_model)


def _belonging(store: Store, uri: str, given_up: threading.Event) -> tuple[ObjectRef, ...]:
    objects = []
    for ref in store.list(f"{uri}/"):
        if given_up.is_set():
            break
        relative = ref.uri.removeprefix(f"{uri}/")
        if relative in _BELONGS or relative.startswith(_FOLDERS):
            objects.append(ref)
    return tuple(objects)


def _no_model(store: Store, uri: str) -> NotAModel:
    if uri.startswith(_WEB):
        return NotAModel(
            f"There is no model at {public_uri(uri)}",
            expected="a `.keras`, HDF5 or TFLite file, or a folder that holds saved_model.pb",
            cure="Look at the spelling; where an address is signed, name one file by it.",
        )
    below = [ref.uri.removeprefix(f"{uri}/") for ref in islice(store.list(f"{uri}/"), _GLANCE)]
    graphs = {name.rpartition("/")[0] for name in below if name.rpartition("/")[2] in _GRAPHS} - {""}
    models = sorted(graphs, key=_version, reverse=True)
    files = (name for name in below if name.endswith((".keras", ".h5", ".hdf5", ".tflite")))
    archives = sorted(files, key=_version, reverse=True)
    if models or archives:
        return NotAModel(
            f"{uri} is a folder above models, not a model",
            expected="a folder that holds saved_model.pb, or a `.keras` file",
            found=_some([f"{name}/" for name in models] + archives),
            cure=f"Name one of them, e.g. {uri}/{max(models or archives, key=_version)}.",
        )
    if below:
        return NotAModel(
            f"{uri} is a folder, but no SavedModel",
            expected="saved_model.pb in it, or a `.keras` file",
            found=_some(sorted({name.partition("/")[0] + "/" * ("/" in name) for name in below})),
            cure="Name the folder that holds saved_model.pb.",
        )
    parent, _, name = uri.rpartition("/")
    neighbours = {
        ref.uri.removeprefix(f"{parent}/").partition("/")[0] for ref in islice(store.list(f"{parent}/"), _GLANCE)
    }
    close = difflib.get_close_matches(name, neighbours, n=3, cutoff=0.5) or sorted(neighbours)
    return NotAModel(
        f"There is no model at {uri}",
        expected="a SavedModel's folder or a `.keras` file",
        found=f"next to it: {_some(close)}" if close else f"nothing in {parent}/",
        cure="Look at the spelling.",
    )


def _version(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """The order of versions: a number alone is newer than `latest` or `3.tmp`, and numbers in a name count by their value."""
    parts = re.split(r"(\d{1,18})", name)
    return file_name(name).isdecimal(), [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
