"""Tiny presets that KerasHub itself wrote, and what its own loader makes of them."""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

hub = pytest.importorskip("keras_hub")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
TEXTS = ["good bad film", "bad", "", "a film that is neither", "good good good good good good good good good"]
_TINY = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "max_sequence_length": 16}


def preset(make: Callable[[], Any]) -> Path:
    """The folder of the task that `make` makes; made once in a process."""
    return _preset(make.__name__)


@functools.cache
def _preset(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-presets-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    globals()[name]().save_to_preset(str(folder / name))
    return folder / name


def word_pieces() -> Any:
    tokenizer = hub.tokenizers.BertTokenizer(vocabulary=WORDS)
    texts = hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    return hub.models.BertTextClassifier(backbone=_bert(), num_classes=3, preprocessor=texts)


def wide(words: int, dimensions: int) -> Any:
    """Float32 embeddings of so many words, and little else."""
    backbone = hub.models.BertBackbone(
        vocabulary_size=words,
        num_layers=1,
        num_heads=2,
        hidden_dim=dimensions,
        intermediate_dim=8,
        max_sequence_length=16,
    )
    tokenizer = hub.tokenizers.BertTokenizer(vocabulary=WORDS)
    texts = hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    return hub.models.BertTextClassifier(backbone=backbone, num_classes=3, preprocessor=texts)


def byte_pairs() -> Any:
    # All letters of TEXTS: of what no token covers, KerasHub's two tokenizers make different ids.
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"goodbafilmthsnerĠ", "go", "goo", "good", "ba", "bad", "<mask>"]
    tokens = list(dict.fromkeys(tokens))
    merges = ["g o", "go o", "goo d", "b a", "ba d"]
    tokenizer = hub.tokenizers.RobertaTokenizer({token: i for i, token in enumerate(tokens)}, merges)
    texts = hub.models.RobertaTextClassifierPreprocessor(tokenizer, sequence_length=8)
    backbone = hub.models.RobertaBackbone(vocabulary_size=len(tokens), **_TINY)
    return hub.models.RobertaTextClassifier(backbone=backbone, num_classes=3, preprocessor=texts)


def sentence_pieces() -> Any:
    import sentencepiece

    special: dict[str, Any] = dict(zip(("pad_id", "unk_id", "bos_id", "eos_id"), range(4), strict=True))
    special |= {"pad_piece": "<pad>", "unk_piece": "<unk>", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    special |= {"user_defined_symbols": "[MASK]"}
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["good bad film good", "bad bad film"] * 10),
        model_writer=proto,
        vocab_size=22,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    tokenizer = hub.tokenizers.AlbertTokenizer(proto=proto.getvalue())
    texts = hub.models.AlbertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    backbone = hub.models.AlbertBackbone(vocabulary_size=40, embedding_dim=4, **_TINY)
    return hub.models.AlbertTextClassifier(backbone=backbone, num_classes=3, preprocessor=texts)


def images() -> Any:
    converter = hub.layers.ResNetImageConverter(image_size=(16, 16), scale=[1 / 255.0] * 3, offset=[-0.1, 0.0, 0.1])
    pixels = hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    return hub.models.ResNetImageClassifier(backbone=_resnet(), num_classes=3, preprocessor=pixels)


def images_as_given() -> Any:
    return hub.models.ResNetImageClassifier(backbone=_resnet(), num_classes=3)


def generating() -> Any:
    return hub.models.GPT2CausalLM(backbone=hub.models.GPT2Backbone(vocabulary_size=5, **_TINY))


def filling_in() -> Any:
    texts = hub.models.BertMaskedLMPreprocessor(hub.tokenizers.BertTokenizer(vocabulary=WORDS), sequence_length=8)
    return hub.models.BertMaskedLM(backbone=_bert(), preprocessor=texts)


def half_precision() -> Any:
    return hub.models.BertTextClassifier(backbone=_bert(dtype="bfloat16"), num_classes=3)


def _bert(**options: Any) -> Any:
    return hub.models.BertBackbone(vocabulary_size=len(WORDS), **_TINY, **options)


def _resnet() -> Any:
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )


def pictures(rows: int = 3) -> np.ndarray[Any, Any]:
    """Neither square nor of the size that the model takes."""
    return np.random.default_rng(0).integers(0, 256, (rows, 20, 24, 3)).astype(np.float32)


def native(folder: Path, batch: Any) -> np.ndarray[Any, Any]:
    """What the task gives as KerasHub loads it, its model traced for any number of rows."""
    import keras
    import tensorflow as tf

    task = _loaded(folder)
    given = batch if task.preprocessor is None else task.preprocessor(batch)
    specs = keras.tree.map_structure(lambda one: tf.TensorSpec([None, *one.shape[1:]], one.dtype), given)
    return tf.function(lambda x: task(x, training=False), input_signature=[specs])(given).numpy()


@functools.cache
def _loaded(folder: Path) -> Any:
    import json

    kind = json.loads((folder / "task.json").read_text())["class_name"]
    return getattr(hub.models, kind).from_preset(str(folder))
