"""Which codec a column of a written file has: none only where zstd saves little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.parquet.writer import write_batches
from headrace.transforms.storage import open_store

ROWS = 2_000
RANDOM = np.random.default_rng(7)


def in_lists(values: Any, length: int) -> pa.Array[Any]:
    return pa.FixedSizeListArray.from_arrays(values if isinstance(values, pa.Array) else pa.array(values), length)


def random(count: int) -> Any:
    return RANDOM.random(count, dtype=np.float32)


def written(tmp_path: Path, *batches: pa.RecordBatch) -> dict[str, str]:
    """The codec of each Parquet column of a file that has these batches; it is read back and compared."""
    path, schema = f"{tmp_path}/a.parquet", batches[0].schema
    write_batches(open_store(path), path, schema, batches, {})
    assert pq.read_table(path).equals(pa.Table.from_batches(batches))
    metadata = pq.ParquetFile(path).metadata
    group = metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    for number in range(metadata.num_row_groups):
        others = [metadata.row_group(number).column(i).compression for i in range(len(chunks))]
        assert others == [chunk.compression for chunk in chunks]
    return {chunk.path_in_schema: chunk.compression for chunk in chunks}


@pytest.mark.parametrize(
    ("column", "codec"),
    [
        pytest.param(pa.array(random(ROWS)), "UNCOMPRESSED", id="scores"),
        pytest.param(in_lists(random(ROWS * 8), 8), "UNCOMPRESSED", id="lists of scores"),
        pytest.param(in_lists(in_lists(random(ROWS * 8), 4), 2), "UNCOMPRESSED", id="nested lists"),
        pytest.param(pa.array([None, *random(ROWS - 1).tolist()], pa.float32()), "UNCOMPRESSED", id="a null"),
        pytest.param(
            pa.array(np.where(np.arange(ROWS) % 9, 0, random(ROWS)), mask=np.arange(ROWS) % 9 > 0),
            "UNCOMPRESSED",
            id="mostly nulls, 0 under each",
        ),
        pytest.param(
            pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2, 4]), in_lists(random(ROWS * 8), 8)),
            "UNCOMPRESSED",
            id="an extension type",
        ),
        pytest.param(in_lists(np.maximum(random(ROWS * 8) - 0.5, 0), 8), "ZSTD", id="half of them 0"),
        pytest.param(in_lists(np.round(random(ROWS * 8), 1), 8), "ZSTD", id="rounded"),
        pytest.param(pa.array(np.arange(ROWS)), "ZSTD", id="whole numbers"),
        pytest.param(pa.array([str(number) for number in RANDOM.random(ROWS)]), "ZSTD", id="text"),
        pytest.param(pa.nulls(ROWS, pa.float32()), "ZSTD", id="nulls only"),
        pytest.param(pa.array([[]] * ROWS, pa.list_(pa.float32())), "ZSTD", id="empty lists"),
    ],
)
def test_scores_are_not_compressed_where_it_saves_little(tmp_path: Path, column: pa.Array[Any], codec: str) -> None:
    batch = pa.record_batch({"id": pa.array(np.arange(len(column))), "x": column})
    codecs = written(tmp_path, batch.slice(0, 900), batch.slice(900))
    assert codecs.pop("id") == "ZSTD"
    assert set(codecs.values()) == {codec}


def test_the_first_row_group_decides_by_all_of_its_batches(tmp_path: Path) -> None:
    zeros = pa.record_batch({"x": pa.array(np.zeros(8_000, np.float32))})
    scores = pa.record_batch({"x": pa.array(random(8_000))})
    assert written(tmp_path, zeros, *[scores] * 3) == {"x": "ZSTD"}
    assert written(tmp_path / "few", *[scores] * 40, zeros) == {"x": "UNCOMPRESSED"}


def test_every_kind_of_column_has_a_codec(tmp_path: Path) -> None:
    """A path that the writer does not know would leave its column without compression, in silence."""
    kinds: dict[str, Any] = {
        "a.b": pa.string(),
        "list": pa.list_(pa.int32()),
        "large": pa.large_list(pa.list_(pa.string())),
        "struct": pa.struct([("a", pa.int8()), ("b", pa.list_(pa.struct([("c", pa.binary())])))]),
        "map": pa.map_(pa.string(), pa.list_(pa.int64())),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
        "sparse": pa.list_(pa.struct([("index", pa.int64()), ("value", pa.float32())])),
        "null": pa.null(),
        "decimal": pa.decimal128(9, 2),
        "time": pa.timestamp("us", "UTC"),
    }
    batch = pa.record_batch([pa.nulls(3, kind) for kind in kinds.values()], schema=pa.schema(kinds))
    assert set(written(tmp_path, batch).values()) == {"ZSTD"}


def test_a_file_without_rows_has_its_columns(tmp_path: Path) -> None:
    path, schema = f"{tmp_path}/a.parquet", pa.schema({"x": pa.float32()})
    assert write_batches(open_store(path), path, schema, [], {})[1] == 0
    assert pq.read_table(path).schema.equals(schema)
