"""A stream over a socket of this machine.

anyio's own for Unix sockets sets a future that may be cancelled already, where on uvloop data comes in the
moment in which its reader is cancelled: the loop then reports an error that is none, to whoever reads the
terminal.
"""

from __future__ import annotations

import socket

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

_READ = 65_536


class SocketStream(ByteStream):
    """Owns a connected socket."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    async def receive(self, max_bytes: int = _READ) -> bytes:
        """What has come in, at least one byte.

        Raises:
            EndOfStream: the other end is closed.
            BrokenResourceError: it was lost.
            ClosedResourceError: this end is closed.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError as error:
                raise self._reason() from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """Returns once the system has all of it.

        Raises:
            BrokenResourceError: the other end is closed, or was lost.
            ClosedResourceError: this end is closed.
        """
        await anyio.lowlevel.checkpoint()
        rest = memoryview(item)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise self._reason() from error

    async def send_eof(self) -> None:
        """The other end reads no more than was sent."""
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close it; whoever waits for it hears so."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    def _reason(self) -> anyio.BrokenResourceError | anyio.ClosedResourceError:
        return anyio.BrokenResourceError() if self._socket.fileno() >= 0 else anyio.ClosedResourceError()
