"""A stream over a pair of sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import anyio
import pytest

from xnai.bus.socket_stream import SocketStream

LARGE = bytes(range(256)) * 8_192  # more than a socket holds


@pytest.fixture
async def ends() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    one, other = map(SocketStream, socket.socketpair())
    async with one, other:
        yield one, other


async def test_what_is_sent_arrives_and_then_the_end(ends: tuple[SocketStream, SocketStream]) -> None:
    one, other = ends
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                await one.send(LARGE)
                await one.send_eof()

            tasks.start_soon(send)
            heard = b"".join([data async for data in other])
    assert heard == LARGE


async def test_the_end_of_the_other_is_said(ends: tuple[SocketStream, SocketStream]) -> None:
    one, other = ends
    await other.aclose()
    with pytest.raises(anyio.EndOfStream):
        await one.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await one.send(b"x")
    with pytest.raises(anyio.ClosedResourceError):
        await other.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await other.send(b"x")


async def test_who_waits_hears_that_it_is_closed(ends: tuple[SocketStream, SocketStream]) -> None:
    one, _ = ends

    async def receive() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await one.receive()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await one.aclose()


async def test_data_that_comes_as_its_reader_is_cancelled_disturbs_nobody() -> None:
    """An error of the loop fails a test."""
    for _ in range(3):
        near, far = socket.socketpair()
        async with SocketStream(near) as stream:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.receive)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                far.send(b"x")
            with anyio.fail_after(5):
                assert await stream.receive() == b"x"
        far.close()
