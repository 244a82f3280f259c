"""One copy of the weights per machine: real processes, a bucket that counts what it sends, and deaths at bad moments."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from tests.support import model_zoo
from tests.support.warm import shared
from tests.transforms.models.test_load_no_disk import _BEGIN, writes

MIB = 1 << 20
WIDTH, LAYERS = 1600, 4
PATIENCE_S = 180.0
ROOT = Path(__file__).resolve().parents[4]


class Bucket:
    """A proxy in front of the emulator: counts how often it has sent each byte of each object, and can hold them back."""

    def __init__(self, emulator: str) -> None:
        self.sent: dict[str, Any] = {}
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        self._free = 0
        self._lock = threading.Lock()
        where = urlsplit(emulator)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                ahead = http.client.HTTPConnection(where.hostname or "", where.port)
                headers = {k: v for k, v in handler.headers.items() if k.lower() != "host"}
                ahead.request("GET", handler.path, headers=headers)
                answer = ahead.getresponse()
                body = answer.read()
                ahead.close()
                if "alt=media" in handler.path:
                    self.wait(len(body))
                    if select.select([handler.connection], [], [], 0)[0]:
                        # Who asks for one thing at a time sends nothing more: it is a killed process's connection.
                        handler.close_connection = True
                        return
                    self.count(handler.path, answer.getheader("Content-Range"), len(body))
                handler.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                        handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, format: str, *args: Any) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(server, request: Any, client_address: Any) -> None:
                """A client was killed, as it is meant to be here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, length: int) -> None:
        # What is smaller is the graph and the directory of the weights, which each process reads for itself.
        if length >= MIB and not self.open.is_set():
            with self._lock:
                self._free -= 1
                waits = self._free < 0
            if waits:
                self.held.set()
                self.open.wait(PATIENCE_S)

    def count(self, path: str, content_range: str | None, length: int) -> None:
        name = unquote(urlsplit(path).path.partition("/o/")[2])
        first, size = 0, length
        if found := re.match(r"bytes (\d+)-\d+/(\d+)", content_range or ""):
            first, size = int(found[1]), int(found[2])
        with self._lock:
            times = self.sent.setdefault(name, np.zeros(size, np.uint8))
            times[first : first + length] += 1

    def hold(self, after: int) -> None:
        """Sends so many more pieces of weights, and no other until `open` is set."""
        self._free = after
        self.held.clear()
        self.open.clear()

    def forget(self) -> None:
        with self._lock:
            self.sent.clear()

    def bytes_sent(self) -> int:
        return sum(int(times.sum()) for times in self.sent.values())

    def bytes_sent_again(self) -> int:
        """Bytes sent more than once, counted each time after the first."""
        return sum(int(np.maximum(times, 1).sum()) - times.size for times in self.sent.values())

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


class Worker:
    """A process that does what `tests/support/sharing_worker.py` is told."""

    pid: int
    _orders: IO[str]
    _answers: IO[str]

    def send(self, do: str, **order: Any) -> None:
        self._orders.write(json.dumps({"do": do, **order}) + "\n")
        self._orders.flush()

    def answer(self) -> Any:
        assert select.select([self._answers], [], [], PATIENCE_S)[0], f"process {self.pid} hangs"
        line = self._answers.readline()
        assert line, f"process {self.pid} has ended"
        return json.loads(line)

    def ask(self, do: str, **order: Any) -> Any:
        self.send(do, **order)
        return self.answer()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._wait()
        self._orders.close()
        self._answers.close()

    def running(self) -> bool:
        return not self._answers.closed

    def _wait(self) -> None:
        raise NotImplementedError


class Fresh(Worker):
    """A new process: what it holds in memory, no other had before."""

    def __init__(self, bucket: Bucket) -> None:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.sharing_worker"],
            cwd=ROOT,
            env={**os.environ, "STORAGE_EMULATOR_HOST": bucket.url, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid, self._orders, self._answers = process.pid, process.stdin, process.stdout

    def _wait(self) -> None:
        self._process.wait()


class Forked(Worker):
    """Of one that has imported what it needs."""

    def __init__(self, bucket: Bucket) -> None:
        with tempfile.TemporaryDirectory() as folder:
            orders, answers = (f"{folder}/{name}" for name in ("orders", "answers"))
            os.mkfifo(orders)
            os.mkfifo(answers)
            env = {**os.environ, "STORAGE_EMULATOR_HOST": bucket.url, "TF_CPP_MIN_LOG_LEVEL": "3"}
            script = str(ROOT / "tests" / "support" / "sharing_worker.py")
            self.pid = shared().run([script, orders, answers], Path(folder), env)
            self._orders, self._answers = Path(orders).open("w"), Path(answers).open()  # noqa: SIM115

    def _wait(self) -> None:
        shared().wait(self.pid)


def every(workers: list[Worker], do: str, **order: Any) -> list[Any]:
    """The same order to all at once."""
    for worker in workers:
        worker.send(do, **order)
    return [worker.answer() for worker in workers]


def addresses(pid: int) -> set[str]:
    """The abstract addresses of weights that a process holds."""
    held = set()
    for number in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(number)):
                held.add(found[1])
        except FileNotFoundError:
            continue
    return {
        fields[7]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if len(fields := line.split()) > 7
        and fields[6] in held
        and fields[7].startswith("@headrace-")
        and fields[3] == "00010000"
    }


def all_addresses() -> str:
    return Path("/proc/net/unix").read_text()


def eventually(true: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def models(emulator: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`small` and `large`, each as a folder and as `.keras`, in one bucket."""
    import keras
    from google.cloud import storage

    client = storage.Client(project="test")
    bucket = client.create_bucket(f"sharing-{os.getpid()}-{time.monotonic_ns()}")
    for name, width in (("small", 8), ("large", WIDTH)):
        folder = tmp_path_factory.mktemp(name)
        keras.utils.set_random_seed(1)
        x = inputs = keras.Input((width,), name="x")
        for _ in range(LAYERS):
            x = keras.layers.Dense(width, activation="tanh")(x)
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
        model.export(folder / name, verbose=False)
        model.save(folder / f"{name}.keras")
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.blob(str(path.relative_to(folder))).upload_from_filename(str(path))
    client.close()
    return f"gs://{bucket.name}"


@pytest.fixture(scope="module")
def bucket(emulator: str) -> Iterator[Bucket]:
    proxy = Bucket(emulator)
    yield proxy
    proxy.close()


@pytest.fixture
def workers(bucket: Bucket) -> Iterator[Callable[..., list[Worker]]]:
    started: list[Worker] = []

    def start(n: int, kind: Callable[[Bucket], Worker] = Forked) -> list[Worker]:
        started.extend(new := [kind(bucket) for _ in range(n)])
        return new

    bucket.open.set()
    bucket.forget()
    yield start
    for worker in started:
        if worker.running():
            worker.kill()


def test_four_processes_hold_one_copy_fetched_once_and_predict_the_same_bits(
    models: str, bucket: Bucket, workers: Callable[..., list[Worker]]
) -> None:
    crew = workers(4, Fresh)
    for form in ("", ".keras"):
        small, large = f"{models}/small{form}", f"{models}/large{form}"
        # What Python and TensorFlow keep for any model at all is no weight.
        every(crew, "load", uri=small, sharing="process")
        every(crew, "predict", uri=small)
        idle = every(crew, "pss")
        bucket.forget()
        loads = every(crew, "load", uri=large, sharing="machine")
        nbytes = loads[0]["nbytes"]
        assert nbytes > 38 * MIB
        assert bucket.bytes_sent_again() < 3 * MIB
        assert bucket.bytes_sent() < 1.01 * nbytes + 4 * MIB
        said = [" ".join(load["said"]) for load in loads]
        assert sorted("mapped" in words for words in said) == [False, True, True, True]
        assert sorted("streamed" in words and "mapped" not in words for words in said) == [False, False, False, True]

        answers = every(crew, "predict", uri=large)
        busy = every(crew, "pss")
        shared, own = (sum(now[kind] - then[kind] for now, then in zip(busy, idle, strict=True)) for kind in idle[0])
        print(
            f"large{form}: summed PSS grew by {shared / nbytes:.3f} (shared) + {own / nbytes:.3f} (own) x {nbytes} bytes"
        )
        assert nbytes <= shared < 1.01 * nbytes + 64 * 1024
        # The graph and the threads, in each of the four: as much as without sharing, and for larger weights no more.
        assert own < 4 * 6 * MIB

        held = set().union(*(addresses(worker.pid) for worker in crew))
        assert len(held) == 1
        every(crew, "drop", uri=large)
        eventually(lambda: not any(name in all_addresses() for name in held), f"{held} are left")  # noqa: B023

        crew[0].ask("load", uri=large, sharing="process")
        assert [crew[0].ask("predict", uri=large)] * 4 == answers
        assert not addresses(crew[0].pid)
        crew[0].ask("drop", uri=large)
    assert not [name for name in os.listdir("/dev/shm") if "headrace" in name]


def test_a_leader_killed_at_any_time_is_replaced(
    models: str, bucket: Bucket, workers: Callable[..., list[Worker]]
) -> None:
    leader, *others, newcomer = workers(4)
    every(others, "load", uri=f"{models}/small", sharing="machine")
    large = f"{models}/large"
    bucket.hold(after=2)
    bucket.forget()
    leader.send("load", uri=large, sharing="machine")
    assert bucket.held.wait(PATIENCE_S)
    [address] = addresses(leader.pid)
    for other in others:
        other.send("load", uri=large, sharing="machine")
    # The listener, and its end of two connections.
    eventually(lambda: all_addresses().count(address) == 3, "the others do not wait for the leader")
    leader.kill()
    eventually(lambda: any(address in addresses(other.pid) for other in others), "nobody took the leader's place")
    bucket.forget()
    bucket.open.set()
    said = [" ".join(other.answer()["said"]) for other in others]
    assert bucket.bytes_sent_again() < 3 * MIB
    assert sorted("taking its place" in words and "mapped" not in words for words in said) == [False, True]
    assert sum("mapped" in words for words in said) == 1
    answers = every(others, "predict", uri=large)

    # Sealed by now: whoever has it may go.
    leads = next(other for other in others if address in addresses(other.pid))
    [last] = [other for other in others if other is not leads]
    leads.kill()
    eventually(lambda: address in addresses(last.pid), "the last one does not stand by")
    bucket.forget()
    assert "mapped" in " ".join(newcomer.ask("load", uri=large, sharing="machine")["said"])
    assert bucket.bytes_sent() < 2 * MIB
    last.kill()
    eventually(lambda: address in addresses(newcomer.pid), "the newcomer does not stand by")
    answers.append(newcomer.ask("predict", uri=large))

    newcomer.ask("load", uri=f"{large}.keras", sharing="process")
    answers.append(newcomer.ask("predict", uri=f"{large}.keras"))
    assert len({str(answer) for answer in answers}) == 1
    newcomer.kill()
    assert address not in all_addresses()
    assert not [name for name in os.listdir("/dev/shm") if "headrace" in name]


def test_what_a_signature_writes_is_its_process_own(tmp_path: Path, workers: Callable[..., list[Worker]]) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.sums = tf.Variable(tf.zeros([1000, 1000]))
    spec = tf.TensorSpec([1000, 1000], tf.float32, name="x")
    add = tf.function(lambda x: {"y": module.sums.assign_add(x)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "adding"), signatures=add.get_concrete_function())

    uri = str(tmp_path / "adding")
    first, second = workers(2)
    first.ask("load_shared", uri=uri)
    second.ask("load_shared", uri=uri)
    [address] = addresses(first.pid)
    before = first.ask("predict", uri=uri)
    assert first.ask("predict", uri=uri) != before
    eventually(lambda: address in addresses(second.pid), "the other does not stand by")
    assert second.ask("predict", uri=uri) == before
    # By now each has a sum of its own, and nobody the zeros.
    eventually(lambda: address not in all_addresses(), "weights that nobody uses are kept")


def test_who_shares_is_one_of_two() -> None:
    from headrace.transforms.errors import InvalidRequest
    from headrace.transforms.models.loading import Loading

    with pytest.raises(InvalidRequest, match="'machine' or 'process'"):
        Loading(model_sharing="rack")


_LOAD = f"""
import os, sys
import tensorflow, headrace.transforms.models.streaming.shared_stream, headrace.transforms.models.saved_model.tf2
from headrace.transforms.models.load import load_model
{_BEGIN}
print(load_model(sys.argv[1]).parameters)
"""


def test_sharing_touches_no_file(tmp_path: Path) -> None:
    model_zoo.keras_export(tmp_path / "saved")
    found, printed = writes(_LOAD, [str(tmp_path / "saved")], tmp_path / "trace")
    assert int(printed) > 0
    assert found == []
    # The segment was made, and lies in no file system.
    segments = re.findall(r"\bftruncate\(\d+<(.*?)[:>].* = 0", (tmp_path / "trace").read_text())
    assert segments == ["/memfd"]
