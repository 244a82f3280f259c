"""The web's stores, against a real server whose habits can be set."""

from __future__ import annotations

import email.utils
import hashlib
import itertools
import logging
import pickle
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest

from headrace.transforms.errors import (
    AccessDenied,
    InvalidRequest,
    NotAModel,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
)
from headrace.transforms.jobs.input_files import PassedOver, each_input
from headrace.transforms.models.pin import pin_model
from headrace.transforms.storage import Store, StoreOptions, http_store, open_store
from headrace.transforms.storage.http_store import HttpStore
from headrace.transforms.storage.retries import RetryPolicy
from headrace.transforms.storage.store import public_uri
from tests.support.store_contract import ReadContract, noise

SECRET = "X-Signature=s3cr3t&X-Key=AKIA"
POLICY = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, read_timeout_s=1.0)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.seen.append((self.path, dict(self.headers)))
            fault = server.faults.pop(0) if server.faults else server.habit
        if fault is not None and fault(self):
            return
        found = server.objects.get(urlsplit(self.path).path)
        if found is None:
            self.say(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data, modified = found
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}-{modified}"', "Last-Modified": date(modified)}
        headers = {name: value for name, value in headers.items() if name in server.tells}
        if server.honours_if_match and self.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag"):
            self.say(412, b"no match")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not server.has_ranges or not asked:
            self.say(200, data, **headers)
        elif int(asked[1]) >= len(data):
            self.say(416, b"", **headers, **{"Content-Range": f"bytes */{len(data)}"})
        else:
            first, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self.say(206, data[first:end], **headers, **{"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"})

    def say(self, status: int, body: bytes, **headers: str) -> bool:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            # A client may hang up on a body that it does not want.
            self.close_connection = True
        return True

    def log_message(self, *_: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    """`objects` by path, with their time of change in s; `habit` answers every request that it returns True for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.habit: Fault | None = None
        self.tells = {"ETag", "Last-Modified"}
        self.honours_if_match = self.has_ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up in these tests."""


Fault = Callable[[Answer], bool]


def says(status: int, body: bytes = b"", **headers: str) -> Fault:
    return lambda answer: answer.say(status, body, **headers)


def date(seconds: int) -> str:
    return email.utils.formatdate(1_700_000_000 + seconds, usegmt=True)


def serve() -> Iterator[WebServer]:
    with WebServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[WebServer]:
    yield from serve()


@pytest.fixture
def elsewhere() -> Iterator[WebServer]:
    yield from serve()


@pytest.fixture
def store() -> HttpStore:
    return HttpStore(StoreOptions(), POLICY)


class WebValues(ReadContract):
    _changes = itertools.count()

    @pytest.fixture(autouse=True)
    def habits(self, server: WebServer) -> None:
        self.server = server

    @pytest.fixture
    def root(self, server: WebServer) -> str:
        return f"{server.url}/in"

    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)

    def put(self, uri: str, data: bytes) -> None:
        self.server.objects[quote(urlsplit(uri).path)] = data, next(self._changes)

    def remove(self, uri: str) -> None:
        del self.server.objects[quote(urlsplit(uri).path)]


class TestWithIfMatch(WebValues):
    pass


class TestOnlyTellingETags(WebValues):
    @pytest.fixture(autouse=True)
    def habits(self, server: WebServer) -> None:
        self.server = server
        server.honours_if_match = False


class TestOnlyTellingWhenItChanged(WebValues):
    @pytest.fixture(autouse=True)
    def habits(self, server: WebServer) -> None:
        self.server = server
        server.tells = {"Last-Modified"}


class TestWithoutRanges(WebValues):
    @pytest.fixture(autouse=True)
    def habits(self, server: WebServer) -> None:
        self.server = server
        server.has_ranges = False


def test_an_object_without_ranges_is_fetched_once_for_all_threads(
    server: WebServer, store: HttpStore, caplog: pytest.LogCaptureFixture
) -> None:
    data = noise(3_000_000)
    server.objects["/x"] = data, 0
    server.has_ranges = False
    ref = store.stat(f"{server.url}/x?{SECRET}")
    with caplog.at_level(logging.INFO, "headrace.transforms.storage"), ThreadPoolExecutor(16) as threads:
        pieces = threads.map(lambda at: store.read(ref, at, 100_000), range(0, len(data), 100_000))
        assert b"".join(pieces) == data
    assert len(server.seen) == 2
    assert len(caplog.messages) == 1
    assert "s3cr3t" not in caplog.text


def test_the_beginning_of_an_object_without_ranges_is_read_without_the_rest(
    server: WebServer, store: HttpStore
) -> None:
    data = noise(64 << 20)
    server.objects["/x"] = data, 0
    server.has_ranges = False
    ref = store.stat(f"{server.url}/x")
    assert store.read(ref, 2, 4) == data[2:6]
    assert store.counters.bytes_read == 4


def test_a_whole_object_that_is_cut_off_is_fetched_again(server: WebServer, store: HttpStore) -> None:
    data = noise(3_000_000)
    server.objects["/x"] = data, 0
    server.has_ranges = False
    ref = store.stat(f"{server.url}/x")

    def cut(answer: Answer) -> bool:
        answer.close_connection = True
        return answer.say(200, data[:1_234_567], ETag=ref.version, **{"Content-Length": str(len(data))})

    server.faults = [cut]
    assert store.read(ref) == data
    assert store.counters.retries == 1
    store = HttpStore(StoreOptions(), POLICY)
    server.habit = cut
    with pytest.raises(
        StorageError, match=r"failed 3 times, the last time at byte 1234567\. .*ended 1765433 bytes early"
    ):
        store.read(store.stat(f"{server.url}/x"))


def test_an_absurd_length_is_refused(server: WebServer, store: HttpStore) -> None:
    server.habit = says(200, b"abc", ETag='"1"', **{"Content-Length": str(1 << 62), "Connection": "close"})
    with pytest.raises(StorageError, match=r"/x does not fit into memory.*4611686018427387904 bytes"):
        store.read(store.stat(f"{server.url}/x"), 10_000, 1)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Content-Length": ""}, "how large .*/x is.*Content-Length missing"),
        ({"Content-Encoding": "gzip"}, "/x comes packed.*gzip"),
        ({"ETag": ""}, "one version of .*/x.*neither"),
        ({"ETag": 'W/"1"'}, 'one version of .*/x.*ETag W/"1"'),
    ],
)
def test_what_cannot_be_pinned_is_refused(
    server: WebServer, store: HttpStore, headers: dict[str, str], found: str
) -> None:
    def answer(answer: Answer) -> bool:
        answer.close_connection = True
        return answer.say(200, b"abc", **{"ETag": '"1"', **headers})

    server.habit = answer
    with pytest.raises(StorageError, match=found):
        store.stat(f"{server.url}/x?{SECRET}")


def test_ranges_of_another_size_of_unknown_size_or_without_their_etag_are_not_read(
    server: WebServer, store: HttpStore
) -> None:
    server.objects["/x"] = b"abcdef", 0
    ref = store.stat(f"{server.url}/x")
    for headers in (
        {"Content-Range": "bytes 1-2/7", "ETag": ref.version},
        {"Content-Range": "bytes 1-2/6", "ETag": ""},
        {"Content-Range": "bytes 1-2/6", "ETag": ref.version, "Content-Encoding": "gzip"},
    ):
        server.faults = [says(206, b"xx", **headers)]
        with pytest.raises(ObjectChanged, match="/x was rewritten"):
            store.read(ref, 1, 2)
    assert store.read(ref, 1, 2) == b"bc"


def test_requests_ask_for_the_version_and_for_nothing_packed(server: WebServer, store: HttpStore) -> None:
    server.objects["/x"] = b"abc", 0
    ref = store.stat(f"{server.url}/x?{SECRET}")
    store.read(ref)
    assert [path for path, _ in server.seen] == [f"/x?{SECRET}"] * 2
    assert [headers.get("Range") for _, headers in server.seen] == ["bytes=0-0", "bytes=0-2"]
    assert {headers["Accept-Encoding"] for _, headers in server.seen} == {"identity"}
    assert server.seen[1][1]["If-Match"] == ref.version


def test_no_secret_is_shown(server: WebServer, store: HttpStore) -> None:
    server.objects["/x"] = b"abc", 0
    host = server.url.removeprefix("http://")
    uri = f"http://me:pa55word@{host}/x?{SECRET}"
    ref = store.stat(uri)
    assert store.read(ref) == b"abc"
    assert {headers["Authorization"] for _, headers in server.seen} == {"Basic bWU6cGE1NXdvcmQ="}
    told = [repr(ref), ref.name]
    leaks = f"<Code>SignatureDoesNotMatch</Code><SignatureProvided>s3cr3t</SignatureProvided><Message>No: ?{SECRET}".encode()
    for status in (400, 401, 403, 404, 412, 416, 500):
        server.habit = says(status, leaks)
        for call in (lambda: store.read(ref), lambda: HttpStore(policy=POLICY).read(ref), lambda: store.stat(uri)):
            with pytest.raises(StorageError) as caught:
                call()
            told.append(str(caught.value))
    for act in (lambda: store.create(uri), lambda: store.delete(ref), lambda: next(iter(store.list(uri)))):
        with pytest.raises(InvalidRequest) as refused:
            act()
        told.append(str(refused.value))
    server.habit = None
    with pytest.raises(StorageError, match="too short") as caught:
        store.read(ref, 2, 5)
    told.append(str(caught.value))
    assert all(f"http://{host}/x" in text for text in told)
    assert not [text for text in told if re.search("s3cr3t|AKIA|pa55word", text)]
    assert any("SignatureDoesNotMatch" in text for text in told)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_once_and_credentials_stay_at_home(
    server: WebServer, elsewhere: WebServer, store: HttpStore, status: int
) -> None:
    elsewhere.objects["/there"] = b"abcdef", 0
    server.habit = lambda answer: answer.say(status, b"", Location=f"{elsewhere.url}/there?token=1")
    ref = store.stat(server.url.replace("//", "//me:secret@") + "/x")
    assert store.read(ref, 1, 2) + store.read(ref, 3, 3) == b"bcdef"
    assert len(server.seen) == 1
    assert "Authorization" in server.seen[0][1]
    assert [path for path, _ in elsewhere.seen] == ["/there?token=1"] * 3
    assert not any("Authorization" in headers for _, headers in elsewhere.seen)
    # A worker finds its own way.
    assert pickle.loads(pickle.dumps(store)).read(ref) == b"abcdef"
    elsewhere.objects["/there"] = b"uvwxyz", 1
    with pytest.raises(ObjectChanged, match="/x was rewritten"):
        store.read(ref)


def test_a_redirect_that_has_expired_is_asked_for_again(
    server: WebServer, elsewhere: WebServer, store: HttpStore
) -> None:
    elsewhere.objects["/there"] = b"abcdef", 0
    tokens = itertools.count()
    server.habit = lambda answer: answer.say(302, b"", Location=f"{elsewhere.url}/there?token={next(tokens)}")
    ref = store.stat(f"{server.url}/x")
    elsewhere.habit = lambda answer: "token=0" in answer.path and answer.say(403, b"<Message>expired</Message>")
    assert store.read(ref) == b"abcdef"
    elsewhere.habit = lambda answer: answer.say(403, b"<Code>AccessDenied</Code><Message>Request has expired</Message>")
    with pytest.raises(AccessDenied, match=r"/x\. .*403.*sign it again"):
        store.read(ref)


def test_redirects_without_end_or_out_of_tls_are_refused(server: WebServer, store: HttpStore) -> None:
    server.habit = lambda answer: answer.say(302, b"", Location="/x?again")
    with pytest.raises(StorageError, match=r"/x leads from redirect to redirect.*10 of them"):
        store.stat(f"{server.url}/x")
    server.habit = lambda answer: answer.say(302, b"", Location="ftp://host/x?again")
    with pytest.raises(InvalidRequest, match="'ftp://…' is not a URL"):
        store.stat(f"{server.url}/x")


def test_names_are_quoted_where_they_are_not(server: WebServer, store: HttpStore) -> None:
    server.objects["/a%20b/%C3%BC%20c"] = b"abc", 0
    for name in ("/a b/ü c", "/a%20b/%C3%BC%20c", "/a b/%C3%BC%20c#part"):
        assert store.read(store.stat(server.url + name)) == b"abc"


@pytest.mark.parametrize("uri", ["https://", "http:///x", "http://host:port/x", "http://[::1/x", "https://a..b/x"])
def test_what_is_no_url(store: HttpStore, uri: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a URL"):
        store.stat(uri)


def test_a_url_is_no_pattern_unless_it_has_a_star(server: WebServer, store: HttpStore) -> None:
    server.objects["/x"] = b"abc", 0
    uri = f"{server.url}/x?a=[*]"
    assert [ref.uri for ref in store.glob(uri)] == [uri]
    with pytest.raises(InvalidRequest, match="cannot be listed"):
        list(store.glob(f"{server.url}/*.parquet"))
    with pytest.raises(ObjectNotFound, match="/y"):
        list(store.glob(f"{server.url}/y"))


def test_what_passes_is_tried_again(server: WebServer, store: HttpStore) -> None:
    server.objects["/x"] = b"abc", 0
    server.faults = [lambda answer: answer.say(503, b"busy")] * 2
    ref = store.stat(f"{server.url}/x")
    server.faults = [lambda answer: answer.say(429, b"busy")] * 2
    assert store.read(ref) == b"abc"
    assert store.counters.retries == 4
    server.habit = lambda answer: answer.say(503, b"busy")
    with pytest.raises(StorageError, match=r"Asking for .*/x failed 3 times.*503"):
        HttpStore(policy=POLICY).stat(f"{server.url}/x?{SECRET}")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://h/p/x?a=b#c", "https://h/p/x"),
        ("https://me:pw@h:1/p?q=a/b@c", "https://h:1/p"),
        ("https://me:p@w@h", "https://h"),
        ("http://h?me@x", "http://h"),
        ("gs://b/x?y#z", "gs://b/x?y#z"),
        ("/a?b@c", "/a?b@c"),
    ],
)
def test_what_people_see_of_a_uri(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


def test_no_error_of_ours_shows_a_signature() -> None:
    shown = StorageError(
        "https://me:pw@h/a/b?sig=1#x ended", expected="x", found='"http://h?sig=1" or gs://b/x?y', cure="No."
    )
    assert str(shown) == 'https://h/a/b ended. Expected: x. Found: "http://h" or gs://b/x?y. No.'
    assert (shown.what, str(pickle.loads(pickle.dumps(shown)))) == ("https://h/a/b ended", str(shown))


@pytest.mark.parametrize(
    "text",
    [
        "https://me:it's s3cr3t@h/x".replace(" ", "_"),
        "https://h/it's?sig=a's3cr3t",
        "'https://h/x?sig=s3cr3t'",
        "https://h/x?a=1,https://me:s3cr3t@h/y?s3cr3t",
        "https://h/x,https://me:s3cr3t@h/y",
        '{"model": "https://h/x?s3cr3t"}',
    ],
)
def test_a_secret_may_hold_what_ends_other_addresses(text: str) -> None:
    assert "s3cr3t" not in str(StorageError(f"Cannot read {text}"))


def test_a_traceback_shows_no_answer(server: WebServer, store: HttpStore) -> None:
    server.objects["/x"] = b"abc", 0
    ref = store.stat(f"{server.url}/x?{SECRET}")
    server.habit = says(403, f"<Error><CanonicalRequest>GET /x?{SECRET}</CanonicalRequest></Error>".encode())
    try:
        store.read(ref)
    except StorageError:
        assert "s3cr3t" not in traceback.format_exc()
        assert "HTTP 403" in traceback.format_exc()
    else:
        pytest.fail("it was read")


def test_objects_without_ranges_are_held_up_to_a_bound(
    server: WebServer, store: HttpStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_store, "_MOST_HELD_BYTES", 100_000)
    store = HttpStore(StoreOptions(), POLICY)
    server.has_ranges = False
    data = {f"/{i}": noise(40_000) for i in range(5)}
    server.objects = {name: (content, 0) for name, content in data.items()}

    def fetched(name: str) -> int:
        return sum(path == name and "Range" not in headers for path, headers in server.seen)

    for name, content in data.items():
        ref = store.stat(server.url + name)
        assert store.read(ref, 5_000) == content[5_000:]
        assert store.read(ref, 7_000) == content[7_000:]
        assert fetched(name) == 1
    assert store.read(store.stat(f"{server.url}/4"), 6_000) == data["/4"][6_000:]
    assert store.read(store.stat(f"{server.url}/0"), 6_000) == data["/0"][6_000:]
    assert (fetched("/4"), fetched("/0")) == (1, 2)


def test_slashes_at_a_path_s_start_and_a_signature_s_end_are_asked_for_as_they_are(
    server: WebServer, store: HttpStore
) -> None:
    asked = set()

    def one_byte(answer: Answer) -> bool:
        asked.add(answer.requestline)  # its path has one slash where two were sent
        return answer.say(206, b"a", **{"ETag": '"1"', "Content-Range": "bytes 0-0/1"})

    server.habit = one_byte
    store.stat(f"{server.url}//a//b?sig=x/")
    with pytest.raises(NotAModel):
        pin_model(f"{server.url}//a//b?sig=x/")
    assert asked == {"GET //a//b?sig=x/ HTTP/1.1"}


def test_signed_inputs_are_refused_since_names_of_outputs_would_show_them() -> None:
    with pytest.raises(InvalidRequest, match=r"--input=https://h/x\.parquet has a query"):
        list(each_input(("https://h/x.parquet?sig=1",), StoreOptions(), PassedOver()))
