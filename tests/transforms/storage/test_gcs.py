from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import storage

from headrace.transforms.errors import AccessDenied, AlreadyExists, InvalidRequest, ObjectChanged, ObjectNotFound
from headrace.transforms.storage import ObjectRef, Store, StoreOptions, open_store
from headrace.transforms.storage.gcs import GcsStore
from tests.support.front import Front, Gate, served
from tests.support.store_contract import LARGE, StoreContract, noise


class TestGcsStore(StoreContract):
    @pytest.fixture(autouse=True)
    def client(self, emulator: str) -> None:
        self.library = storage.Client(project="test")

    @pytest.fixture
    def root(self, bucket: str) -> str:
        return f"{bucket}/in"

    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)

    def put(self, uri: str, data: bytes) -> None:
        storage.Blob.from_uri(uri, client=self.library).upload_from_string(data)

    def get(self, uri: str) -> bytes | None:
        blob = storage.Blob.from_uri(uri, client=self.library)
        return blob.download_as_bytes() if blob.exists() else None


def test_a_process_forked_while_another_thread_looks_for_credentials_makes_a_client_of_its_own(bucket: str) -> None:
    store = GcsStore()
    with store._lock:
        child = os.fork()
        if not child:
            try:
                signal.alarm(20)  # ends a child that waits for a lock which nobody holds in it
                list(store.list(bucket))
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def front(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        yield front


@pytest.fixture
def cloud(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A cloud that is not the emulator: each test says what it answers."""
    for front in served(Front()):
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.setenv("API_ENDPOINT_OVERRIDE", front.url)
        yield front


def once(front: Front, method: str, part: str, act: Callable[[Gate], None]) -> None:
    def fault(gate: Gate) -> bool:
        if gate.command != method or part not in gate.path:
            return False
        front.faults.remove(fault)
        act(gate)
        return True

    front.faults.append(fault)


def always(front: Front, status: int, message: str) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "errors": [{"message": message}]}}).encode()

    def fault(gate: Gate) -> bool:
        gate.answer(status, {"Content-Type": "application/json"}, body)
        return True

    front.faults.append(fault)


def hang_up_after_success(gate: Gate) -> None:
    assert gate.ask()[0] == 200
    gate.connection.shutdown(socket.SHUT_RDWR)


def hang_up(gate: Gate) -> None:
    gate.connection.shutdown(socket.SHUT_RDWR)


def busy(gate: Gate) -> None:
    gate.answer(503, {}, b"busy")


def content(uri: str) -> bytes:
    return bytes(storage.Blob.from_uri(uri, client=storage.Client(project="test")).download_as_bytes())


@pytest.mark.parametrize(("size", "method"), [(1000, "POST"), (LARGE, "PUT")])
@pytest.mark.parametrize("act", [hang_up_after_success, busy])
def test_an_upload_whose_answer_is_lost_is_known_again(
    bucket: str, front: Front, size: int, method: str, act: Callable[[Gate], None]
) -> None:
    store = open_store(bucket)
    data = noise(size)
    with store.create(f"{bucket}/x") as writer:
        writer.write(data)
        once(front, method, "/upload/", act)
        ref = writer.commit()
    assert not front.faults
    assert ref == store.stat(f"{bucket}/x")
    assert content(f"{bucket}/x") == data
    assert store.counters.retries == 1


@pytest.mark.parametrize("act", [hang_up, busy])
def test_a_chunk_that_fails_is_sent_again(bucket: str, front: Front, act: Callable[[Gate], None]) -> None:
    store = open_store(bucket)
    data = noise(LARGE)
    with store.create(f"{bucket}/x") as writer:
        once(front, "PUT", "/upload/", act)
        writer.write(data)
        assert not front.faults
        writer.commit()
    assert content(f"{bucket}/x") == data
    assert store.counters.retries == 1


def test_a_retry_does_not_take_anothers_object_for_its_own(bucket: str, front: Front) -> None:
    store = open_store(bucket)

    def another_was_faster(gate: Gate) -> None:
        storage.Client(project="test").bucket(bucket[5:]).blob("x").upload_from_string(b"other")
        busy(gate)

    writer = store.create(f"{bucket}/x")
    writer.write(b"mine!")
    once(front, "POST", "/upload/", another_was_faster)
    with pytest.raises(AlreadyExists, match="/x already exists"):
        writer.commit()
    assert content(f"{bucket}/x") == b"other"


def test_a_server_that_keeps_less_than_it_was_sent(bucket: str, front: Front) -> None:
    store = open_store(bucket)
    data = noise(LARGE)
    keep = 3 << 20

    def keep_some(gate: Gate) -> None:
        first = int(re.match(r"bytes (\d+)-", gate.headers["Content-Range"])[1])  # type: ignore[index]
        part = gate.body[:keep]
        gate.answer(*gate.ask(part, Content_Range=f"bytes {first}-{first + keep - 1}/*"))

    once(front, "PUT", "/upload/", keep_some)
    with store.create(f"{bucket}/x") as writer:
        writer.write(data)
        once(front, "PUT", "/upload/", keep_some)
        assert writer.commit().size == LARGE
    assert not front.faults
    assert content(f"{bucket}/x") == data


def test_abort_cancels_the_session_and_survives_a_server_that_is_gone(bucket: str, front: Front) -> None:
    store = open_store(bucket)
    with store.create(f"{bucket}/x") as writer:
        writer.write(noise(LARGE))
    method, path, _ = front.seen[-1]
    assert (method, "upload_id=" in path) == ("DELETE", True)
    writer = store.create(f"{bucket}/x")
    writer.write(noise(LARGE))
    once(front, "DELETE", "", hang_up)
    writer.abort()
    assert not front.faults
    assert list(store.list(bucket)) == []


def test_uploads_ask_to_create_only_and_name_payer_and_key(bucket: str, front: Front) -> None:
    key = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    store = open_store(bucket, StoreOptions(billing_project="payer", kms_key=key))
    for size in (10, LARGE):
        with store.create(f"{bucket}/{size}") as writer:
            writer.write(noise(size))
            ref = writer.commit()
        started = [path for method, path, _ in front.seen if method == "POST"][-1]
        asked = parse_qs(urlsplit(started).query)
        assert (asked["ifGenerationMatch"], asked["userProject"], asked["kmsKeyName"]) == (["0"], ["payer"], [key])
    store.read(ref)
    store.delete(ref)
    read, delete = ([seen for seen in front.seen if seen[0] == verb][-1][1] for verb in ("GET", "DELETE"))
    [read] = [path for _, path, _ in front.seen if "alt=media" in path]
    assert parse_qs(urlsplit(read).query) == {"alt": ["media"], "generation": [ref.version], "userProject": ["payer"]}
    assert parse_qs(urlsplit(delete).query)["ifGenerationMatch"] == [ref.version]
    assert [path for _, path, _ in front.seen if "userProject=payer" not in path and "upload_id" not in path] == []


def test_another_generation_behind_the_right_answer_is_noticed(bucket: str, front: Front) -> None:
    store = open_store(bucket)
    with store.create(f"{bucket}/x") as writer:
        writer.write(b"abc")
        ref = writer.commit()
    once(
        front,
        "GET",
        "alt=media",
        lambda gate: gate.answer(206, {"Content-Range": "bytes 0-2/3", "X-Goog-Generation": "1"}, b"xyz"),
    )
    with pytest.raises(ObjectChanged, match="/x was rewritten"):
        store.read(ref)


def test_bucket_and_object_that_are_missing_are_told_apart(bucket: str) -> None:
    store = open_store(bucket)
    with pytest.raises(ObjectNotFound, match=rf"no object {bucket}/x\."):
        store.stat(f"{bucket}/x")
    for verb in (store.stat, lambda uri: list(store.list(uri)), lambda uri: store.create(uri).commit()):
        with pytest.raises(ObjectNotFound, match="no bucket 'nowhere-to-be-found', so no gs://nowhere-to-be-found/x"):
            verb("gs://nowhere-to-be-found/x")


@pytest.mark.parametrize("uri", ["gs://", "gs:///x", "gs://bucket*/x"])
def test_uris_without_a_bucket(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="names no bucket"):
        list(open_store(uri).glob(uri + "*"))


PINNED = ObjectRef("gs://private/x", 3, "7")
VERBS: dict[str, Callable[[Store], object]] = {
    "stat": lambda store: store.stat("gs://private/x"),
    "list": lambda store: list(store.list("gs://private/")),
    "read": lambda store: store.read(PINNED),
    "create": lambda store: store.create("gs://private/x").commit(),
    "delete": lambda store: store.delete(PINNED),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
@pytest.mark.parametrize("status", [401, 403])
def test_no_credentials_are_told_with_the_cure(cloud: Front, verb: Callable[[Store], object], status: int) -> None:
    always(cloud, status, "Anonymous caller does not have storage.objects.get access")
    with pytest.raises(AccessDenied, match=r"no Google credentials were found.*gcloud auth application-default login"):
        verb(open_store("gs://private/x"))
    assert "Authorization" not in cloud.seen[0][2]


def test_a_public_bucket_needs_no_credentials(cloud: Front) -> None:
    def public(gate: Gate) -> bool:
        gate.answer(206, {"Content-Range": "bytes 0-2/3"}, b"abc")
        return True

    cloud.faults.append(public)
    assert open_store("gs://public/x").read(PINNED) == b"abc"


def test_looking_for_a_metadata_server_takes_one_timeout(cloud: Front) -> None:
    always(cloud, 401, "Anonymous")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {name: value for name, value in os.environ.items() if name != "NO_GCE_CHECK"}
        environment |= {"GCE_METADATA_IP": f"127.0.0.1:{silent.getsockname()[1]}", "GCE_METADATA_TIMEOUT": "1"}
        script = """
import time
import headrace.transforms.storage.gcs
from headrace.transforms.storage import open_store
start = time.monotonic()
try:
    open_store("gs://b").stat("gs://b/x")
except headrace.transforms.errors.AccessDenied as error:
    print(time.monotonic() - start)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
    assert 0.9 < float(done.stdout) < 2.5


class TestServiceAccount:
    @pytest.fixture(autouse=True)
    def key_file(self, cloud: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.tokens = 0
        self.token_status, self.refused = 200, {"Bearer token-1"}
        account = {
            "type": "service_account",
            "project_id": "p",
            "private_key": key.decode(),
            "private_key_id": "k",
            "client_email": "robot@p.iam.gserviceaccount.com",
            "token_uri": f"{cloud.url}/token",
        }
        path = tmp_path / "key.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        cloud.faults.append(self.serve)

    def serve(self, gate: Gate) -> bool:
        if gate.path == "/token":
            self.tokens += 1
            answer = {"access_token": f"token-{self.tokens}", "expires_in": 3600, "token_type": "Bearer"}
            if self.token_status != 200:
                answer = {"error": "invalid_grant", "error_description": "account not found"}
            gate.answer(self.token_status, {"Content-Type": "application/json"}, json.dumps(answer).encode())
        elif gate.headers["Authorization"] in self.refused:
            gate.answer(401, {}, b"expired")
        else:
            first, last = map(int, gate.headers["Range"][6:].split("-"))
            gate.answer(206, {"Content-Range": f"bytes {first}-{last}/3"}, b"abc"[first : last + 1])
        return True

    def test_a_refused_token_is_renewed_once_for_all(self) -> None:
        store = open_store("gs://private/x")
        assert store.read(PINNED) == b"abc"
        assert self.tokens == 2
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda _: store.read(PINNED), range(32))) == [b"abc"] * 32
        assert self.tokens == 2

    def test_a_token_that_stays_refused_is_told(self) -> None:
        self.refused = {f"Bearer token-{n}" for n in range(10)}
        with pytest.raises(AccessDenied, match="Cannot read gs://private/x") as caught:
            open_store("gs://private/x").read(PINNED)
        assert "token-" not in str(caught.value)
        assert "no Google credentials" not in str(caught.value)

    def test_an_account_that_is_gone_is_told(self) -> None:
        self.token_status = 400
        with pytest.raises(AccessDenied, match=r"not accepted any more.*account not found"):
            open_store("gs://private/x").read(PINNED)

    def test_a_key_file_that_is_none_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
        with pytest.raises(AccessDenied, match=r"GOOGLE_APPLICATION_CREDENTIALS names .*nothing\.json"):
            open_store("gs://private/x").stat("gs://private/x")
