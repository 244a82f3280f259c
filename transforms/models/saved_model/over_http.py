"""The objects of a SavedModel's folder where listing is impossible: web servers answer for names alone."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import CorruptModel, ObjectNotFound
from ...storage import ObjectRef, Store
from ..ref import ModelRef
from .files import open_bundle, read_proto
from .tensor_bundle import COPY_AGAIN

_INDEX = "variables/variables.index"
_BESIDE = ("fingerprint.pb", "keras_metadata.pb")
# More than any model has: what a damaged index claims is not to be asked for one by one.
_MOST_SHARDS = 100_000


def saved_model_objects(store: Store, uri: str, graph: ObjectRef) -> tuple[ObjectRef, ...]:
    """In URI order: `graph` itself, and what it and the checkpoint's index name. Raises `CorruptModel` where one is missing."""
    found = [graph]
    found += (ref for name in _BESIDE if (ref := store.find(f"{uri}/{name}")) is not None)
    index = store.find(f"{uri}/{_INDEX}")
    if index is not None:
        found.append(index)
        shards = open_bundle(store, ModelRef(uri, "saved_model", (index,))).shards
        if not 0 <= shards <= _MOST_SHARDS:
            raise CorruptModel(f"{index.uri} claims {shards} shards", cure=COPY_AGAIN)
        found += _needed(store, uri, [f"variables/variables.data-{i:05d}-of-{shards:05d}" for i in range(shards)])
    proto = read_proto(store, ModelRef(uri, "saved_model", (graph,)))
    assets = {asset.filename for meta in proto.meta_graphs for asset in meta.asset_file_def}
    if outside := [name for name in assets if name.startswith("/") or ".." in name.split("/")]:
        raise CorruptModel(f"{uri} names an asset outside its folder", found=outside[0], cure=COPY_AGAIN)
    found += _needed(store, uri, [f"assets/{name}" for name in sorted(assets)])
    return tuple(sorted(found, key=lambda ref: ref.uri))


def _needed(store: Store, uri: str, names: list[str]) -> Iterator[ObjectRef]:
    for name in names:
        try:
            yield store.stat(f"{uri}/{name}")
        except ObjectNotFound as error:
            raise CorruptModel(f"{uri} lacks {name}, which it names", cure=COPY_AGAIN) from error
