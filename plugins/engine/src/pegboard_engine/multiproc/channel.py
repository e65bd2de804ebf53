"""Typed messages between two processes: JSON over a Unix socket, arrays in shared memory beside it.

Each side writes into a ring of its own, which it makes and the other side maps. A message tells how many of the other side's messages
its sender is done with, so that their blocks are used again. One that finds no room gets a larger ring, whose descriptor travels with it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pegboard_engine.multiproc.segments import Ring, Segment, aligned, create
from pegboard_engine.multiproc.values import MessageError, is_plain, pack, unpack

_PREFIX = struct.Struct("<4sIB")
_MAGIC = b"PEGB"
_MOST_JSON = 1 << 28
_FIRST_RING = 1 << 18
_AT_ONCE = 1 << 18
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_SAME, _NEW_RING, _OWN = range(3)
"""Where the arrays of a message lie: in the ring as before; in a new ring; in a segment of its own."""


class ChannelClosed(Exception):
    """The other side is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """kind: what is asked or told. value: what `values.unpack` made. number: how many messages came before it."""

    kind: str
    value: Any
    number: int


class Channel:
    """One end of a connection. Several threads may send, one receives.

    copy: whether arrays that come in are copied out of the ring. Where they are not, they are valid until `done_with` says so.
    aside: (a file descriptor, a function): called whenever there is something to read while this side waits; it returns False at the
    file's end. first_ring: bytes of the first ring.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        copy: bool,
        aside: tuple[int, Callable[[], bool]] | None = None,
        first_ring: int = _FIRST_RING,
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._copy = copy
        self._aside = aside
        self._first_ring = first_ring
        self._lock = threading.Lock()
        self._ring: Ring | None = None
        self._out: Segment | None = None
        # Of the messages that the other side may still read, oldest first: the ring that holds its arrays.
        self._unread: deque[Ring | None] = deque()
        self._released = self._received = self._done = 0
        self._in: Segment | None = None
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    @property
    def capacity(self) -> int:
        """Bytes of the ring that this side writes into."""
        return 0 if self._ring is None else self._ring.capacity

    def send(self, kind: str, value: Any = None, *, timeout: float | None = None, own: bool = False) -> int:
        """Send a message and return its number, by which the other side knows it.

        own: its arrays get memory of their own, which is given back when the other side drops them. Raises TypeError
        for a value that cannot travel, OSError where there is no memory for it, TimeoutError after `timeout` seconds, ChannelClosed.
        """
        return self.send_packed(kind, pack(value), timeout=timeout, own=own)

    def send_packed(
        self, kind: str, packed: tuple[Any, Sequence[np.ndarray]], *, timeout: float | None = None, own: bool = False
    ) -> int:
        """As `send`, for what `values.pack` returned."""
        body = _ENCODE(packed[0])
        if len(body) > _MOST_JSON:
            raise TypeError(f"a message of {len(body)} bytes beside its arrays is too long")
        with self._lock:
            where, descriptor, specs = self._write(packed[1], own)
            try:
                head = _ENCODE([kind, self._done, where, specs])
                text = f"{head[:-1]},{body}]".encode()
                prefix = _PREFIX.pack(_MAGIC, len(text), descriptor is not None)
                self._send_all(prefix + text, descriptor, _deadline(timeout))
                return self._released + len(self._unread) - 1
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for a message. Raises TimeoutError after `timeout` seconds, ChannelClosed, MessageError."""
        deadline = _deadline(timeout)
        while (found := self._parse()) is None:
            self._wait(select.POLLIN, deadline)
            self._read()
        return found

    def ready(self) -> bool:
        """Whether there is something to receive, the end included."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(self._buffer) or bool(poll.poll(0))

    def done_with(self, message: Message) -> None:
        """Say, with whatever is sent next, that the arrays of a message and of all before it are no longer used."""
        self._done = max(self._done, message.number + 1)

    def close(self) -> None:
        """Close this end. Safe to call twice."""
        self._socket.close()
        self._out = self._in = self._ring = None
        self._unread.clear()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _write(self, arrays: Sequence[np.ndarray], own: bool) -> tuple[int, int | None, list[Any]]:
        """Copy arrays to where the other side finds them; return where, a descriptor to send, and [dtype, shape, offset] of each."""
        sizes = [aligned(array.nbytes) for array in arrays]
        size = sum(sizes)
        where, descriptor, ring, segment, offset = _SAME, None, None, self._out, 0
        if size and own:
            where = _OWN
            segment, descriptor = create(size)
        elif size:
            ring = self._ring
            found = None if ring is None else ring.take(size)
            if ring is None or found is None:
                capacity = max(self._first_ring, 2 * self.capacity, 2 * size)
                where = _NEW_RING
                segment, descriptor = create(capacity)
                self._out, ring = segment, Ring(capacity)
                self._ring = ring
                found = ring.take(size)
            assert found is not None
            offset = found
        self._unread.append(ring)
        specs = []
        for array, room in zip(arrays, sizes, strict=True):
            specs.append((array.dtype.str, array.shape, offset))
            if room:
                assert segment is not None
                segment.write(array, offset)
            offset += room
        return where, descriptor, specs

    def _send_all(self, data: bytes, descriptor: int | None, deadline: float | None) -> None:
        left = memoryview(data)
        while left:
            try:
                if descriptor is None:
                    sent = self._socket.send(left)
                else:
                    sent = socket.send_fds(self._socket, [left], [descriptor])
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
                continue
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            left, descriptor = left[sent:], None

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait until the socket can be read or written, or is closed."""
        while True:
            poll = select.poll()
            poll.register(self._socket, event)
            if self._aside is not None:
                poll.register(self._aside[0], select.POLLIN)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            found = dict(poll.poll(left))
            if self._aside is not None and self._aside[0] in found and not self._aside[1]():
                self._aside = None
            if self._socket.fileno() in found:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _AT_ONCE, 4)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        self._descriptors.extend(descriptors)
        if not data:
            raise ChannelClosed("it closed the connection")
        self._buffer += data

    def _parse(self) -> Message | None:
        """Take a message out of what was read; None while it is not complete."""
        if len(self._buffer) < _PREFIX.size:
            return None
        magic, length, has_descriptor = _PREFIX.unpack_from(self._buffer)
        if magic != _MAGIC or length > _MOST_JSON + _AT_ONCE or has_descriptor > 1:
            raise MessageError(f"it begins with {bytes(self._buffer[:16])!r}")
        end = _PREFIX.size + length
        if len(self._buffer) < end:
            return None
        text = bytes(self._buffer[_PREFIX.size : end])
        del self._buffer[:end]
        try:
            kind, done, where, specs, body = json.loads(text)
            self._release(done)
            arrays = self._arrays(where, specs, bool(has_descriptor))
            message = Message(kind, unpack(body, arrays), self._received)
        except MessageError:
            raise
        except Exception as error:
            raise MessageError(f"{type(error).__name__}: {error}") from error
        self._received += 1
        if self._copy:
            self.done_with(message)
        return message

    def _release(self, done: Any) -> None:
        """Use the blocks of the first `done` messages again."""
        with self._lock:
            count = done - self._released
            if not 0 <= count <= len(self._unread):
                raise MessageError(f"it is done with {done} messages of {self._released + len(self._unread)}")
            self._released = done
            for _ in range(count):
                ring = self._unread.popleft()
                if ring is not None:
                    ring.release(1)

    def _arrays(self, where: Any, specs: Any, has_descriptor: bool) -> list[np.ndarray]:
        segment = self._in
        if has_descriptor != (where in (_NEW_RING, _OWN)) or (has_descriptor and not self._descriptors):
            raise MessageError("it lacks its memory, or has one too many")
        if has_descriptor:
            descriptor = self._descriptors.popleft()
            try:
                segment = Segment(descriptor)
            finally:
                os.close(descriptor)
            if where == _NEW_RING:
                self._in = segment
        arrays = []
        for name, shape, offset in specs:
            dtype = np.dtype(name)
            if not is_plain(dtype):
                raise MessageError(f"an array of {dtype}")
            if 0 in shape:
                array = np.empty(shape, dtype)
            elif segment is None:
                raise MessageError("an array without memory")
            else:
                array = segment.view(dtype, shape, offset)
                array = array.copy() if self._copy else array
            arrays.append(array)
        return arrays


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
