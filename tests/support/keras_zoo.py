"""Small Keras models of every kind that headrace loads, each with a batch to predict on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 7


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A model, and what to call it with: one array, or a list or dict of arrays."""

    model: Any
    batch: Any


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal((ROWS, *shape)).astype(np.float32)


def _words() -> Any:
    return np.array([["red"], ["green"], ["blue"], ["nothing"], [""], ["grün"], ["red"]], dtype=object)


def _sentences() -> Any:
    return np.array(
        [["red green"], ["blue, blue!"], ["nothing"], [""], ["grün red"], ["a b c d"], ["Red"]], dtype=object
    )


def mlp() -> Exhibit:
    """Dense layers and a dropout, trained."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((12,), name="pixels"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "mse")
    model.fit(_numbers(12), _numbers(3), verbose=0)
    return Exhibit(model, _numbers(12))


def unnamed() -> Exhibit:
    """Its input and layers have no names of their own."""
    import keras

    return Exhibit(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), _numbers(4))


def convolutional() -> Exhibit:
    """Convolutions of several kinds and normalizations, trained."""
    import keras
    from keras import layers

    x = keras.Input((16, 16, 3), name="image")
    y = layers.Conv2D(8, 3, use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.SeparableConv2D(8, 3, padding="same")(y)
    y = layers.DepthwiseConv2D(3)(layers.LayerNormalization()(y))
    y = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(y))
    model = keras.Model(x, layers.Dense(5)(y))
    model.compile("sgd", "mse")
    model.fit(_numbers(16, 16, 3), _numbers(5), verbose=0, epochs=2)
    return Exhibit(model, _numbers(16, 16, 3))


def augmenting() -> Exhibit:
    """Layers that draw at random, in training alone."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.GaussianNoise(0.1),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    return Exhibit(model, _numbers(8, 8, 3))


def normalizing() -> Exhibit:
    """`Normalization` and `Discretization`, adapted; two inputs."""
    import keras

    normalization = keras.layers.Normalization()
    normalization.adapt(_numbers(5) * 3 + 14)
    discretization = keras.layers.Discretization(num_bins=4, output_mode="one_hot")
    discretization.adapt(_numbers(1))
    x, y = keras.Input((5,), name="a"), keras.Input((1,), name="b")
    joined = keras.layers.Concatenate()([normalization(x), discretization(y)])
    return Exhibit(keras.Model([x, y], keras.layers.Dense(2)(joined)), [_numbers(5), _numbers(1)])


def recurrent() -> Exhibit:
    """A bidirectional LSTM, a GRU, and cells in one RNN; any number of steps."""
    import keras
    from keras import layers

    x = keras.Input((None, 4), name="steps")
    y = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    y = layers.GRU(5, return_sequences=True)(y)
    y = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])(y)
    return Exhibit(keras.Model(x, y), _numbers(9, 4))


def attending() -> Exhibit:
    """An embedding with a mask, attention, `TimeDistributed`."""
    import keras
    from keras import layers

    x = keras.Input((6,), dtype="int32", name="tokens")
    y = layers.Embedding(50, 8, mask_zero=True)(x)
    y = layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.TimeDistributed(layers.Dense(4))(y)
    tokens = np.random.default_rng(3).integers(0, 50, (ROWS, 6)).astype(np.int32)
    return Exhibit(keras.Model(x, layers.GlobalMaxPooling1D()(y)), tokens)


def looking_up() -> Exhibit:
    """Vocabularies of texts and of integers; inputs and outputs by name."""
    import keras
    from keras import layers

    lookup = layers.StringLookup(num_oov_indices=2)
    lookup.adapt(np.array(["red", "green", "blue", "grün"]))
    numbers = layers.IntegerLookup(vocabulary=[3, 5, 7])
    x, n = keras.Input((1,), dtype="string", name="color"), keras.Input((1,), dtype="int64", name="n")
    y = layers.Flatten()(layers.Embedding(8, 4)(lookup(x)))
    z = layers.Flatten()(layers.Embedding(8, 4)(numbers(n)))
    model = keras.Model({"color": x, "n": n}, {"sum": layers.Add()([y, z]), "first": y})
    return Exhibit(model, {"color": _words(), "n": np.array([[3], [5], [7], [9], [0], [3], [5]], np.int64)})


def vectorizing() -> Exhibit:
    """`TextVectorization` to ids and to TF-IDF weights."""
    import keras
    from keras import layers

    ids = layers.TextVectorization(output_mode="int", output_sequence_length=4)
    weighted = layers.TextVectorization(output_mode="tf_idf")
    for layer in (ids, weighted):
        layer.adapt(_sentences().ravel())
    x = keras.Input((1,), dtype="string", name="text")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(30, 3)(ids(x)))
    return Exhibit(keras.Model(x, layers.Concatenate()([y, layers.Flatten()(weighted(x))])), _sentences())


def nested() -> Exhibit:
    """Models within models, and a layer that is called twice."""
    import keras
    from keras import layers

    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()])
    inner.compile("adam", "mse")
    inner.fit(_numbers(4), _numbers(4), verbose=0)
    deeper = keras.Model((x := keras.Input((4,))), layers.Dense(3)(inner(x)))
    shared = layers.Dense(4, name="shared")
    a, b = keras.Input((4,), name="Left"), keras.Input((4,), name="right-side")
    merged = layers.Add()([deeper(shared(a)), deeper(shared(b))])
    return Exhibit(keras.Model([a, b], [merged, shared(a)]), [_numbers(4), _numbers(4) + 1])


def mixed() -> Exhibit:
    """Layers of float16, bfloat16 and a mixed policy."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, dtype="mixed_bfloat16"),
            layers.Dense(8, dtype="bfloat16"),
            layers.Dense(4, dtype="float16"),
            layers.Dense(2, dtype="float32"),
        ]
    )
    return Exhibit(model, _numbers(6))


def customized() -> Exhibit:
    """A registered layer of the user's own."""
    import keras

    layer = custom_layer()
    x = keras.Input((4,), name="x")
    return Exhibit(keras.Model(x, layer(scale=3)(x)), _numbers(4))


def subclassed() -> Exhibit:
    """A registered model of the user's own."""
    model = custom_model()()
    model(_numbers(4))
    return Exhibit(model, _numbers(4))


def fixed() -> Exhibit:
    """For batches of one size alone."""
    import keras

    x = keras.Input((5,), batch_size=ROWS, name="x")
    return Exhibit(keras.Model(x, keras.layers.Dense(2)(x)), _numbers(5))


def stateful() -> Exhibit:
    """Each batch goes on from the one before; the first from zeros."""
    import keras

    x = keras.Input((5, 3), batch_size=ROWS, name="x")
    y = keras.layers.GRU(4, stateful=True, return_sequences=True)(x)
    return Exhibit(keras.Model(x, keras.layers.LSTM(2, stateful=True)(y)), _numbers(5, 3))


def custom_layer() -> Any:
    """A registered layer with a state of its own, an array for an initial value, and state that is not a variable."""
    import keras

    @keras.saving.register_keras_serializable("zoo")
    class Scale(keras.layers.Layer):
        def __init__(self, scale: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.scale = scale
            self.doubled = None

        def build(self, shape: Any) -> None:
            self.table = keras.Variable(np.arange(shape[-1], dtype=np.float32) * 7, trainable=False)
            self.factor = self.add_weight(shape=(shape[-1],), initializer="random_normal")
            self.double()

        def double(self) -> None:
            self.doubled = keras.ops.convert_to_numpy(self.factor.value) * 2

        def load_own_variables(self, store: Any) -> None:
            super().load_own_variables(store)
            self.double()

        def call(self, x: Any) -> Any:
            return x * self.factor * self.scale + self.table + self.doubled

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "scale": self.scale}

    return Scale


def custom_model() -> Any:
    """A registered model with a tracker of its loss, as the variational autoencoder of Keras' guide has."""
    import keras

    @keras.saving.register_keras_serializable("zoo")
    class Tower(keras.Model):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.blocks = [[keras.layers.Dense(4), keras.layers.Dense(4)], [keras.layers.Dense(2)]]
            self.loss_tracker = keras.metrics.Mean(name="loss")

        def build(self, shape: Any) -> None:
            for block in self.blocks:
                for layer in block:
                    layer.build(shape)
                    shape = layer.compute_output_shape(shape)

        def call(self, x: Any) -> Any:
            for block in self.blocks:
                for layer in block:
                    x = layer(x)
            return {"tower": x}

    return Tower


ZOO: tuple[Callable[[], Exhibit], ...] = (
    mlp,
    unnamed,
    convolutional,
    augmenting,
    normalizing,
    recurrent,
    attending,
    looking_up,
    vectorizing,
    nested,
    mixed,
    fixed,
    stateful,
    customized,
    subclassed,
)
