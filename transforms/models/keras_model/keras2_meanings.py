"""Parts of a configuration that mean one thing in Keras 1 and 2, and another in Keras 3.

Each is tested against tf_keras (tests/transforms/models/keras_model/test_keras_legacy.py), and so are parts that were checked
and mean the same: the other activations, `alpha` of LeakyReLU (Keras 3 takes it for `negative_slope`), `epsilon` and
`axis` of the normalizations, padding and the output's shape of transposed convolutions, the interpolation of
UpSampling2D. `noise_shape` is for training alone.

| configuration | Keras 1 and 2 | Keras 3 |
|---|---|---|
| activation `hard_sigmoid` | `clip(0.2 x + 0.5, 0, 1)` | `relu6(x + 3) / 6` |
| GRU without `reset_after` (before 2.1.3) | False | True |
| ConvLSTM without `recurrent_activation`; LSTM and GRU before 2.3 | `hard_sigmoid` | `sigmoid` |
| dtype `{"class_name": "Policy", …}` | that policy by its name | unknown |
| `axis` of one number, as a list, of a wrapped layer | that axis | an error |
| `causal: false` of Attention | the default | an error |
"""

from __future__ import annotations

from typing import Any

_ACTIVATIONS = ("activation", "recurrent_activation")
_GRUS = {"GRU", "GRUCell"}
_GATED = {"LSTM", "LSTMCell", *_GRUS}
_CONVOLUTIONAL = {"ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
_POLICIES = {"Policy", "PolicyV1"}


def keep_meaning(name: str, config: dict[str, Any], keras_version: str | None) -> None:
    """Changes a layer's configuration of Keras 1 or 2 so that it keeps its meaning in Keras 3."""
    if name in _CONVOLUTIONAL or (name in _GATED and _before_2_3(keras_version)):
        config.setdefault("recurrent_activation", "hard_sigmoid")
    if name in _GRUS:
        config.setdefault("reset_after", False)
    for key in _ACTIVATIONS:
        value = config.get(key)
        named = value.get("config") if isinstance(value, dict) and value.get("class_name") == "function" else value
        if named == "hard_sigmoid":
            config[key] = {
                "class_name": "function",
                "module": "builtins",
                "config": hard_sigmoid_of_keras_2.__name__,
                "registered_name": hard_sigmoid_of_keras_2.__name__,
            }
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") in _POLICIES and isinstance(dtype.get("config"), dict):
        policy = dtype["config"].get("name")
        config["dtype"] = "float32" if policy in (None, "infer", "_infer") else policy
    axis = config.get("axis")
    if isinstance(axis, list) and len(axis) == 1:
        config["axis"] = axis[0]
    if name in ("Attention", "AdditiveAttention") and config.get("causal") is False:
        del config["causal"]


def _before_2_3(keras_version: str | None) -> bool:
    return keras_version is None or keras_version.startswith(("1.", "2.0.", "2.1.", "2.2."))


def hard_sigmoid_of_keras_2(x: Any) -> Any:
    """As Keras 2 computes it (tf_keras/src/backend.py), in the same order.

    Its name is not Keras' own: Bidirectional writes the configuration of what it wraps, and reads it again by that name.
    """
    from keras import ops

    return ops.clip(x * 0.2 + 0.5, 0.0, 1.0)


def own_objects() -> dict[str, Any]:
    """The objects that `keep_meaning` puts into configurations, by name."""
    return {hard_sigmoid_of_keras_2.__name__: hard_sigmoid_of_keras_2}
