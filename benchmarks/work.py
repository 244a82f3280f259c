"""The shared work: Parquet of `id` int64 and `features` fixed_size_list<float32>[64], and a 64-256-256-10 network."""

from __future__ import annotations

import json
import os
import shutil

from pipeline.quiet import quiet_stderr

FILES = 8
ROW_GROUP_ROWS = 16_384
WIDTH = 64


def make(folder: str, rows: int) -> None:
    """Writes `folder`/model (a SavedModel) and `folder`/in (8 files of `rows` rows in all) unless they stand there."""
    mark, made = f"{folder}/work.json", {"rows": rows, "files": FILES, "width": WIDTH}
    if os.path.exists(mark):
        with open(mark, encoding="utf-8") as file:
            if json.load(file) == made:
                return
        os.unlink(mark)
    _make_data(f"{folder}/in", rows)
    _make_model(f"{folder}/model")
    with open(mark, "w", encoding="utf-8") as file:
        json.dump(made, file)


def under_more_names(folder: str, times: int) -> str:
    """A folder that holds every input file under `times` names, as hard links: more rows, but no more bytes."""
    target = f"{folder}/in_{times}x"
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    names = sorted(os.listdir(f"{folder}/in"))
    for copy in range(times):
        for name in names:
            os.link(f"{folder}/in/{name}", f"{target}/copy-{copy:03d}-{name}")
    return target


def _make_data(folder: str, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    random = np.random.default_rng(0)
    for number, ids in enumerate(np.array_split(np.arange(rows), FILES)):
        features = pa.array(random.standard_normal(len(ids) * WIDTH, dtype=np.float32))
        columns = {"id": pa.array(ids, pa.int64()), "features": pa.FixedSizeListArray.from_arrays(features, WIDTH)}
        path = f"{folder}/part-{number:05d}-of-{FILES:05d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def _make_model(folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr():
        import keras

    shutil.rmtree(folder, ignore_errors=True)
    keras.utils.set_random_seed(0)
    features = keras.Input((WIDTH,), name="features")
    hidden = keras.layers.Dense(256, activation="relu")(features)
    hidden = keras.layers.Dense(256, activation="relu")(hidden)
    keras.Model(features, keras.layers.Dense(10, activation="softmax")(hidden)).export(folder, verbose=False)
