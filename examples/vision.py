"""Images: a column of PNG files into a small convolutional network, decoded and resized on the way.

    python -m examples.vision [FOLDER]

The network is not trained: it answers which third of the image is the brightest, by weights that are set by hand. The
results can be checked.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.pipeline.cli import main as headrace

SIDE = 24
COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 240)}


def make_model(uri: str) -> None:
    """uint8 `image` [batch, 24, 24, 3] to `color` [batch, 3]: the mean of each channel, by a convolution, as shares of one."""
    import keras

    images = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    features = keras.layers.Conv2D(3, 3, padding="same", use_bias=False, name="by_channel")(scaled)
    color = keras.layers.Softmax(name="color")(10 * keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(images, {"color": color})
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)
    model.get_layer("by_channel").set_weights([kernel])
    model.export(uri, verbose=False)


def make_data(uri: str, rows: int = 60) -> list[str]:
    """Parquet with `id`, the `color` that was painted, and `png`: a file of 16 to 40 pixels a side. Gives the colors."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    colors = [str(color) for color in random.choice(list(COLORS), rows)]
    files = []
    for color in colors:
        height, width = random.integers(16, 41, 2)
        noise = random.integers(-20, 20, (height, width, 3))
        pixels = np.clip(np.asarray(COLORS[color]) + noise, 0, 255).astype(np.uint8)
        files.append(tf.io.encode_png(pixels).numpy())
    pq.write_table(pa.table({"id": range(rows), "color": colors, "png": files}), uri, row_group_size=20)
    return colors


def main(folder: str) -> None:
    make_model(f"{folder}/model")
    painted = make_data(f"{folder}/images.parquet")
    code = headrace(
        [
            f"--model={folder}/model",
            f"--input={folder}/images.parquet",
            f"--output={folder}/out",
            "--feature=image=png",
            f"--decode_image=image={SIDE}x{SIDE}",
            "--prediction=color=shares",
            "--keep=id",
        ]
    )
    assert code == 0, f"headrace ended with exit code {code}"
    found = pq.read_table(f"{folder}/out")
    assert found["id"].to_pylist() == list(range(len(painted)))
    seen = [list(COLORS)[np.argmax(shares)] for shares in found["shares"].to_pylist() if shares]
    assert seen == painted
    print(f"{len(seen)} images, and the model saw in each the color that was painted.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)
