"""A look at a supervisor from its own machine, without the broker: a Unix socket in the stack's folder.

Whoever connects gets the processes as they are at that moment, as JSON, and the end of the stream.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import SocketStream

from xnai.bus.background import background_tasks
from xnai.deploy.supervisor.orders import Row
from xnai.protocol.errors import XnaiError

_SOCKET = "supervisor.sock"
_PATIENCE = 10.0
_OF_OURS = Path("/proc/self/fd")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor sees.

    Attributes:
        rows: the processes of its agents.
        linked: whether the broker answers it; if not, `rows` hold what the system knows, and no more.
    """

    rows: list[Row]
    linked: bool


@asynccontextmanager
async def open_window(folder: Path, look: Callable[[], Awaitable[View]]) -> AsyncIterator[None]:
    """Show to the owner of `folder` what `look` sees, while the context is open."""

    async def answer(client: SocketStream) -> None:
        async with client:
            with anyio.move_on_after(_PATIENCE):
                try:
                    await client.send(msgspec.json.encode(await look()))
                except (XnaiError, anyio.BrokenResourceError):  # it is leaving, or nobody looks any more
                    return

    with _path_in(folder) as path:
        listener = await anyio.create_unix_listener(path, mode=0o600)
    async with listener, background_tasks() as tasks:
        tasks.start_soon(listener.serve, answer)
        try:
            yield
        finally:
            (folder / _SOCKET).unlink(missing_ok=True)


async def look_through(folder: Path) -> View | None:
    """What the supervisor of `folder` sees; None if it is leaving.

    Raises:
        TimeoutError: it does not answer.
    """
    said = b""
    with anyio.fail_after(_PATIENCE), _path_in(folder) as path:
        try:
            async with await anyio.connect_unix(path) as stream:
                async for data in stream:
                    said += data
            return msgspec.json.decode(said, type=View)
        except (OSError, anyio.BrokenResourceError, msgspec.DecodeError):
            return None


@contextmanager
def _path_in(folder: Path) -> Iterator[str]:
    """The socket's path: those may have 100 letters at most, so on Linux it goes by way of an open folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        way = _OF_OURS / str(handle)
        yield str((way if way.exists() else folder) / _SOCKET)
    finally:
        os.close(handle)
