"""Google Cloud Storage: `gs://bucket/name`. Versions are generations; names are taken letter for letter."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import InvalidRequest, ObjectChanged, ObjectNotFound, StorageError
from .gcs_client import LIBRARY_ERRORS, TIMEOUT_S, GcsClient, explain, pin, split
from .gcs_upload import GcsWriter
from .http_ranges import Asked, HttpRefusal, RangeReader
from .retries import RetryPolicy
from .store import ObjectRef, Store, StoreOptions, Writer, already_exists, changed, check_range

_FIELDS = "items(name,size,generation,crc32c),nextPageToken"


class GcsStore(Store):
    """google-cloud-storage for everything but reading bytes. Clients are made at first use, per process."""

    def __init__(self, options: StoreOptions = StoreOptions(), policy: RetryPolicy = RetryPolicy()) -> None:
        super().__init__(options, policy)
        self._ranges = RangeReader(self.counters, policy)
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._made: GcsClient | None = None

    @property
    def _client(self) -> GcsClient:
        if self._pid != os.getpid():
            # A thread that held the lock, perhaps while it searched for credentials, is not in this process.
            self._pid, self._lock, self._made = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._made is None:
                self._made = GcsClient(self.options.billing_project, self.counters)
            return self._made

    def stat(self, uri: str) -> ObjectRef:
        bucket, name = split(uri)
        if not name or name.endswith("/"):
            raise ObjectNotFound(f"There is no object {uri}", found="the name of a folder")
        client = self._client
        blob = client.bucket(bucket).blob(name)
        self.counters.add(requests=1)
        try:
            blob.reload(timeout=TIMEOUT_S, retry=client.retry)
        except LIBRARY_ERRORS as error:
            raise client.refused(error, uri, "read") from error
        return pin(bucket, blob)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        """Placeholders of empty folders (names that end in a slash) are passed over."""
        bucket, prefix = split(folder)
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        client = self._client
        self.counters.add(requests=1)
        try:
            for blob in client.library.list_blobs(
                client.bucket(bucket), prefix=prefix, fields=_FIELDS, timeout=TIMEOUT_S, retry=client.retry
            ):
                if not blob.name.endswith("/"):
                    yield pin(bucket, blob)
            client.note_bucket(bucket)
        except LIBRARY_ERRORS as error:
            raise client.refused(error, folder, "list") from error

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        if not check_range(ref, offset, buffers):
            return
        client = self._client
        url = client.media_url(*split(ref.uri), ref.version)
        try:
            asked = Asked(ref.uri, url, client.headers(url), expect={"X-Goog-Generation": ref.version})
            try:
                self._ranges.read_into(asked, offset, buffers)
            except HttpRefusal as refusal:
                if refusal.status != 401 or client.anonymous:
                    raise
                self._ranges.read_into(replace(asked, headers=client.headers(url, renew=True)), offset, buffers)
        except (HttpRefusal, *LIBRARY_ERRORS) as error:
            raise self._unreadable(error, ref) from error

    def _unreadable(self, error: Exception, ref: ObjectRef) -> StorageError:
        status, _ = explain(error)
        if status not in (404, 412, 416):
            return self._client.refused(error, ref.uri, "read")
        try:
            found = self.stat(ref.uri).version
        except StorageError as other:
            return other
        return _changed(ref, found if found != ref.version else f"HTTP {status} for bytes that it should have")

    def create(self, uri: str) -> Writer:
        bucket, name = split(uri)
        if not name or name.endswith("/"):
            raise InvalidRequest(f"{uri} names a folder, not an object")
        client = self._client
        blob = client.bucket(bucket).blob(name, kms_key_name=self.options.kms_key)
        return GcsWriter(client, self.counters, uri, blob)

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        """A rewrite of one generation, to where there is none: https://cloud.google.com/storage/docs/request-preconditions."""
        client = self._client
        bucket, name = split(uri)
        from_bucket, from_name = split(source.uri)
        target = client.bucket(bucket).blob(name, kms_key_name=self.options.kms_key)
        self.counters.add(requests=1)
        try:
            if client.emulated and target.exists(
                timeout=TIMEOUT_S
            ):  # fake-gcs-server 1.x forgets ifGenerationMatch here too
                raise already_exists(uri)
            token = None
            while True:
                token, _, _ = target.rewrite(
                    client.bucket(from_bucket).blob(from_name, generation=int(source.version)),
                    token=token,
                    if_generation_match=0,
                    if_source_generation_match=int(source.version),
                    timeout=TIMEOUT_S,
                    retry=None,
                )
                if token is None:
                    return pin(bucket, target)
        except LIBRARY_ERRORS as error:
            return self._published(error, source, uri)

    def _published(self, error: Exception, source: ObjectRef, uri: str) -> ObjectRef:
        """The object after a rewrite without a good answer: the rewrite may have succeeded all the same."""
        status, _ = explain(error)
        if status == 404:
            raise ObjectNotFound(f"There is no object {source.uri}") from error
        if (found := self.find(uri)) is None:
            raise self._client.refused(error, uri, "write") from error
        if status != 412 and (found.size, found.crc32c) == (source.size, source.crc32c):
            return found
        raise already_exists(uri) from error

    def delete(self, ref: ObjectRef) -> None:
        client = self._client
        bucket, name = split(ref.uri)
        self.counters.add(requests=1)
        try:
            if client.emulated and (found := self.stat(ref.uri).version) != ref.version:
                # fake-gcs-server 1.x deletes any generation of that name.
                raise _changed(ref, found)
            client.bucket(bucket).blob(name).delete(
                if_generation_match=int(ref.version), timeout=TIMEOUT_S, retry=client.retry
            )
        except ObjectNotFound:
            return
        except LIBRARY_ERRORS as error:
            status, _ = explain(error)
            if status == 404:
                return
            if status == 412:
                raise _changed(ref, "another") from error
            raise client.refused(error, ref.uri, "delete") from error


def _changed(ref: ObjectRef, found: str) -> ObjectChanged:
    return changed(ref, found, f"generation {ref.version}")
