"""fsspec's stores: its own file systems in memory and on disk, and S3 as moto's server plays it over HTTP."""

from __future__ import annotations

import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from headrace.transforms.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidRequest,
    NotAModel,
    ObjectNotFound,
    StorageError,
    StoreUnavailable,
)
from headrace.transforms.models import pin
from headrace.transforms.models.pin import pin_model
from headrace.transforms.storage import Store, StoreOptions, open_store
from headrace.transforms.storage.http_ranges import RangeReader
from headrace.transforms.storage.retries import RetryPolicy
from tests.support.front import Front, Gate, served
from tests.support.s3_service import s3_service, use_s3
from tests.support.store_contract import LARGE, ListContract, StoreContract, noise

fsspec = pytest.importorskip("fsspec")
s3fs = pytest.importorskip("s3fs")

from headrace.transforms.storage.fsspec_store import FsspecStore  # noqa: E402
from headrace.transforms.storage.s3 import S3Store  # noqa: E402

POLICY = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)


class FsspecValues(ListContract):
    scheme: str

    @pytest.fixture
    def store(self) -> Store:
        return FsspecStore(StoreOptions(), self.scheme)

    def put(self, uri: str, data: bytes) -> None:
        filesystem = fsspec.filesystem(self.scheme)
        filesystem.makedirs(filesystem._parent(uri), exist_ok=True)
        filesystem.pipe_file(filesystem._strip_protocol(uri), data)

    def remove(self, uri: str) -> None:
        filesystem = fsspec.filesystem(self.scheme)
        filesystem.rm_file(filesystem._strip_protocol(uri))

    def test_it_is_read_only(self, store: Store, root: str) -> None:
        self.put(f"{root}/x", b"abc")
        with pytest.raises(InvalidRequest, match=r"/x cannot be written.*create an object here without replacing"):
            store.create(f"{root}/x")
        with pytest.raises(InvalidRequest, match="/x cannot be deleted"):
            store.delete(store.stat(f"{root}/x"))


class TestMemory(FsspecValues):
    scheme = "memory"

    @pytest.fixture
    def root(self) -> str:
        return f"memory://{uuid.uuid4().hex}/in"


class TestLocal(FsspecValues):
    scheme = "file"

    @pytest.fixture
    def root(self, tmp_path: Any) -> str:
        return f"file://{tmp_path}/in"


class Shaky(fsspec.AbstractFileSystem):  # type: ignore[name-defined]
    """Knows one object; what a read of it brings is the next of `reads`, else all of it."""

    protocol = "shaky"
    data, etag = b"abcdef", "1"
    reads: tuple[Any, ...] = ()
    details: tuple[str, ...] = ("etag",)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        details = {"etag": type(self).etag, "modified": 7}
        return {"name": path, "size": 6, "type": "file", **{key: details[key] for key in type(self).details}}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        mine = type(self)
        if mine.reads:
            read, mine.reads = mine.reads[0], mine.reads[1:]
            return read()
        return mine.data[start:end]


def fail(error: Exception) -> bytes:
    raise error


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> type[Shaky]:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    for name in ("etag", "reads", "details"):
        monkeypatch.setattr(Shaky, name, getattr(Shaky, name))
    return Shaky


def test_what_passes_is_tried_again(shaky: type[Shaky]) -> None:
    store = FsspecStore(StoreOptions(), "shaky", POLICY)
    ref = store.stat("shaky://b/x")
    shaky.reads = (lambda: fail(OSError("busy")), lambda: b"ab")
    assert store.read(ref) == b"abcdef"
    assert store.counters.retries == 2
    shaky.reads = (lambda: fail(OSError("GET https://h/x?signature=s3cr3t")),) * 9
    with pytest.raises(
        StorageError, match=r"bytes 1 to 3 \(exclusive\) of shaky://b/x failed 3 times.*OSError: GET https://h/x\."
    ) as caught:
        store.read(ref, 1, 2)
    assert "s3cr3t" not in str(caught.value)


def test_a_process_forked_while_another_thread_connects_does_not_wait_for_it(shaky: type[Shaky]) -> None:
    store = FsspecStore(StoreOptions(), "shaky", POLICY)
    with store._lock:
        child = os.fork()
        if not child:
            try:
                signal.alarm(20)  # ends a child that waits for a lock which nobody holds in it
                os._exit(0 if store.stat("shaky://b/x").size == 6 else 1)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_change_in_mid_read_is_seen(shaky: type[Shaky]) -> None:
    def rewrite() -> bytes:
        shaky.etag = "2"
        return b"uvwxyz"

    store = FsspecStore(StoreOptions(), "shaky", POLICY)
    ref = store.stat("shaky://b/x")
    shaky.reads = (rewrite,)
    with pytest.raises(StorageError, match=r"shaky://b/x was rewritten.*version 1\. Found: 2"):
        store.read(ref)


def test_what_cannot_be_pinned_is_refused(shaky: type[Shaky]) -> None:
    store = open_store("shaky://b/x")
    shaky.details = ("modified",)
    assert store.stat("shaky://b/x").version == "7:6"
    shaky.details = ()
    with pytest.raises(StorageError, match=r"shaky://b/x cannot be pinned.*no more than name, size, type"):
        store.stat("shaky://b/x")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(FileNotFoundError("x"), ObjectNotFound), (PermissionError("x"), AccessDenied), (ValueError("x"), StorageError)],
)
def test_errors_that_are_final(shaky: type[Shaky], error: Exception, kind: type[StorageError]) -> None:
    store = FsspecStore(StoreOptions(), "shaky", POLICY)
    ref = store.stat("shaky://b/x")
    shaky.reads = (lambda: fail(error),)
    with pytest.raises(kind, match="shaky://b/x"):
        store.read(ref)
    assert store.counters.retries == 0


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("az", "adlfs", "azure"), ("hf", "huggingface_hub", "hf")]
)
def test_a_missing_package_is_named_with_its_cure(scheme: str, package: str, extra: str) -> None:
    # Apart, since fsspec keeps what another test has opened.
    script = f"""
import sys
from headrace.transforms.errors import InvalidRequest
from headrace.transforms.storage import open_store
sys.modules[{package!r}] = None
try:
    open_store("{scheme}://b/x")
except InvalidRequest as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"{scheme}:// needs.*pip install 'headrace\[{extra}\]'", told)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"No store for nowhere://.*gs://, s3://"):
        open_store("nowhere://b/x")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with s3_service() as url:
        yield url


class TestS3(StoreContract):
    @pytest.fixture(autouse=True)
    def client(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import boto3

        use_s3(monkeypatch, s3_server)
        self.library = boto3.client("s3")

    @pytest.fixture
    def root(self, client: None) -> str:
        bucket = f"test-{uuid.uuid4().hex}"
        self.library.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/in"

    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)

    def _object(self, uri: str) -> dict[str, str]:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return {"Bucket": bucket, "Key": key}

    def put(self, uri: str, data: bytes) -> None:
        self.library.put_object(**self._object(uri), Body=data)

    def get(self, uri: str) -> bytes | None:
        try:
            return self.library.get_object(**self._object(uri))["Body"].read()
        except self.library.exceptions.NoSuchKey:
            return None

    def test_an_aborted_upload_leaves_nothing_hidden(self, store: Store, root: str) -> None:
        for end in ("abort", "fail"):
            writer = store.create(f"{root}/{end}")
            writer.write(noise(LARGE))
            if end == "fail":
                self.put(f"{root}/{end}", b"first")
                with pytest.raises(StorageError, match="already exists"):
                    writer.commit()
            writer.abort()
        gc.collect()
        assert "Uploads" not in self.library.list_multipart_uploads(Bucket=self._object(root)["Bucket"])

    def test_missing_buckets(self, store: Store) -> None:
        uri = f"s3://test-{uuid.uuid4().hex}/x"
        for act in (lambda: store.stat(uri), lambda: list(store.list(uri)), lambda: _write(store, uri)):
            with pytest.raises(ObjectNotFound, match=uri):
                act()

    def test_a_misspelt_model_lists_no_more_than_it_takes_to_tell(
        self, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [f"{root}/part-{i:02d}" for i in range(99)]
        for name in names:
            self.put(name, b"")
        asked: list[Any] = []
        call = s3fs.S3FileSystem.call_s3

        def in_small_pages(filesystem: Any, method: str, *args: Any, **how: Any) -> Any:
            asked.append(method)
            return call(filesystem, method, *args, **how, **({"MaxKeys": 2} if method == "list_objects_v2" else {}))

        monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", in_small_pages)
        monkeypatch.setattr(pin, "_GLANCE", 3)
        store = open_store(root)
        assert [ref.uri for ref in store.list(root)] == names
        assert asked == ["list_objects_v2"] * 50
        asked.clear()
        with pytest.raises(NotAModel, match="is a folder, but no SavedModel"):
            pin_model(root)
        # Two pages tell what is there instead; what belongs to a model is looked for until it is known that there is none.
        assert len(asked) < 45

    def test_who_asks_pays_for_reading_too(self, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"requester_pays": True})
        s3fs.S3FileSystem.clear_instance_cache()
        store = open_store(root)
        self.put(f"{root}/x", b"abc")
        ref = store.stat(f"{root}/x")
        assert store.read(ref) == b"abc"
        # moto lets anybody read: what S3 itself looks at is that the payer is signed, and sent.
        assert "x-amz-request-payer" in store._url(ref.uri)  # type: ignore[attr-defined]
        sent: list[Any] = []
        fetch = RangeReader.read_into

        def seen(reader: Any, asked: Any, *args: Any) -> None:
            sent.append(asked.headers)
            fetch(reader, asked, *args)

        monkeypatch.setattr(RangeReader, "read_into", seen)
        assert store.read(ref) == b"abc"
        assert sent[0]["x-amz-request-payer"] == "requester"

    def test_a_name_may_hold_what_fsspec_chains_file_systems_by(self, store: Store, root: str) -> None:
        self.put(f"{root}/v::2.bin", b"abc")
        assert store.read(store.stat(f"{root}/v::2.bin")) == b"abc"

    def test_buckets_take_no_wildcards(self, store: Store) -> None:
        with pytest.raises(InvalidRequest, match=r"'s3://test-\*/x' names no bucket.*Buckets take no wildcards"):
            list(store.glob("s3://test-*/x"))

    def test_a_version_in_a_name_is_refused(self, store: Store, root: str) -> None:
        bucket = self._object(root)["Bucket"]
        self.library.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        old = self.library.put_object(**self._object(f"{root}/m"), Body=b"old")["VersionId"]
        self.put(f"{root}/m", b"newer")
        self.put(f"{root}/d/m?versionId=7", b"seven")
        (listed,) = store.list(f"{root}/d")
        for uri in (f"{root}/m?versionId={old}", listed.uri):
            for act in (
                lambda uri=uri: store.stat(uri),
                lambda uri=uri: list(store.glob(uri)),
                lambda uri=uri: store.read(replace(listed, uri=uri)),
                lambda uri=uri: store.delete(replace(listed, uri=uri)),
                lambda uri=uri: _write(store, uri),
            ):
                with pytest.raises(InvalidRequest, match=re.escape(f"{uri} names a version")):
                    act()
        assert self.get(f"{root}/m") == b"newer"

    def test_encryption_by_a_key(self, root: str) -> None:
        key = "arn:aws:kms:us-east-1:123456789012:key/1234"
        for name, size in (("small", 3), ("large", LARGE)):
            _write(open_store(root, StoreOptions(kms_key=key)), f"{root}/{name}", noise(size))
            head = self.library.head_object(**self._object(f"{root}/{name}"))
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)

    def test_no_signature_is_pickled_or_shown(self, store: Store, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(f"{root}/x", b"abc")
        ref = store.stat(f"{root}/x")
        assert store.read(ref) == b"abc"
        signed = urlsplit(store._signed.get(ref.uri)[1]).query  # type: ignore[attr-defined]
        assert "X-Amz-Signature" in signed
        assert b"X-Amz" not in pickle.dumps(store)
        self.library.delete_bucket_policy(Bucket=self._object(root)["Bucket"])
        self.library.delete_object(**self._object(ref.uri))
        with pytest.raises(StorageError) as caught:
            store.read(ref)
        assert "X-Amz" not in str(caught.value)


class TestS3Faults:
    """S3 through a front that answers in its place."""

    @pytest.fixture
    def front(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
        for front in served(Front(s3_server)):
            use_s3(monkeypatch, front.url)
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
            s3fs.S3FileSystem.clear_instance_cache()
            yield front
        s3fs.S3FileSystem.clear_instance_cache()

    @pytest.fixture
    def root(self, front: Front) -> str:
        import boto3

        bucket = f"test-{uuid.uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    @pytest.mark.parametrize("code", ["ExpiredToken", "TokenRefreshRequired", "InvalidToken"])
    def test_credentials_that_ended_are_renewed(self, front: Front, root: str, code: str) -> None:
        store = S3Store(policy=POLICY)
        _write(store, f"{root}/x", b"abc")
        ref = store.stat(f"{root}/x")
        assert store.read(ref) == b"abc"
        store._signed.keep(ref.uri, (time.monotonic(), store._url(ref.uri) + "&old=1"))
        front.faults.append(lambda gate: "old=1" in gate.path and _refuse(gate, 400, code))
        assert store.read(ref) == b"abc"
        assert "old=1" not in store._url(ref.uri)
        front.faults.append(lambda gate: "X-Amz-Signature" in gate.path and _refuse(gate, 400, code))
        with pytest.raises(AccessDenied, match=f"credentials have expired.*{code}") as caught:
            store.read(ref)
        assert "REGION" not in str(caught.value)
        assert "X-Amz" not in str(caught.value)

    def test_a_lost_connection_in_deleting_is_told(self, front: Front, root: str) -> None:
        store = S3Store(policy=POLICY)
        _write(store, f"{root}/x", b"abc")
        ref = store.stat(f"{root}/x")
        front.faults.append(lambda gate: gate.command == "DELETE" and _reset(gate))
        with pytest.raises(StoreUnavailable, match=f"Cannot delete {root}/x"):
            store.delete(ref)

    def test_an_abort_that_fails_hides_no_other_error(self, front: Front, root: str) -> None:
        store = S3Store(policy=POLICY)
        front.faults.append(lambda gate: gate.command == "DELETE" and _reset(gate))
        with store.create(f"{root}/large") as writer:
            writer.write(noise(LARGE))
        front.faults.append(lambda gate: "partNumber" in gate.path and _refuse(gate, 403, "AccessDenied"))
        with pytest.raises(AccessDenied, match=f"Cannot write {root}/large"):
            _write(store, f"{root}/large", noise(LARGE))

    @pytest.mark.parametrize("size", [3, LARGE])
    @pytest.mark.parametrize("other", [b"other", None])
    def test_two_that_write_one_object_at_once(
        self, front: Front, root: str, size: int, other: bytes | None, s3_server: str
    ) -> None:
        import boto3

        store, bucket = S3Store(policy=POLICY), root.removeprefix("s3://")
        conflicts = ["ConditionalRequestConflict"]

        def conflict(gate: Gate) -> bool:
            if "If-None-Match" not in gate.headers or not conflicts:
                return False
            if other:
                boto3.client("s3", endpoint_url=s3_server).put_object(Bucket=bucket, Key="x", Body=other)
            return _refuse(gate, 409, conflicts.pop())

        front.faults.append(conflict)
        with store.create(f"{root}/x") as writer:
            writer.write(noise(size))
            if other:
                with pytest.raises(AlreadyExists, match=f"{root}/x already exists"):
                    writer.commit()
            elif size == LARGE:
                with pytest.raises(StoreUnavailable, match=f"{root}/x is being written by another"):
                    writer.commit()
            else:
                assert store.read(writer.commit()) == noise(size)


def _reset(gate: Gate) -> bool:
    gate.reset()
    return True


def _refuse(gate: Gate, status: int, code: str) -> bool:
    gate.answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
    return True


def _write(store: Store, uri: str, data: bytes = b"x") -> None:
    with store.create(uri) as writer:
        writer.write(data)
        writer.commit()
