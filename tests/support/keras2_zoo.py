"""Whole models as Keras 2 writes them: `python tests/support/keras2_zoo.py FOLDER` makes one HDF5 file of each, in a
process apart.

Both Kerases in one process would share TensorFlow's registries.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

ROWS = 7


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal((ROWS, *shape)).astype(np.float32)


def _tokens(steps: int) -> Any:
    return np.random.default_rng(3).integers(0, 40, (ROWS, steps)).astype(np.float32)


BATCHES: dict[str, Any] = {
    "mlp": _numbers(12),
    "convolutional": _numbers(12, 12, 3),
    "recurrent": _numbers(9, 4),
    "reading": _tokens(11),
    "nested": [_numbers(4), _numbers(4) + 1],
    "normalizing": _numbers(5) * 3 + 14,
    "gated": _numbers(6, 4),
    "filming": _numbers(3, 5, 5, 2),
    "activated": _numbers(6) * 3,
    "enlarging": _numbers(5, 5, 2),
}


def mlp(keras: Any) -> Any:
    """Dense layers, a dropout and a normalization, trained."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Dense(16, activation="relu", input_shape=(12,), name="hidden"),
            layers.Dropout(0.5),
            layers.BatchNormalization(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(_numbers(12), _numbers(3), verbose=0)
    return model


def convolutional(keras: Any) -> Any:
    """Convolutions of several kinds, trained."""
    layers = keras.layers
    x = keras.Input((12, 12, 3))
    y = layers.Conv2D(6, 3, use_bias=False)(x)
    y = layers.LeakyReLU()(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3)(layers.SeparableConv2D(6, 3, padding="same")(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    model.compile("sgd", "mse")
    model.fit(_numbers(12, 12, 3), _numbers(2), verbose=0)
    return model


def recurrent(keras: Any) -> Any:
    """Recurrent layers, bidirectional and distributed over steps."""
    layers = keras.layers
    x = keras.Input((None, 4))
    y = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    y = layers.TimeDistributed(layers.Dense(5))(layers.GRU(5, return_sequences=True)(y))
    return keras.Model(x, layers.SimpleRNN(3)(y))


def reading(keras: Any) -> Any:
    """Steps of any number."""
    layers = keras.layers
    return keras.Sequential(
        [layers.Embedding(50, 8, input_shape=(None,)), layers.Conv1D(4, 3), layers.GlobalMaxPooling1D()]
    )


def nested(keras: Any) -> Any:
    """Models within models, and a layer that is called twice."""
    layers = keras.layers
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()], name="inner")
    x = keras.Input((4,))
    deeper = keras.Model(x, layers.Dense(3)(inner(x)), name="deeper")
    shared = layers.Dense(4, name="shared")
    a, b = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    return keras.Model([a, b], [layers.Add()([deeper(shared(a)), deeper(shared(b))]), shared(a)])


def normalizing(keras: Any) -> Any:
    """`Normalization`, adapted."""
    layer = keras.layers.Normalization()
    layer.adapt(_numbers(5) * 3 + 14)
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Dense(2)(layer(x)))


def gated(keras: Any) -> Any:
    """`hard_sigmoid` wherever it can be used."""
    layers = keras.layers
    x = keras.Input((6, 4))
    y = layers.LSTM(5, recurrent_activation="hard_sigmoid", return_sequences=True)(x)
    y = layers.Bidirectional(
        layers.GRU(4, recurrent_activation="hard_sigmoid", reset_after=False, return_sequences=True)
    )(y)
    y = layers.RNN(layers.LSTMCell(4, recurrent_activation="hard_sigmoid"), return_sequences=True)(y)
    y = layers.TimeDistributed(layers.Dense(4, activation="hard_sigmoid"))(y)
    y = layers.TimeDistributed(layers.BatchNormalization(epsilon=0.01))(y)
    return keras.Model(x, layers.Activation("hard_sigmoid")(layers.Flatten()(y)))


def filming(keras: Any) -> Any:
    """`ConvLSTM2D`."""
    x = keras.Input((3, 5, 5, 2))
    return keras.Model(x, keras.layers.ConvLSTM2D(3, 3)(x))


def activated(keras: Any) -> Any:
    """What means the same in both."""
    layers = keras.layers
    x = keras.Input((6,))
    names = ["elu", "selu", "softplus", "softsign", "relu", "gelu", "swish"]
    names += ["exponential", "mish", "tanh", "sigmoid", "linear", "softmax"]
    several = [layers.Activation(name)(x) for name in names]
    several += [layers.LeakyReLU()(x), layers.LeakyReLU(alpha=0.1)(x), layers.ELU(0.5)(x), layers.PReLU()(x)]
    several += [layers.ReLU(max_value=2, negative_slope=0.2, threshold=0.1)(x), layers.LayerNormalization()(x)]
    several += [
        layers.UnitNormalization()(x),
        layers.GaussianNoise(0.1)(x),
        layers.Dropout(0.5, noise_shape=(None, 1))(x),
    ]
    return keras.Model(x, layers.Concatenate()(several))


def enlarging(keras: Any) -> Any:
    """Transposed convolutions, upsampling, pooling."""
    layers = keras.layers
    x = keras.Input((5, 5, 2))
    several = [
        layers.Conv2DTranspose(3, 3, strides=2, padding="same")(x),
        layers.Conv2DTranspose(3, 2, strides=3)(x),
        layers.Conv2DTranspose(3, 3, strides=2, output_padding=1)(x),
        layers.UpSampling2D(2, interpolation="bilinear")(x),
        layers.UpSampling2D(2)(x),
        layers.AveragePooling2D(2, padding="same")(x),
        layers.DepthwiseConv2D(3, strides=2, padding="same")(x),
        layers.GroupNormalization(2)(x),
    ]
    return keras.Model(x, layers.Concatenate()([layers.Flatten()(one) for one in several]))


MODELS = (mlp, convolutional, recurrent, reading, nested, normalizing, gated, filming, activated, enlarging)


if __name__ == "__main__":
    import tf_keras

    for make in MODELS:
        tf_keras.utils.set_random_seed(11)
        made = make(tf_keras)
        made.save(f"{sys.argv[1]}/{make.__name__}.h5")
        if make is nested:
            made.save(f"{sys.argv[1]}/{make.__name__}.keras")
        made.save_weights(f"{sys.argv[1]}/{make.__name__}-weights.h5")
        outputs = made.predict_on_batch(BATCHES[make.__name__])
        np.savez(f"{sys.argv[1]}/{make.__name__}.npz", *(outputs if isinstance(outputs, list) else [outputs]))
