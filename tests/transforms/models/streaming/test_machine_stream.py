"""Streams that meet on one machine: who leads, who follows, whom nobody believes. No TensorFlow, small tensors."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, StorageError
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.streaming import shared_host as machine
from headrace.transforms.models.streaming import shared_segment as segment
from headrace.transforms.models.streaming import shared_stream as machine_stream
from headrace.transforms.models.streaming.composed_crc import CheckedSpan
from headrace.transforms.models.streaming.shared_stream import MachineStream
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, TensorSlot, mask_crc
from headrace.transforms.storage import ObjectRef
from headrace.transforms.storage.local import LocalStore
from tests.transforms.models.streaming.test_sharing import addresses, all_addresses, eventually

ROOT = Path(__file__).resolve().parents[4]
SIZES = (3 << 20, 100, 0, 5000, 1 << 20)
SMALL_PIECES = StreamOptions(connections=2, piece_bytes=64 << 10)


class Wire(LocalStore):
    """Local files behind a wire that can be held after so many reads, and cut."""

    def __init__(self, hold_after: int | None = None) -> None:
        super().__init__()
        self.hold_after, self.reads = hold_after, 0
        self.held, self.go = threading.Event(), threading.Event()
        self.cut = False

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        self.reads += 1
        if self.hold_after is not None and self.reads > self.hold_after:
            self.held.set()
            assert self.go.wait(60)
        if self.cut:
            raise StorageError("the wire is cut")
        super().read_into(ref, offset, buffers)


class File:
    """Tensors of random bytes in a file, and what they must be."""

    def __init__(self, path: Path) -> None:
        data = np.random.default_rng(5).integers(0, 256, sum(SIZES), np.uint8)
        if not path.exists():
            path.write_bytes(data.tobytes())
        ref = LocalStore().stat(str(path))
        ends = np.cumsum(SIZES)
        self.slots = [
            TensorSlot(f"t{i}", "uint8", (size,), ref, int(end) - size, size)
            for i, (size, end) in enumerate(zip(SIZES, ends, strict=True))
        ]
        self.values = {slot.name: data[slot.offset : slot.offset + slot.nbytes].tobytes() for slot in self.slots}
        self.layout = segment.lay_out(self.slots, str(path))
        self.identity = str(path)

    @property
    def address(self) -> str:
        return self.layout.name.decode().replace("\0", "@")

    def stream(self, store: LocalStore, options: StreamOptions = SMALL_PIECES) -> MachineStream:
        return MachineStream(store, self.slots, options, identity=self.identity)

    def load(self, store: LocalStore, options: StreamOptions = SMALL_PIECES) -> dict[str, Any]:
        with self.stream(store, options) as stream:
            return {slot.name: stream.take(slot.name) for slot in self.slots}

    def check(self, arrays: dict[str, Any]) -> None:
        assert {name: array.tobytes() for name, array in arrays.items()} == self.values
        assert all(array.ctypes.data % 64 == 0 for array in arrays.values() if array.nbytes)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "weights")


@pytest.fixture(autouse=True)
def _say_everything(caplog: pytest.LogCaptureFixture) -> None:
    machine_stream.say_once.cache_clear()
    caplog.set_level(logging.INFO, "headrace.transforms.models")


class Following(threading.Thread):
    """Loads in a thread of its own."""

    def __init__(self, file: File, store: LocalStore, options: StreamOptions = SMALL_PIECES) -> None:
        super().__init__(daemon=True)
        self.file, self.store, self.options = file, store, options
        self.arrays: dict[str, Any] = {}
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.arrays = self.file.load(self.store, self.options)
        except Exception as error:
            self.error = error

    def result(self) -> dict[str, Any]:
        self.join(60)
        assert not self.is_alive(), "hangs"
        if self.error:
            raise self.error
        return self.arrays


def test_one_fetches_and_the_others_see_how_far_it_is(file: File, caplog: pytest.LogCaptureFixture) -> None:
    leader, follower = Wire(hold_after=20), Wire()
    seen: list[tuple[int, int]] = []
    first = Following(file, leader)
    assert leader.held.wait(30)
    options = StreamOptions(progress=lambda arrived, total: seen.append((arrived, total)))
    second = Following(file, follower, options)
    eventually(lambda: any(0 < arrived < sum(SIZES) for arrived, _ in seen), "no progress is told")
    leader.go.set()
    arrays, others = first.result(), second.result()
    file.check(arrays)
    file.check(others)
    assert follower.reads == 0
    assert seen == sorted(seen)
    assert seen[-1] == (sum(SIZES), sum(SIZES))
    assert "which another process of this machine has streamed" in caplog.text

    others["t0"][:] = 0
    assert arrays["t0"].tobytes() == file.values["t0"], "a stray write went through"
    late = file.load(Wire())
    file.check(late)

    assert file.address in addresses(os.getpid())
    del arrays, others, late
    first.arrays, second.arrays = {}, {}
    eventually(lambda: file.address not in all_addresses(), "the address outlives the last user")


def test_nobody_can_write_or_resize_what_is_handed_over(file: File) -> None:
    arrays = file.load(Wire())
    met, leads = machine.meet(file.layout)
    descriptor = machine.receive(met, file.layout, lambda arrived, total: None)
    assert not leads
    assert descriptor is not None
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        segment.map_shared(descriptor, file.layout.nbytes)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)
    os.close(descriptor)
    met.close()
    file.check(arrays)


def test_who_fails_makes_room_and_tells_its_own_error(file: File) -> None:
    leader = Wire(hold_after=3)
    first = Following(file, leader)
    assert leader.held.wait(30)
    second, third = Following(file, Wire()), Following(file, Wire())
    leader.cut = True
    leader.go.set()
    with pytest.raises(StorageError, match="the wire is cut"):
        first.result()
    file.check(second.result())
    file.check(third.result())
    assert sorted((second.store.reads > 0, third.store.reads > 0)) == [False, True]  # type: ignore[attr-defined]


def test_a_load_given_up_leaves_nothing(file: File) -> None:
    with pytest.raises(KeyboardInterrupt), file.stream(Wire()):
        raise KeyboardInterrupt
    eventually(lambda: file.address not in all_addresses(), "the address is left")
    leader = Wire(hold_after=0)
    first = Following(file, leader)
    assert leader.held.wait(30)
    with pytest.raises(KeyboardInterrupt), file.stream(Wire()):
        raise KeyboardInterrupt
    leader.go.set()
    file.check(first.result())


def test_what_the_leader_does_not_take_is_there_for_others(file: File) -> None:
    with file.stream(Wire()) as stream:
        array = stream.take("t3")
    late = Wire()
    file.check(file.load(late))
    assert late.reads == 0
    assert array.tobytes() == file.values["t3"]


def test_other_models_layouts_and_versions_do_not_meet(file: File, tmp_path: Path) -> None:
    arrays = file.load(Wire())
    changed = [*file.slots[:-1], TensorSlot(**{**_fields(file.slots[-1]), "dtype": "int8"})]
    for slots, identity in ((file.slots, "another model"), (changed, file.identity), (file.slots[1:], file.identity)):
        store = Wire()
        with MachineStream(store, slots, SMALL_PIECES, identity=identity) as stream:
            stream.take("t3")
        assert store.reads
    file.check(arrays)


def _fields(slot: TensorSlot) -> dict[str, Any]:
    return {name: getattr(slot, name) for name in slot.__slots__}


Peer = Callable[[socket.socket, File], None]


def _message(file: File, *, complete: bool, digest: bytes | None = None, arrived: int = 1) -> bytes:
    return struct.pack("<8s?QQ32s", b"headrace", complete, arrived, sum(SIZES), digest or file.layout.digest)


def _segment(nbytes: int, seals: int) -> int:
    descriptor = segment.create(nbytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _hands_over(make: Callable[[File], int], **message: Any) -> Peer:
    def peer(connection: socket.socket, file: File) -> None:
        descriptor = make(file)
        socket.send_fds(connection, [_message(file, complete=True, **message)], [descriptor])
        os.close(descriptor)
        connection.recv(1)

    return peer


def _says(*messages: Callable[[File], bytes]) -> Peer:
    def peer(connection: socket.socket, file: File) -> None:
        for message in messages:
            connection.send(message(file))
        connection.recv(1)

    return peer


def _goes_on_about_nothing(connection: socket.socket, file: File) -> None:
    while True:
        connection.send(_message(file, complete=False))
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (_hands_over(lambda f: _segment(f.layout.nbytes, _ALL), digest=bytes(32)), "lays out another model"),
        (_hands_over(lambda f: _segment(f.layout.nbytes - 4096, _ALL)), "bytes, and the weights"),
        (_hands_over(lambda f: _segment(f.layout.nbytes + 4096, _ALL)), "bytes, and the weights"),
        (_hands_over(lambda f: _segment(f.layout.nbytes, 0)), "not sealed"),
        (_hands_over(lambda f: _segment(f.layout.nbytes, _ALL & ~fcntl.F_SEAL_SHRINK)), "not sealed"),
        (_hands_over(lambda f: _segment(f.layout.nbytes, _ALL & ~fcntl.F_SEAL_WRITE)), "not sealed"),
        (_hands_over(lambda f: os.open(f.identity, os.O_RDONLY)), "no memfd"),
        (_hands_over(lambda f: os.open("/dev/zero", os.O_RDWR)), "no memfd"),
        (_hands_over(lambda f: os.pipe()[0]), "no memfd"),
        (_says(lambda f: _message(f, complete=True)), "does not send"),
        (_says(lambda f: b"hello"), "a message of 5 bytes"),
        (_says(lambda f: _message(f, complete=False) + b"x"), "a message of"),
        (_says(), "said nothing for"),
        (_goes_on_about_nothing, "got nothing for"),
    ],
)
def test_a_peer_that_is_wrong_is_not_believed(
    file: File, peer: Peer, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SILENCE_S", 1.0)
    monkeypatch.setattr(machine, "STALL_S", 1.0)
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(file.layout.name)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    peer(connection, file)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        store = Wire()
        file.check(file.load(store))
        thread.join(30)
        assert store.reads
    assert re.search(f"not shared with other processes of this machine: .*{why}", caplog.text)
    # The pipe of one case is the peer's own to lose.
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_an_address_that_nobody_answers_is_not_waited_for(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEET_S", 0.5)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(file.layout.name)
        file.check(file.load(Wire()))


_NOBODY = 65534


def _as_nobody(script: str, *arguments: str) -> subprocess.Popen[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    return subprocess.Popen(
        [sys.executable, "-c", f"import os, socket, sys; os.setuid({_NOBODY}); {script}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_another_users_process_is_not_believed(file: File, caplog: pytest.LogCaptureFixture) -> None:
    squatter = _as_nobody(
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
        "s.bind(b'\\0' + sys.argv[1].encode()); s.listen(); print('ready', flush=True); sys.stdin.read()",
        file.address[1:],
    )
    assert squatter.stdout is not None
    assert squatter.stdout.readline() == "ready\n"
    store = Wire()
    file.check(file.load(store))
    assert store.reads
    assert f"user {_NOBODY} has taken the address" in caplog.text
    squatter.communicate()


def test_another_users_process_gets_nothing(file: File, caplog: pytest.LogCaptureFixture) -> None:
    arrays = file.load(Wire())
    thief = _as_nobody(
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
        "s.connect(b'\\0' + sys.argv[1].encode()); print(socket.recv_fds(s, 100, 1)[:2])",
        file.address[1:],
    )
    assert thief.communicate(timeout=30)[0] == "(b'', [])\n"
    assert f"User {_NOBODY} asked for this process's weights and was refused" in caplog.text
    file.check(arrays)


def test_a_stranger_who_calls_again_and_again_is_logged_once(file: File, caplog: pytest.LogCaptureFixture) -> None:
    machine._strangers = machine._Strangers()
    arrays = file.load(Wire())
    thief = _as_nobody(
        "[s.connect(b'\\0' + sys.argv[1].encode()) or s.recv(9) for s in "
        "[socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(30)]]",
        file.address[1:],
    )
    assert thief.wait(30) == 0
    assert caplog.text.count(f"User {_NOBODY} asked for this process's weights and was refused") == 1
    file.check(arrays)


def test_strangers_are_counted_by_user_and_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    strangers = machine._Strangers(lambda: now[0])
    for now[0] in (0.0, 1.0, 59.0, 61.0):
        strangers.refused(7)
        strangers.refused(8)
    said = [record.getMessage().partition(" asked")[0] for record in caplog.records]
    assert said == ["User 7", "User 8"] * 2
    assert caplog.messages[-1].endswith("refused, and 2 times since that was last logged")
    for user in range(5000):
        strangers.refused(user)
    assert len(strangers._seen) <= 1024


def _handed_over_with_another_byte(file: File, at: int) -> machine.Host:
    """A leader of this very user whose segment is sealed, and differs in one byte from what the files hold."""
    listener, leads = machine.meet(file.layout)
    assert leads
    descriptor = segment.create(file.layout.nbytes)
    filled = segment.map_shared(descriptor, file.layout.nbytes)
    for slot, offset in zip(file.slots, file.layout.offsets, strict=True):
        filled[offset : offset + slot.nbytes] = file.values[slot.name]
    filled[at] ^= 1
    filled.close()
    segment.seal(descriptor)
    host = machine.Host(file.layout, total=sum(SIZES), arrived=lambda: sum(SIZES), listener=listener)
    host.publish(descriptor)
    return host


@pytest.mark.parametrize("known", ["slots", "span"])
@pytest.mark.parametrize("which", [0, 1, 4])
def test_a_byte_that_no_file_holds_is_not_believed(
    file: File, caplog: pytest.LogCaptureFixture, known: str, which: int
) -> None:
    import crc32c

    spans: list[CheckedSpan] = []
    if known == "slots":
        file.slots = [
            replace(slot, masked_crc32c=mask_crc(crc32c.crc32c(file.values[slot.name]))) for slot in file.slots
        ]
    else:
        every = b"".join(file.values.values())
        spans = [CheckedSpan(file.slots[0].source, 0, len(every), zlib.crc32(every), "CRC-32")]
    file.layout = segment.lay_out(file.slots, file.identity)
    host = _handed_over_with_another_byte(file, file.layout.offsets[which])
    store = Wire()
    with MachineStream(store, file.slots, SMALL_PIECES, spans, identity=file.identity) as stream:
        arrays = {slot.name: stream.take(slot.name) for slot in file.slots}
    host.close()
    file.check(arrays)
    assert store.reads
    assert "what was handed over is damaged" in caplog.text


def test_what_checksums_agree_with_is_shared(file: File) -> None:
    every = b"".join(file.values.values())
    spans = [CheckedSpan(file.slots[0].source, 0, len(every), zlib.crc32(every), "CRC-32")]
    first = file.load(Wire())
    store = Wire()
    with MachineStream(store, file.slots, SMALL_PIECES, spans, identity=file.identity) as stream:
        arrays = {slot.name: stream.take(slot.name) for slot in file.slots}
    file.check(arrays)
    file.check(first)
    assert not store.reads


# Loads the file's tensors, says so, and does as it is told.
_PROCESS = """
import os, sys, time
from pathlib import Path
from tests.transforms.models.streaming.test_machine_stream import File, Wire
file = File(Path(sys.argv[1]))
store = Wire()
arrays = file.load(store)
file.check(arrays)
print(store.reads, flush=True)
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
sys.stdin.read()
"""


def _process(file: File, how: str = "", command: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, sys.executable, "-c", _PROCESS, file.identity, how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_forked_child_does_not_hold_the_address(file: File) -> None:
    leader = _process(file, "fork")
    assert _line(leader) > 0
    child = _line(leader)
    try:
        assert file.address in addresses(leader.pid)
        eventually(lambda: not addresses(child), "the child holds the address")
        leader.kill()
        leader.wait()
        assert file.address not in all_addresses()
        store = Wire()
        file.check(file.load(store))
        assert store.reads
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_while_streaming_does_not_keep_the_segment_from_being_sealed(file: File) -> None:
    leader = Wire(hold_after=5)
    first = Following(file, leader)
    assert leader.held.wait(30)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        leader.go.set()
        file.check(first.result())
        late = Wire()
        file.check(file.load(late))
        assert late.reads == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_standby_processes_take_over_in_turn(file: File) -> None:
    crew = [_process(file)]
    assert _line(crew[0]) > 0
    crew += [_process(file), _process(file)]
    assert [_line(process) for process in crew[1:]] == [0, 0]
    while crew:
        leads = next(process for process in crew if addresses(process.pid))
        leads.kill()
        leads.wait()
        crew.remove(leads)
        if crew:
            eventually(lambda: any(addresses(process.pid) for process in crew), "nobody stands by")
            store = Wire()
            file.check(file.load(store))
            assert store.reads == 0
            eventually(lambda: not addresses(os.getpid()) & {file.address}, "this process has kept it")
    eventually(lambda: file.address not in all_addresses(), "the last one out left something behind")


def test_a_stopped_leader_is_not_waited_for_for_ever(
    file: File, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SILENCE_S", 1.0)
    leader = _process(file)
    assert _line(leader) > 0
    os.kill(leader.pid, signal.SIGSTOP)
    os.waitpid(leader.pid, os.WUNTRACED)
    try:
        store = Wire()
        file.check(file.load(store))
        assert store.reads
        assert "said nothing for 1 s" in caplog.text
    finally:
        leader.kill()
        leader.wait()


def test_a_small_dev_shm_is_no_bound(file: File) -> None:
    """In a mount namespace of its own, /dev/shm holds 64 KiB, and the segment 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && ! head -c 1000000 /dev/zero > /dev/shm/x && exec "$@"'
    mounting = ["unshare", "--mount", "sh", "-c", script, "sh"]
    leader = _process(file, command=mounting)
    assert _line(leader) > 0
    follower = _process(file)
    assert _line(follower) == 0
    for process in (leader, follower):
        process.communicate("", timeout=30)


@pytest.mark.parametrize("broken", ["memfd_create", "ftruncate"])
def test_without_memfd_each_has_its_own(
    file: File, broken: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, broken, refuse)
    for _ in range(2):
        store = Wire()
        file.check(file.load(store))
        assert store.reads
    assert caplog.text.count("not shared") == 1
    assert "Function not implemented" in caplog.text
    assert file.address not in all_addresses()


def test_a_buffer_that_stays_in_use_keeps_the_weights_private(file: File, caplog: pytest.LogCaptureFixture) -> None:
    kept: list[memoryview] = []

    class Keeping(Wire):
        def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
            kept.append(buffers[0])
            super().read_into(ref, offset, buffers)

    file.check(file.load(Keeping()))
    assert "could not be sealed" in caplog.text
    eventually(lambda: file.address not in all_addresses(), "what is not sealed is offered")


class _Refuses(socket.socket):
    def __init__(self, *_: Any) -> None:
        raise OSError(97, "Address family not supported by protocol")


def test_where_processes_cannot_meet_each_has_its_own(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's RestrictAddressFamilies and seccomp filters refuse the socket itself."""
    monkeypatch.setattr(socket, "socket", _Refuses)
    file.check(file.load(store := Wire()))
    assert store.reads


def test_without_a_thread_to_hand_them_on_each_has_its_own_and_nothing_stays(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def no_more_threads(thread: threading.Thread) -> None:
        if thread.name == "headrace-host":
            raise RuntimeError("can't start new thread")
        start(thread)

    before = _memfds()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        arrays = file.load(Wire())
    file.check(arrays)
    assert file.address not in all_addresses()
    assert _memfds() == before


def _memfds() -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.exists(link) and "headrace-weights" in os.readlink(link)]


@pytest.mark.parametrize(("uid_map", "shares"), [("0 0 4294967295", True), ("0 1000 1", False), ("", False)])
def test_who_looks_like_any_stranger_meets_nobody(
    file: File, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid_map: str, shares: bool
) -> None:
    """The kernel shows the users that a namespace does not know as one, which may be this process's own number."""
    (tmp_path / "uid_map").write_text(uid_map)
    monkeypatch.setattr(machine, "_UID_MAP", str(tmp_path / "uid_map"))
    monkeypatch.setattr(os, "geteuid", lambda: int(Path("/proc/sys/kernel/overflowuid").read_text()))
    file.layout = segment.lay_out(file.slots, file.identity)
    arrays = file.load(Wire())
    assert (file.address in all_addresses()) == shares
    file.check(arrays)


def test_a_model_that_cannot_be_read_is_told_by_all_at_once(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by one after the other, each after it has fetched the whole in the place of the one before."""
    file.slots[0] = replace(file.slots[0], masked_crc32c=1)
    leader, joined = Wire(hold_after=5), list[int]()
    lead = Following(file, leader)
    assert leader.held.wait(30)
    monkeypatch.setattr(MachineStream, "_lead", lambda *_: joined.append(1))
    waiting = [(store, Following(file, store)) for store in (Wire(), Wire(), Wire())]
    eventually(lambda: any(len(host._clients) == 3 for host in list(machine._hosts)), "they do not meet the leader")
    assert not any(store.reads for store, _ in waiting)
    leader.go.set()
    for one in (lead, *(one for _, one in waiting)):
        with pytest.raises(CorruptModel):
            one.result()
    assert not joined


def test_that_all_has_arrived_is_told_once(file: File) -> None:
    told: list[tuple[int, int]] = []
    leader = Wire()
    with file.stream(leader) as stream:
        for slot in file.slots:
            stream.take(slot.name)
        late = Following(file, Wire(), StreamOptions(progress=lambda *now: told.append(now)))
        time.sleep(0.5)
        assert all(arrived < total for arrived, total in told)
    late.result()
    assert [arrived == total for arrived, total in told].count(True) == 1


def test_files_of_this_machine_are_its_own_wherever_the_model_is_said_to_lie() -> None:
    """Two containers may meet, each with other files under the same names. Of one pod, they may be of two owners, too."""
    config, weights = ObjectRef("gs://b/config.json", 1, "1"), ObjectRef("/models/w.weights.h5", 4, "2-4-0")
    mounts = os.readlink("/proc/self/ns/mnt")
    apart = ModelRef("gs://b/config.json", "keras_config", (config, weights), weights=weights.uri)
    assert machine_stream.machine_identity(apart).endswith(mounts)
    assert machine_stream.machine_identity(ModelRef("gs://b/m", "saved_model", (config,))).endswith(mounts)


def test_where_no_file_system_can_be_told_from_another_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(_: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "readlink", no_proc)
    local = ModelRef("/m.keras", "keras", (ObjectRef("/m.keras", 1, "1"),))
    remote = ModelRef("gs://b/m", "saved_model", (ObjectRef("gs://b/m", 1, "1"),))
    for ref in (local, remote):
        assert "cannot be told" in (machine_stream.why_not(ref) or "")


def test_a_child_forked_before_the_leader_has_a_thread_does_not_hold_the_address(file: File) -> None:
    listener, leads = machine.meet(file.layout)
    assert leads
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        eventually(lambda: not addresses(child), "the child holds the address")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        listener.close()
