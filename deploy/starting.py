"""Starting Python processes: forked by one that has done the imports, or plainly where that cannot be.

Both ways make the same: our child, in a session of its own, with three streams to us. Forked, it costs a
small part of the time, and what was imported once is in memory once (docs/decisions/0008).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import Protocol

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream, Process, TaskStatus, UNIXSocketStream

from xnai.bus.socket_stream import SocketStream
from xnai.deploy.environment import AT_THE_START, for_child

CLONE = {"x86_64": 56, "aarch64": 220}
"""The number of the system call clone(2), where we know it and the order of its arguments."""
_ROOM = 4096  # bytes of the argument over which processes that were forked write their own
_LONGEST = 1 << 16  # bytes of an order
_COMING_UP = 60.0  # seconds for imports on a busy machine; then agents are started plainly
_PATIENCE = 20.0  # seconds for a fork, which takes milliseconds
_AGAIN = 1.0
_MOST_FAILURES = 3
_SERVER = "xnai.deploy.forkserver"
_PYTHON = (sys.executable, "-P", "-m")


class Order(msgspec.Struct, frozen=True):
    """What the fork server is to start: `main` of a module, with arguments. Three streams come beside it."""

    module: str
    words: list[str]
    cwd: str
    env: dict[str, str]


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process that came of it, or the number of the error that came instead."""

    pid: int = 0
    errno: int = 0


class Started(Protocol):
    """What is asked of a process of an agent: as `anyio.abc.Process` says it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stdin(self) -> ByteSendStream | None: ...
    @property
    def stdout(self) -> ByteReceiveStream | None: ...
    @property
    def stderr(self) -> ByteReceiveStream | None: ...
    async def wait(self) -> int: ...
    def terminate(self) -> None: ...


class Forked:
    """A child that we did not start ourselves, and that only we may wait for."""

    def __init__(self, pid: int, streams: list[SocketStream]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._handle = os.pidfd_open(pid)

    async def wait(self) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        if self.returncode is None:
            await anyio.wait_readable(self._handle)
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222  # it has ended
            self.returncode = os.waitstatus_to_exitcode(status)
            os.close(self._handle)
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


class Starter:
    """Starts processes. Use `open_starter`.

    Attributes:
        say: is called with what there is to tell about the fork server.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._server: Process | None = None
        self._orders: UNIXSocketStream | None = None
        self._settled = anyio.Event()  # whether there is a fork server is known
        self._turn = anyio.Lock()

    async def start(self, module: str, words: list[str], *, cwd: str, env: Mapping[str, str]) -> Started:
        """A process like `python -P -m module words`, in `cwd`, with our environment and `env`.

        Raises:
            OSError: it cannot be started there.
        """
        if not any(name.startswith(AT_THE_START) for name in env):
            with anyio.move_on_after(_COMING_UP):
                await self._settled.wait()
            order = msgspec.json.encode(Order(module, words, cwd, dict(env))) + b"\n"
            if len(order) <= _LONGEST and (forked := await self._fork(order)) is not None:
                return forked
        return await anyio.open_process(
            [*_PYTHON, module, *words],
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=cwd,
            env=for_child(env),
            start_new_session=True,  # a Ctrl-C at the terminal is for us to pass on, in order
        )

    def settle(self) -> None:
        """There is no fork server: nobody waits for it."""
        self._settled.set()

    async def _fork(self, order: bytes) -> Forked | None:
        """None where there is no fork server that does it."""
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        with anyio.CancelScope(shield=True):  # a process that we have not heard of would be nobody's
            try:
                made = await self._ask(order, [each.fileno() for each in theirs])
            finally:
                for each in theirs:
                    each.close()
            if made.pid:
                return Forked(made.pid, [SocketStream(each) for each in ours])
        for each in ours:
            each.close()
        if made.errno:
            raise OSError(made.errno, os.strerror(made.errno))
        return None

    async def _ask(self, order: bytes, streams: list[int]) -> Made:
        async with self._turn:
            if self._orders is None or self._server is None:
                return Made()
            try:
                with anyio.fail_after(_PATIENCE):
                    await self._orders.send_fds(order, streams)
                    return msgspec.json.decode(await self._orders.receive(), type=Made)
            except (TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream):
                self._orders = None
                _kill(self._server)  # it may hang
                return Made()

    async def keep(self, *, task_status: TaskStatus[None]) -> None:
        """Have a fork server until cancelled; one that ends is followed by another, unless none comes up."""
        failures, server = 0, await _launch()
        task_status.started()
        while True:
            try:
                failures = 0 if await self._use(*server) else failures + 1
            finally:
                self._orders = None
                self._settled.set()
                said = await _end(server[0])
            self.say(f"the fork server ended{said}; agents start without it")
            if failures == _MOST_FAILURES:
                return
            await anyio.sleep(_AGAIN)
            server = await _launch()

    async def _use(self, server: Process, ours: socket.socket) -> bool:
        """Give it orders until it ends; returns whether it ever took any."""
        self._server = server
        async with await UNIXSocketStream.from_socket(ours) as orders:
            try:
                await orders.receive()  # which says that it is ready
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return False
            self._orders = orders
            self._settled.set()
            await server.wait()
            return True


@asynccontextmanager
async def open_starter(say: Callable[[str], None]) -> AsyncIterator[Starter]:
    """What starts processes, with a fork server where this system can have one."""
    starter = Starter(say)
    async with anyio.create_task_group() as tasks:
        if _can_fork():
            await tasks.start(starter.keep)
        else:
            starter.settle()
        try:
            yield starter
        finally:
            tasks.cancel_scope.cancel()


def _can_fork() -> bool:
    """Linux 5.3 or newer, which tells of the end of any child."""
    if sys.platform != "linux" or sys.maxsize <= 1 << 32 or os.uname().machine not in CLONE:
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


async def _launch() -> tuple[Process, socket.socket]:
    """A fork server that is coming up, and our end of what it takes orders from."""
    ours, theirs = socket.socketpair()
    with theirs:
        handle = theirs.fileno()
        server = await anyio.open_process(
            [*_PYTHON, _SERVER, str(handle), str(os.getpid()), " " * _ROOM],
            env=for_child({}),
            start_new_session=True,
            pass_fds=[handle],
        )
    return server, ours


def _kill(server: Process) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        server.kill()


async def _end(server: Process) -> str:
    """See to it that it has ended, and tell how."""
    with anyio.CancelScope(shield=True):
        _kill(server)
        assert server.stderr is not None
        said = b"".join([data async for data in server.stderr]).decode(errors="replace").split("\n")
        await server.aclose()
    return f" with status {server.returncode}: {said[-2:][0]}".rstrip(": ")
