"""Lists of one length are what Arrow reads, whatever program wrote them; and Arrow reads all that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import NotParquet, NullFeature
from headrace.transforms.parquet import decoding
from headrace.transforms.parquet.equal_lists import EqualLists, OtherPages
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import open_store


class Watched(EqualLists):
    """Counts the rows that came without Arrow, and how often it had to take over."""

    rows = 0
    given_up = 0

    def take(self, rows: int) -> Any:
        try:
            taken = super().take(rows)
        except OtherPages:
            Watched.given_up += 1
            raise
        Watched.rows += rows
        return taken


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "EqualLists", Watched)
    Watched.rows = Watched.given_up = 0


def read(
    path: Any, columns: list[str] | None = None, batch_rows: int = 100, first: int = 0, count: int | None = None
) -> Any:
    store = open_store(str(path))
    source = store.stat(str(path))
    footer = read_footer(store, source)
    rows = footer.rows - first if count is None else count
    shard = Shard("out", source, first, rows, (0, len(footer.row_group_rows)), source.size, first)
    names = columns or footer.schema.names
    batches = list(read_batches(store, shard, names, batch_rows))
    assert all(batch.num_rows == batch_rows for batch in batches[:-1])
    return pa.Table.from_batches(batches)


def lists_of(values: Any, length: int, kind: str) -> Any:
    array = pa.array(values)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(array, length)
    if kind == "tensor":
        storage = pa.FixedSizeListArray.from_arrays(array, length)
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(array.type, (length,)), storage)
    lists: Any = pa.LargeListArray if kind == "large" else pa.ListArray
    return lists.from_arrays(np.arange(0, len(values) + 1, length), array)


KINDS = ("fixed", "list", "large", "tensor")


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["<f4", "<f8", "<i4", "<i8"]),
    length=st.integers(1, 40),
    rows=st.integers(1, 700),
    distinct=st.sampled_from([1, 2, 50, 10**9]),
    codec=st.sampled_from(["none", "snappy", "zstd"]),
    dictionary=st.booleans(),
    group=st.sampled_from([7, 100, 1000]),
    page=st.sampled_from([64, 4096, 1 << 20]),
    batch_rows=st.sampled_from([1, 64, 100, 1000]),
    seed=st.integers(0, 1 << 30),
)
def test_lists_are_what_arrow_reads(tmp_path_factory: Any, **how: Any) -> None:
    path = tmp_path_factory.mktemp("lists") / "a.parquet"
    random = np.random.default_rng(how["seed"])
    values = random.integers(0, how["distinct"], how["rows"] * how["length"]).astype(how["dtype"])
    table = pa.table(
        {
            "id": np.arange(how["rows"]),
            "x": lists_of(values, how["length"], how["kind"]),
            "y": random.random(how["rows"]),
        }
    )
    pq.write_table(
        table,
        path,
        compression=how["codec"],
        use_dictionary=how["dictionary"],
        row_group_size=how["group"],
        data_page_size=how["page"],
        write_batch_size=16,
        write_page_checksum=how["seed"] % 2 == 0,
    )
    Watched.rows = 0
    expected = pq.read_table(path)
    found = read(path, batch_rows=how["batch_rows"])
    assert found.schema.equals(expected.schema)
    assert found.equals(expected)
    assert Watched.rows == how["rows"]
    first, only = how["seed"] % how["rows"], read(path, ["x"], how["batch_rows"], how["seed"] % how["rows"])
    assert only.equals(expected.select(["x"]).slice(first))


@pytest.mark.parametrize("kind", ["list", "fixed"])
@pytest.mark.parametrize("where", [0, 399, 600, 999])
def test_a_null_or_another_length_in_any_row_is_arrows(tmp_path: Path, kind: str, where: int) -> None:
    """Also where the footer does not say so, since nobody asked for statistics."""
    rows: list[Any] = [[float(i), 1.0, 2.0] for i in range(1000)]
    rows[where] = [None, 1.0, 2.0] if kind == "fixed" else None
    if kind == "list":  # as many levels as if all were of one length
        rows[where - 1 if where in (399, 999) else where + 1] = [1.0, 2.0, 3.0, 4.0, 5.0]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32(), 3 if kind == "fixed" else -1)), "id": range(1000)})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False, row_group_size=400, data_page_size=256)
    assert read(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "a.parquet"))
    assert Watched.given_up == 1


def test_a_null_list_is_named_by_its_row_as_before(tmp_path: Path) -> None:
    rows: list[Any] = [[1.0, 2.0]] * 500
    rows[321] = None
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32(), 2))})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False, data_page_size=64, write_batch_size=16)
    with pytest.raises(NullFeature, match="in row 321 "):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["gzip", "brotli", "lz4"])
def test_other_codecs_and_pages_are_arrows(tmp_path: Path, codec: Any, version: Any) -> None:
    table = pa.table({"x": lists_of(np.arange(900.0), 3, "list")})
    pq.write_table(table, tmp_path / "a.parquet", compression=codec, data_page_version=version)
    assert read(tmp_path / "a.parquet").equals(table)
    assert not Watched.rows


@pytest.mark.parametrize("program", ["polars", "duckdb", "pandas"])
def test_what_other_programs_wrote(tmp_path: Path, program: str) -> None:
    path, rows = str(tmp_path / "a.parquet"), 3000
    values = np.random.default_rng(0).random((rows, 24), np.float32)
    values[::3] = 0.5
    ours = pa.table({"id": np.arange(rows), "x": lists_of(values.reshape(-1), 24, "list")})
    if program == "polars":
        polars = pytest.importorskip("polars")
        polars.from_arrow(ours).write_parquet(path, row_group_size=1000, data_page_size=20_000)
    elif program == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        connection = duckdb.connect()
        connection.register("ours", ours)
        connection.execute(f"COPY ours TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    else:
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame({"id": np.arange(rows), "x": list(values)}).to_parquet(path)
    expected = pq.read_table(path)
    found = read(path)
    assert found.equals(expected.cast(found.schema))
    np.testing.assert_array_equal(np.stack(found["x"].to_numpy()), values)
    assert Watched.rows == rows


def test_a_long_chunk_is_read_in_parts_from_a_bucket_too(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.transforms.parquet.equal_lists._WHOLE_CHUNK", 1000)
    monkeypatch.setattr("headrace.transforms.parquet.equal_lists._WINDOW", 3000)
    table = pa.table({"x": lists_of(np.random.default_rng(0).random(60_000), 6, "fixed"), "id": range(10_000)})
    for codec in ("none", "zstd"):
        pq.write_table(table, tmp_path / "a.parquet", compression=codec, data_page_size=5000, row_group_size=4000)
        assert read(tmp_path / "a.parquet").equals(table)
        with open_store(bucket).create(f"{bucket}/lists-{codec}.parquet") as writer:
            writer.write((tmp_path / "a.parquet").read_bytes())
            writer.commit()
        assert read(f"{bucket}/lists-{codec}.parquet").equals(table)
    assert Watched.rows == 4 * 10_000


def with_chunk_changed(path: Path, change: Any) -> None:
    """Of the first row group's column x."""
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(1)
    start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
    chunk = bytes(data[start : start + column.total_compressed_size])
    data[start : start + len(chunk)] = change(chunk)
    path.write_bytes(data)


def flipped(at: int) -> Any:
    return lambda chunk: chunk[:at] + bytes([chunk[at] ^ 0x10]) + chunk[at + 1 :]


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_a_checksum_that_does_not_fit_is_refused(tmp_path: Path, codec: Any) -> None:
    table = pa.table({"id": range(500), "x": lists_of(np.random.default_rng(0).random(1500), 3, "list")})
    pq.write_table(table, tmp_path / "a.parquet", compression=codec, write_page_checksum=True, use_dictionary=False)
    with_chunk_changed(tmp_path / "a.parquet", lambda chunk: flipped(len(chunk) - 100)(chunk))
    with pytest.raises(NotParquet, match="cannot be decoded in rows 0-499"):
        read(tmp_path / "a.parquet")
    assert Watched.given_up == 1


def test_places_outside_of_the_dictionary_are_refused(tmp_path: Path) -> None:
    values = np.tile([1.0, 2.0, 3.0], 500)
    table = pa.table({"id": range(500), "x": lists_of(values, 3, "list")})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    with_chunk_changed(
        tmp_path / "a.parquet", lambda chunk: chunk[:-20] + b"\xff" * 20
    )  # two bits each: 3 is none of the places
    with pytest.raises(NotParquet, match="cannot be decoded in rows 0-499"):
        read(tmp_path / "a.parquet")
    assert Watched.given_up == 1


def test_every_damaged_byte_gives_what_arrow_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows or an error, the same ones; or the sound rows, where it is in a page without values, at which Arrow looks all the
    same.
    """
    path = tmp_path / "a.parquet"
    table = pa.table({"id": range(16), "x": lists_of(np.arange(48.0) % 30, 3, "list")})
    pq.write_table(table, path, compression="snappy", data_page_size=128, write_batch_size=8)
    sound = path.read_bytes()
    unlike, ours = [], 0
    size = pq.read_metadata(path).row_group(0).column(1).total_compressed_size
    for at in range(size):
        path.write_bytes(sound)
        with_chunk_changed(path, flipped(at))
        Watched.rows = 0
        outcomes = [outcome(path)]
        ours += Watched.rows > 0
        with monkeypatch.context() as by_arrow:
            by_arrow.setattr(decoding, "list_leaves", lambda *_: [])
            outcomes.append(outcome(path))
        if outcomes[0] not in (outcomes[1], table.to_pylist()):
            unlike.append((at, outcomes))
    assert not unlike
    assert 0 < ours < size


def outcome(path: Path) -> Any:
    try:
        return read(path).to_pylist()
    except NotParquet as error:
        return str(error)
