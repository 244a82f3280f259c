"""The shared work: Parquet of `id` int64 and `features` fixed_size_list<float32>[64], and a 64-256-256-10 network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from headrace.pipeline.terminal.log import quiet_stderr

FILES = 8
ROW_GROUP_ROWS = 16_384
WIDTH = 64


def make_model(folder: str) -> str:
    """Makes `folder`/model, a SavedModel, and the same network as `folder`/model.keras, unless they exist."""
    once(f"{folder}/model", _write_model)
    return f"{folder}/model"


def make_rows(folder: str, rows: int) -> str:
    """A folder in `folder` of 8 files with `rows` rows in all; row i is the same, however many there are."""

    def write(target: str) -> None:
        _write_rows(target, rows)

    return once(f"{folder}/rows-{rows}", write)


def under_more_names(inputs: str, times: int) -> str:
    """A folder that holds every input file under `times` names, as hard links: more rows, but no more bytes."""
    target = f"{inputs}-{times}x"
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    names = sorted(os.listdir(inputs))
    for copy in range(times):
        for name in names:
            os.link(f"{inputs}/{name}", f"{target}/copy-{copy:03d}-{name}")
    return target


def once(target: str, write: Callable[[str], None]) -> str:
    """Under another name until it is whole."""
    if not os.path.exists(target):
        part = f"{target}.part"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        write(part)
        os.rename(part, target)
    return target


def _write_rows(folder: str, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    for number, ids in enumerate(np.array_split(np.arange(rows), FILES)):
        features = pa.array(random.standard_normal(len(ids) * WIDTH, dtype=np.float32))
        columns = {"id": pa.array(ids, pa.int64()), "features": pa.FixedSizeListArray.from_arrays(features, WIDTH)}
        path = f"{folder}/part-{number:05d}-of-{FILES:05d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def _write_model(folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr():
        import keras

    keras.utils.set_random_seed(0)
    features = keras.Input((WIDTH,), name="features")
    hidden = keras.layers.Dense(256, activation="relu")(features)
    hidden = keras.layers.Dense(256, activation="relu")(hidden)
    model = keras.Model(features, keras.layers.Dense(10, activation="softmax")(hidden))
    model.save(f"{os.path.dirname(folder)}/model.keras")
    model.export(folder, verbose=False)
