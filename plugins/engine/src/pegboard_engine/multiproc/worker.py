"""The worker's side: builds the model, runs steps as they come, answers in their order with the number of what it answers."""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pegboard.build import BuiltModel, choose_platform
from pegboard.errors import PegboardError
from pegboard.opened import open_any
from pegboard.types import CachePlan
from pegboard_engine.feed import computes_apart
from pegboard_engine.multiproc.channel import Channel, ChannelClosed, Message
from pegboard_engine.multiproc.doors import unpack_doors
from pegboard_engine.multiproc.values import pack
from pegboard_engine.rehearsal import Rehearsed
from pegboard_engine.runner import Runner, Started

_LOOK_FOR_PARENT = 2000
"""Milliseconds between looks at who the parent is."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a socket until it says stop or is gone, and end the process."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=_end_with_parent, args=(descriptor, os.getppid()), daemon=True).start()
    channel = Channel(connection, copy=False)
    status = 0
    try:
        Worker(channel).run()
    except ChannelClosed:
        status = 1
    # Taking torch apart in good order would take seconds and do nothing that the system does not do.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Worker:
    """The model with what it runs in, and the steps that were started and not answered."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._flying: deque[tuple[Message, Started | Exception]] = deque()
        self._ahead = 1
        self._handlers: dict[str, Callable[[Any], None]] = {
            "reload": self._reload,
            "load_adapter": self._load_adapter,
            "unload_adapter": self._unload_adapter,
        }

    def run(self) -> None:
        """Serve until "stop". The first message is "load"."""
        channel = self._channel
        if not self._answer(channel.receive(), self._load):
            return
        while True:
            # A device that computes on its own gets the next step before the last one is waited for.
            while self._flying and (len(self._flying) >= self._ahead or not channel.ready()):
                self._finish()
            while not self._flying and not channel.ready() and self._runner.prepare():
                pass
            message = channel.receive()
            if message.kind == "stop":
                return
            if message.kind == "step":
                self._start(message)
                continue
            while self._flying:
                self._finish()
            self._answer(message, self._handlers[message.kind])

    def _load(self, job: dict[str, Any]) -> None:
        _log_to(self._channel, job["log_level"])
        self._registry = unpack_doors(job["doors"])
        self._rank, self._source = job["rank"], job["source"]
        _, platform = choose_platform(self._registry, self._source["options"]["platform"])
        platform.configure(threads=job["threads"])
        self._built = built = self._prepare()
        cache: CachePlan = job["cache"]
        cache = replace(cache, layout=replace(cache.layout, shard=(self._rank, job["world"])))
        rehearsal = Rehearsed(built, cache)
        self._runner = Runner(built.load(), cache, self._registry)
        rehearsal.watched()
        self._ahead = 2 if computes_apart(built) else 1

    def _prepare(self) -> BuiltModel:
        """Return the model without weights, every name and shape of its files checked."""
        source = self._source
        options = dict(source["options"])
        return open_any(self._registry, source["location"], source["revision"]).prepare(self._registry, **options)

    def _start(self, message: Message) -> None:
        try:
            started: Started | Exception = self._runner.start(message.value)
        except Exception as error:  # it belongs to the step
            started = error
        self._flying.append((message, started))

    def _finish(self) -> None:
        """Wait for the oldest step and answer it."""
        message, started = self._flying.popleft()
        self._channel.done_with(message)
        try:
            if isinstance(started, Exception):
                raise started
            result = started.wait()
            packed = pack((message.number, result if self._rank == 0 else None))
        except Exception as error:
            # A device that is out of order would fail every step from now on: then this raises, and the process ends.
            self._built.platform.synchronize(self._built.device.index or 0)
            self._channel.send("failed", (message.number, _told(error)))
        else:
            self._channel.send_packed("done", packed)

    def _answer(self, message: Message, handler: Callable[[Any], None]) -> bool:
        """Do what is asked, say that it is done or why not; return whether it is."""
        try:
            handler(message.value)
        except Exception as error:
            self._channel.send("failed", (message.number, _told(error)))
            return False
        self._channel.done_with(message)
        self._channel.send("done", (message.number, None))
        return True

    @torch.no_grad()
    def _reload(self, version: int) -> None:
        """Read the weights again, into the same memory. For a moment they are there twice."""
        fresh, mine = _tensors(self._prepare().load()), _tensors(self._built)
        if lost := fresh.keys() - mine.keys():
            raise LookupError(f"the model has no {min(lost)} any more")
        for name, tensor in fresh.items():
            mine[name].copy_(tensor)
        self._runner.update_weights(version)

    def _load_adapter(self, given: tuple[int, dict[str, Any], dict[str, Any]]) -> None:
        self._runner.load_adapter(*given)

    def _unload_adapter(self, slot: int) -> None:
        self._runner.unload_adapter(slot)


class _ChannelHandler(logging.Handler):
    """Log records as messages, so that they keep their level and name."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
            self._channel.send("log", (record.levelno, record.name, text))
        except Exception:
            self.handleError(record)


def _log_to(channel: Channel, level: int) -> None:
    logger = logging.getLogger("pegboard")
    logger.addHandler(_ChannelHandler(channel))
    logger.setLevel(level)
    logger.propagate = False


def _tensors(built: BuiltModel) -> dict[str, Tensor]:
    """Return what a model holds by name, with or without adapters around its layers."""
    held = {**dict(built.model.named_parameters()), **dict(built.model.named_buffers())}
    return {name.replace(".base.", "."): tensor for name, tensor in held.items()}


def _told(error: Exception) -> dict[str, str | None]:
    """What the parent is told of an exception."""
    message, fix = (error.message, error.fix) if isinstance(error, PegboardError) else (str(error), None)
    trace = "".join(traceback.format_exception(error))
    return {"type": type(error).__qualname__, "message": message, "fix": fix, "trace": trace}


def _end_with_parent(descriptor: int, parent: int) -> None:
    """End this process when its parent is gone, whatever the main thread does."""
    poll = select.poll()
    poll.register(descriptor, 0)  # which still tells a hang-up
    while not poll.poll(_LOOK_FOR_PARENT) and os.getppid() == parent:
        pass
    os._exit(1)
