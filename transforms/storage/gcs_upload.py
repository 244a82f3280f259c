"""Create-only uploads to Google Cloud Storage that nothing but `commit()` publishes.

google-cloud-storage's `BlobWriter` finalises its object in `close()`, thus also when an exception or the garbage
collector closes it: a truncated object would appear. Here closing lets go of the buffer and sends nothing.
"""

from __future__ import annotations

import logging
from typing import Any

import google_crc32c
from google.api_core.retry import Retry
from google.cloud.storage.fileio import BlobWriter
from google.cloud.storage.retry import DEFAULT_RETRY

from ..errors import ObjectNotFound, StorageError
from .gcs_client import LIBRARY_ERRORS, TIMEOUT_S, GcsClient, explain, pin, split
from .store import Counters, ObjectRef, Writer, already_exists

CHUNK = 8 << 20
# How each object is created: in place of none, and checked on arrival.
_CREATED: dict[str, Any] = {
    "content_type": "application/octet-stream",
    "if_generation_match": 0,
    "checksum": "crc32c",
    "timeout": TIMEOUT_S,
}
_log = logging.getLogger(__name__)


class _Upload(BlobWriter):
    """A resumable upload. It uses BlobWriter's private names: there is no other way to its session."""

    def close(self) -> None:
        self._buffer.close()

    def terminate(self) -> None:
        """Cancels the session. The library's own method (3.17) sends its DELETE to the address that starts sessions."""
        if self._upload_and_transport:
            upload, transport = self._upload_and_transport
            transport.delete(upload.resumable_url, headers={"Content-Length": "0"}, timeout=TIMEOUT_S)
        self._buffer.close()

    def publish(self) -> None:
        if not self._upload_and_transport:
            self._initiate_upload()
        while not self._upload_and_transport[0].finished:
            response = self._send_chunk()
        self._blob._set_properties(response.json())
        self._buffer.close()

    def _upload_chunks_from_buffer(self, num_chunks: int) -> None:  # noqa: ARG002
        if not self._upload_and_transport:
            self._initiate_upload()
        while len(self._buffer) >= self._chunk_size:
            self._send_chunk()

    def _send_chunk(self) -> Any:
        upload, transport = self._upload_and_transport
        before = upload.bytes_uploaded
        response = upload.transmit_next_chunk(transport, timeout=TIMEOUT_S)
        if upload.bytes_uploaded == before and not upload.finished:
            raise ConnectionError("the server took a chunk and kept nothing of it")
        if upload.bytes_uploaded < self._buffer.tell():
            # A server may keep less than it was sent; the library's writer would then fail at the next chunk.
            self._buffer.seek(upload.bytes_uploaded)
        self._buffer.flush()
        return response


class GcsWriter(Writer):
    """Sends nothing before 8 MiB are written: what is smaller goes in a single request at `commit()`."""

    def __init__(self, client: GcsClient, counters: Counters, uri: str, blob: Any) -> None:
        super().__init__(uri)
        self._client, self._counters, self._blob = client, counters, blob
        self._pending = bytearray()
        self._upload: _Upload | None = None
        self._crc32c = 0
        self._repeated = False
        self._retry = Retry(predicate=DEFAULT_RETRY._predicate, on_error=self._note_retry)

    def _note_retry(self, _: Exception) -> None:
        # From here on, the answer "already exists" may refer to what an earlier attempt of ours wrote.
        self._repeated = True
        self._counters.add(requests=1, retries=1)

    def write(self, data: Any) -> int:
        self._check_open()
        # google_crc32c takes nothing but bytes.
        sent = data if isinstance(data, bytes) else bytes(memoryview(data).cast("B"))
        view = memoryview(sent)
        self._crc32c = google_crc32c.extend(self._crc32c, sent)
        self._written += view.nbytes
        try:
            if self._upload is None and len(self._pending) + view.nbytes <= CHUNK:
                self._pending += view
            else:
                self._send(view)
        except LIBRARY_ERRORS as error:
            self.abort()
            raise self._as_storage_error(error) from error
        return view.nbytes

    def _send(self, view: memoryview) -> None:
        if self._upload is None:
            self._upload = _Upload(self._blob, chunk_size=CHUNK, retry=self._retry, **_CREATED)
            pending, self._pending = self._pending, bytearray()
            self._upload.write(pending)
        for at in range(0, view.nbytes, CHUNK):
            self._upload.write(view[at : at + CHUNK])

    def commit(self) -> ObjectRef:
        self._check_open()
        try:
            if self._upload is None:
                self._blob.upload_from_string(bytes(self._pending), retry=self._retry, **_CREATED)
            else:
                self._refuse_for_emulator()
                self._upload.publish()
            ref = pin(split(self._uri)[0], self._blob)
        except LIBRARY_ERRORS as error:
            self.abort()
            existing = self._existing() if self._repeated else None
            if existing is None:
                raise self._as_storage_error(error) from error
            ref = existing
        self._forget()
        self._counters.add(requests=1, bytes_written=self._written)
        return ref

    def abort(self) -> None:
        upload = self._upload
        self._forget()
        if upload is not None and not upload.closed:
            try:
                upload.terminate()
            except LIBRARY_ERRORS as error:
                # Invisible to everyone, it ends by itself after a week; the error that led here matters more.
                _log.info("The upload of %s could not be cancelled: %s", self._uri, explain(error)[1])

    def _forget(self) -> None:
        self._closed, self._upload, self._pending = True, None, bytearray()

    def _as_storage_error(self, error: Exception) -> StorageError:
        if explain(error)[0] == 412:
            return already_exists(self._uri)
        refused = self._client.refused(error, self._uri, "write")
        if isinstance(refused, ObjectNotFound) and "no bucket" not in refused.what:
            return StorageError(f"The upload of {self._uri} was ended by the server", found=explain(error)[1])
        return refused

    def _existing(self) -> ObjectRef | None:
        """The existing object, if it is what was sent: an upload may succeed and its answer get lost."""
        try:
            self._blob.reload(timeout=TIMEOUT_S)
        except LIBRARY_ERRORS:
            return None
        found = pin(split(self._uri)[0], self._blob)
        return found if (found.size, found.crc32c) == (self._written, self._crc32c) else None

    def _refuse_for_emulator(self) -> None:
        # fake-gcs-server 1.x forgets ifGenerationMatch in resumable uploads; the real store holds to it atomically.
        if self._client.emulated and self._blob.exists(timeout=TIMEOUT_S):
            self.abort()
            raise already_exists(self._uri)
