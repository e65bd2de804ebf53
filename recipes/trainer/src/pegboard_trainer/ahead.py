"""Batches made by a thread while the device computes."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from pegboard.types import Batch, Example
from pegboard_trainer.examples import Counts, Key
from pegboard_trainer.packer import Batches, Bin

POLL = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""

PAUSE = 0.05
"""Seconds for which the thread leaves the interpreter to whoever took a batch, unless told before that the device has its work."""


class Ahead:
    """The same batches as `Batches`, of which up to `depth` are read, tokenized and packed before they are asked for. collate: whether the
    thread makes tensors of them too, where each will be asked for as such.

    `state` is where the last one that was handed out ends, so that what was made ahead is made again after a restart. Who takes a batch
    gives work to a device that has none: until `prepare` says that it has, or the batches run out, the thread does not compete with it.
    """

    def __init__(self, batches: Batches, depth: int = 2, *, collate: bool = False) -> None:
        self._batches, self._depth, self._collate = batches, depth, collate
        self._ready: tuple[Bin, tuple[list[Key], Batch]] | None = None
        self._lock = threading.Lock()
        self._may = threading.Event()
        self._state = batches.state()
        self._stop: weakref.finalize[Any, Ahead] | None = None
        self._made: queue.Queue[tuple[Bin, dict[str, Any], Any] | BaseException] = queue.Queue()

    def next_bin(self) -> Bin:
        """Return the next batch before it becomes tensors. Raises StopIteration when all epochs are over, and what went wrong."""
        if self._stop is None:
            self._start()
        if self._made.empty():
            self._may.set()
        else:
            self._may.clear()
        found = self._made.get()
        if isinstance(found, BaseException):
            self._made.put(found)  # for whoever asks again
            raise found
        bin, self._state, made = found
        self._ready = None if made is None else (bin, made)
        return bin

    def prepare(self) -> None:
        """Let the thread go on: the device is busy."""
        self._may.set()

    def collated(self, bin: Bin) -> tuple[list[Key], Batch]:
        """Return the keys of the examples in a bin, and the bin as a batch."""
        if self._ready is not None and self._ready[0] is bin:
            return self._ready[1]
        return self._batches.collated(bin)

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        if self._stop is not None:
            self._stop()
            self._stop = None
        self._batches.restore(dict(state))
        self._state = self._batches.state()

    def at(self, key: Key) -> Example:
        """Return one example again."""
        with self._lock:
            return self._batches.at(key)

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        with self._lock:
            return self._batches.describe(key)

    @property
    def counts(self) -> Counts:
        """What became of the examples up to `state`."""
        return Counts(*self._state["counts"])

    def _start(self) -> None:
        self._made = queue.Queue(self._depth)
        wanted = threading.Event()
        wanted.set()
        # The thread knows nothing of this object: when it is dropped, or the process ends, the thread is told and waited for.
        thread = threading.Thread(
            target=_make,
            args=(self._batches, self._made, self._lock, wanted, self._may, self._collate),
            name="batches",
            daemon=True,
        )
        self._stop = weakref.finalize(self, _end, thread, wanted)
        self._may.set()
        thread.start()


def _make(
    batches: Batches,
    made: queue.Queue[Any],
    lock: threading.Lock,
    wanted: threading.Event,
    may: threading.Event,
    collate: bool,
) -> None:
    while wanted.is_set():
        found: Any
        may.wait(PAUSE)
        try:
            with lock:
                bin = batches.next_bin()
                found = bin, batches.state(), batches.collated(bin) if collate else None
        except BaseException as error:
            found = error
        while wanted.is_set():
            try:
                made.put(found, timeout=POLL)
                break
            except queue.Full:
                continue
        if isinstance(found, BaseException):
            return


def _end(thread: threading.Thread, wanted: threading.Event) -> None:
    wanted.clear()
    thread.join()
