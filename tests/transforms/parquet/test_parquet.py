import datetime
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import (
    AlreadyExists,
    ColumnError,
    DataError,
    NotParquet,
    NullFeature,
    ObjectChanged,
    ObjectNotFound,
)
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.parquet import column_chunks
from headrace.transforms.parquet import guard as parquet_guard
from headrace.transforms.parquet import reader as parquet
from headrace.transforms.parquet.footer import footer_of
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.parquet.writer import fixed_row_bytes, write_batches
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import open_store
from tests.support.loose import loose

SCHEMA = schema_of({"id": pa.int64(), "name": pa.string()})


def rows(first: int, count: int) -> Any:
    ids = range(first, first + count)
    return pa.record_batch([pa.array(ids, pa.int64()), pa.array([f"näme {i}" for i in ids])], schema=SCHEMA)


def put(uri: Any, table: Any, **how: Any) -> Any:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    return put_bytes(uri, sink.getvalue().to_pybytes())


def put_bytes(uri: Any, data: Any) -> Any:
    with open_store(uri).create(uri) as writer:
        writer.write(data)
        return writer.commit()


def whole(source: Any, groups: Any, count: int, first: int = 0, skip: int = 0) -> Any:
    return Shard("out", source, first, count, (0, groups), source.size, skip)


@given(st.integers(0, 60), st.integers(1, 25), st.integers(1, 30), st.integers(0, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_batches_are_consecutive_full_and_cut_where_the_shard_ends(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: Any, batch: Any, skip: int, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("in")
    source = put(f"{folder}/a.parquet", pa.Table.from_batches([rows(0, count)], SCHEMA), row_group_size=group)
    skip = min(skip, count, group)
    take = data.draw(st.integers(0, count - skip))
    store = open_store(source.uri)
    shard = whole(source, -(-count // group), take, first=skip, skip=skip)
    batches = list(read_batches(store, shard, ["id", "name"], batch))
    assert [b.num_rows for b in batches[:-1]] == [batch] * (len(batches) - 1)
    found = pa.Table.from_batches(batches, SCHEMA)
    assert found.equals(pa.Table.from_batches([rows(skip, take)], SCHEMA))


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    source = put(f"{tmp_path}/a.parquet", pa.Table.from_batches([rows(0, 3)]))
    (batch,) = read_batches(open_store(source.uri), whole(source, 1, 3), ["name", "id"], 10)
    assert batch.schema.names == ["name", "id"]


def test_a_column_that_is_gone_is_named(tmp_path: Path) -> None:
    source = put(f"{tmp_path}/a.parquet", pa.Table.from_batches([rows(0, 3)]))
    with pytest.raises(ColumnError, match=r"a\.parquet lacks the column 'pixels'.*id, name"):
        list(read_batches(open_store(source.uri), whole(source, 1, 3), ["id", "pixels"], 10))


@pytest.mark.parametrize("row", [0, 7, 63, 64, 99])
def test_a_null_in_a_fixed_size_list_is_named_by_its_row(tmp_path: Path, row: int) -> None:
    values: list[list[float] | None] = [[1.0, 2.0]] * 100
    values[row] = None
    table = pa.table({"x": pa.array(values, pa.list_(pa.float32(), 2))})
    source = put(f"{tmp_path}/a.parquet", table, row_group_size=40)
    with pytest.raises(NullFeature, match=rf"a\.parquet has a null in row {row} .*'x'.*2 values.*--fill does not help"):
        list(read_batches(open_store(source.uri), whole(source, 3, 100), ["x"], 32))


@pytest.mark.parametrize("keep", [0, 3, 11, 12, 200, -1, -4])
def test_what_is_no_parquet_file_or_cut_short_is_told(tmp_path: Path, keep: int) -> None:
    source = put(f"{tmp_path}/a.parquet", pa.Table.from_batches([rows(0, 300)]))
    store = open_store(source.uri)
    cut = put_bytes(f"{tmp_path}/cut.parquet", store.read(source)[:keep])
    with pytest.raises(NotParquet, match=r"cut\.parquet"):
        read_footer(store, cut)


def test_data_that_contradict_the_footer_name_the_file(tmp_path: Path) -> None:
    source = put(f"{tmp_path}/a.parquet", pa.Table.from_batches([rows(0, 3000)]), write_page_checksum=True)
    store = open_store(source.uri)
    data = bytearray(store.read(source))
    data[100:400] = bytes(300)
    broken = put_bytes(f"{tmp_path}/b.parquet", bytes(data))
    with pytest.raises(NotParquet, match=r"b\.parquet cannot be decoded in rows 0-2999"):
        list(read_batches(store, whole(broken, 1, 3000), ["id", "name"], 100))


def test_footer_counts_rows_and_compressed_bytes(tmp_path: Path) -> None:
    source = put(f"{tmp_path}/a.parquet", pa.Table.from_batches([rows(0, 100)]), row_group_size=40)
    footer = read_footer(open_store(source.uri), source)
    assert footer.row_group_rows == [40, 40, 20]
    assert 0 < sum(footer.row_group_bytes) < source.size


@pytest.fixture(params=["local", "memory", "gcs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "gcs":
        return request.getfixturevalue("bucket") + "/out"
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"


def test_a_file_is_there_whole_after_commit(folder: str) -> None:
    store, batches = open_store(folder), [rows(0, 5), rows(5, 7)]
    ref, count = write_batches(store, f"{folder}/a.parquet", SCHEMA, batches, {"headrace.rows": "12"})
    assert count == 12
    found = pq.read_table(store.open_arrow(ref))
    assert found.equals(pa.Table.from_batches(batches))
    assert read_footer(store, ref).key_values[b"headrace.rows"] == b"12"


def test_an_exception_in_mid_file_leaves_nothing(folder: str) -> None:
    def batches() -> Any:
        yield rows(0, 100_000)
        raise RuntimeError("in mid-file")

    store = open_store(folder)
    with pytest.raises(RuntimeError, match="in mid-file"):
        write_batches(store, f"{folder}/a.parquet", SCHEMA, batches(), {})
    gc.collect()
    assert list(store.list(f"{folder}/")) == []


def test_no_batches_give_a_file_with_the_schema(folder: str) -> None:
    store = open_store(folder)
    ref, count = write_batches(store, f"{folder}/a.parquet", SCHEMA, [], {})
    assert count == 0
    assert read_footer(store, ref).schema.equals(SCHEMA)


def test_what_stands_there_is_not_replaced(folder: str) -> None:
    store = open_store(folder)
    write_batches(store, f"{folder}/a.parquet", SCHEMA, [rows(0, 1)], {})
    with pytest.raises(AlreadyExists):
        write_batches(store, f"{folder}/a.parquet", SCHEMA, [rows(1, 1)], {})
    found = pq.read_table(store.open_arrow(store.stat(f"{folder}/a.parquet")))
    assert found["id"].to_pylist() == [0]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        open_store(str(tmp_path)).stat(f"{tmp_path}/a.parquet")


def test_row_groups_are_bounded_in_bytes(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.list_(pa.float32(), 1024))])
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1024 * 1024, np.float32)), 1024)
    batch = pa.record_batch([values], schema=schema)
    store = open_store(str(tmp_path))
    ref, _ = write_batches(store, f"{tmp_path}/a.parquet", schema, [batch.slice(0, 256)] * 20, {})
    assert len(read_footer(store, ref).row_group_rows) == 5


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.float64(),
        pa.timestamp("us"),
        pa.decimal128(9, 2),
        pa.binary(3),
        pa.list_(pa.float32(), 10),
        pa.list_(pa.list_(pa.int16(), 3), 2),
        pa.fixed_shape_tensor(pa.float32(), [2, 3]),
    ],
    ids=str,
)
def test_bytes_of_rows_of_one_size_are_what_arrow_counts(kind: Any) -> None:
    schema = schema_of({"id": pa.int64(), "x": kind})
    batch = pa.record_batch([pa.nulls(64, field.type) for field in schema], schema=schema)
    validity = sum(64 // 8 * nested for nested in (1, 1, *_nested_values(kind)))
    row_bytes = fixed_row_bytes(schema)
    assert row_bytes is not None
    assert batch.nbytes - validity <= 64 * row_bytes <= batch.nbytes


def _nested_values(kind: Any) -> Any:
    """Values per row of each level within, which may have a bitmap of their own."""
    kind, count = getattr(kind, "storage_type", kind), 1
    while pa.types.is_fixed_size_list(kind):
        kind, count = kind.value_type, count * kind.list_size
        yield count


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.list_(pa.int8()), pa.dictionary(pa.int8(), pa.string()), pa.struct([("a", pa.string())])],
    ids=str,
)
def test_rows_that_vary_have_no_size_of_their_own(kind: Any) -> None:
    assert fixed_row_bytes(schema_of({"id": pa.int64(), "x": kind})) is None


def test_rows_rewritten_in_place_while_they_are_read_are_no_mixture(tmp_path: Path) -> None:
    """Such a file has no page checksums, and its footer stays true: only its version tells."""
    path, count = tmp_path / "a.parquet", 400_000
    numbers = pa.table({"i": np.arange(count)})
    pq.write_table(numbers, path, compression="none", use_dictionary=False)
    store = open_store(str(path))
    batches = read_batches(store, whole(store.stat(str(path)), 1, count), ["i"], 1000)
    next(batches)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))
    with pytest.raises(ObjectChanged, match=r"a\.parquet was rewritten"):
        list(batches)


def test_batches_are_full_across_row_groups_with_other_dictionaries(tmp_path: Path) -> None:
    """The bits of predictions depend on where batches begin; Arrow ends one wherever the dictionary changes."""
    names = pa.array([f"{i // 90} {i % 5}" for i in range(400)]).dictionary_encode()
    source = put(f"{tmp_path}/a.parquet", pa.table({"name": names, "id": range(400)}), row_group_size=90)
    batches = list(read_batches(open_store(source.uri), whole(source, 5, 400), ["name", "id"], 64))
    assert [batch.num_rows for batch in batches] == [64] * 6 + [16]
    assert pa.Table.from_batches(batches)["name"].to_pylist() == loose(names).to_pylist()


def read_back(uri: str, tables: list[pa.Table], batch_rows: int, **how: Any) -> pa.Table:
    """Each table a row group of one file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tables[0].schema, **how) as writer:
        for table in tables:
            writer.write_table(table)
    source = put_bytes(uri, sink.getvalue().to_pybytes())
    store, names = open_store(uri), tables[0].schema.names
    count = sum(table.num_rows for table in tables)
    batches = list(read_batches(store, whole(source, len(tables), count), names, batch_rows))
    assert [batch.num_rows for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    found = pa.Table.from_batches(batches)
    assert found.schema.types == read_footer(store, source).schema.types
    return found


@pytest.mark.parametrize("index", [pa.int8(), pa.uint8(), pa.int16()], ids=str)
def test_dictionaries_of_row_groups_may_hold_more_values_together_than_their_indices_name(
    tmp_path: Path, index: pa.DataType
) -> None:
    """As a categorical column of pandas has them."""
    count = 100 if index.bit_width == 8 else 20_000
    tables = [
        pa.table(
            {
                "x": pa.DictionaryArray.from_arrays(
                    loose(pa.array(range(count), index)), [f"{name}{i}" for i in range(count)]
                )
            }
        )
        for name in "abc"
    ]
    found = read_back(f"{tmp_path}/a.parquet", tables, 64)
    assert found["x"].to_pylist() == [value for table in tables for value in table["x"].to_pylist()]


@pytest.mark.parametrize("kind", [pa.list_, lambda of: pa.struct([("m", of)])], ids=["list", "struct"])
def test_dictionaries_within_other_columns_are_read_over_several_row_groups(tmp_path: Path, kind: Any) -> None:
    def values(name: str) -> list[Any]:
        each = [f"{name}{i % 3}" for i in range(40)]
        return [[one] for one in each] if kind is pa.list_ else [{"m": one} for one in each]

    of = kind(pa.dictionary(pa.int32(), pa.string()))
    tables = [pa.table({"x": pa.array(values(name), kind(pa.string())).cast(of)}) for name in "ab"]
    assert read_back(f"{tmp_path}/a.parquet", tables, 16)["x"].to_pylist() == values("a") + values("b")


def test_long_text_in_a_dictionary_fits_however_many_batches_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded in few rows at once, of which no number makes just a batch: each batch counts for itself."""
    for module in (parquet, parquet_guard):
        monkeypatch.setattr(module, "BATCH_BYTES", 16 << 20)
    words, count = [f"{i:0100d}" for i in range(7_000)], 60_000
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(100 * count, np.float32)), 100)
    table = pa.table({"text": [words[i % 7_000] for i in range(count)], "x": numbers})
    found = 0
    source = put(f"{tmp_path}/a.parquet", table, compression="zstd")
    for batch in read_batches(open_store(source.uri), whole(source, 1, count), ["text", "x"], 8192):
        assert batch["text"].to_pylist() == [words[(found + i) % 7_000] for i in range(batch.num_rows)]
        found += batch.num_rows
    assert found == count


def test_a_dictionary_counts_once_where_it_stays_one_and_not_where_rows_would_be_too_large(tmp_path: Path) -> None:
    words = pa.array([f"{i:0100d}" for i in range(20_000)])
    rows = pa.DictionaryArray.from_arrays(pa.array([i % 20_000 for i in range(100_000)], pa.int32()), words)
    assert read_back(f"{tmp_path}/a.parquet", [pa.table({"x": rows})], 4096)["x"].equals(pa.chunked_array([rows]))
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * (1 << 20)])
    with pytest.raises(
        DataError, match=r"rows too large for a batch.* Found: 1,\d+,\d+,\d+ bytes.*smaller --batch_size"
    ):
        read_back(f"{tmp_path}/b.parquet", [pa.table({"x": long})], 1000)
    assert read_back(f"{tmp_path}/c.parquet", [pa.table({"x": long})], 100)["x"].equals(pa.chunked_array([long]))


def test_times_that_spark_writes_keep_their_year(tmp_path: Path) -> None:
    """As INT96; of which Arrow makes nanoseconds by itself, and 1816 of the year 9999."""
    times = [datetime.datetime(year, 2, 1, 3, 4, 5, 678901) for year in (1, 1600, 1970, 2026, 9999)]
    table = pa.table({"when": pa.array(times, pa.timestamp("us"))})
    found = read_back(f"{tmp_path}/a.parquet", [table], 2, use_deprecated_int96_timestamps=True, store_schema=False)
    assert found["when"].to_pylist() == [time.replace(tzinfo=datetime.UTC) for time in times]
    assert found.schema.field("when").type == pa.timestamp("us", "UTC")


def test_a_column_may_be_called_like_a_member_of_another(tmp_path: Path) -> None:
    table = pa.table({"user": [{"id": 1, "name": "a"}], "user.id": ["x"], "z": [2]})
    source = put(f"{tmp_path}/a.parquet", table)
    (batch,) = read_batches(open_store(source.uri), whole(source, 1, 1), ["user.id", "z"], 10)
    assert batch.to_pylist() == [{"user.id": "x", "z": 2}]


@pytest.mark.parametrize("stored", [True, False])
def test_a_footer_tells_the_types_that_the_rows_are_read_as(tmp_path: Path, stored: bool) -> None:
    """Also where no Arrow schema is stored, as in files of other programs."""
    columns = {"uuid": pa.array([bytes(16)], pa.uuid()), "json": pa.array(["{}"], pa.json_()), "n": pa.array([1])}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", store_schema=stored)
    store = open_store(str(tmp_path))
    source = store.stat(f"{tmp_path}/x.parquet")
    told = read_footer(store, source).schema
    assert told.types == [pa.uuid(), pa.json_(), pa.int64()]
    shard = Shard("x", source, 0, 1, (0, 1), source.size)
    (batch,) = read_batches(store, shard, told.names, 8)
    assert batch.schema.types == told.types


def test_a_column_whose_name_is_also_a_path_leaves_the_others_where_they_were_asked_for(tmp_path: Path) -> None:
    """Arrow gives the struct as well, before the column that it stands behind."""
    table = pa.table({"x.y": [1, 2], "p": [{"y": 7}, {"y": 8}], "x": [{"y": 100}, {"y": 200}]})
    pq.write_table(table, tmp_path / "in.parquet")
    store = open_store(str(tmp_path))
    source = store.stat(str(tmp_path / "in.parquet"))
    for columns in (["x.y", "p", "x"], ["x", "p", "x.y"], ["p", "x.y"]):
        (batch,) = read_batches(store, whole(source, 1, 2), columns, 10)
        assert batch.schema.names == columns
        assert batch.to_pydict() == table.select(columns).to_pydict()


def test_many_columns_of_zeros_are_read_though_each_page_is_small_once_compressed(tmp_path: Path) -> None:
    rows = (1 << 17) + 10
    zeros = pa.array(np.zeros(rows))
    table = pa.table({f"c{i}": zeros for i in range(260)})
    pq.write_table(table, tmp_path / "in.parquet", use_dictionary=False, compression="zstd", max_rows_per_page=rows)
    store = open_store(str(tmp_path))
    source = store.stat(str(tmp_path / "in.parquet"))
    assert (
        sum(batch.num_rows for batch in read_batches(store, whole(source, 1, rows), table.column_names, 4096)) == rows
    )


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("page_index", [True, False])
def test_chunks_as_programs_write_them_are_found_without_walking_each(
    dictionary: bool, statistics: bool, page_index: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"i": np.arange(9), "t": ["a", None, "bc"] * 3, "l": [[1.0], [], None] * 3, "b": [True] * 9})
    path = str(tmp_path / "a.parquet")
    pq.write_table(
        table,
        path,
        use_dictionary=dictionary,
        write_statistics=statistics,
        write_page_index=page_index,
        row_group_size=5,
    )
    monkeypatch.setattr(column_chunks, "column", lambda *_: pytest.fail("a chunk was walked"))
    store = open_store(path)
    chunks = footer_of(store, store.stat(path)).chunks((0, 2), range(4), ())
    metadata = pq.read_metadata(path)
    for number, group in enumerate(chunks.groups):
        columns = [metadata.row_group(number).column(i) for i in range(4)]
        starts = [(c.has_dictionary_page and c.dictionary_page_offset) or c.data_page_offset for c in columns]
        expected = [
            (start, start + c.total_compressed_size, c.num_values) for start, c in zip(starts, columns, strict=True)
        ]
        assert list(zip(group.starts, group.ends, group.values, strict=True)) == expected
