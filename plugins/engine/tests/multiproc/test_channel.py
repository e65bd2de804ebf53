from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard_engine.multiproc.channel import Channel, ChannelClosed
from pegboard_engine.multiproc.values import MessageError

Pair = tuple[Channel, Channel]
ONCE = 200.0
"""Seconds that nothing here takes."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    with connected() as both:
        yield both


class connected:
    """A parent's end, which copies, and a worker's, which does not."""

    def __init__(self, first_ring: int = 4096) -> None:
        left, right = socket.socketpair()
        self.ends = Channel(left, copy=True, first_ring=first_ring), Channel(right, copy=False, first_ring=first_ring)

    def __enter__(self) -> Pair:
        return self.ends

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()
            end.close()


def test_messages_come_in_order_with_their_number(pair: Pair) -> None:
    parent, worker = pair
    for number in range(3):
        parent.send("step", {"ids": np.arange(number), "number": number})
    for number in range(3):
        message = worker.receive(ONCE)
        assert (message.kind, message.number, message.value["number"]) == ("step", number, number)
        assert message.value["ids"].tolist() == list(range(number))


def test_a_worker_sees_arrays_where_they_lie_until_it_is_done_with_them(pair: Pair) -> None:
    parent, worker = pair
    parent.send("step", np.zeros(100))
    first = worker.receive(ONCE)
    for value in range(1, 200):
        parent.send("step", np.full(100, value))
        message = worker.receive(ONCE)
        assert (message.value == value).all()
        assert (first.value == 0).all()
    assert parent.capacity > 100 * 8 * 100  # nothing could be used again: rings of half the size are full
    worker.done_with(message)
    worker.send("done")
    parent.receive(ONCE)
    parent.send("step", np.full(100, -1))
    assert (worker.receive(ONCE).value == -1).all()
    grown = parent.capacity
    for _ in range(500):
        parent.send("step", np.zeros(100))
        message = worker.receive(ONCE)
        worker.done_with(message)
        worker.send("done")
        parent.receive(ONCE)
    assert parent.capacity == grown


def test_answers_are_copied_and_outlive_the_channel() -> None:
    with connected() as (parent, worker):
        worker.send("done", np.arange(1000))
        found = parent.receive(ONCE).value
        worker.send("done", np.zeros(1000, dtype=np.int64))
        parent.receive(ONCE)
    assert found.tolist() == list(range(1000))
    assert found.flags.owndata


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from(["i1", "i8", "f4"]), st.booleans(), st.booleans()), max_size=25
    )
)
def test_whatever_the_sizes_and_however_late_the_reader(sizes: list[tuple[int, str, bool, bool]]) -> None:
    with connected(first_ring=256) as (parent, worker):
        waiting: list[np.ndarray] = []
        held: list[tuple[Any, np.ndarray]] = []

        def read_all() -> None:
            for expected in waiting:
                message = worker.receive(ONCE)
                held.append((message, expected))
            waiting.clear()
            for message, expected in held:
                assert np.array_equal(message.value, expected)

        for count, dtype, own, read in sizes:
            array = (np.arange(count) * 7).astype(dtype)
            parent.send("step", array, own=own)
            waiting.append(array)
            if read:
                read_all()
                worker.done_with(held[-1][0])
                held.clear()
                worker.send("done")
                parent.receive(ONCE)
        read_all()


def test_a_segment_of_its_own_leaves_the_ring_as_it_is(pair: Pair) -> None:
    parent, worker = pair
    gc.collect()  # what other tests left
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        parent.send("load_adapter", np.ones(1 << 20), own=True)
        assert worker.receive(ONCE).value.sum() == 1 << 20
    assert parent.capacity == 0
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_long_messages_pass_while_the_other_side_reads(pair: Pair) -> None:
    parent, worker = pair
    text = "x" * 3_000_000
    writer = threading.Thread(target=lambda: parent.send("load", {"text": text}, timeout=ONCE))
    writer.start()
    assert worker.receive(ONCE).value == {"text": text}
    writer.join()


def test_several_threads_may_send(pair: Pair) -> None:
    parent, worker = pair
    threads = [
        threading.Thread(target=lambda n=n: [worker.send("log", np.full(50, n)) for _ in range(40)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    seen = [parent.receive(ONCE).value for _ in range(160)]
    for thread in threads:
        thread.join()
    assert sorted(int(array[0]) for array in seen) == sorted([*range(4)] * 40)
    assert all((array == array[0]).all() for array in seen)


def test_waits_have_an_end(pair: Pair) -> None:
    parent, worker = pair
    with pytest.raises(TimeoutError):
        parent.receive(0.01)
    with pytest.raises(TimeoutError):  # nobody reads
        for _ in range(1000):
            parent.send("load", "x" * 100_000, timeout=0.01)
    assert not parent.ready()
    worker.send("done")
    assert parent.ready()


def test_an_end_that_is_gone_is_told(pair: Pair) -> None:
    parent, worker = pair
    worker.send("done", 1)
    worker.close()
    assert parent.ready()
    assert parent.receive(ONCE).value == 1  # what it said before counts
    with pytest.raises(ChannelClosed):
        parent.receive(ONCE)
    with pytest.raises(ChannelClosed):
        parent.send("step")


def garble(make: Callable[[list[Any]], Any]) -> bytes:
    """A message whose parts [kind, done, where, arrays, body] were changed."""
    import json

    text = json.dumps(make(["done", 0, 0, [], None])).encode()
    return b"PEGB" + len(text).to_bytes(4, "little") + b"\0" + text


@pytest.mark.parametrize(
    "data",
    [
        b"Traceback (most recent call last)",
        b"PEGB\xff\xff\xff\xff\0",
        b"PEGB\1\0\0\0\5{",
        b"PEGB\1\0\0\0\0{",
        garble(lambda m: m[:4]),
        garble(lambda m: {}),
        garble(lambda m: ["done", 1, *m[2:]]),
        garble(lambda m: ["done", -1, *m[2:]]),
        garble(lambda m: ["done", None, *m[2:]]),
        garble(lambda m: ["done", 0, 1, [], None]),
        garble(lambda m: ["done", 0, 2, [], None]),
        garble(lambda m: ["done", 0, 0, [["<i8", [4], 0]], ["array", 0]]),
        garble(lambda m: ["done", 0, 0, [["O", [4], 0]], ["array", 0]]),
        garble(lambda m: ["done", 0, 0, [["<i8", [1 << 60], 0]], ["array", 0]]),
        garble(lambda m: ["done", 0, 0, [["<i8", [0, 1 << 70], 0]], ["array", 0]]),
        garble(lambda m: ["done", 0, 0, [], ["array", 0]]),
        garble(lambda m: ["done", 0, 0, [], ["eval", "1"]]),
    ],
    ids=range(17),
)
def test_garbage_is_told(data: bytes) -> None:
    left, right = socket.socketpair()
    parent = Channel(left, copy=True)
    with right:
        right.send(data)
        with pytest.raises(MessageError):
            parent.receive(ONCE)
    parent.close()


def test_an_array_beyond_the_memory_is_told(pair: Pair) -> None:
    parent, worker = pair
    worker.send("done", np.arange(4))
    parent.receive(ONCE)
    for shape, offset in (([4], 4090), ([-1], 0), ([-2, -2], 0), ([4], -8), ([1 << 62], 8), ([1.5], 0), (["a"], 0)):
        worker._socket.send(garble(lambda m, s=shape, o=offset: ["done", 0, 0, [["<i8", s, o]], ["array", 0]]))
        with pytest.raises(MessageError):
            parent.receive(ONCE)


def test_what_comes_aside_is_read_while_it_waits() -> None:
    left, right = socket.socketpair()
    read, write = os.pipe()
    seen: list[bytes] = []

    def take() -> bool:
        seen.append(os.read(read, 100))
        return bool(seen[-1])

    parent = Channel(left, copy=True, aside=(read, take))
    os.write(write, b"a line")
    with pytest.raises(TimeoutError):
        parent.receive(0.01)
    os.close(write)
    with right, pytest.raises(TimeoutError):
        parent.receive(0.01)
    assert seen == [b"a line", b""]
    parent.close()
    os.close(read)


def test_what_cannot_travel_leaves_the_channel_as_it_was(pair: Pair) -> None:
    parent, worker = pair
    with pytest.raises(TypeError, match="object"):
        parent.send("step", [np.zeros(4), object()])
    parent.send("step", np.arange(3))
    assert worker.receive(ONCE).value.tolist() == [0, 1, 2]
