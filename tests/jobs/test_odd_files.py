"""What `plan` says of Parquet files that a job cannot read or write: a headline for each, and exit code 2."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.errors import ColumnError, InvalidRequest
from headrace.transforms.parquet.writer import check_kept, check_writable
from tests.support.hostile_parquet import INT64, OPTIONAL, file, leaf, struct
from tests.support.jobs import model_folder, put, rows

FIXED = 7


class Keys(pe.KmsClient):
    """Keeps each key beside what it encrypts: this is about files that headrace has no keys for."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> Any:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: Any, master_key_identifier: str) -> Any:
        return base64.b64decode(wrapped_key)


def encrypted(plain_footer: bool, *columns: str) -> bytes:
    table, sink = rows(0, 8), pa.BufferOutputStream()
    how = pe.EncryptionConfiguration("footer", column_keys={"key": [*columns]}, plaintext_footer=plain_footer)
    keys = pe.CryptoFactory(lambda _: Keys()).file_encryption_properties(pe.KmsConnectionConfig(), how)
    with pq.ParquetWriter(sink, table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def of_other_type(**element: object) -> bytes:
    """A file of one column that this schema element describes."""
    return file([struct(f4=b"root", f5=1), struct(**element)])


def sound(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def twice() -> bytes:
    table = rows(0, 8)
    return sound(pa.Table.from_arrays([table["id"], table["x"], table["id"]], ["id", "x", "id"]))


def with_empty_struct() -> bytes:
    return file([struct(f4=b"root", f5=2), leaf(), struct(f3=OPTIONAL, f4=b"s", f5=0)])


ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "encrypted": (lambda: encrypted(False, "id"), "is encrypted"),
    "encrypted, its footer plain": (lambda: encrypted(True, "id"), "is encrypted"),
    "an encrypted feature": (lambda: encrypted(True, "x.list.element"), "is encrypted"),
    "no columns": (lambda: file([struct(f4=b"root", f5=0)]), "has no columns"),
    "an empty struct": (with_empty_struct, "The kept column 's' cannot be written"),
    "a column twice": (twice, "has several columns named 'id'"),
    "a type of tomorrow": (lambda: of_other_type(f1=9, f3=OPTIONAL, f4=b"i"), "a schema that Arrow"),
    "a converted type of tomorrow": (
        lambda: of_other_type(f1=INT64, f3=OPTIONAL, f4=b"i", f6=99),
        "a schema that Arrow",
    ),
    "a decimal of 100 digits": (
        lambda: of_other_type(f1=FIXED, f2=42, f3=OPTIONAL, f4=b"d", f6=5, f7=2, f8=100),
        "a schema that Arrow",
    ),
    "a decimal for numbers": (lambda: sound(pa.table({"x": pa.nulls(2, pa.decimal256(60, 2))})), "does not fit tensor"),
    "text": (lambda: b"id,x\n1,2.5\n" * 9, "is not a Parquet file"),
}


@pytest.mark.parametrize("name", ODD)
def test_plan_refuses_it_by_its_name(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, headline = ODD[name]
    path = f"{tmp_path}/odd.parquet"
    put(path, make())
    flags = [f"--model={model_folder()}/saved_model"]
    if name == "an empty struct":  # its other column is a number
        flags = [f"--model={numbers_model(tmp_path)}", "--feature=x=x", "--cast=x"]
    assert main(["plan", *flags, f"--input={path}", f"--output={tmp_path}/out"]) == 2
    said = capfd.readouterr().err
    assert headline in said, said
    assert "Traceback" not in said


def numbers_model(folder: Path) -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.call = tf.function(lambda x: {"y": x * 2}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(folder / "model"), signatures=module.call)
    return folder / "model"


def test_an_encrypted_column_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    path = f"{tmp_path}/odd.parquet"
    put(path, encrypted(True, "id"))
    model = f"--model={model_folder()}/saved_model"
    assert main(["plan", model, f"--input={path}", f"--output={tmp_path}/out", "--keep=name"]) == 0


REQUIRED = pa.struct([pa.field("a", pa.int64(), nullable=False)])


@pytest.mark.parametrize(
    "kind",
    [REQUIRED, pa.list_(REQUIRED), pa.map_(pa.string(), REQUIRED), pa.struct([("r", REQUIRED)]), pa.decimal256(60, 2)],
    ids=str,
)
def test_required_members_can_be_written(kind: pa.DataType) -> None:
    check_writable(pa.schema([("c", kind)]), "--preprocess")
    check_kept(pa.schema([("c", kind)]))


@pytest.mark.parametrize(
    "kind", [pa.struct([]), pa.list_(pa.struct([])), pa.struct([("s", pa.struct([]))]), pa.list_(pa.int8(), 0)], ids=str
)
def test_what_holds_nothing_cannot_be_written(kind: pa.DataType) -> None:
    for schema in (pa.schema([("c", kind)]), pa.schema([("a", pa.int8()), ("c", kind), ("d", kind)])):
        with pytest.raises(InvalidRequest, match="c: "):
            check_writable(schema, "the model")
        with pytest.raises(ColumnError, match="'c'"):
            check_kept(schema)
