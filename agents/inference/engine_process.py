"""One life of the engine: a process of its own, frames into it and out of it, and its last words.

The two hold the ends of one pair of sockets. When the agent is gone, however it went, the engine reads the
end of its own and leaves. Its session is its own too: a Ctrl-C at the terminal is not for it.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import Process

from xnai.agents.inference.errors import EngineLost
from xnai.agents.inference.frames import Frame, FrameReader, FromEngine, encode_frame
from xnai.bus.socket_stream import SocketStream

log = logging.getLogger(__name__)
ENGINE = (sys.executable, "-P", "-m", "xnai.agents.inference.engine")
"""What is started, with the number of the inherited socket behind it."""

_READ = 1 << 18  # bytes
_MOST_PENDING = 1 << 20  # bytes on their way to the engine before `send` waits
_LAST_WORDS, _LONGEST_LINE = 20, 500  # lines, and characters of one
_LEAVING = 2.0  # seconds to end by itself
_decode = msgspec.msgpack.Decoder(FromEngine).decode


class BadFrame(Exception):
    """The engine sent what is no frame. Nothing that follows can be read either."""


class End(NamedTuple):
    """How an engine ended, with its last line; and whether something in it, or from outside, made it."""

    how: str
    crashed: bool


@asynccontextmanager
async def start_engine(command: Sequence[str] = ENGINE) -> AsyncIterator[EngineProcess]:
    """An engine that runs; at the end nothing of it is left.

    Raises:
        EngineLost: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            with anyio.CancelScope(shield=True):  # half started, it would be nobody's
                process = await anyio.open_process(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
                stream = SocketStream(ours)
        except OSError as error:
            ours.close()
            raise EngineLost(f"The engine cannot be started: {error}.") from error
    engine = EngineProcess(process, stream)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.hear)
            tasks.start_soon(engine.write)
            yield engine
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
            with anyio.move_on_after(_LEAVING):
                await process.wait()
            engine.kill()
            await process.aclose()


class EngineProcess:
    """A running engine; opened with `start_engine`."""

    def __init__(self, process: Process, stream: SocketStream) -> None:
        self.pid = process.pid
        self._process, self._stream = process, stream
        self._pending = bytearray()
        self._over = False
        self._something_pending, self._written = anyio.Event(), anyio.Event()
        self._heard_all = anyio.Event()
        self._said: deque[str] = deque(maxlen=_LAST_WORDS)

    def post(self, frame: Frame) -> None:
        """Send a frame without waiting. One that has no reader any more is lost: `frames` ends then."""
        if not self._over:
            self._pending += encode_frame(frame)
            self._something_pending.set()

    async def drain(self) -> None:
        """Wait while too much is on its way to it."""
        while len(self._pending) > _MOST_PENDING:
            if self._written.is_set():
                self._written = anyio.Event()
            await self._written.wait()

    async def frames(self) -> AsyncGenerator[FromEngine, None]:
        """What it says, until its end.

        Raises:
            BadFrame: it said something else.
        """
        reader = FrameReader()
        while True:
            try:
                data = await self._stream.receive(_READ)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            try:
                for body in reader.feed(data):
                    yield _decode(body)
            except (ValueError, msgspec.MsgspecError) as error:
                raise BadFrame(str(error)) from error

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> End:
        """Wait for its end."""
        status = await self._process.wait()
        with anyio.move_on_after(_LEAVING):
            await self._heard_all.wait()
        how = f"exited with status {status}" if status >= 0 else f"was ended by {_signal(-status)}"
        return End(f"{how}: {self._said[-1]}" if self._said else how, crashed=status < 0)

    async def write(self) -> None:
        """Bring what is posted to it; ends with the engine."""
        while True:
            await self._something_pending.wait()
            self._something_pending = anyio.Event()
            data, self._pending = self._pending, bytearray()
            try:
                await self._stream.send(bytes(data))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._over = True
                self._pending.clear()
            self._written.set()
            if self._over:
                return

    async def hear(self) -> None:
        """Keep the last lines that it writes on stderr."""
        assert self._process.stderr is not None
        rest = b""
        async for data in self._process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if text := line.decode(errors="replace").strip():
                    log.debug("the engine says: %s", text)
                    self._said.append(text[:_LONGEST_LINE])
            rest = rest[:_LONGEST_LINE]
        self._heard_all.set()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
