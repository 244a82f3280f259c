"""`headrace.predict`: a model on data in memory, with the same rules for columns as a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from ..argument_names import argument_names
from ..columns.image_sizes import parse_image_size, unused_ignore_exif
from ..columns.rules import ColumnRules
from ..columns.where import RowFilter, filtered, parse_where
from ..data_in_memory import KINDS, Held, hold, is_one
from ..errors import InvalidRequest
from ..models.load import CustomObjects
from ..models.loading import Loading
from ..models.model import Model
from ..models.pin import pin_model
from ..models.process_cache import shared_model
from ..models.ref import ModelRef
from ..storage import StoreOptions
from .batch_predictor import BatchPredictor, request_batches, texts
from .devices import HOST, Device, cores
from .predictor import devices_for

# Rows handed to a thread at once, rounded down to whole batches.
_CHUNK_ROWS = 65_536


@argument_names()
def predict(
    model: str | os.PathLike[str] | ModelRef | Model,
    data: Any,
    *,
    signature: str = "serving_default",
    keep: Sequence[str] | None = None,
    features: Mapping[str, str | Sequence[str]] | None = None,
    predictions: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    top_k: Mapping[str, int | str] | None = None,
    where: str | None = None,
    cast: Sequence[str] = (),
    fill: Mapping[str, Any] | None = None,
    pad: Mapping[str, Any] | None = None,
    decode_image: Mapping[str, tuple[int, int] | str] | None = None,
    ignore_exif: bool = False,
    tf_example: Mapping[str, str | Sequence[str]] | str | Sequence[str] = (),
    prediction_type: str = "auto",
    batch_size: int | str = "auto",
    weights: str | None = None,
    custom_objects: CustomObjects = (),
    unsafe_model: bool = False,
    storage: StoreOptions = StoreOptions(),
    loading: Loading = Loading(),
) -> Any:
    """The kept columns and the model's predictions, in the kind in which `data` came, one row for each row; or with `where`,
    which is a condition on these columns, one for each row that it is true for, as in "score > 0.9".

        predictions = headrace.predict("gs://bucket/model", frame, keep=["id"])

    `model` is a URI, a `ModelRef`, or a `Model` that is loaded already. What a URI leads to is loaded once and stays in memory:
    the next call with the same, unchanged model starts at once.

    `data` is a pandas or polars DataFrame, a `pyarrow.Table` or `RecordBatch`, a dict of arrays whose first dimension
    counts the rows, or an iterable of any of these. For an iterable, the result is an iterator: one piece is in memory
    at a time.

    `keep` are the columns to pass through (default: all that feed no input). `features` maps an input of the model to
    its column or columns, `predictions` an output to the name of its column; both default to equal names. `outputs` are
    those that become columns (default: all that have a row for each row). `top_k` asks for an output's best classes in place
    of its column, as in {"scores": 5} or with labels {"scores": "5:labels.txt"}. `cast` names
    inputs whose column may be converted to the input's dtype, `fill` gives a value for nulls and `pad` one for lists
    that are too short, both by input. `decode_image` gives (height, width) in pixels for inputs that are fed JPEG or
    PNG bytes, or "own" for images that keep their size, each in a call of its own; `ignore_exif` leaves them as they are
    stored. `tf_example` names inputs for which columns are encoded as serialized tf.train.Example; as a dict, with the
    features to encode. `prediction_type` is "auto", "list" or "tensor". `batch_size` is rows per call of the model.

    For a dict of arrays, numeric predictions of one size come back as arrays of shape [rows, ...].

    Raises `ColumnError` where a column does not fit its input, `NullFeature` for a null without a `fill`, `DataError`
    for data that is none of these kinds, and what `load_model` raises.
    """
    rules = _rules(pad, fill, cast, decode_image, ignore_exif, tf_example, prediction_type)
    if isinstance(model, Model):
        signature = model.signature
    request = request_batches(
        signature, features, predictions, keep, batch_size, rules, outputs, top_k=top_k, storage=storage
    )
    predictor = BatchPredictor(
        request, *_loaded(model, signature, weights, custom_objects, unsafe_model, storage, loading)
    )
    if where is not None:
        parse_where(where)
    if is_one(data):
        return _predicted(predictor, hold(data), where)
    _check_iterable(data)
    return _each_predicted(predictor, data, where)


def _rules(
    pad: Mapping[str, Any] | None,
    fill: Mapping[str, Any] | None,
    cast: Sequence[str],
    decode_image: Mapping[str, tuple[int, int] | str] | None,
    ignore_exif: bool,
    tf_example: Mapping[str, str | Sequence[str]] | str | Sequence[str],
    prediction_type: str,
) -> ColumnRules:
    if ignore_exif and not decode_image:
        raise unused_ignore_exif()
    return ColumnRules(
        pad=texts(pad),
        fill=texts(fill),
        cast=(cast,) if isinstance(cast, str) else tuple(cast),
        decode_image=tuple((name, parse_image_size(name, size)) for name, size in (decode_image or {}).items()),
        ignore_exif=ignore_exif,
        tf_example=_encoded(tf_example),
        prediction_type=prediction_type,
    )


def _check_iterable(data: Any) -> None:
    if isinstance(data, (str, bytes)) or not hasattr(data, "__iter__"):
        raise InvalidRequest(
            "data is not rows",
            expected=KINDS,
            found=type(data).__name__,
            cure="For files, use headrace.run(model=..., input=..., output=...)" if isinstance(data, str) else "",
        )


def _each_predicted(predictor: BatchPredictor, data: Any, where: str | None) -> Iterator[Any]:
    for held in map(hold, data):
        with argument_names():
            yield _predicted(predictor, held, where)


def _predicted(predictor: BatchPredictor, held: Held, where: str | None) -> Any:
    """Uses as many threads as cores, since TensorFlow computes each batch in one."""
    table = held.table
    combined = pa.table({}) if table.num_columns == 0 else table.combine_chunks()
    (batch,) = combined.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    rows = predictor.rows_per_batch(batch)
    chunk = max(1, _CHUNK_ROWS // rows) * rows
    starts = range(0, max(batch.num_rows, 1), chunk)

    def run(start: int) -> list[pa.RecordBatch]:
        found = predictor(batch.slice(start, chunk), where="the data", first_row=start)
        return [result for results, _ in found for result in results]

    if len(starts) == 1:
        done = [run(0)]
    else:
        with ThreadPoolExecutor(cores(), "headrace-predict") as pool:
            done = list(pool.map(run, starts))
    batches, schema = [result for results in done for result in results], predictor.output_schema(batch)
    if where is None:
        return held.back(pa.Table.from_batches(batches, schema), None)
    condition = RowFilter(where, schema)
    masks = [condition.mask(batch) for batch in batches]
    stay = [filtered(batch, mask) for batch, mask in zip(batches, masks, strict=True)]
    chosen = np.concatenate([mask.fill_null(False).to_numpy(zero_copy_only=False) for mask in masks])
    return held.back(pa.Table.from_batches(stay, schema), chosen)


def _loaded(
    model: str | os.PathLike[str] | ModelRef | Model,
    signature: str,
    weights: str | None,
    custom_objects: CustomObjects,
    unsafe_model: bool,
    storage: StoreOptions,
    loading: Loading,
) -> tuple[Sequence[Device], Sequence[Model]]:
    if isinstance(model, Model):
        return [HOST if model.device is None else Device(model.device)], [model]
    names = () if isinstance(custom_objects, Mapping) else tuple(custom_objects)
    if isinstance(custom_objects, Mapping) and custom_objects:
        raise InvalidRequest(
            "custom_objects is a dict of classes",
            expected="a list of 'module:name', by which a model that stays loaded can be known",
            cure="Or load it yourself: headrace.predict(headrace.load_model(..., custom_objects=...), data)",
        )
    ref = (
        model
        if isinstance(model, ModelRef)
        else pin_model(model, storage, weights=weights, custom_objects=names, unsafe=unsafe_model)
    )
    devices = devices_for([ref], loading)
    return devices, [shared_model(ref, signature, loading.on(device.name)) for device in devices]


def _encoded(
    given: Mapping[str, str | Sequence[str]] | str | Sequence[str],
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The features by input, none where all are meant."""
    if not isinstance(given, Mapping):
        return tuple((name, ()) for name in ((given,) if isinstance(given, str) else given))
    return tuple((name, (keys,) if isinstance(keys, str) else tuple(keys)) for name, keys in given.items())
