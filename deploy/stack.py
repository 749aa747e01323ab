"""The folder of a stack, `.xnai/`: its lock, its token and port, and where its bus is found."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import anyio
import msgspec

from xnai.bus import Server, ServerOptions, open_server
from xnai.bus.locating import ADDRESS_FILE, JOINED_FILE, Address, read_address
from xnai.bus.permissions import Identity
from xnai.bus.secrets import write_secret
from xnai.protocol.errors import XnaiError

log = logging.getLogger(__name__)
_SUPERVISOR_FILE = "supervisor.json"
_LOCK_FILE = "lock"
_LEFTOVER_TIMEOUT = 10.0
_LOOKS, _MOMENT = 5, 0.02


class AlreadyUp(XnaiError):
    """Another process keeps this stack up."""

    code = "already_up"


class Supervision(msgspec.Struct, frozen=True):
    """The agent that keeps a stack up, as its commands find it."""

    agent: str
    pid: int


class Stack:
    """One `.xnai/` folder, in the hands of one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server_folder = folder / "server"

    def holder(self) -> int | None:
        """The process that keeps this stack up; None where it is down."""
        try:
            with (self.folder / _LOCK_FILE).open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    said = file.read().strip()
                    return int(said) if said else os.getpid()  # it is taking the lock at this moment
        except FileNotFoundError:
            pass
        return None

    def supervision(self) -> Supervision | None:
        """The agent that keeps this stack up; None while it comes up, or where it is down."""
        try:
            return msgspec.json.decode((self.folder / _SUPERVISOR_FILE).read_bytes(), type=Supervision)
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
            return None

    def joined(self) -> Address | None:
        """The broker of another machine, where this stack has joined one."""
        file = self.folder / JOINED_FILE
        return read_address(file) if file.exists() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be. The lock ends with the process, however it ends.

        Raises:
            AlreadyUp: another process holds it.
        """
        self.server_folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        (self.folder / ".gitignore").write_text("*\n")
        with (self.folder / _LOCK_FILE).open("a+") as file:
            if not _lock(file):
                file.seek(0)
                raise AlreadyUp(f"The stack in {self.folder} is already up, pid {file.read().strip()}.")
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            (self.folder / _SUPERVISOR_FILE).unlink(missing_ok=True)  # of one that was killed
            yield

    @contextmanager
    def supervised_by(self, agent: str) -> Iterator[None]:
        """Let the commands find the agent that keeps this stack up while the context is open."""
        file = self.folder / _SUPERVISOR_FILE
        write_secret(file, msgspec.json.encode(Supervision(agent, os.getpid())).decode())
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    @contextmanager
    def announced(self, address: Address) -> Iterator[None]:
        """Let `open_bus()` find the broker while the context is open."""
        file = self.folder / ADDRESS_FILE
        write_secret(file, msgspec.json.encode(address).decode())
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    @asynccontextmanager
    async def server(self, options: ServerOptions, identities: Sequence[Identity]) -> AsyncIterator[Server]:
        """Our own broker, which lets these in, at the port that it had before unless `options` say one."""
        await self._end_leftover()
        options = msgspec.structs.replace(options, port=options.port or self._old_port())
        async with open_server(self.server_folder, options, identities) as server:
            (self.server_folder / "port").write_text(str(server.port))
            yield server

    def _old_port(self) -> int:
        """The port of last time, if it is free; otherwise 0, which takes another."""
        said = _read(self.server_folder / "port") or ""
        if not said.isdecimal() or not 0 < int(said) < 65_536:
            return 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(said)))
            except OSError:
                return 0
        return int(said)

    async def _end_leftover(self) -> None:
        """End the server of a stack that was killed: two on one store would destroy it."""
        for file in self.server_folder.glob("ports/*.ports"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdecimal() and self._is_our_server(int(pid)):
                log.warning("ending the server of a stack that was killed", extra={"pid": pid})
                await self._end(int(pid))

    def _is_our_server(self, pid: int) -> bool:
        """A process id is used again: what counts is the configuration that it runs with."""
        return str(self.server_folder / "nats-server.conf") in arguments_of(pid)

    async def _end(self, pid: int) -> None:
        until = time.monotonic() + _LEFTOVER_TIMEOUT
        while self._is_our_server(pid):
            number = signal.SIGTERM if time.monotonic() < until else signal.SIGKILL
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            await anyio.sleep(0.05)


def _lock(file: TextIO) -> bool:
    """Take the lock of a stack, if nobody has it; whoever only looks at it has it for a moment."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_MOMENT)
        else:
            return True
    return False


def arguments_of(pid: int) -> str:
    """What a process was started with; nothing if it has ended, even where nobody collects the ended ones."""
    if Path("/proc/self/cmdline").exists():  # Linux, where `ps` may not be installed
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None
