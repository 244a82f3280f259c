"""What one step of a checkpoint is made of, where no folder can be listed: a web server answers for one name."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UnsupportedModel
from ...storage import ObjectRef, Store
from ...storage.store import public_uri
from . import steps
from .arrays import TREE_METADATA, reported
from .ocdbt import MANIFEST, NODE_BYTES, Damaged, Place, keys_and_values

# More than any checkpoint has: what a damaged index claims is not to be asked for one by one.
_MOST_FILES = 100_000


def step_objects_over_http(store: Store, uri: str) -> tuple[ObjectRef, ...]:
    """The metadata of the step, and what it is read from; nothing where there is no step. Raises as `steps.step_objects`."""
    metadata = store.find(f"{uri}/{steps.STEP_METADATA}")
    if metadata is None:
        return ()
    steps.check_finished(store, uri, metadata)
    config = store.find(f"{uri}/{steps.CONFIG}{steps.TEXTS}")
    state = _tree(store, uri, steps.STATE, [f"{half}." for half in steps.WEIGHTS])
    if not state:
        raise UnsupportedModel(
            f"The checkpoint {public_uri(uri)} has an object for each array, and web servers list no folders",
            expected=f"{steps.STATE}{MANIFEST}, as OrbaxCheckpoint writes it by default",
            cure="Read it from its bucket (gs://, s3://), or copy it here.",
        )
    return (metadata, *([config] if config is not None else []), *state, *_tree(store, uri, steps.ASSETS, ("",)))


def _tree(store: Store, uri: str, folder: str, prefixes: Sequence[str]) -> list[ObjectRef]:
    """The files of a database that `prefixes` are read from."""
    manifest = store.find(f"{uri}/{folder}{MANIFEST}")
    if manifest is None:
        return []
    found = {MANIFEST: manifest}

    def file(path: str) -> ObjectRef:
        if path not in found:
            # No index leads out of its folder, or into the query of an address.
            ref = store.find(f"{uri}/{folder}{path}") if steps.DATA_FILE.fullmatch(path) else None
            if ref is None:
                raise Damaged(f"no file {path[:200]!r}, which its index names")
            found[path] = ref
            if len(found) > _MOST_FILES:
                raise Damaged(f"more than {_MOST_FILES} files")
        return found[path]

    def read(place: Place) -> bytes:
        return store.read(file(place.path), place.offset, place.length)

    with reported(f"{uri}/{folder}".rstrip("/")):
        if manifest.size > NODE_BYTES:
            raise Damaged(f"a manifest of {manifest.size} bytes")
        for key, value in keys_and_values(store.read(manifest), read, prefixes).items():
            if isinstance(value, Place) and key.startswith(tuple(prefixes)):
                file(value.path)
    described = store.find(f"{uri}/{folder}{TREE_METADATA}")
    return [*found.values(), *([described] if described is not None else [])]
