"""A `.keras` file: a zip of config.json, model.weights.h5 and assets, streamed from where it lies.

Format: keras/src/saving/saving_lib.py (Keras 3). The graph comes from config.json; each tensor from its place in the HDF5
file inside the archive; only what inference uses is fetched.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from transforms.errors import CorruptModel, NotAModel, SignatureNotFound, UnsupportedModel
from transforms.models import keras_private
from transforms.models.archive import Archive
from transforms.models.dlpack import aligned_empty, to_tensor
from transforms.models.hdf5 import Dataset, Hdf5File
from transforms.models.model import Model
from transforms.models.ranges import RangeFile, Ranges, Resident
from transforms.models.ref import ModelRef
from transforms.models.spec import ModelSpec, Signature, TensorSpec
from transforms.models.stream import StreamOptions, TensorSlot, TensorStream, numpy_dtype, open_stream
from transforms.storage import Store

SIGNATURE = "serving_default"
_CONFIG, _WEIGHTS, _ASSETS = "config.json", "model.weights.h5", "assets/"
# Up to this many bytes, the weights come whole in one request, sooner than their index would in several.
WHOLE_BYTES = 1 << 20
# A configuration is text, 1 MiB for a thousand layers; a vocabulary of 10 M words makes 100 MiB.
_CONFIG_BYTES, _ASSET_BYTES, _INFLATED_BYTES = 64 << 20, 1 << 30, 1 << 40

_log = logging.getLogger(__name__)


def describe(store: Store, ref: ModelRef) -> ModelSpec:
    """From config.json and the HDF5 file's metadata; no weight is fetched.

    Raises `NotAModel`, `CorruptModel` or `UnsupportedModel`, and what the store raises.
    """
    with _open(store, ref) as saved:
        built = keras_private.build(saved.config(), ref.uri)
        datasets = saved.plan(built)
        arguments = keras_private.input_signature(built.model, ref.uri)
        outputs = _name_outputs(keras_private.output_struct(built.model, arguments), ref.uri)
    return ModelSpec(
        "keras",
        {
            SIGNATURE: Signature(
                SIGNATURE,
                _input_specs(_trace(lambda *args: list(args), arguments)),
                {name: TensorSpec(name, output.dtype, tuple(output.shape)) for name, output in outputs.items()},
            )
        },
        _parameters(built.model),
        sum(dataset.nbytes for dataset in datasets),
    )


def load(store: Store, ref: ModelRef, signature: str = SIGNATURE, stream: StreamOptions = StreamOptions()) -> Model:
    """The model with its weights streamed into memory.

    Raises `SignatureNotFound`, `NotAModel`, `CorruptModel` or `UnsupportedModel`, and what the store raises.
    """
    if signature != SIGNATURE:
        raise SignatureNotFound(
            f"{ref.uri} has no signature {signature!r}",
            expected=f"{SIGNATURE!r}, the only one of a .keras file",
            found=repr(signature),
            cure="Leave --signature out.",
        )
    with _open(store, ref) as saved:
        config, datasets = saved.config(), saved.guess()
        with open_stream(store, saved.slots(datasets), stream) as tensors:
            # Keras takes as long over a large model's graph as its weights take to come.
            built = keras_private.build(config, ref.uri)
            keras_private.fill(
                built, lambda group: saved.weights(group, tensors), saved.hdf5.has, saved.assets(), ref.uri
            )
    return _serve(built.model, ref, saved.nbytes)


def _serve(model: Any, ref: ModelRef, nbytes: int) -> Model:
    import tensorflow as tf

    # As Keras' own predict_step does.
    options = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
    concrete = _trace(
        lambda *args: _name_outputs(model(*args, **options), ref.uri),
        keras_private.input_signature(model, ref.uri),
    )
    arguments = concrete.structured_input_signature[0]
    inputs = _input_specs(concrete)

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return dict(concrete(*tf.nest.pack_sequence_as(arguments, [tensors[name] for name in inputs])))

    return Model(
        ref,
        SIGNATURE,
        inputs,
        {name: _tensor_spec(name, output) for name, output in concrete.structured_outputs.items()},
        call,
        parameters=_parameters(model),
        nbytes=nbytes,
        keep=(model, concrete),
    )


class _Saved:
    """An open `.keras` file."""

    def __init__(self, store: Store, ranges: Ranges, archive: Archive, hdf5: Hdf5File, place: int | Resident) -> None:
        """`place` is the HDF5 file's offset in the object, or the file itself."""
        self._store, self._ranges, self._archive, self.hdf5, self._place = store, ranges, archive, hdf5, place
        self._ref = ranges.ref
        self._streamed: set[str] = set()
        self.nbytes = 0
        """Of the tensors that Keras has asked for."""

    @property
    def round_trips(self) -> int:
        return self._ranges.round_trips

    def config(self) -> bytearray:
        return self._archive.read(_CONFIG, _CONFIG_BYTES)

    def assets(self) -> dict[str, bytearray]:
        """Asset files by their path below `assets/`."""
        names = [name for name in self._archive.members if name.startswith(_ASSETS) and not name.endswith("/")]
        return {name.removeprefix(_ASSETS): self._archive.read(name, _ASSET_BYTES) for name in names}

    def plan(self, built: keras_private.Built) -> list[Dataset]:
        """What inference needs, in the order in which Keras asks for it."""
        groups = keras_private.saved_paths(built.model)
        self.hdf5.locate(groups)
        return [dataset for group in groups for dataset in (self.hdf5.group(group) or {}).values()]

    def guess(self) -> list[Dataset]:
        """What inference needs, before there is a model to ask: all but the optimizers.

        One too many costs its bytes; one too few is read when Keras asks for it.
        """
        groups = self.hdf5.walk(lambda name: "optimizer" not in name)
        return [
            dataset for group in groups if group.endswith("vars") for dataset in (self.hdf5.group(group) or {}).values()
        ]

    def slots(self, datasets: Sequence[Dataset]) -> list[TensorSlot]:
        """One for each dataset that is not in memory already."""
        if isinstance(self._place, Resident):
            return []
        slots = [
            TensorSlot(d.path, d.dtype, d.shape, self._ref, self._place + d.offset, d.nbytes)
            for d in datasets
            if d.offset is not None
        ]
        self._streamed = {slot.name for slot in slots}
        return slots

    def weights(self, group: str, tensors: TensorStream) -> keras_private.Weights | None:
        datasets = self.hdf5.group(group)
        if datasets is None:
            return None
        found = datasets
        return keras_private.Weights(group, found, lambda name: self._tensor(found[name], tensors))

    def _tensor(self, dataset: Dataset, tensors: TensorStream) -> Any:
        self.nbytes += dataset.nbytes
        if dataset.offset is None:
            return to_tensor(self.hdf5.read(dataset))
        if dataset.path in self._streamed:
            self._streamed.remove(dataset.path)
            return to_tensor(tensors.take(dataset.path))
        buffer = aligned_empty(dataset.nbytes)
        if isinstance(self._place, Resident):
            memoryview(buffer)[:] = self._place.view(dataset.offset, dataset.nbytes)
        else:
            self._store.read_into(self._ref, self._place + dataset.offset, [memoryview(buffer)])
        return to_tensor(buffer.view(numpy_dtype(dataset.dtype)).reshape(dataset.shape))


@contextmanager
def _open(store: Store, ref: ModelRef) -> Iterator[_Saved]:
    with Ranges(store, ref.objects[0]) as ranges:
        archive = Archive(ranges)
        if _CONFIG not in archive.members:
            raise NotAModel(
                f"{ref.uri} is a zip archive, but no Keras model",
                expected=f"a member {_CONFIG}",
                found=", ".join(sorted(archive.members)[:5]) or "an empty archive",
                cure="Name a file that model.save('….keras') wrote.",
            )
        if _WEIGHTS not in archive.members:
            raise _no_weights(archive, ref)
        located = archive.locate(_WEIGHTS)
        place: int | Resident
        if located is None or located[1] <= WHOLE_BYTES:
            place = Resident(data := archive.read(_WEIGHTS, _INFLATED_BYTES))
            file = RangeFile(place, 0, len(data))
        else:
            _say_unchecked(ref.uri)
            place = located[0]
            file = RangeFile(ranges, *located)
        with Hdf5File(file, f"{_WEIGHTS} in {ref.uri}") as hdf5:
            yield _Saved(store, ranges, archive, hdf5, place)


@cache
def _say_unchecked(uri: str) -> None:
    _log.info("%s: its CRC-32 covers the weights as a whole, of which only parts are read: TLS and length alone", uri)


def _no_weights(archive: Archive, ref: ModelRef) -> Exception:
    if "model.weights.npz" in archive.members:
        return UnsupportedModel(
            f"{ref.uri} keeps its weights in model.weights.npz",
            expected=_WEIGHTS,
            cure="Save the model again with model.save('….keras').",
        )
    return CorruptModel(
        f"{ref.uri} has no weights",
        expected=f"a member {_WEIGHTS}",
        found=", ".join(sorted(archive.members)[:5]),
        cure="Save the model again with model.save('….keras').",
    )


def _parameters(model: Any) -> int:
    return sum(math.prod(variable.shape) for variable in model.weights)


def _trace(function: Any, arguments: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.function(function, input_signature=arguments, autograph=False).get_concrete_function()


def _input_specs(concrete: Any) -> dict[str, TensorSpec]:
    """By the names that these inputs would have in a SavedModel's signature."""
    import tensorflow as tf

    specs = tf.nest.flatten(concrete.structured_input_signature[0])
    names = keras_private.argument_names(concrete)
    return {name: _tensor_spec(name, spec) for name, spec in zip(names, specs, strict=True)}


def _tensor_spec(name: str, spec: Any) -> TensorSpec:
    return TensorSpec(name, spec.dtype.name, None if spec.shape.rank is None else tuple(spec.shape.as_list()))


def _name_outputs(outputs: Any, uri: str) -> dict[str, Any]:
    """A model's outputs by the names that they have in its SavedModel (tensorflow signature_serialization.py)."""
    if isinstance(outputs, Mapping):
        named = {str(name): output for name, output in outputs.items()}
    else:
        several = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        named = {f"output_{i}": output for i, output in enumerate(several)}
    for name, output in named.items():
        if not hasattr(output, "dtype") or not hasattr(output, "shape"):
            raise UnsupportedModel(
                f"Output {name!r} of {uri} is nested",
                expected="a tensor, a list of tensors, or a dict of tensors",
                found=type(output).__name__,
                cure="Give the model a flat list or dict of outputs.",
            )
    return named
