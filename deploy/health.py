"""`GET /healthz` for containers: 200 while the agent takes tasks, 503 with the reason otherwise."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus

from xnai.deploy.output import to_json
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.presence import Level

_LONGEST_REQUEST = 8_192
_PATIENCE = 5.0
Probe = Callable[[], tuple[Level, str | None]]


async def serve_health(port: int, probe: Probe, *, task_status: TaskStatus[int]) -> None:
    """Answer on 127.0.0.1 until cancelled; started with the port, which 0 leaves to the system.

    Raises:
        InvalidArgument: the port is taken.
    """
    try:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    except OSError as error:
        raise InvalidArgument(f"Port {port} cannot be used for /healthz: {error.strerror}.") from error

    async def answer(client: SocketStream) -> None:
        async with client:
            with anyio.move_on_after(_PATIENCE):
                try:
                    await client.send(_response(await _request_line(client), probe))
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return

    async with listener:
        task_status.started(listener.extra(SocketAttribute.local_port))  # noqa: S610  # not that of Django
        await listener.serve(answer)


async def _request_line(client: SocketStream) -> list[str]:
    read = b""
    while b"\r\n\r\n" not in read and len(read) < _LONGEST_REQUEST:
        read += await client.receive()
    return read.partition(b"\r\n")[0].decode("latin-1").split(" ")


def _response(words: list[str], probe: Probe) -> bytes:
    if len(words) != 3 or words[0] not in ("GET", "HEAD"):
        return _written(HTTPStatus.BAD_REQUEST, {"error": "GET /healthz is all there is here"})
    if words[1].partition("?")[0] != "/healthz":
        return _written(HTTPStatus.NOT_FOUND, {"error": "GET /healthz is all there is here"})
    level, why = probe()
    well = level.reaches(Level.CONSUMING)
    return _written(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, {"level": level, "why": why})


def _written(status: HTTPStatus, body: object) -> bytes:
    data = to_json(body).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
