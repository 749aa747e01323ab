"""Those that answer prompts, each asked in the same way: `ask` gives the times of what came."""

from __future__ import annotations

import math
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import h11
import msgspec

from benchmarks.harness import Program, driven, ended, plain_environment
from benchmarks.inference import peers

_STARTING = 60.0  # seconds
_LOOK_EVERY = 0.05
_CHUNK = 65_536
SAMPLING: dict[str, Any] = {"temperature": 2.0, "top_k": 40, "top_p": 1.0}
"""Of every request. Random weights repeat their likeliest tokens for ever, which we would guess right, and no
other side guesses."""
_FULL = ("length", "limit")


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """An answer.

    Attributes:
        began, times: when it was asked for, and when each piece of it came, by `time.perf_counter`.
        tokens: of it.
        speed: tokens a second from the first to the last, by whoever computed it; 0 where that is not said.
    """

    began: float
    times: tuple[float, ...]
    tokens: int
    speed: float = 0.0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.began

    @property
    def rate(self) -> float:
        """Tokens a second from the first to the last."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0])


class Target(Protocol):
    """Answers prompts."""

    async def ask(self, prompt: str, tokens: int) -> Trace:
        """Returns when the answer is complete, after at most so many tokens."""
        ...


class Minimal:
    """The low-level loop, alone."""

    def __init__(self, program: Program) -> None:
        self._program = program

    async def ask(self, prompt: str, tokens: int) -> Trace:
        """As the program itself measured it."""
        line = msgspec.json.encode([prompt, tokens]).decode()
        first, took, made = await self._program.ask(line)
        return Trace(began=0.0, times=(first, first + took), tokens=made)


@asynccontextmanager
async def minimal(model: Path, *, context: int, threads: int) -> AsyncIterator[Minimal]:
    async with driven("benchmarks.inference.minimal", model, context, threads) as program:
        yield Minimal(program)


class Locked:
    """`Llama` behind a lock."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._numbers = count()
        self._times: dict[int, list[float]] = {}
        self._ended: dict[int, anyio.Event] = {}
        self._why: dict[int, str] = {}

    async def ask(self, prompt: str, tokens: int) -> Trace:
        number, began = next(self._numbers), time.perf_counter()
        times, over = self._times[number], self._ended[number] = list[float](), anyio.Event()
        await self._program.tell(msgspec.json.encode([number, prompt, tokens]).decode())
        await over.wait()
        return _trace(began, times, tokens, self._why.pop(number))

    async def hear(self) -> None:
        """Takes what the program says, for ever."""
        while True:
            number, why = await self._program.answer(patience=math.inf)
            self._times[number].append(time.perf_counter())
            if why is not None:
                self._why[number] = why
                self._ended[number].set()


@asynccontextmanager
async def locked(model: Path, *, context: int, threads: int) -> AsyncIterator[Locked]:
    async with driven("benchmarks.inference.locked", model, context, threads) as program:
        target = Locked(program)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(target.hear)
            yield target
            tasks.cancel_scope.cancel()


class Http:
    """A server that streams completions as events; a connection for each request."""

    def __init__(self, port: int, path: str, options: dict[str, Any], limit: str) -> None:
        self._port, self._path, self._options, self._limit = port, path, options, limit

    async def ask(self, prompt: str, tokens: int) -> Trace:
        body = msgspec.json.encode({**self._options, "prompt": prompt, self._limit: tokens, "stream": True})
        times, why = [], ""
        began = time.perf_counter()
        async with aclosing(_events(self._port, self._path, body)) as events:
            async for event in events:
                times.append(time.perf_counter())
                why = _why(msgspec.json.decode(event)) or why
        return _trace(began, times, tokens, why)


@asynccontextmanager
async def llama_server(model: Path, *, slots: int, context: int, threads: int) -> AsyncIterator[Http]:
    """llama.cpp's own, its cache of prompts on. `context` is of each slot; it answers all slots at once."""
    port = _free_port()
    shape = ["-np", slots, "-c", slots * context, "-t", threads, "-tb", threads]
    where = ["--host", "127.0.0.1", "--port", port, "--threads-http", 4 * slots]
    async with _serving([await _found(peers.llama_server), "-m", model, *shape, *where], port, "/health"):
        options = {**SAMPLING, "samplers": ["top_k", "temperature"], "ignore_eos": True}
        yield Http(port, "/completion", {**options, "cache_prompt": True}, "n_predict")


@asynccontextmanager
async def bindings_server(model: Path, *, context: int, threads: int) -> AsyncIterator[Http]:
    """The bindings' own, told to let a request end before the next: by default a new one breaks it off."""
    port = _free_port()
    shape = ["--n_ctx", context, "--n_threads", threads, "--n_threads_batch", threads, "--verbose", "false"]
    where = ["--host", "127.0.0.1", "--port", port, "--interrupt_requests", "false"]
    python = await _found(peers.bindings_server)
    async with _serving(
        [python, "-m", "llama_cpp.server", "--model", model, *shape, *where], port, "/v1/models"
    ):
        yield Http(port, "/v1/completions", SAMPLING, "max_tokens")


async def _found(peer: Callable[[], Path]) -> Path:
    return await anyio.to_thread.run_sync(peer)  # the first time it is installed, which takes minutes


@asynccontextmanager
async def _serving(command: Sequence[object], port: int, health: str) -> AsyncIterator[None]:
    """A server that ends with the context. On entry it answers."""
    process = await anyio.open_process(
        list(map(str, command)),
        env=plain_environment(),
        stdin=None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    async with ended(process):
        with anyio.fail_after(_STARTING):
            while not await _answers(port, health):  # it tells nobody when it is ready
                await anyio.sleep(_LOOK_EVERY)
                assert process.returncode is None, f"{command[0]} has ended: {process.returncode}"
        yield


async def _answers(port: int, path: str) -> bool:
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return (await stream.receive(_CHUNK)).startswith(b"HTTP/1.1 200")
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _trace(began: float, times: Sequence[float], tokens: int, why: str) -> Trace:
    """Of an answer that had as many tokens as were wanted, unless it ended early: then one in each piece."""
    return Trace(began=began, times=tuple(times), tokens=tokens if why in _FULL else len(times))


def _why(event: dict[str, Any]) -> str:
    """Why the answer ended, if it did: in the words of llama.cpp's server, or of OpenAI's interface."""
    return str(event.get("stop_type") or event.get("choices", [{}])[0].get("finish_reason") or "")


async def _events(port: int, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """The data of each event of an answer, as it comes."""
    link = h11.Connection(h11.CLIENT)
    headers = [("Host", "127.0.0.1"), ("Content-Type", "application/json"), ("Connection", "close")]
    request = h11.Request(method="POST", target=path, headers=[*headers, ("Content-Length", str(len(body)))])
    held = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        await stream.send(b"".join(link.send(part) or b"" for part in parts))
        while not isinstance(event := link.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                link.receive_data(await stream.receive(_CHUNK))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise RuntimeError(f"the server answers {event.status_code}")
            elif isinstance(event, h11.Data):
                *lines, held = (held + bytes(event.data)).split(b"\n")
                for line in lines:
                    name, _, data = line.partition(b":")
                    if name == b"data" and data.strip() != b"[DONE]":
                        yield data.strip()
