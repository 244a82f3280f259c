"""Credentials and connections to Google Cloud Storage; what its refusals mean."""

from __future__ import annotations

import base64
import os
import re
import threading
from typing import Any
from urllib.parse import quote

import google.api_core.exceptions
import google.auth
import google.auth.credentials
import google.auth.exceptions
import google.auth.transport
import google.auth.transport.requests
import requests.adapters
import requests.exceptions
from google.api_core.retry import Retry
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from ..bounded_json import parse_json
from ..errors import AccessDenied, InvalidRequest, ObjectNotFound, StorageError, StoreUnavailable
from .http_ranges import HttpRefusal
from .store import Counters, ObjectRef

TIMEOUT_S = 60.0
_ANONYMOUS_PATIENCE_S = 10.0
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_CONNECTIONS = 64
_METADATA_SERVER = "169.254.169.254"
# https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden
_DENIED = re.compile(r"(?P<who>\S+) does not have (?P<permission>[a-z]+(?:\.[A-Za-z]+)+) access")
_QUERY = re.compile(r"\?[^\s'\"]*")
_PERMISSIONS = {
    "read": "storage.objects.get",
    "list": "storage.objects.list",
    "write": "storage.objects.create",
    "delete": "storage.objects.delete",
}
_ROLES = {
    "storage.objects.get": "roles/storage.objectViewer",
    "storage.objects.list": "roles/storage.objectViewer",
    "storage.objects.create": "roles/storage.objectCreator",
    "storage.objects.delete": "roles/storage.objectUser",
    "serviceusage.services.use": "roles/serviceusage.serviceUsageConsumer",
}
LIBRARY_ERRORS = (
    google.api_core.exceptions.GoogleAPIError,
    google.auth.exceptions.GoogleAuthError,
    requests.exceptions.RequestException,
    InvalidResponse,
    DataCorruption,
    OSError,
)


class GcsClient:
    """The library's client with credentials that headrace finds; a forked process makes its own.

    `STORAGE_EMULATOR_HOST` makes it anonymous, as in Google's libraries. So do missing credentials: public buckets can be
    read without any.
    """

    def __init__(self, billing_project: str | None, counters: Counters) -> None:
        self._billing_project = billing_project
        self.emulated = "STORAGE_EMULATOR_HOST" in os.environ
        self._lock = threading.Lock()
        # Buckets that are known to exist.
        self._buckets: set[str] = set()
        credentials = None if self.emulated else _find_credentials()
        self.anonymous = credentials is None
        self._credentials = credentials or google.auth.credentials.AnonymousCredentials()
        session = google.auth.transport.requests.AuthorizedSession(
            self._credentials, max_refresh_attempts=0 if self.anonymous else 2
        )
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=_CONNECTIONS)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        # Without credentials, requests will probably fail: report that soon.
        self.retry = Retry(
            predicate=DEFAULT_RETRY._predicate,
            timeout=DEFAULT_RETRY.timeout if self.emulated or not self.anonymous else _ANONYMOUS_PATIENCE_S,
            on_error=lambda _: counters.add(retries=1),
        )
        self._refresh = google.auth.transport.requests.Request()
        # Nothing that we ask for belongs to a project, and looking for one may start a gcloud process.
        self.library = storage.Client(project="-", credentials=self._credentials, _http=session)
        # Since 3.17 a thread also asks for each bucket's metadata, for traces. That takes a permission that reading does not
        # need, and names no project to bill where the requester pays.
        self.library._bucket_metadata_cache = None

    def bucket(self, name: str) -> Any:
        return self.library.bucket(name, user_project=self._billing_project)

    def media_url(self, bucket: str, name: str, generation: str) -> str:
        """https://cloud.google.com/storage/docs/json_api/v1/objects/get, with alt=media."""
        url = f"{self.library.api_endpoint}/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        payer = f"&userProject={quote(self._billing_project, safe='')}" if self._billing_project else ""
        return f"{url}?alt=media&generation={generation}{payer}"

    def headers(self, url: str, *, renew: bool = False) -> dict[str, str]:
        """Headers that authorise a GET of `url`. `renew` asks for another token, where one was refused."""
        # Objects stored with Content-Encoding: gzip would otherwise be unpacked on the way, and their ranges ignored.
        headers = {"Accept-Encoding": "gzip"}
        if not self.anonymous:
            with self._lock:
                if renew:
                    self._credentials.refresh(self._refresh)
                self._credentials.before_request(self._refresh, "GET", url, headers)
        return headers

    def refused(self, error: Exception, uri: str, verb: str) -> StorageError:
        """The library's error as one of ours; for a 404, finds out whether the bucket or the object is missing."""
        status, reason = explain(error)
        if status == 404:
            return self.missing(uri)
        no_credentials = self.anonymous and not self.emulated
        if status in (401, 403) and no_credentials:
            return AccessDenied(
                f"Cannot {verb} {uri}: it is not public, and no Google credentials were found on this machine",
                found=f"HTTP {status}",
                cure="Run `gcloud auth application-default login`, or let GOOGLE_APPLICATION_CREDENTIALS name a key file.",
            )
        if status == 403:
            return self._forbidden(reason, uri, verb)
        if status == 401 or isinstance(error, google.auth.exceptions.RefreshError):
            return AccessDenied(
                f"Cannot {verb} {uri}: the Google credentials found are not accepted any more",
                found=reason,
                cure="Run `gcloud auth application-default login`.",
            )
        if status == 400 and "requester pays" in reason.lower():
            return AccessDenied(
                f"Cannot {verb} {uri}: its bucket lets the requester pay", found=reason, cure="Give --billing_project."
            )
        cure = ""
        if status is None and no_credentials:
            cure = "Look at the network; moreover, no Google credentials were found: `gcloud auth application-default login`."
        unavailable = not cure and (status is None or status in (408, 429) or status >= 500)
        return (StoreUnavailable if unavailable else StorageError)(f"Cannot {verb} {uri}", found=reason, cure=cure)

    def _forbidden(self, reason: str, uri: str, verb: str) -> AccessDenied:
        denied = _DENIED.search(reason)
        permission = denied["permission"] if denied else _PERMISSIONS[verb]
        who = denied["who"] if denied else getattr(self._credentials, "service_account_email", None)
        role = f", as the role {_ROLES[permission]} does" if permission in _ROLES else ""
        return AccessDenied(
            f"Cannot {verb} {uri}: {who or 'this identity'} lacks the permission {permission}",
            found=reason,
            cure=f"Grant it on gs://{split(uri)[0]}{role}, to whom the workers run as too; or look at the name's spelling: "
            "without the right to list a bucket, a missing object looks the same.",
        )

    def missing(self, uri: str) -> ObjectNotFound:
        bucket, _ = split(uri)
        if bucket in self._buckets:
            return ObjectNotFound(
                f"There is no object {uri}", found=f"the bucket {bucket!r}", cure="Look at its spelling."
            )
        try:
            # An account that gets 404 for an object may list its bucket; one that may not gets 403.
            next(
                iter(self.library.list_blobs(self.bucket(bucket), max_results=1, timeout=TIMEOUT_S, retry=self.retry)),
                None,
            )
        except google.api_core.exceptions.NotFound:
            return ObjectNotFound(f"There is no bucket {bucket!r}, so no {uri}", cure="Look at the bucket's spelling.")
        except LIBRARY_ERRORS:
            return ObjectNotFound(f"There is no object {uri}, or no such bucket")
        self.note_bucket(bucket)
        return self.missing(uri)

    def note_bucket(self, bucket: str) -> None:
        """The bucket has answered: for an object that is missing in it, no further request is needed."""
        self._buckets.add(bucket)


def explain(error: Exception) -> tuple[int | None, str]:
    """The HTTP status, if the error comes of one, and the innermost reason, in one line without any URL's query."""
    if isinstance(error, google.api_core.exceptions.RetryError) and isinstance(error.cause, Exception):
        status, reason = explain(error.cause)
        return status, f"{reason}, again and again"
    if isinstance(error, google.api_core.exceptions.GoogleAPICallError):
        details = [item.get("message", "") for item in error.errors if isinstance(item, dict)]
        body = getattr(error.response, "text", "")
        return (
            error.code,
            f"HTTP {error.code}: {next(filter(None, details), _message(body) or _message(error.message))}",
        )
    if isinstance(error, InvalidResponse):
        code = error.response.status_code
        return code, f"HTTP {code}: {_message(error.response.text) or error.response.reason}"
    if isinstance(error, HttpRefusal):
        return error.status, f"HTTP {error.status}: {_message(error.body)}"
    if error.args and isinstance(inner := getattr(error.args[0], "reason", None), Exception):
        return None, str(inner)
    return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _message(body: str) -> str:
    """The message of an answer's body: the JSON API's error, or a line of text."""
    try:
        return str(parse_json(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(_QUERY.sub("", body).split())[:500]


def split(uri: str) -> tuple[str, str]:
    """Bucket and name; the name is taken letter for letter."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not bucket or any(c in bucket for c in "*?[%#"):
        raise InvalidRequest(f"{uri!r} names no bucket", expected="gs://bucket/name", cure="Buckets take no wildcards.")
    return bucket, name


def pin(bucket: str, blob: Any) -> ObjectRef:
    checksum = int.from_bytes(base64.b64decode(blob.crc32c), "big") if blob.crc32c else None
    return ObjectRef(f"gs://{bucket}/{blob.name}", int(blob.size), str(blob.generation), checksum)


class _ImpatientRequest(google.auth.transport.Request):
    """Asks a metadata server once where the machine is not Google's: three tries with pauses take up to 12 s."""

    def __init__(self) -> None:
        self._request = google.auth.transport.requests.Request()

    def __call__(self, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._request(url, *args, **kwargs)
        except google.auth.exceptions.TransportError as error:
            if os.environ.get("GCE_METADATA_IP", _METADATA_SERVER) in url and not _is_google_machine():
                raise google.auth.exceptions.DefaultCredentialsError("no metadata server") from error
            raise


def _is_google_machine() -> bool:
    """https://cloud.google.com/compute/docs/instances/detect-compute-engine"""
    try:
        with open("/sys/class/dmi/id/product_name") as file:
            return file.read().startswith("Google")
    except OSError:
        return False


def _find_credentials() -> Any:
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE], request=_ImpatientRequest())
    except google.auth.exceptions.DefaultCredentialsError as error:
        if path := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise AccessDenied(
                f"GOOGLE_APPLICATION_CREDENTIALS names {path}, which holds no usable credentials",
                found=str(error),
                cure="Let it name a key file, or unset it and run `gcloud auth application-default login`.",
            ) from error
        return None
    return credentials
