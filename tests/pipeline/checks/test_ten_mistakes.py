"""The ten likeliest mistakes of somebody who has a model, one Parquet file and nothing but the errors to learn from.

Each is made through the command line; the error must name its cure; that cure, read off the error where it is a flag or a
name, is then all that changes, and every row is predicted.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.nested_arrow import flat
from tests.support.front import Front, Gate, served
from tests.support.jobs import model_folder, names_in, put_inputs, put_model, put_table, read_output, rows
from tests.support.s3_service import s3_service, use_s3

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.timeout(240)
ROWS = 20


class Place:
    """A folder or bucket with `model` and `in/part-00000.parquet`, and the command line over them."""

    def __init__(self, root: str, capfd: Capture) -> None:
        self.root, self._capfd = root, capfd
        put_model("saved_model", f"{root}/model")
        put_inputs(f"{root}/in", [ROWS])

    def command(self, *more: str, **instead: str) -> list[str]:
        flags = {"model": f"{self.root}/model", "input": f"{self.root}/in/*.parquet", "output": f"{self.root}/out"}
        return [f"--{name}={value}" for name, value in (flags | instead).items()] + list(more)

    def mistake(self, argv: list[str]) -> str:
        """What is told, which is one paragraph; nothing has been written."""
        self._capfd.readouterr()
        before = names_in(f"{self.root}/out")
        assert main(argv) == 2
        out, err = self._capfd.readouterr()
        assert out == ""
        (told,) = [line for line in err.splitlines() if line.startswith("Cannot start: ")]
        assert "Traceback" not in err
        assert names_in(f"{self.root}/out") == before
        return told

    def works(self, argv: list[str], output: str = "") -> pa.Table:
        code = main(argv)
        assert code == 0, self._capfd.readouterr().err
        table = read_output(output or f"{self.root}/out")
        assert table["id"].to_pylist() == list(range(ROWS))
        return table


@pytest.fixture
def place(tmp_path: Path, capfd: Capture) -> Place:
    return Place(str(tmp_path), capfd)


@pytest.fixture
def place_in_a_bucket(bucket: str, capfd: Capture) -> Place:
    return Place(bucket, capfd)


def named(pattern: str, told: str) -> str:
    """What the error itself names as the cure."""
    found = re.search(pattern, told)
    assert found, told
    return found[1]


def test_1_a_wrong_column(place: Place) -> None:
    told = place.mistake(place.command("--feature=x=xs"))
    flag, column = named(r"Say (--feature x)=COLUMN", told), named(r"Did you mean '(\w+)'\?", told)
    place.works(place.command(*f"{flag}={column}".split(" ")))


def test_2_a_wrong_type(place: Place) -> None:
    table = rows(0, ROWS)
    wide = table["x"].combine_chunks().cast(pa.list_(pa.float64(), 4))
    put_table(f"{place.root}/in/part-00000.parquet.tmp", table)
    Path(f"{place.root}/in/part-00000.parquet").unlink()
    put_table(f"{place.root}/in/part-00000.parquet", table.set_column(2, "x", wide))
    told = place.mistake(place.command())
    cure = named(r"say (--cast x)", told)
    place.works(place.command(*cure.split()))


def test_3_a_wrong_signature(place: Place) -> None:
    told = place.mistake(place.command("--signature=predict"))
    flag, name = named(r"Name one with (--signature)", told), named(r"'(serving_\w+)'", told)
    place.works(place.command(f"{flag}={name}"))


def test_4_no_credentials(
    place_in_a_bucket: Place, emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a service that asks for a token, and gives one for the key that the error asks to be named."""
    place = place_in_a_bucket
    put_inputs(f"{tmp_path}/before", [1])  # while the emulator's own variable still stands
    for issuer in issued():
        for front in served(Front(emulator)):
            front.faults.append(asks_for_a_token)
            monkeypatch.delenv("STORAGE_EMULATOR_HOST")
            monkeypatch.setenv("API_ENDPOINT_OVERRIDE", front.url)
            monkeypatch.setenv("HOME", str(tmp_path))
            assert main(place.command()) == 2
            told = place._capfd.readouterr().err
            assert "no Google credentials were found" in told
            assert "Run `gcloud auth application-default login`" in told
            variable = named(r"let (\w+) name a key file", told)
            monkeypatch.setenv(variable, service_account(tmp_path, f"http://127.0.0.1:{issuer.server_port}/token"))
            assert main(place.command()) == 0, place._capfd.readouterr().err
            assert any(headers.get("authorization") == f"Bearer {TOKEN}" for *_, headers in front.seen)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    assert read_output(f"{place.root}/out")["id"].to_pylist() == list(range(ROWS))


def test_5_a_wrong_bucket(place_in_a_bucket: Place) -> None:
    place = place_in_a_bucket
    right = place.root.removeprefix("gs://")
    wrong = f"{right[:-1]}{'0' if right[-1] != '0' else '1'}"
    told = place.mistake(place.command(model=f"gs://{wrong}/model"))
    assert f"There is no bucket '{wrong}'" in told
    assert "Look at the bucket's spelling" in told
    place.works(place.command(model=f"gs://{right}/model"))


def test_6_the_endpoint_of_a_wrong_region(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 wants requests signed for the region in which the bucket lies."""
    s3fs = pytest.importorskip("s3fs")
    with s3_service() as url:
        for front in served(Front(url)):
            use_s3(monkeypatch, front.url)
            import boto3

            boto3.client("s3").create_bucket(Bucket="far-away")
            place = Place("s3://far-away", capfd)
            front.faults.append(wants_a_region)
            s3fs.S3FileSystem.clear_instance_cache()  # as in a process of its own
            told = place.mistake(place.command())
            variable, region = named(r"Let (\w+) name", told), named(r"the bucket's region: ([\w-]+)", told)
            monkeypatch.setenv(variable, region)
            s3fs.S3FileSystem.clear_instance_cache()
            place.works(place.command())


def test_7_a_wrong_glob(place: Place) -> None:
    told = place.mistake(place.command(input=f"{place.root}/in/*.parq"))
    assert "Fix the pattern" in told
    there = named(rf"in {re.escape(place.root)}/in/: (\S+\.parquet)", told)
    place.works(place.command(input=there))


def test_8_an_output_that_exists(place: Place) -> None:
    place.works(place.command())
    told = place.mistake(place.command("--batch_size=7"))
    assert "holds the output of another job" in told
    cure = named(r"add (--overwrite) to replace that job's output", told)
    place.works(place.command("--batch_size=7", cure))
    assert "name another --output" in told.lower()
    place.works(place.command(output=f"{place.root}/out2"), f"{place.root}/out2")


def test_9_an_old_keras_file(place: Place) -> None:
    """What `save_weights` left in Keras 2's layout; the architecture comes from `to_json`."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    model = keras.saving.load_model(model_folder() / "model.keras")
    with h5py.File(f"{place.root}/weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    told = place.mistake(place.command(model=f"{place.root}/weights.h5"))
    assert "holds no whole model" in told
    flag = named(r"Name the model's config\.json, and this file as its weights \((--weights)", told)
    Path(f"{place.root}/config.json").write_text(model.to_json())
    table = place.works(place.command(f"{flag}={place.root}/weights.h5", model=f"{place.root}/config.json"))
    expected = model.predict_on_batch(np.stack(list(rows(0, ROWS)["x"].to_numpy(zero_copy_only=False))))
    assert np.allclose(np.stack(list(table["output_0"].to_numpy(zero_copy_only=False))), expected, atol=1e-6)


def test_10_a_lambda_layer(place: Place) -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    doubled = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2, output_shape=(4,))(inputs))
    doubled.save(f"{place.root}/lambda.keras")
    told = place.mistake(place.command(model=f"{place.root}/lambda.keras"))
    assert "Replace the Lambda by a registered layer or keras.ops, or export the model with model.export" in told
    cure = named(r"if you trust whoever wrote the file, (--unsafe_model)", told)
    table = place.works(place.command(cure, model=f"{place.root}/lambda.keras"))
    (column,) = set(table.schema.names) - {"id", "name"}
    x = flat(rows(0, ROWS)["x"].combine_chunks()).to_numpy()
    assert flat(table[column].combine_chunks()).to_numpy().tolist() == (x * 2).tolist()
    # The first of the cures works just as well.
    doubled.export(f"{place.root}/exported", verbose=False)
    place.works(place.command(model=f"{place.root}/exported", output=f"{place.root}/out2"), f"{place.root}/out2")


TOKEN = "lent-for-an-hour"


def asks_for_a_token(gate: Gate) -> bool:
    if gate.headers.get("authorization") == f"Bearer {TOKEN}":
        return False
    body = b'{"error": {"message": "Anonymous caller does not have storage.objects.get access"}}'
    gate.answer(401, {"Content-Type": "application/json"}, body)
    return True


class _Issuer(BaseHTTPRequestHandler):
    """https://developers.google.com/identity/protocols/oauth2/service-account#httprest"""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        assert b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer" in asked
        body = json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


def issued() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Issuer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def service_account(folder: Path, token_uri: str) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "key.json"
    account = {"type": "service_account", "client_email": "me@project.iam.gserviceaccount.com", "private_key_id": "1"}
    path.write_text(json.dumps(account | {"private_key": pem.decode(), "token_uri": token_uri}))
    return str(path)


def wants_a_region(gate: Gate) -> bool:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html: AuthorizationHeaderMalformed, with the region."""
    signed = f"{gate.headers.get('authorization', '')} {urlsplit(gate.path).query}".replace("%2F", "/")
    if re.search(r"/\d{8}/eu-central-1/s3/", signed):
        return False
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization '
        "header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'</Message>"
        "<Region>eu-central-1</Region></Error>"
    )
    headers = {"Content-Type": "application/xml", "x-amz-bucket-region": "eu-central-1"}
    gate.answer(400, headers, b"" if gate.command == "HEAD" else body.encode())
    return True
