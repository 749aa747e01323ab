"""nats-py's client, lighter where every message passes.

`post` writes one frame instead of building it in five steps, and a message is handed over at once instead of
by way of a header dict, a queue and a task. Together with the parser that is worth a third of the throughput.
Connecting, reconnecting and flushing stay nats-py's own. All of it leans on names that nats-py keeps private,
so its minor version is pinned and `tests/test_client.py` tries them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client as NatsClient
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from xnai.bus.keys import Key
from xnai.bus.parser import Frame, MessageParser
from xnai.bus.waiting import new_future
from xnai.protocol.errors import InvalidPayload, NotAllowed, Unavailable

log = logging.getLogger(__name__)
_SYNC_TIMEOUT = 2  # seconds; nats-py waits for an answer that a lost link never brings


Receive = Callable[[Frame], None]


class NoTls(NatsError):
    """The server that was asked for TLS has none."""


class _Receiver:
    """Stands where nats-py expects a future, and is never done."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive

    def cancelled(self) -> bool:
        return False


class Client(NatsClient):
    """One connection. `post`, `send` and `listen` are what the bus uses of it.

    With a `key` it shows that, as its file holds it at the moment of each connection.
    """

    def __init__(self, key: Key | None = None) -> None:
        super().__init__()
        self._ps = MessageParser(self, self._deliver)
        self._key = key

    def post(self, subject: str, data: bytes = b"", *, reply: str = "", head: str = "") -> None:
        """Write a message; `head` holds its header lines, each ended by CRLF.

        It leaves with the others of this turn of the loop. While the link is down it is kept, up to nats-py's
        limit of pending bytes, and sent afterwards.

        Raises:
            InvalidPayload: it is larger than the server takes, which would end the connection.
            Unavailable: the connection is closed for good, or too much is kept already.
        """
        if head:
            head = f"NATS/1.0\r\n{head}\r\n"
            size = len(head) + len(data)
            frame = f"HPUB {subject} {reply} {len(head)} {size}\r\n{head}".encode() + data + b"\r\n"
        else:
            size = len(data)
            frame = f"PUB {subject} {reply} {size}\r\n".encode() + data + b"\r\n"
        if size > self._max_payload:
            raise InvalidPayload(
                f"A message of {size} bytes is more than the server takes ({self._max_payload})."
            )
        if not self.is_connected:
            self._check_room(size)
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if self._flush_queue is not None and self._flush_queue.empty() and self.is_connected:
            self._flush_queue.put_nowait(new_future())

    async def send(self, subject: str, data: bytes = b"", *, reply: str = "", head: str = "") -> None:
        """As `post`, and wait while more is pending than nats-py keeps: for large messages in a row."""
        self.post(subject, data, reply=reply, head=head)
        await self.drain_pending()

    async def drain_pending(self) -> None:
        """Wait while more is pending than nats-py keeps."""
        if self._pending_data_size > self._max_pending_size and self.is_connected:
            await self._flush_pending(force_flush=True)

    def _check_room(self, size: int) -> None:
        if self.is_closed:
            raise Unavailable("The connection to the broker is closed.")
        if self._pending_data_size + size > self._max_pending_size:
            raise Unavailable("The link to the broker is down, and no more can be kept until it is back.")

    async def listen(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Hand all that is sent to `subject` to `receive`, at once, in order; one of a `queue` hears it."""
        return await self.subscribe(subject, queue, future=_Receiver(receive))  # type: ignore[arg-type]

    def move(self, subscription: Subscription, subject: str) -> None:
        """Let it hear `subject` instead from the next link on; to be called while there is none."""
        subscription._subject = subject

    async def drop(self, subscription: Subscription) -> None:
        """End a subscription without losing what is on its way: it is heard until the server has agreed."""
        await self._send_unsubscribe(subscription._id)
        try:
            if self.is_connected:
                await self.sync()
        finally:
            self._remove_sub(subscription._id)

    def _connect_command(self) -> bytes:
        if self._key is not None:
            try:
                self._public_nkey, self._signature_cb = self._key.public, self._key.sign
            except NotAllowed as error:  # of ours: it would end nats-py's search for the link without a word
                raise NatsError(f"nats: no authorization: {error}") from error
        return super()._connect_command()

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:  # nats-py takes another one for the next attempt, and leaves this one open
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
            raise

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """The server's first word. Where TLS was asked for, nothing secret is said without it."""
        wants_tls = self._current_server is not None and self._current_server.uri.scheme == "tls"
        if initial_connection and wants_tls and not info.get("tls_required"):
            raise NoTls("nats: the server speaks no TLS")
        await super()._process_info(info, initial_connection)

    async def sync(self) -> None:
        """Return once the server has read all that was written.

        nats-py's own `flush` writes its PING ahead of what is still pending, and so may return too early.
        """
        await self._flush_pending(force_flush=True)
        await self.flush(_SYNC_TIMEOUT)

    async def shut(self) -> None:
        """Close for good. While the link is down nats-py would write to a transport that is gone."""
        if self._flush_queue is None:  # it was never opened
            return
        if not self.is_connected:
            self._pending.clear()
            self._pending_data_size = 0
            if self._transport is not None:  # nats-py waits for its end, which failed TLS never tells
                self._transport.close()  # type: ignore[no-untyped-call]
                self._transport = None
        await self.close()

    def _deliver(self, sid: int, frame: Frame) -> bool:
        """Hand a message over, unless its subscription is one of nats-py's own."""
        subscription = self._subs.get(sid)
        receiver: Any = subscription._future if subscription is not None else None
        if type(receiver) is not _Receiver:
            return False
        try:
            receiver.receive(frame)
        except Exception:  # foreign code: raised here, it would end the read loop, and so the connection
            log.exception("a receiver failed", extra={"subject": frame.subject})
        return True
