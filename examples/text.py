"""Text: a column of strings into a model that splits and looks up words by itself.

    python -m examples.text [FOLDER]

The vocabulary of `TextVectorization` is part of the model: a hash table, which streams into memory as the weights do. The
network counts kind words and unkind ones. Its weights are set by hand: the results can be checked.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.pipeline.cli import main as headrace

KIND = ("good", "lovely", "warm")
UNKIND = ("bad", "awful", "cold")
TEXTS = {
    "A good film, and a LOVELY one.": 2.0,
    "Awful! Cold, bad.": -3.0,
    "It was warm; the soup was cold": 0.0,
    "": 0.0,
    "Überraschend good – 東京": 1.0,
}


def make_model(uri: str) -> None:
    """string `review` [batch] to float32 `mood` [batch, 1]: kind words minus unkind ones."""
    import keras

    words = keras.layers.TextVectorization(output_mode="count", vocabulary=[*KIND, *UNKIND])
    texts = keras.Input((), dtype="string", name="review")
    mood = keras.layers.Dense(1, use_bias=False, name="mood")
    model = keras.Model(texts, {"mood": mood(words(texts))})
    unknown = [0.0]
    mood.set_weights([np.array([unknown + [1.0] * len(KIND) + [-1.0] * len(UNKIND)], np.float32).T])
    model.export(uri, verbose=False)


def main(folder: str) -> None:
    make_model(f"{folder}/model")
    texts = list(TEXTS) * 20
    pq.write_table(pa.table({"id": range(len(texts)), "review": texts}), f"{folder}/reviews.parquet")
    code = headrace(
        [
            f"--model={folder}/model",
            f"--input={folder}/reviews.parquet",
            f"--output={folder}/out",
            "--keep=id,review",
        ]
    )
    assert code == 0, f"headrace ended with exit code {code}"
    found = pq.read_table(f"{folder}/out")
    assert found["review"].to_pylist() == texts
    assert np.ravel(np.array(found["mood"].to_pylist(), object)).tolist() == [TEXTS[text] for text in texts]
    print(f"{len(texts)} texts, from {found['mood'][1]} to {found['mood'][0]}.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)
