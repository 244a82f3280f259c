"""The processes of one machine and user that use the same weights: one streams them, and hands them on to the others.

They meet at an abstract socket address (unix(7)), which the kernel gives to one process at a time, shows in no file system,
and frees when that process ends, however it ends. The process that gets it leads: it streams, reports its progress to those
that connect, and hands them the sealed segment's descriptor. A process that has the descriptor keeps its connection, and tries
to get the address when the connection breaks. Nothing polls. The address is visible to every user of the network namespace:
each end asks the kernel for the user of the other process (SO_PEERCRED), and deals only with its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable

from .shared_segment import Layout, Unshared, check_sealed

# A peer's message: a magic, its state, bytes arrived, bytes in all, the layout's digest.
_MESSAGE = struct.Struct("<8sBQQ32s")
_MAGIC = b"headrace"
_STREAMING, _COMPLETE, _UNREADABLE = range(3)
_TICK_S = 0.2
# A peer that is alive speaks every tick; one that is stopped, or whose thread starves, is waited for this long.
SILENCE_S = 60.0
# Longer than the store's retries of one range may take: a leader that gets nothing for so long fails by itself.
STALL_S = 600.0
_MEET_S = 10.0
_UID_MAP = "/proc/self/uid_map"
_BACKLOG = 1024
_STRANGER_EVERY_S, _MOST_STRANGERS = 60.0, 1024

_log = logging.getLogger(__name__)
_hosts: weakref.WeakSet[Host] = weakref.WeakSet()
_met: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class _Strangers:
    """Refusals of other users' processes, logged once a minute for each user: who calls often must not fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seen: dict[int, tuple[float, int]] = {}

    def refused(self, user: int) -> None:
        now = self._clock()
        with self._lock:
            since, unlogged = self._seen.get(user, (-math.inf, 0))
            if now - since < _STRANGER_EVERY_S:
                self._seen[user] = since, unlogged + 1
                return
            if len(self._seen) >= _MOST_STRANGERS:
                self._seen.clear()
            self._seen[user] = now, 0
        before = f", and {unlogged:,} times since that was last logged" if unlogged else ""
        _log.warning("User %d asked for this process's weights and was refused%s", user, before)


_strangers = _Strangers()


def meet(layout: Layout) -> tuple[socket.socket, bool]:
    """A listener at the segment's address and True, where it is free; else a connection to its owner, and False.

    Raises `Unshared` where the owner is another user's process, or does not answer, or where users cannot be distinguished.
    """
    if _like_strangers():
        raise Unshared("other users look like this one here, whom its namespace does not know")
    deadline = time.monotonic() + _MEET_S
    while True:
        with contextlib.ExitStack() as unless_met:
            try:
                meeting = unless_met.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                _met.add(meeting)
                meeting.settimeout(SILENCE_S)
                leads = _bind(meeting, layout.name)
                unless_met.pop_all()
                return meeting, leads
            except (ConnectionRefusedError, BlockingIOError) as error:
                # Its owner has ended since, or does not listen yet, or has too many callers.
                if time.monotonic() > deadline:
                    raise Unshared(f"the process that has this model's weights does not answer: {error}") from error
            except OSError as error:
                raise Unshared(f"no meeting of processes: {error}") from error
        time.sleep(0.01)


def _bind(meeting: socket.socket, name: bytes) -> bool:
    """Whether the address was free; else connects to its owner, of the same user."""
    try:
        meeting.bind(name)
        meeting.listen(_BACKLOG)
        return True
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    meeting.connect(name)
    if (user := _user(meeting)) != os.geteuid():
        raise Unshared(f"user {user} has taken the address of this model's weights")
    return False


def receive(connection: socket.socket, layout: Layout, progress: Callable[[int, int], None]) -> int | None:
    """Waits for the sealed segment and gives its descriptor, or None where the peer has ended without one.

    Raises `Unshared` where the peer is silent, stalls, found that the model cannot be read, or sends anything else.
    """
    most, since = -1, time.monotonic()
    connection.settimeout(SILENCE_S)
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE.size + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise Unshared(f"the process that streams them said nothing for {SILENCE_S:.0f} s") from error
        except ConnectionError:
            return None
        try:
            if not data:
                return None
            state, arrived, total = _read(data, layout, sealed=bool(descriptors))
            if state == _UNREADABLE:
                # Whoever took its place would take as long to find the same, and those behind it would wait for that.
                raise Unshared("the process that streamed them could not read the model")
            if descriptors:
                check_sealed(descriptors[0], layout.nbytes)
                return descriptors.pop()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if arrived > most:
            most, since = arrived, time.monotonic()
            if arrived < total:  # the last state is reported when the segment is here
                progress(arrived, total)
        elif time.monotonic() - since > STALL_S:
            raise Unshared(f"the process that streams them got nothing for {STALL_S:.0f} s")


def _read(data: bytes, layout: Layout, *, sealed: bool) -> tuple[int, int, int]:
    if len(data) != _MESSAGE.size:
        raise Unshared(f"a message of {len(data)} bytes, not {_MESSAGE.size}")
    magic, state, arrived, total, digest = _MESSAGE.unpack(data)
    if magic != _MAGIC or (state == _COMPLETE) != sealed or state > _UNREADABLE:
        raise Unshared("a message that headrace does not send")
    if digest != layout.digest:
        raise Unshared("the other process lays out another model")
    return state, arrived, total


def _like_strangers() -> bool:
    """Whether this process's user has the number that the kernel shows for users unknown in its namespace."""
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            unknown = int(file.read())
    except (OSError, ValueError):
        unknown = 65534
    if os.geteuid() != unknown:
        return False
    try:
        with open(_UID_MAP) as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return True


def _user(connection: socket.socket) -> int:
    """The effective user of the peer when it connected or listened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


class Host:
    """Answers for the segment at its address, or waits to take over, in a thread of its own until `close`.

    Begin with the `listener`, before anything has arrived, or with a `connection` and the `descriptor` that came over it.
    From then on, the host owns both, and the descriptor. `arrived` gives the bytes that have arrived. Raises `Unshared`, with
    all of them closed, where the system has no thread for it or no socket.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        total: int,
        arrived: Callable[[], int],
        listener: socket.socket | None = None,
        connection: socket.socket | None = None,
        descriptor: int | None = None,
    ) -> None:
        self._layout, self._total = layout, total
        self._arrived: Callable[[], int] = arrived
        self._listener, self._watched, self._descriptor = listener, connection, descriptor
        self._clients: dict[socket.socket, bool] = {}
        self._closed = self._unreadable = False
        _hosts.add(self)
        try:
            self._wake, self._waker = socket.socketpair()
            threading.Thread(target=self._run, name="headrace-host", daemon=True).start()
        except (OSError, RuntimeError) as error:
            self.forget()
            raise Unshared(f"nobody to hand them on: {error}") from error

    def publish(self, descriptor: int) -> None:
        """The segment is complete and sealed: every peer that asks gets it."""
        total = self._total
        # The old `arrived` refers to the stream, which holds the mapping; the mapping's end closes this host.
        self._arrived = lambda: total
        self._descriptor = descriptor
        self._rouse()

    def close(self, *, unreadable: bool = False) -> None:
        """Gives the address up; harmless when called twice, from any thread. Peers that wait are informed of `unreadable`: a
        successor could not read the model either.
        """
        self._unreadable = self._unreadable or unreadable
        self._closed = True
        self._rouse()

    def forget(self) -> None:
        """In a forked child, which has no thread to answer: its copies would keep the address from being freed."""
        self._closed = True
        self._release()

    def _rouse(self) -> None:
        # It has ended already where this fails.
        with contextlib.suppress(OSError):
            self._waker.send(b"!", socket.MSG_DONTWAIT)

    def _run(self) -> None:
        pause = 0.01
        try:
            while not self._closed:
                if self._listener is not None:
                    self._serve(self._listener)
                elif self._watched is not None:
                    since = time.monotonic()
                    self._watch(self._watched)
                    pause = 0.01 if time.monotonic() - since > 1 else min(2 * pause, 5.0)
                else:
                    met, leads = meet(self._layout)
                    self._listener, self._watched = (met, None) if leads else (None, met)
                    if not leads:
                        # One that takes callers only to hang up must not keep this thread busy.
                        self._ready({self._wake}, pause)
        except Unshared as reason:
            _log.warning("This process no longer stands by to hand the weights on: %s", reason)
        finally:
            if self._unreadable:
                for client in [client for client, served in self._clients.items() if not served]:
                    self._send_state(client)
            self._release()

    def _serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        while not self._closed:
            pending = not all(self._clients.values())
            ready = self._ready({self._wake, listener, *self._clients}, _TICK_S if pending else None)
            if listener in ready:
                self._accept(listener)
            for client in ready & self._clients.keys():
                # Clients send nothing: a readable connection has ended.
                self._drop(client)
            for client in [client for client, served in self._clients.items() if not served]:
                self._send_state(client)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError as error:
            _log.debug("a caller that was not met: %s", error)
            time.sleep(0.01)
            return
        if (user := _user(client)) != os.geteuid():
            _strangers.refused(user)
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = False

    def _send_state(self, client: socket.socket) -> None:
        descriptor = self._descriptor
        complete = descriptor is not None
        state = _COMPLETE if complete else _UNREADABLE if self._unreadable else _STREAMING
        message = _MESSAGE.pack(_MAGIC, state, self._arrived(), self._total, self._layout.digest)
        try:
            socket.send_fds(client, [message], [] if descriptor is None else [descriptor])
            self._clients[client] = complete
        except BlockingIOError:
            # It has yet to read what was sent before.
            return
        except OSError:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        client.close()

    def _watch(self, connection: socket.socket) -> None:
        """Waits until the peer ends. Its messages are read, to let it continue, and ignored."""
        connection.setblocking(False)
        while not self._closed:
            if connection not in self._ready({self._wake, connection}, None):
                continue
            try:
                data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE.size, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            except ConnectionError:
                data, descriptors = b"", []
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                connection.close()
                self._watched = None
                return

    def _ready(self, sockets: set[socket.socket], timeout_s: float | None) -> set[socket.socket]:
        poll = select.poll()
        numbers = {found.fileno(): found for found in sockets}
        for number in numbers:
            poll.register(number, select.POLLIN)
        ready = {numbers[number] for number, _ in poll.poll(None if timeout_s is None else 1000 * timeout_s)}
        if self._wake in ready:
            self._wake.recv(4096)
        return ready

    def _release(self) -> None:
        ends = (getattr(self, "_wake", None), getattr(self, "_waker", None))
        for held in (self._listener, self._watched, *ends, *self._clients):
            if held is not None:
                held.close()
        self._clients.clear()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _forget_all() -> None:
    for host in list(_hosts):
        host.forget()
    _hosts.clear()
    for meeting in list(_met):
        meeting.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
