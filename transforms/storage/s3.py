"""Amazon S3 and what speaks its language: `s3://bucket/name`. Versions are ETags; `AWS_ENDPOINT_URL` names another service.

s3fs finds credentials, lists and writes. Bytes come by way of signed URLs, straight into the caller's buffers: through
s3fs they would be copied several times, and all of them in one thread.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import AccessDenied, InvalidRequest, ObjectNotFound, StorageError, StoreUnavailable
from .bounded_cache import Recent
from .fsspec_store import FsspecStore, as_storage_error, described, errors_of
from .http_ranges import Asked, HttpRefusal, RangeReader
from .retries import MayPass, RetryPolicy, retried
from .store import ObjectRef, StoreOptions, Writer, already_exists, changed, check_range

# S3 takes parts of 5 MiB to 5 GiB, 10,000 at most: so objects of up to 160 GB.
PART = 16 << 20
_SIGNED_FOR_S, _MOST_SIGNED = 3600, 4096
# Said with HTTP 400, unlike all else that is refused to an identity.
_CREDENTIALS_ENDED = re.compile(r"<Code>(ExpiredToken|TokenRefreshRequired|InvalidToken)</Code>")
_log = logging.getLogger(__name__)


class S3Store(FsspecStore):
    """`kms_key` encrypts what is written. Writing needs conditional requests, as S3 itself has since 2024."""

    def __init__(
        self, options: StoreOptions = StoreOptions(), scheme: str = "s3", policy: RetryPolicy = RetryPolicy()
    ) -> None:
        super().__init__(options, scheme, policy)
        self._ranges = RangeReader(self.counters, policy)
        self._signed = Recent[str, tuple[float, str]](_MOST_SIGNED)

    def _arguments(self) -> dict[str, Any]:
        # Signatures of the older kind are refused by all but the oldest regions.
        return {"config_kwargs": {"signature_version": "s3v4"}}

    def _filesystem(self, uri: str) -> tuple[Any, str]:
        _check_name(uri)
        return super()._filesystem(uri)

    def _object(self, uri: str) -> tuple[Any, dict[str, str]]:
        """The file system, and what S3 calls the object."""
        filesystem, path = self._filesystem(uri)
        bucket, key, _ = filesystem.split_path(path)
        return filesystem, {"Bucket": bucket, "Key": key}

    @property
    def encryption(self) -> dict[str, str]:
        """Arguments of a request that writes."""
        key = self.options.kms_key
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def glob(
        self,
        pattern: str,
        noted: Callable[[str], None] | None = None,
        other: Callable[[ObjectRef], None] | None = None,
    ) -> Iterator[ObjectRef]:
        _check_name(pattern)
        return super().glob(pattern, noted, other)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        """Page by page, in the order in which S3 keeps names; only its directory buckets keep none."""
        folder = folder.rstrip("/")
        filesystem, path = self._filesystem(f"{folder}/")
        bucket, _, prefix = path.strip("/").partition("/")
        listed = self._pages(filesystem, folder, bucket, f"{prefix}/" if prefix else "")
        yield from sorted(listed) if bucket.endswith("--x-s3") else listed

    def _pages(self, filesystem: Any, folder: str, bucket: str, prefix: str) -> Iterator[ObjectRef]:
        more: dict[str, str] = {}
        while True:
            self.counters.add(requests=1)
            with errors_of(folder, "list"):
                page = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more, **filesystem.req_kw)
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield ObjectRef(f"{folder}/{found['Key'].removeprefix(prefix)}", found["Size"], found["ETag"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        if not check_range(ref, offset, buffers):
            return
        try:
            try:
                self._fetch(ref, offset, buffers, self._url(ref.uri))
            except HttpRefusal as refusal:
                if refusal.status != 403 and not _CREDENTIALS_ENDED.search(refusal.body):
                    raise
                # Credentials that are lent for an hour may have ended before what they signed.
                self._fetch(ref, offset, buffers, self._url(ref.uri, renew=True))
        except HttpRefusal as refusal:
            if refusal.status in (412, 416):
                raise changed(ref, "another") from refusal
            # The answer's body quotes what was signed, and with what.
            raise self._refused(refusal, ref.uri) from refusal

    def _fetch(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview], url: str) -> None:
        headers = {"If-Match": ref.version, "Accept-Encoding": "identity"}
        if payer := self._filesystem(ref.uri)[0].req_kw.get("RequestPayer"):
            headers["x-amz-request-payer"] = payer  # it is signed, and so must be sent
        asked = Asked(ref.uri, url, headers, require={"ETag": ref.version}, size=ref.size)
        self._ranges.read_into(asked, offset, buffers)

    def _url(self, uri: str, *, renew: bool = False) -> str:
        signed_at, url = self._signed.get(uri) or (0.0, "")
        if renew or time.monotonic() - signed_at > _SIGNED_FOR_S / 2 or not url:
            filesystem, path = self._filesystem(uri)
            with errors_of(uri, "read"):
                url = filesystem.sign(path, expiration=_SIGNED_FOR_S, **filesystem.req_kw)
            self._signed.keep(uri, (time.monotonic(), url))
        return url

    def _refused(self, refusal: HttpRefusal, uri: str) -> StorageError:
        status = refusal.status
        if status == 404:
            return ObjectNotFound(f"There is no object {uri}, or no such bucket", cure="Look at the spelling.")
        if ended := _CREDENTIALS_ENDED.search(refusal.body):
            return AccessDenied(
                f"Cannot read {uri}: the temporary credentials have expired",
                found=f"HTTP {status}, {ended[1]}",
                cure="Get new ones (aws sso login, AWS_SESSION_TOKEN, …) and start the same command again.",
            )
        if status in (401, 403):
            return AccessDenied(
                f"Cannot read {uri}", found=f"HTTP {status}", cure="Grant this identity the permission s3:GetObject."
            )
        region = re.search(r"<Region>([a-z0-9-]+)</Region>", refusal.body)
        cure = f"Let AWS_DEFAULT_REGION name the bucket's region{f': {region[1]}' if region else ''}."
        cure = cure if status in (301, 307, 400) else ""
        return StorageError(f"Cannot read {uri}", found=f"HTTP {status}", cure=cure)

    def create(self, uri: str) -> Writer:
        filesystem, target = self._object(uri)
        if not target["Key"] or uri.endswith("/"):
            raise InvalidRequest(f"{uri} names a folder, not an object")
        return _S3Writer(self, filesystem, uri, target)

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        """A copy on the service's side, which finds no source once that is deleted."""
        filesystem, target = self._object(uri)
        from_object = self._object(source.uri)[1]
        if self.find(uri) is not None:  # some services ignore IfNoneMatch when they copy
            raise already_exists(uri)
        self.counters.add(requests=1)
        try:
            filesystem.call_s3(
                "copy_object",
                **target,
                CopySource=from_object,
                CopySourceIfMatch=source.version,
                IfNoneMatch="*",
                **self.encryption,
            )
        except Exception as error:
            try:
                now = self.stat(source.uri)
            except ObjectNotFound:
                raise ObjectNotFound(f"There is no object {source.uri}") from error
            if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise (
                    already_exists(uri) if now.version == source.version else changed(source, now.version)
                ) from error
            raise as_storage_error(error, uri, "write") from error
        return self.stat(uri)

    def delete(self, ref: ObjectRef) -> None:
        filesystem, target = self._object(ref.uri)
        try:
            # Some services that speak S3 ignore IfMatch when they delete.
            if (now := self.stat(ref.uri)).version != ref.version:
                raise changed(ref, now.version)
            self.counters.add(requests=1)
            filesystem.call_s3("delete_object", **target, IfMatch=ref.version)
        except ObjectNotFound:
            return
        except StorageError:
            raise
        except Exception as error:
            if _code(error) == "PreconditionFailed":
                raise changed(ref, "another") from error
            raise as_storage_error(error, ref.uri, "delete") from error

    def clean(self, folder: str) -> int:
        """Multipart uploads that were neither completed nor aborted: S3 keeps their parts, at the owner's expense."""
        filesystem, path = self._filesystem(folder)
        bucket, _, prefix = path.strip("/").partition("/")
        marker: dict[str, str] = {}
        count = 0
        with errors_of(folder, "clean"):
            while True:
                self.counters.add(requests=1)
                page = filesystem.call_s3(
                    "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **marker
                )
                for upload in page.get("Uploads", []):
                    self.counters.add(requests=1)
                    filesystem.call_s3(
                        "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    count += 1
                if not page.get("IsTruncated"):
                    return count
                marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


class _S3Writer(Writer):
    """Sends nothing before 16 MiB are written: what is smaller goes in a single request at `commit()`."""

    def __init__(self, store: S3Store, filesystem: Any, uri: str, target: dict[str, str]) -> None:
        super().__init__(uri)
        self._store, self._filesystem, self._target = store, filesystem, target
        self._pending = bytearray()
        self._upload = ""
        self._parts: list[dict[str, Any]] = []

    def write(self, data: Any) -> int:
        self._check_open()
        view = memoryview(data).cast("B")
        self._pending += view
        self._written += view.nbytes
        while len(self._pending) > PART:
            self._send(bytes(memoryview(self._pending)[:PART]))
            del self._pending[:PART]
        return view.nbytes

    def _send(self, part: bytes) -> None:
        if not self._upload:
            self._upload = self._call("create_multipart_upload", **self._store.encryption)["UploadId"]
        number = len(self._parts) + 1
        answer = self._call("upload_part", UploadId=self._upload, PartNumber=number, Body=part)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def commit(self) -> ObjectRef:
        self._check_open()
        if self._upload:
            self._send(bytes(self._pending))
            parts = {"Parts": self._parts}
            answer = self._call(
                "complete_multipart_upload", UploadId=self._upload, MultipartUpload=parts, IfNoneMatch="*"
            )
        else:
            answer = self._call("put_object", Body=bytes(self._pending), IfNoneMatch="*", **self._store.encryption)
        self._upload = ""
        self.abort()
        self._store.counters.add(bytes_written=self._written)
        return ObjectRef(self._uri, self._written, answer["ETag"])

    def abort(self) -> None:
        upload, self._upload = self._upload, ""
        self._closed, self._pending = True, bytearray()
        if upload:
            try:
                self._filesystem.call_s3("abort_multipart_upload", **self._target, UploadId=upload)
            except Exception as error:
                # Invisible to everyone; the error that led here matters more.
                _log.info("The upload of %s could not be cancelled: %s", self._uri, described(error))

    def _call(self, method: str, **arguments: Any) -> Any:
        def attempt() -> Any:
            try:
                return self._filesystem.call_s3(method, **self._target, **arguments)
            except Exception as error:
                conflict = _conflicts(error)
                # An upload of parts would have to start over.
                if conflict and (method == "put_object" or not self._exists()):
                    raise MayPass(described(error), attempts=None if method == "put_object" else 1) from error
                self.abort()
                if conflict or _code(error) == "PreconditionFailed":
                    raise already_exists(self._uri) from error
                raise as_storage_error(error, self._uri, "write") from error

        try:
            return retried(
                attempt,
                self._store._policy,
                self._store.counters,
                lambda _: f"{self._uri} is being written by another at this moment",
                cure="Run again once it has ended.",
            )
        except StoreUnavailable as error:
            self.abort()
            if error.__cause__ is not None and _conflicts(error.__cause__) and self._exists():
                raise already_exists(self._uri) from error
            raise

    def _exists(self) -> bool:
        try:
            self._store.stat(self._uri)
        except StorageError:
            return False
        return True


def _check_name(uri: str) -> None:
    if re.match(r"\w+://[^/]*[*?\[]", uri):
        raise InvalidRequest(f"{uri!r} names no bucket", expected="s3://bucket/name", cure="Buckets take no wildcards.")
    # s3fs takes it off the key, wherever it is, and does not always apply it.
    if "?versionId=" in uri:
        raise InvalidRequest(
            f"{uri} names a version",
            expected="an object's key without ?versionId=…: the current version is pinned when the job starts",
            cure="Leave it out; copy another version, or an object whose key holds that text, under another key.",
        )


def _conflicts(error: BaseException) -> bool:
    """Another write of the same object is under way."""
    return _code(error) == "ConditionalRequestConflict"


def _code(error: BaseException) -> str:
    """S3's own name of an error, which s3fs keeps as the cause of a Python one."""
    response = getattr(error.__cause__ or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
