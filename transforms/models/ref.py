"""A pinned model: its objects, each at the version that the launcher saw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..storage import ObjectRef, StoreOptions
from ..storage.store import public_uri


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`uri` is the folder or file as given, without a trailing slash.

    `format` is "saved_model", "keras" (a `.keras` file, or the folder of its members), "keras_h5" (a whole model in one
    HDF5 file), "keras_config" (a configuration whose weights are elsewhere, at the URI `weights`), "keras_hub" (a KerasHub
    preset's folder, with a task), "keras_orbax" (a folder of Orbax checkpoints, or one step's) or "tflite". `objects` holds
    every object of the model: in URI order, but the configuration before its weights, and the metadata of an Orbax checkpoint
    before both. A worker that reads through it gets these versions or `ObjectChanged`. `custom_objects` are modules, or
    `module:name`, that are imported before a Keras model is built; `unsafe` lets it run Python code of its own, or operations
    that can reach files and the network. `allow_stateful` lets jobs run a model that changes its own state. `import_modules`
    are imported before anything else: they register operations.
    """

    uri: str
    format: str
    objects: tuple[ObjectRef, ...]
    storage: StoreOptions = StoreOptions()
    weights: str | None = None
    custom_objects: tuple[str, ...] = ()
    unsafe: bool = False
    allow_stateful: bool = False
    import_modules: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over each object's place in the model, size, and content checksum (else its version).

        So too over what else makes the model what it is: custom objects by name, and whether its own code may run.
        """
        digest = hashlib.sha256(self.format.encode())
        for i, ref in enumerate(self.objects):
            content = f"crc32c:{ref.crc32c:08x}" if ref.crc32c is not None else f"version:{ref.version}"
            apart = self.weights is not None and i > 0
            place = f"weights/{file_name(ref.uri)}" if apart else ref.uri.removeprefix(self.uri)
            digest.update(f"\n{place}\t{ref.size}\t{content}".encode())
        if self.custom_objects or self.unsafe:
            digest.update(f"\n{sorted(self.custom_objects)}\t{self.unsafe}".encode())
        if self.import_modules or self.allow_stateful:
            digest.update(f"\n{sorted(self.import_modules)}\t{self.allow_stateful}".encode())
        return digest.hexdigest()

    @property
    def is_keras(self) -> bool:
        return self.format in ("keras", "keras_h5", "keras_config", "keras_hub", "keras_orbax")

    def object(self, relative: str) -> ObjectRef | None:
        """The object at `relative` (no leading slash) below the model's folder."""
        wanted = f"{self.uri}/{relative}"
        return next((ref for ref in self.objects if ref.uri == wanted), None)


def file_name(uri: str) -> str:
    return public_uri(uri).rpartition("/")[2]
