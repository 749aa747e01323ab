"""The lighter client: what it replaces of nats-py does what nats-py does, however the bytes come."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joining import open_link
from nats.errors import ProtocolError

from xnai.bus import Server
from xnai.bus.client import Client
from xnai.bus.parser import Frame, MessageParser
from xnai.protocol.errors import InvalidPayload, Unavailable

HEAD = b"NATS/1.0\r\nA: 1\r\n\r\n"
MESSAGES = [
    (b"MSG a.b 1 5\r\nhello\r\n", (1, Frame("a.b", "", b"hello", b""))),
    (b"MSG a.b 7 back.to.me 0\r\n\r\n", (7, Frame("a.b", "back.to.me", b"", b""))),
    (b"MSG a 12 13\r\nMSG a 1 2\r\nhi\r\n", (12, Frame("a", "", b"MSG a 1 2\r\nhi", b""))),
    (b"HMSG a 3 %d %d\r\n%bbody\r\n" % (len(HEAD), len(HEAD) + 4, HEAD), (3, Frame("a", "", b"body", HEAD))),
    (b"HMSG a 3 re %d %d\r\n%b\r\n" % (len(HEAD), len(HEAD), HEAD), (3, Frame("a", "re", b"", HEAD))),
]


class Connection:
    """What nats-py's parser tells its client."""

    def __init__(self) -> None:
        self.pongs = self.pings = 0

    async def _process_pong(self) -> None:
        self.pongs += 1

    async def _process_ping(self) -> None:
        self.pings += 1


@asynccontextmanager
async def connected(server: Server, url: str | None = None) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(url or server.url, token=server.token, reconnect_time_wait=0.05)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.shut()


async def parsed(pieces: list[bytes]) -> tuple[list[tuple[int, Frame]], Connection]:
    got: list[tuple[int, Frame]] = []
    connection = Connection()

    def deliver(number: int, frame: Frame) -> bool:
        got.append((number, frame))
        return True

    parser = MessageParser(connection, deliver)
    for piece in pieces:
        await parser.parse(piece)
    assert not parser.buf
    return got, connection


@given(st.lists(st.sampled_from([*MESSAGES, (b"PONG\r\n", None), (b"PING\r\n", None)])), st.data())
def test_messages_are_read_wherever_the_bytes_are_cut(
    sent: list[tuple[bytes, tuple[int, Frame] | None]], data: st.DataObject
) -> None:
    stream = b"".join(written for written, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    got, connection = anyio.run(parsed, pieces)
    assert got == [expected for _, expected in sent if expected is not None]
    assert connection.pongs == sum(written == b"PONG\r\n" for written, _ in sent)
    assert connection.pings == sum(written == b"PING\r\n" for written, _ in sent)


@pytest.mark.parametrize(
    "line", [b"MSG a\r\n", b"MSG a x 2\r\n", b"HMSG a 1 2\r\n", b"MSG \xff 1 2\r\nhi\r\n", b"HUH\r\n"]
)
async def test_bytes_that_are_no_protocol_are_an_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await parsed([line])


@pytest.mark.parametrize(
    ("head", "status"), [(b"", 0), (HEAD, 0), (b"NATS/1.0 404 No Messages\r\n\r\n", 404)]
)
def test_the_status_is_that_of_frames_the_server_made(head: bytes, status: int) -> None:
    assert Frame("a", "", b"", head).status == status


def test_a_header_is_found_by_its_whole_name() -> None:
    frame = Frame("a", "", b"", b"NATS/1.0\r\nNats-Sequence-X: 9\r\nNats-Sequence: 12\r\n\r\n")
    assert frame.header("Nats-Sequence") == "12"
    assert frame.header("Sequence") == ""


async def test_what_is_posted_arrives_with_its_head_and_in_order(server: Server) -> None:
    got: list[Frame] = []
    all_here = anyio.Event()

    def take(frame: Frame) -> None:
        got.append(frame)
        if len(got) == 100:
            all_here.set()

    with anyio.fail_after(10):
        async with connected(server) as one, connected(server) as two:
            await one.listen("numbers.>", take)
            await one.sync()
            for n in range(100):
                two.post(f"numbers.{n}", b"%d" % n, head=f"N: {n}\r\n", reply="nobody")
            await all_here.wait()
    assert [frame.data for frame in got] == [b"%d" % n for n in range(100)]
    assert {(frame.header("N"), frame.reply) for frame in got[:1]} == {("0", "nobody")}


async def test_nats_pys_own_ways_go_on_working(server: Server) -> None:
    with anyio.fail_after(10):
        async with connected(server) as client:
            subscription = await client.subscribe("plain")
            await client.publish("plain", b"1", headers={"A": "b"})
            message = await anext(aiter(subscription.messages))
            assert (message.data, message.headers) == (b"1", {"A": "b"})
            info = await client.request("$JS.API.INFO", b"", timeout=5)
            assert b"streams" in info.data


async def test_a_receiver_that_fails_is_named_and_the_next_message_comes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    second = anyio.Event()

    def take(frame: Frame) -> None:
        if frame.data == b"1":
            raise RuntimeError("clumsy")
        second.set()

    with anyio.fail_after(10), caplog.at_level(logging.ERROR):
        async with connected(server) as client:
            await client.listen("a", take)
            client.post("a", b"1")
            client.post("a", b"2")
            await second.wait()
    assert "a receiver failed" in caplog.text


async def test_a_dropped_subscription_hears_what_was_on_its_way(server: Server) -> None:
    got: list[bytes] = []
    with anyio.fail_after(10):
        async with connected(server) as client:
            subscription = await client.listen("a", lambda frame: got.append(frame.data))
            for n in range(50):
                client.post("a", b"%d" % n)
            await client.drop(subscription)
            assert len(got) == 50
            client.post("a", b"late")
            await client.sync()
            assert len(got) == 50


async def test_a_message_beyond_the_servers_limit_is_refused_and_the_link_lives(server: Server) -> None:
    async with connected(server) as client:
        with pytest.raises(InvalidPayload, match=f"{client.max_payload + 1} bytes"):
            client.post("a", b"x" * (client.max_payload + 1))
        await client.sync()


async def test_what_is_posted_while_the_link_is_down_is_kept_up_to_a_limit_and_sent_later(
    server: Server,
) -> None:
    heard = anyio.Event()
    lost = anyio.Event()
    with anyio.fail_after(15):
        async with (
            open_link(server) as link,
            connected(server) as witness,
            connected(server, link.url) as client,
        ):

            async def disconnected() -> None:
                lost.set()

            client._disconnected_cb = disconnected
            await witness.listen("kept", lambda frame: heard.set())
            await witness.sync()
            link.cut()
            await lost.wait()
            client.post("kept", b"1")
            for _ in range(client._max_pending_size // client.max_payload):
                with suppress(Unavailable):
                    client.post("other", b"x" * client.max_payload)
            with pytest.raises(Unavailable, match="no more can be kept"):
                client.post("other", b"x" * client.max_payload)
            link.mend()
            await heard.wait()


async def test_a_closed_client_says_so(server: Server) -> None:
    async with connected(server) as client:
        pass
    with pytest.raises(Unavailable, match="closed"):
        client.post("a", b"1")
