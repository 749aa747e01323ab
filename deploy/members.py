"""One process of an agent: started, told what to do, listened to, seen off."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import anyio
import msgspec
from anyio.abc import ByteReceiveStream

from xnai.bus.background import background_tasks
from xnai.deploy.assignment import Assignment, write
from xnai.deploy.starting import Started, Starter

_LONGEST_LINE = 1 << 16
_LAST_WORDS = 2.0  # seconds for output that is on its way; a process that the agent started may hold the pipe
_REMEMBERED = 20
_CANNOT_START = 127  # as a shell has it
Print = Callable[[str, str], None]
"""Gets "stdout" or "stderr", and a line."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of an agent is started with; equal ones make equal processes."""

    target: str
    assignment: Assignment
    cwd: str
    env: dict[str, str] = {}


class Member:
    """One process, from its start to its end.

    Attributes:
        pid: None until it runs.
        began: on the monotonic clock.
        ready: set once it takes tasks.
        status: how it ended; None until then.
        declared: the roles that it serves, where it ended because the broker does not know of them.
        leave_by: when it is killed, on the monotonic clock; None until it is asked to leave.
        hurry: cancelled when it may not take its time to leave.
        on_start: called when it has its pid, before it is told what to do.
    """

    def __init__(self, job: Job, show: Print, starter: Starter, *, stop_timeout: float) -> None:
        self.pid: int | None = None
        self.began = time.monotonic()
        self.ready = anyio.Event()
        self.status: int | None = None
        self.declared: tuple[str, ...] | None = None
        self.leave_by: float | None = None
        self.hurry = anyio.CancelScope()
        self.on_start: Callable[[], None] = lambda: None
        self._leave = anyio.CancelScope()
        self._job, self._show, self._starter, self._stop_timeout = job, show, starter, stop_timeout
        self._said: deque[str] = deque(maxlen=_REMEMBERED)

    @property
    def last_words(self) -> str:
        """What it said of its end: its last line on stderr, where it named an error that line."""
        errors = [line for line in self._said if line.startswith("error[")]
        return (errors or self._said or [""])[-1]

    def leave(self) -> None:
        """Ask it to go; `run` returns when it has."""
        self._leave.cancel()

    async def run(self) -> int:
        """Start it, and return its status when it has ended. When cancelled it is seen off first."""
        job = self._job
        self.began = time.monotonic()
        try:
            words = ["run", job.target, f"--parent={os.getpid()}"]
            process = await self._starter.start("xnai.deploy.cli", words, cwd=job.cwd, env=job.env)
        except OSError as error:
            self._hear("stderr", f"cannot be started in {job.cwd}: {error.strerror}")
            self.status = _CANNOT_START
            return self.status
        self.pid = process.pid
        self.on_start()
        return await self._attend(process)

    async def _attend(self, process: Started) -> int:
        assert process.stdout is not None
        assert process.stderr is not None
        ends = (anyio.Event(), anyio.Event())
        async with background_tasks() as readers:
            readers.start_soon(self._read, process.stdout, "stdout", ends[0])
            readers.start_soon(self._read, process.stderr, "stderr", ends[1])
            try:
                with self._leave:
                    await _hand_over(process, write(self._job.assignment))
                    await process.wait()
            finally:
                if process.returncode is None:
                    await self._see_off(process)
                with anyio.move_on_after(_LAST_WORDS, shield=True):
                    for end in ends:
                        await end.wait()
                self.status = process.returncode
        assert self.status is not None
        return self.status

    async def _see_off(self, process: Started) -> None:
        """SIGTERM, time to leave, then SIGKILL to it and whatever it started."""
        process.terminate()
        self.leave_by = time.monotonic() + self._stop_timeout
        with anyio.CancelScope(shield=True):
            with self.hurry, anyio.move_on_after(self._stop_timeout):
                await process.wait()
                return
            self._show("stderr", "did not leave in time and is killed")
            with suppress(ProcessLookupError):  # it may have left just now
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _read(self, stream: ByteReceiveStream, kind: str, end: anyio.Event) -> None:
        async with stream:
            async for line in lines(stream):
                self._hear(kind, line)
        end.set()

    def _hear(self, kind: str, line: str) -> None:
        word = self._job.assignment.word
        if word and kind == "stdout" and line.startswith(f"declares {word}"):
            self.declared = tuple(line.split()[2:])
            return
        self._show(kind, line)
        if kind == "stderr" and line.strip():
            self._said.append(line)
        if kind == "stdout" and line == f"ready {self._job.assignment.name}":
            self.ready.set()


async def _hand_over(process: Started, data: bytes) -> None:
    assert process.stdin is not None
    try:
        async with process.stdin as stdin:
            await stdin.send(data)
    except anyio.BrokenResourceError:  # it has died already, which is seen next
        return


async def lines(stream: ByteReceiveStream) -> AsyncIterator[str]:
    """The lines of a stream, without their ends; one that has none for long is cut."""
    rest = b""
    async for data in stream:
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
