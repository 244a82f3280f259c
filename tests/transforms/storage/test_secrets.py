"""Signatures and passwords of web addresses are in nothing that a job prints, logs, raises or writes."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from headrace import load_model
from headrace.pipeline.cli import main
from headrace.transforms.errors import HeadraceError, InvalidRequest, StorageError
from headrace.transforms.storage import open_store
from headrace.transforms.storage.store import public_uri
from tests.support.front import Front, Gate, served
from tests.support.jobs import put, put_inputs, put_model

SIGNATURE, PASSWORD = "c2lnbmF0dXJl0123deadbeef", "pa55w0rd-of-robot"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def front(emulator: str) -> Iterator[Front]:
    yield from served(Front(emulator))


@pytest.fixture
def every_log() -> Iterator[io.StringIO]:
    """What any library would log, at the lowest level."""
    kept, root, level = io.StringIO(), logging.getLogger(), logging.getLogger().level
    handler = logging.StreamHandler(kept)
    root.addHandler(handler)
    yield kept
    root.removeHandler(handler)
    root.setLevel(level)


def address(front: Front, bucket: str, name: str) -> str:
    path = f"/download/storage/v1/b/{bucket.removeprefix('gs://')}/o/{quote(name, safe='')}"
    host = front.url.replace("http://", f"http://robot:{PASSWORD}@")
    return f"{host}{path}?alt=media&X-Goog-Signature={SIGNATURE}"


def assert_no_secret(text: str | bytes, where: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    for secret in (SIGNATURE, PASSWORD):
        assert secret.encode() not in data, (
            f"{where} holds {secret}: …{data[max(0, data.find(secret.encode()) - 300) :][:400]!r}"
        )


def all_written(folder: str) -> Iterator[tuple[str, bytes]]:
    """Each object as it is, and the metadata of those that are Parquet; what they hold compressed too."""
    store = open_store(folder)
    for ref in store.list(f"{folder}/"):
        yield ref.uri, ref.uri.encode() + store.read(ref)
        if ref.uri.endswith(".parquet"):
            table = pq.read_table(store.open_arrow(ref))
            yield ref.uri, str([table.schema.metadata, table.to_pylist()]).encode()


def test_a_signed_model_leaves_no_secret_behind(
    capfd: Capture, front: Front, bucket: str, every_log: io.StringIO
) -> None:
    put_model("model.keras", f"{bucket}/model.keras")
    put_inputs(f"{bucket}/in", [20] * 2)
    model = address(front, bucket, "model.keras")
    flags = [f"--model={model}", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out", "--verbose"]
    assert main(["inspect", f"--model={model}", "--verbose"]) == 0
    assert main(["plan", *flags]) == 0
    assert main(flags) == 0
    assert main(flags) == 0
    assert main(["verify", "--sample=1", *flags]) == 0
    assert any(SIGNATURE in path for _, path, _ in front.seen)
    out, err = capfd.readouterr()
    for text, where in ((out, "standard output"), (err, "standard error"), (every_log.getvalue(), "the log")):
        assert_no_secret(text, where)
    written = list(all_written(f"{bucket}/out"))
    assert len(written) >= 5
    for uri, data in written:
        assert_no_secret(data, uri)


def test_a_signed_model_that_no_checksum_covers_leaves_none_in_the_log(
    front: Front, bucket: str, every_log: io.StringIO, tmp_path: Path
) -> None:
    """Each format and option has something of its own to say of it."""
    import keras
    import tensorflow as tf

    logging.getLogger().setLevel(logging.DEBUG)
    dense = keras.Sequential([keras.Input((600,)), keras.layers.Dense(600)])
    dense.save(tmp_path / "dense.h5")
    inputs = keras.Input((None, 4))
    keras.Model(inputs, keras.layers.TimeDistributed(keras.layers.Dense(2))(inputs)).save(tmp_path / "timed.keras")
    converted = tf.lite.TFLiteConverter.from_keras_model(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    (tmp_path / "small.tflite").write_bytes(converted.convert())
    said = {"dense.h5": "no checksum covers", "timed.keras": "is traced anew", "small.tflite": "knows no checksum"}
    for name, words in said.items():
        put(f"{bucket}/{name}", (tmp_path / name).read_bytes())
        load_model(address(front, bucket, name), unsafe=True)
        assert words in every_log.getvalue()
    assert "safe mode is off" in every_log.getvalue()
    assert_no_secret(every_log.getvalue(), "the log")


@pytest.mark.parametrize("what", ["missing", "forbidden", "reset", "no model", "input", "output"])
def test_an_error_on_the_way_names_no_secret(
    capfd: Capture, front: Front, bucket: str, every_log: io.StringIO, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_inputs(f"{bucket}/in", [5])
    model, output = address(front, bucket, "model.keras"), f"{bucket}/out"
    source = f"{bucket}/in/*.parquet"
    if what in ("forbidden", "reset"):
        monkeypatch.setattr("headrace.transforms.storage.http_ranges.time.sleep", lambda _: None)

        def fault(gate: Gate) -> bool:
            if what == "reset":
                gate.reset()
            else:
                body = f"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>GET {gate.path}</StringToSign></Error>"
                gate.answer(403, {"Content-Type": "application/xml"}, body.encode())
            return True

        front.faults.append(fault)
    elif what == "no model":
        model = address(front, bucket, "in/part-00000.parquet")
    elif what == "input":
        source = address(front, bucket, "in/part-00000.parquet")
    elif what == "output":
        output = address(front, bucket, "out")
    if what in ("input", "output"):
        model = str(put_model("model.keras", f"{bucket}/model.keras"))
    # A store that does not answer may do so later.
    code = 1 if what == "reset" else 2
    assert main([f"--model={model}", f"--input={source}", f"--output={output}", "--verbose"]) == code
    out, err = capfd.readouterr()
    assert "Cannot start" in err
    for text, where in ((out, "standard output"), (err, "standard error"), (every_log.getvalue(), "the log")):
        assert_no_secret(text, where)


@pytest.mark.parametrize("password", ["pw", "p/w", "p#w", "p?w", "p@w", "12a/w"])
@pytest.mark.parametrize("scheme", ["https", "ftp"])
def test_a_password_that_is_not_quoted_is_not_shown(scheme: str, password: str) -> None:
    uri = f"{scheme}://me:{password}@host/x"
    for text in (public_uri(uri), str(StorageError(f"Cannot read {uri} now"))):
        assert password not in text
        assert "me:" not in text
        assert f"{scheme}://" in text
    if scheme == "https" and "/" in password:
        with pytest.raises(InvalidRequest, match="'https://…' is not a URL"):
            open_store(uri).stat(uri)


def test_a_long_text_is_looked_through_once() -> None:
    """As a hostile model's names may be; once, it took a time that grew with the square."""
    text = "a://b:c" * 30_000
    assert HeadraceError(text).what.startswith("a://b:ca://")


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://container@account.dfs.core.windows.net/x",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/mine/a@b",
        "gs://bucket/a:b@c",
        "https://host:8080/a@b",
        "http://[::1]:80/a@b",
    ],
)
def test_what_is_no_password_is_shown(uri: str) -> None:
    assert public_uri(uri) == uri
    assert str(StorageError(f"Cannot read {uri}")) == f"Cannot read {uri}."


def test_a_plan_for_workers_elsewhere_says_that_a_signature_travels(
    capfd: Capture, front: Front, bucket: str, every_log: io.StringIO
) -> None:
    put_model("model.keras", f"{bucket}/model.keras")
    put_inputs(f"{bucket}/in", [20])
    flags = [f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
    signed, plain = f"--model={address(front, bucket, 'model.keras')}", f"--model={bucket}/model.keras"
    # A plan asks no more of the job service than that it takes connections.
    with socket.create_server(("localhost", 0)) as service:
        endpoint = f"--job_endpoint=localhost:{service.getsockname()[1]}"
        elsewhere = ["--runner=PortableRunner", endpoint, "--environment_type=LOOPBACK"]
        for argv, said in (
            ([signed, *elsewhere], True),
            ([signed], False),
            ([plain, *elsewhere], False),
        ):
            assert main(["plan", *argv, *flags]) == 0
            out, err = capfd.readouterr()
            text = " ".join(out.split())
            assert ("travels in the job's description to PortableRunner" in text) == said, argv
            assert ("copy the model to a bucket" in text) == said
            assert_no_secret(out + err + every_log.getvalue(), "the plan")
