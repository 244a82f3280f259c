"""Keras models from their configuration and their weights: `.keras` files and folders, legacy HDF5, config.json and weights,
presets of KerasHub, Orbax checkpoints.

The graph comes from the configuration; each tensor from its place in an HDF5 file, or among a checkpoint's arrays; only
what inference uses is fetched.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import HeadraceError, NotAModel, SignatureNotFound, UnsupportedModel
from ...storage import Store, open_store
from ...storage.store import public_uri
from ..direct_call import direct
from ..model import Model
from ..ref import ModelRef, file_name
from ..spec import ModelSpec, Signature, TensorSpec
from ..streaming.composed_crc import CheckedSpan
from ..streaming.ranges import Ranges
from ..streaming.tensor_stream import StreamOptions, TensorSlot, TensorStream, open_stream
from . import files as keras_files
from . import operations as keras_operations
from . import signature as keras_signature
from .build import Built, Recipe, build
from .fill import Part, allocate, fill, legacy_fill, legacy_pairs, saved_paths
from .hub_preset import Preset, open_preset
from .orbax_checkpoint import Checkpoint, open_checkpoint
from .refusals import cause
from .unrolled import release
from .weights import SavedWeights, Tensor, open_weights

SIGNATURE = "serving_default"

_log = logging.getLogger(__name__)


def describe(store: Store, ref: ModelRef, signature: str | None = None) -> ModelSpec:  # noqa: ARG001 - Reader
    """From the configuration and the HDF5 files' metadata; no weight is fetched. There is one signature, whichever is named.

    Raises `NotAModel`, `CorruptModel` or `UnsupportedModel`, and what the store raises.
    """
    with _open(store, ref) as saved:
        built = saved.build()
        nbytes = saved.bytes_to_stream(built)
        arguments = keras_signature.input_signature(built.model, ref.uri)
        outputs = keras_signature.name_outputs(keras_signature.output_struct(built.model, arguments), ref.uri)
        operations = {SIGNATURE: keras_operations.operations(built.model, arguments)}
        given = arguments
        if built.preprocessing is not None:
            built.preprocessing.check(ref.uri)
            given = built.preprocessing.signature()
    return ModelSpec(
        ref.format,
        {
            SIGNATURE: Signature(
                SIGNATURE,
                keras_signature.input_specs(keras_signature.trace(lambda *args: list(args), given)),
                {name: TensorSpec(name, output.dtype, tuple(output.shape)) for name, output in outputs.items()},
            )
        },
        _parameters(built.model),
        nbytes,
        operations=operations,
        parts=saved.parts(built),
    )


def load(store: Store, ref: ModelRef, signature: str = SIGNATURE, stream: StreamOptions = StreamOptions()) -> Model:
    """The model with its weights streamed into memory.

    Raises `SignatureNotFound`, `NotAModel`, `CorruptModel` or `UnsupportedModel`, and what the store raises.
    """
    if signature != SIGNATURE:
        raise SignatureNotFound(
            f"{ref.uri} has no signature {signature!r}",
            expected=f"{SIGNATURE!r}, the only one of a Keras model",
            found=repr(signature),
            cure="Leave --signature out.",
        )
    with _open(store, ref, stream) as saved:

        def fetch(opened: ExitStack) -> TensorStream:
            slots = saved.slots()
            return opened.enter_context(open_stream(saved.store, slots, stream, saved.spans(slots)))

        # Keras takes as long over a large model's graph as its weights take to come. They are asked for first: tracing
        # holds the interpreter's lock, which made the index of the weights take more than twice as long.
        with ExitStack() as opened, ThreadPoolExecutor(1, "headrace-index") as pool:
            arriving = pool.submit(fetch, opened)
            built = saved.build()
            tensors = arriving.result()
            traced = _trace(built, ref) if allocate(built) else None
            saved.fill(built, tensors)
        nbytes = saved.nbytes
    return _serve(built, ref, nbytes, traced or _trace(built, ref))


def _trace(built: Built, ref: ModelRef) -> tuple[Any, Any]:
    """The graph whose inputs and outputs are the model's, and the function to call.

    Raises `UnsupportedModel` where the model cannot be called on what it says it takes.
    """
    try:
        traced = _graph(built, ref)
        release(built.model)
        return traced
    except HeadraceError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"The model of {ref.uri} cannot be called",
            expected="a model that takes the inputs that it was saved with",
            found=cause(error),
            cure="Call the model on real data where it was made, and save it again, or export it with model.export(…).",
        ) from error


def _graph(built: Built, ref: ModelRef) -> tuple[Any, Any]:
    import tensorflow as tf

    model, preprocessing = built.model, built.preprocessing
    # As Keras' own predict_step does.
    options = {"training": False} if "training" in inspect.signature(model.call).parameters else {}

    def serve(*args: Any) -> dict[str, Any]:
        given = args if preprocessing is None else (preprocessing(*args),)
        return keras_signature.name_outputs(model(*given, **options), ref.uri)

    arguments = keras_signature.input_signature(model, ref.uri) if preprocessing is None else preprocessing.signature()
    concrete = keras_signature.trace(serve, arguments)
    if not keras_signature.needs_static_shapes(model):
        return concrete, concrete
    _log.info(
        "%s is traced anew for each shape of its inputs, since TimeDistributed needs to know it", public_uri(ref.uri)
    )
    return concrete, tf.function(serve, autograph=False)


def _serve(built: Built, ref: ModelRef, nbytes: int, traced: tuple[Any, Any]) -> Model:
    import tensorflow as tf

    model = built.model
    concrete, function = traced
    arguments = concrete.structured_input_signature[0]
    inputs = keras_signature.input_specs(concrete)

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return dict(function(*tf.nest.pack_sequence_as(arguments, [tensors[name] for name in inputs])))

    return Model(
        ref,
        SIGNATURE,
        inputs,
        {name: keras_signature.tensor_spec(name, output) for name, output in concrete.structured_outputs.items()},
        direct(concrete, list(inputs), call) if function is concrete else call,
        parameters=_parameters(model),
        nbytes=nbytes,
        keep=(model, built.preprocessing, concrete, function),
        operations=keras_operations.operations(model, keras_signature.input_signature(model, ref.uri)),
    )


def _parameters(model: Any) -> int:
    return sum(math.prod(variable.shape) for variable in model.weights)


@dataclass(frozen=True, slots=True)
class _Saved:
    """An open model; `store` is the one that holds its weights."""

    recipe: Recipe
    weights: SavedWeights
    store: Store
    files: keras_files.Files | None = None
    """The place of its assets."""

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes

    def build(self) -> Built:
        return build(self.recipe)

    def parts(self, _: Built) -> dict[str, str]:
        return {}

    def slots(self) -> list[TensorSlot]:
        return self.weights.slots(self.weights.guess())

    def spans(self, slots: Sequence[TensorSlot]) -> list[CheckedSpan]:
        return self.weights.spans(slots)

    def bytes_to_stream(self, built: Built) -> int:
        return sum(tensor.dataset.nbytes for tensor in self.plan(built))

    def plan(self, built: Built) -> list[Tensor]:
        """The tensors that inference needs, in the order in which Keras asks for them."""
        if self.weights.legacy_root is not None:
            return [tensor for _, _, tensors in self._legacy_pairs(built) for tensor in tensors]
        return self.weights.tensors(saved_paths(built.model))

    def fill(self, built: Built, tensors: TensorStream) -> None:
        if self.weights.legacy_root is not None:
            pairs = self._legacy_pairs(built)
            legacy_fill(built, pairs, lambda tensor: self.weights.take(tensor, tensors), self.recipe.uri)
            return

        assets = {} if self.files is None else keras_files.assets(self.files)
        fill(built, [Part(built.model, self.weights, tensors)], assets, self.recipe.uri)

    def _legacy_pairs(self, built: Built) -> Any:
        return legacy_pairs(built.model, *self.weights.legacy_layers(), self.recipe.uri)


@contextmanager
def _open(
    store: Store, ref: ModelRef, stream: StreamOptions = StreamOptions()
) -> Iterator[_Saved | Preset | Checkpoint]:
    with ExitStack() as opened:
        if ref.format == "keras_orbax":
            yield open_checkpoint(store, ref, stream, opened)
            return
        if ref.format == "keras_hub":
            yield open_preset(store, ref, opened)
            return
        if ref.format == "keras_h5":
            yield _open_legacy(store, ref, opened)
            return
        files = _files(store, ref, opened)
        if keras_files.CONFIG not in files.names:
            raise NotAModel(
                f"{ref.uri} is a zip archive, but no Keras model",
                expected=f"a member {keras_files.CONFIG}",
                found=", ".join(sorted(files.names)[:5]) or "an empty archive",
                cure="Name a file that model.save('….keras') wrote.",
            )
        config = files.read(keras_files.CONFIG, keras_files.CONFIG_BYTES)
        version = keras_files.keras_version(files)
        recipe = Recipe(ref.uri, config, False, version, ref.custom_objects, ref.unsafe)
        if ref.weights is None:
            yield _Saved(recipe, keras_files.weights_of(files), store, files)
        else:
            apart = store if _scheme(ref.weights) == _scheme(ref.uri) else open_store(ref.weights, ref.storage)
            yield _Saved(recipe, _open_apart(apart, ref, opened), apart)


def _files(store: Store, ref: ModelRef, opened: ExitStack) -> keras_files.Files:
    if ref.format == "keras_config":
        return keras_files.ObjectFiles(store, ref.uri, {keras_files.CONFIG: ref.objects[0]}, opened)
    if ref.objects[0].uri == ref.uri:
        return keras_files.ZipFiles(store, opened.enter_context(Ranges(store, ref.objects[0])))
    objects = {file.uri.removeprefix(f"{ref.uri}/"): file for file in ref.objects}
    return keras_files.ObjectFiles(store, ref.uri, objects, opened)


def _open_apart(store: Store, ref: ModelRef, opened: ExitStack) -> SavedWeights:
    """Weights that were named apart from their configuration."""
    objects = {file_name(file.uri): file for file in ref.objects[1:]}
    name = next(iter(objects))
    if name.endswith(".keras"):
        zipped = keras_files.ZipFiles(store, opened.enter_context(Ranges(store, objects[name])))
        return keras_files.weights_of(zipped)
    files = keras_files.ObjectFiles(store, ref.weights or "", objects, opened)
    if name.endswith(".json"):
        return keras_files.sharded_weights(files, name)
    return open_weights(store, [files.place(name)])


def _open_legacy(store: Store, ref: ModelRef, opened: ExitStack) -> _Saved:
    name = file_name(ref.uri)
    files = keras_files.ObjectFiles(store, ref.uri, {name: ref.objects[0]}, opened)
    weights = open_weights(store, [files.place(name)])
    config = weights.config
    if config is None or weights.legacy_root is None:
        raise NotAModel(
            f"{ref.uri} holds no whole model",
            expected="a configuration and weights, as model.save('….h5') writes them",
            found="no model_config" if config is None else "no list of layer names",
            cure="Name the model's config.json, and this file as its weights (--weights, weights=…).",
        )
    return _Saved(Recipe(ref.uri, config, True, weights.keras_version, ref.custom_objects, ref.unsafe), weights, store)


def _scheme(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else ""
