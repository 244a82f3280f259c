"""The inputs of a KerasHub task: texts or images, which its preprocessor turns into what its model takes.

The preprocessor runs as a part of the model's graph, as it does in the `tf.data` pipeline of the task's own `predict`: in C++,
in the thread that calls the model. Vocabularies come from the preset's assets in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...bounded_json import parse_json
from ...errors import CorruptModel, UnsupportedModel
from . import keras2_meanings
from . import safe_mode as keras_safe_mode
from .asset_files import AssetFiles
from .build import Recipe, custom_objects
from .refusals import brief, cannot_build
from .signature import trace

_TEXTS = ("TextClassifierPreprocessor", "TextEmbedderPreprocessor")
_IMAGES = ("ImageClassifierPreprocessor", "ImageSegmenterPreprocessor", "DepthEstimatorPreprocessor")


class HubPreprocessing:
    """A preprocessor of one input, "text" (strings) or "images" (pixels, 0 to 255)."""

    def __init__(self, layer: Any, name: str, shape: tuple[int | None, ...]) -> None:
        """`shape` is with the batch."""
        self.layer, self.name, self.shape = layer, name, shape

    def signature(self) -> list[Any]:
        import tensorflow as tf

        return [tf.TensorSpec(self.shape, tf.string if self.name == "text" else tf.float32, self.name)]

    def __call__(self, *arguments: Any) -> Any:
        import keras

        x, _, _ = keras.utils.unpack_x_y_sample_weight(self.layer(*arguments))
        return x

    def check(self, uri: str) -> None:
        """Raises `UnsupportedModel` where the preprocessor cannot be called on what it is taken to take."""
        try:
            trace(self, self.signature())
        except Exception as error:
            raise UnsupportedModel(
                f"The preprocessor {type(self.layer).__name__} of {uri} cannot be called on {self.name}",
                expected=f"one that takes a batch of {self.name}",
                found=brief(error),
                cure=_WITHOUT,
            ) from error

    def parts(self) -> dict[str, str]:
        found = {"preprocessor": type(self.layer).__name__}
        for tokenizer in _tokenizers(self.layer):
            found["tokenizer"] = f"{type(tokenizer).__name__}, {tokenizer.vocabulary_size():,} tokens"
        if length := getattr(self.layer, "sequence_length", None):
            found["sequence length"] = str(length)
        if converter := getattr(self.layer, "image_converter", None):
            size = converter.image_size
            found["image converter"] = type(converter).__name__ + (f", to {size[0]}x{size[1]}" if size else "")
        return found


class AsGiven:
    """For a task without a preprocessor: its model's own inputs, by names that every process gives them.

    KerasHub leaves some without a name, and Keras numbers these through in each process.
    """

    def __init__(self, task: Any) -> None:
        self._inputs = task.input
        if isinstance(self._inputs, dict):
            self._named = dict(self._inputs)
        elif isinstance(self._inputs, (list, tuple)):
            self._named = {f"inputs_{i}": spec for i, spec in enumerate(self._inputs)}
        else:
            self._named = {"images" if len(self._inputs.shape) == 4 else "inputs": self._inputs}

    def signature(self) -> list[Any]:
        import tensorflow as tf

        return [{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self._named.items()}]

    def check(self, _: str) -> None:
        pass

    def __call__(self, *arguments: Any) -> Any:
        (given,) = arguments
        if isinstance(self._inputs, dict):
            return given
        several = [given[name] for name in self._named]
        return several if isinstance(self._inputs, (list, tuple)) else several[0]


def preprocessing(recipe: Recipe, task: Any, assets: Mapping[str, bytes | bytearray]) -> HubPreprocessing:
    """Builds what `recipe` describes, with its vocabularies; `assets` are by their path below `assets/`.

    Raises `UnsupportedModel` for what safe mode does not allow and for inputs that are neither texts nor images, and
    `CorruptModel` where assets are missing or are not what the preprocessor reads.
    """
    import keras

    uri = recipe.uri
    described = parse_json(recipe.config)
    if not recipe.unsafe:
        known = {**keras_safe_mode.registered(), **custom_objects(recipe.custom_objects)}
        keras_safe_mode.check(described, uri, known, keras2_meanings.own_objects())
    try:
        with keras.saving.CustomObjectScope(custom_objects(recipe.custom_objects)):
            layer = keras.saving.deserialize_keras_object(described, safe_mode=not recipe.unsafe)
    except Exception as error:
        raise cannot_build(error, uri) from error
    fed = _of_kind(layer, task, uri)
    _load_vocabularies(layer, assets, uri)
    return fed


_WITHOUT = (
    "Save the task without its preprocessor (task.preprocessor = None, then task.save_to_preset(…)), and feed it with what "
    "the preprocessor gives."
)


def _of_kind(layer: Any, task: Any, uri: str) -> HubPreprocessing:
    import keras_hub

    def is_one_of(names: tuple[str, ...]) -> bool:
        return isinstance(layer, tuple(getattr(keras_hub.models, name) for name in names))

    if is_one_of(_TEXTS):
        return HubPreprocessing(layer, "text", (None,))
    if is_one_of(_IMAGES):
        height, width, channels = getattr(task.backbone, "image_shape", (None, None, 3))
        converter = layer.image_converter
        if converter is not None and converter.image_size is not None:
            height = width = None
        return HubPreprocessing(layer, "images", (None, height, width, channels))
    raise UnsupportedModel(
        f"{uri} has a preprocessor of a kind that headrace does not feed",
        expected="one of texts or images: " + ", ".join(_TEXTS + _IMAGES),
        found=type(layer).__name__,
        cure=_WITHOUT,
    )


def _tokenizers(layer: Any) -> Iterator[Any]:
    return (inner for inner in layer._flatten_layers(include_self=False) if hasattr(inner, "vocabulary_size"))


def _load_vocabularies(layer: Any, assets: Mapping[str, bytes | bytearray], uri: str) -> None:
    """As `Preprocessor.load_preset_assets` does, but from memory."""
    with AssetFiles(assets) as files:
        for tokenizer in _tokenizers(layer):
            place = str(tokenizer.config_file).partition(".")[0]
            wanted = [f"{place}/{name}" for name in tokenizer.file_assets or ()]
            if missing := [name for name in wanted if name not in assets]:
                raise CorruptModel(
                    f"{uri} lacks assets/{missing[0]}, which its {type(tokenizer).__name__} reads",
                    expected=", ".join(f"assets/{name}" for name in wanted),
                    found=", ".join(f"assets/{name}" for name in sorted(assets)[:5]) or "no assets",
                    cure="Copy the whole folder, or save the task again.",
                )
            try:
                if wanted:
                    tokenizer.load_assets(files.folder(place))
            except Exception as error:
                raise CorruptModel(
                    f"The vocabulary of {uri} is not one of its {type(tokenizer).__name__}",
                    expected=", ".join(f"assets/{name}" for name in wanted),
                    found=brief(error),
                    cure="Copy the folder again, or save the task again.",
                ) from error
