"""A model pinned: its objects, each at the version that the launcher saw."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from itertools import islice

from transforms.errors import NotAModel, ObjectNotFound
from transforms.storage import ObjectRef, Store, StoreOptions, open_store

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_BELONGS = (*_GRAPHS, "fingerprint.pb", "keras_metadata.pb")
_FOLDERS = ("variables/", "assets/")
# Enough to say what a folder holds; a bucket may hold millions.
_GLANCE = 500


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`uri` is the folder or file as given, without a trailing slash; `format` is "saved_model" or "keras".

    `objects` holds every object of the model in URI order. A worker that reads through it gets these versions or
    `ObjectChanged`.
    """

    uri: str
    format: str
    objects: tuple[ObjectRef, ...]
    options: StoreOptions = StoreOptions()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over each object's place in the model, size, and content checksum (else its version)."""
        digest = hashlib.sha256(self.format.encode())
        for ref in self.objects:
            content = f"crc32c:{ref.crc32c:08x}" if ref.crc32c is not None else f"version:{ref.version}"
            digest.update(f"\n{ref.uri.removeprefix(self.uri)}\t{ref.size}\t{content}".encode())
        return digest.hexdigest()

    def object(self, relative: str) -> ObjectRef | None:
        """The object at `relative` (no leading slash) below the model's folder."""
        wanted = f"{self.uri}/{relative}"
        return next((ref for ref in self.objects if ref.uri == wanted), None)


def pin_model(uri: str, options: StoreOptions = StoreOptions()) -> ModelRef:
    """The model at `uri`, a SavedModel's folder or a `.keras` file, each of its objects at the version seen now.

    Raises `NotAModel` where no such model stands there, `AccessDenied`, `ObjectNotFound` for a missing bucket.
    """
    store = open_store(uri, options)
    uri = uri.rstrip("/")
    if not uri.endswith(".keras") and (ref := _saved_model(store, uri, options)):
        return ref
    try:
        file = store.stat(uri)
    except ObjectNotFound:
        if uri.endswith(".keras") and (ref := _saved_model(store, uri, options)):
            return ref
        raise _no_model(store, uri) from None
    if store.read(file, 0, min(4, file.size)) != b"PK\x03\x04":
        raise NotAModel(
            f"{uri} is no `.keras` file",
            expected="a zip archive as keras.Model.save writes it, or a SavedModel's folder",
            found=f"a file of {file.size} bytes that does not begin like a zip",
            cure="Save the model as `.keras`, or name the folder that holds saved_model.pb.",
        )
    return ModelRef(uri, "keras", (file,), options)


def _saved_model(store: Store, uri: str, options: StoreOptions) -> ModelRef | None:
    # Asked for by name first: to list a folder that is no model may take for ever.
    if not any(_exists(store, f"{uri}/{graph}") for graph in _GRAPHS):
        return None
    objects = []
    for ref in store.list(f"{uri}/"):
        relative = ref.uri.removeprefix(f"{uri}/")
        if relative in _BELONGS or relative.startswith(_FOLDERS):
            objects.append(ref)
    return ModelRef(uri, "saved_model", tuple(objects), options)


def _exists(store: Store, uri: str) -> bool:
    try:
        store.stat(uri)
    except ObjectNotFound:
        return False
    return True


def _no_model(store: Store, uri: str) -> NotAModel:
    below = [ref.uri.removeprefix(f"{uri}/") for ref in islice(store.list(f"{uri}/"), _GLANCE)]
    models = sorted({name.rpartition("/")[0] for name in below if name.rpartition("/")[2] in _GRAPHS} - {""})
    archives = [name for name in below if name.endswith(".keras")]
    if models or archives:
        return NotAModel(
            f"{uri} is a folder above models, not a model",
            expected="a folder that holds saved_model.pb, or a `.keras` file",
            found=_some([f"{name}/" for name in models] + archives),
            cure=f"Name one of them, e.g. {uri}/{(models or archives)[-1]}.",
        )
    if below:
        return NotAModel(
            f"{uri} is a folder, but no SavedModel",
            expected="saved_model.pb in it, or a `.keras` file",
            found=_some(sorted({name.partition("/")[0] + "/" * ("/" in name) for name in below})),
            cure="Name the folder that holds saved_model.pb.",
        )
    parent, _, name = uri.rpartition("/")
    beside = {ref.uri.removeprefix(f"{parent}/").partition("/")[0] for ref in islice(store.list(f"{parent}/"), _GLANCE)}
    close = difflib.get_close_matches(name, beside, n=3, cutoff=0.5) or sorted(beside)
    return NotAModel(
        f"There is no model at {uri}",
        expected="a SavedModel's folder or a `.keras` file",
        found=f"beside it: {_some(close)}" if close else f"nothing in {parent}/",
        cure="Look at the spelling.",
    )


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
