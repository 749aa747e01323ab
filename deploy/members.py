"""The agents of a stack as processes: started, listened to, started again, stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process, TaskGroup

from xnai.deploy.assignment import Assignment, write
from xnai.deploy.environment import for_child

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
STABLE = 60.0
"""Seconds after which a death is not one of a series."""
STOP_TIMEOUT = 20.0
"""Seconds that an agent has to leave: it drains for ten, and handlers that were stopped have four more."""
_LONGEST_LINE = 1 << 16
Print = Callable[[str, str], None]
"""Gets "stdout" or "stderr", and a line."""


class Member:
    """One agent of the stack.

    Attributes:
        ready: set once its process takes tasks.
        hurry: cancelled when it may not take its time to leave.
    """

    def __init__(
        self, target: str, assignment: Assignment, *, folder: Path, env: Mapping[str, str], show: Print
    ) -> None:
        self.name = assignment.name
        self.ready = anyio.Event()
        self.hurry = anyio.CancelScope()
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "xnai.deploy.cli",
            "run",
            target,
            f"--parent={os.getpid()}",
        ]
        self._assignment, self._folder, self._env, self._show = assignment, folder, env, show

    async def run(self, readers: TaskGroup) -> None:
        """Keep a process running until cancelled; then see it off. `readers` hear its last words."""
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            status = await self._once(readers)
            if time.monotonic() - began > STABLE:
                delay = FIRST_DELAY
            self._show("stderr", f"ended with status {status}; starts again in {delay:g} s")
            await anyio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _once(self, readers: TaskGroup) -> int:
        process = await anyio.open_process(
            self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=self._folder,
            env=for_child(self._env),
            start_new_session=True,  # a Ctrl-C at the terminal is for us to pass on, in order
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        readers.start_soon(self._read, process.stdout, "stdout")
        readers.start_soon(self._read, process.stderr, "stderr")
        try:
            await _hand_over(process, write(self._assignment))
            return await process.wait()
        finally:
            if process.returncode is None:
                await self._see_off(process)

    async def _see_off(self, process: Process) -> None:
        """SIGTERM, time to leave, then SIGKILL to it and whatever it started."""
        process.terminate()
        with anyio.CancelScope(shield=True):
            with self.hurry, anyio.move_on_after(STOP_TIMEOUT):
                await process.wait()
                return
            self._show("stderr", "did not leave in time and is killed")
            with suppress(ProcessLookupError):  # it may have left just now
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _read(self, stream: ByteReceiveStream, kind: str) -> None:
        async with stream:
            async for line in lines(stream):
                self._show(kind, line)
                if kind == "stdout" and line == f"ready {self.name}":
                    self.ready.set()


async def _hand_over(process: Process, data: bytes) -> None:
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
