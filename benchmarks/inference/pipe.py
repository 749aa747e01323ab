"""The engine's process without agent and bus, driven by its own frames: for what only it can answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import SocketStream

from benchmarks.harness import ROOT, ended, plain_environment
from benchmarks.inference.targets import SAMPLING, Trace
from xnai.agents.inference.frames import (
    Ask,
    Done,
    Drop,
    Frame,
    FrameReader,
    FromEngine,
    Generate,
    Open,
    Opened,
    Refused,
    Sampling,
    Setup,
    Status,
    Text,
    encode_frame,
)

SAMPLED = Sampling(**SAMPLING)
_MODEL = "model"
_CHUNK = 1 << 20
_PATIENCE = 120.0


class Answering:
    """A request that is with the engine.

    Attributes:
        heard: when each piece of text came.
        done: the engine's last word, once it was heard; and `at`, when that was.
    """

    def __init__(self, id: int) -> None:
        self.id, self.began = id, time.perf_counter()
        self.heard: list[float] = []
        self.done: Any = None
        self.at = 0.0
        self._changed = anyio.Event()

    def take(self, frame: Frame) -> None:
        """A frame that is about it."""
        self.at = time.perf_counter()
        if isinstance(frame, Text):
            self.heard.append(self.at)
        elif isinstance(frame, Done | Status):
            self.done = frame
        elif isinstance(frame, Refused):
            raise RuntimeError(frame.sentence)
        self._changed.set()
        self._changed = anyio.Event()

    async def pieces(self, count: int) -> None:
        """Waits until so many pieces were heard."""
        with anyio.fail_after(_PATIENCE):
            while len(self.heard) < count:
                await self._changed.wait()

    async def end(self) -> Any:
        """Waits for the last word."""
        with anyio.fail_after(_PATIENCE):
            while self.done is None:
                await self._changed.wait()
        return self.done


class Engine:
    """An engine with one model."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream, self._sending = stream, anyio.Lock()
        self._numbers = count(1)
        self._open: dict[int, Answering] = {}
        self._opened = anyio.Event()

    async def ask(self, prompt: str, tokens: int) -> Trace:
        answering = await self.begin(prompt, tokens)
        done = await answering.end()
        return Trace(began=answering.began, times=tuple(answering.heard), tokens=done.tokens_out)

    async def begin(self, prompt: str, tokens: int, **how: Any) -> Answering:
        """Asks, and returns at once; `how` are other fields of Generate."""
        frame = Generate(next(self._numbers), _MODEL, (prompt,), True, tokens, SAMPLED, **how)
        return await self._request(frame, frame.id)

    async def drop(self, answering: Answering) -> None:
        await self._send(Drop(answering.id))

    async def status(self) -> Status:
        frame = Ask(next(self._numbers))
        found: Status = await (await self._request(frame, frame.id)).end()
        return found

    async def open(self, setup: Setup, model: Open) -> None:
        await self._send(setup, model)
        with anyio.fail_after(_PATIENCE):
            await self._opened.wait()

    async def hear(self) -> None:
        """Takes what the engine says, for ever."""
        reader, decoder = FrameReader(), msgspec.msgpack.Decoder(FromEngine)
        while True:
            for body in reader.feed(await self._stream.receive(_CHUNK)):
                frame = decoder.decode(body)
                if isinstance(frame, Opened):
                    self._opened.set()
                elif answering := self._open.get(frame.id):
                    answering.take(frame)
                elif isinstance(frame, Refused):
                    raise RuntimeError(frame.sentence)

    async def _request(self, frame: Frame, id: int) -> Answering:
        self._open[id] = answering = Answering(id)
        await self._send(frame)
        return answering

    async def _send(self, *frames: Frame) -> None:
        async with self._sending:
            await self._stream.send(b"".join(map(encode_frame, frames)))


@asynccontextmanager
async def engine(path: Path, setup: Setup, **how: Any) -> AsyncIterator[Engine]:
    """An engine that has this model open; `how` are fields of Open."""
    near, far = socket.socketpair()
    number = far.fileno()
    command = [sys.executable, "-m", "xnai.agents.inference.engine", str(number)]
    with far:
        process = await anyio.open_process(
            command,
            cwd=ROOT,
            env=plain_environment(),
            stdin=subprocess.PIPE,
            stdout=None,
            pass_fds=[number],
        )
    async with ended(process), await SocketStream.from_socket(near) as stream:
        driver = Engine(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.hear)
            await driver.open(setup, Open(_MODEL, str(path), **how))
            yield driver
            tasks.cancel_scope.cancel()
