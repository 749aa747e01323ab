"""The engine's process without agent and bus, driven by its own frames: for what only it can answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from benchmarks.inference.targets import SAMPLING, Trace
from xnai.agents.inference.engine_process import EngineProcess, start_engine
from xnai.agents.inference.frames import (
    Ask,
    Done,
    Drop,
    Frame,
    Generate,
    Loading,
    Open,
    Opened,
    Refused,
    Sampling,
    Setup,
    Status,
    Text,
    Unloaded,
)

SAMPLED = Sampling(**SAMPLING)
_MODEL = "model"
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

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
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
        return self._request(frame, frame.id)

    async def drop(self, answering: Answering) -> None:
        self._process.post(Drop(answering.id))

    async def status(self) -> Status:
        frame = Ask(next(self._numbers))
        found: Status = await self._request(frame, frame.id).end()
        return found

    async def open(self, setup: Setup, model: Open) -> None:
        self._process.post(setup)
        self._process.post(model)
        with anyio.fail_after(_PATIENCE):
            await self._opened.wait()

    async def hear(self) -> None:
        """Takes what the engine says, for ever."""
        async with aclosing(self._process.frames()) as frames:
            async for frame in frames:
                if isinstance(frame, Opened):
                    self._opened.set()
                elif isinstance(frame, Loading | Unloaded):
                    continue
                elif answering := self._open.get(frame.id):
                    answering.take(frame)
                elif isinstance(frame, Refused):
                    raise RuntimeError(frame.sentence)
        raise RuntimeError(f"the engine {(await self._process.end()).how}")

    def _request(self, frame: Frame, id: int) -> Answering:
        self._open[id] = answering = Answering(id)
        self._process.post(frame)
        return answering


@asynccontextmanager
async def engine(path: Path, setup: Setup, **how: Any) -> AsyncIterator[Engine]:
    """An engine that has this model open; `how` are fields of Open."""
    async with start_engine() as process, anyio.create_task_group() as tasks:
        driver = Engine(process)
        tasks.start_soon(driver.hear)
        await driver.open(setup, Open(_MODEL, str(path), **how))
        yield driver
        tasks.cancel_scope.cancel()
