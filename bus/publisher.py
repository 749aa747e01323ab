"""Storing a message and knowing that it is stored."""

from __future__ import annotations

import asyncio
import base64
import hmac
import itertools
import time

import anyio
import msgspec

from xnai.bus.parser import Frame
from xnai.bus.transport import NoResponders, Transport, forbidden
from xnai.bus.waiting import new_future
from xnai.protocol.errors import Busy, GateClosed, InvalidPayload, Unavailable, XnaiError

PUBLISH_TIMEOUT = 15.0
_RESEND_AFTER = 3.0
_SWEEP_INTERVAL = 0.5
_LARGE = 64 * 1024  # bytes: messages of this size wait until those before them have left

# Error codes of nats-server (its errors.json).
_WRONG_LAST_SEQUENCE = 10071
_STREAM_FULL = 10077
_NO_RESOURCES = 10023
_TRY_AGAIN = frozenset(
    {10164, 10158, 10008, 10009}
)  # a write in flight, the same id in flight, no leader yet


class _Fault(msgspec.Struct, frozen=True, gc=False):
    err_code: int = 0
    description: str = ""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The broker's word: stored at `seq` of `stream`, or stored before (`duplicate`)."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Fault | None = None


_read_receipt = msgspec.json.Decoder(Receipt).decode


class _Pending:
    __slots__ = ("data", "head", "refused", "sent", "stored", "subject", "until")

    def __init__(self, subject: str, data: bytes, head: str, timeout: float) -> None:
        self.subject, self.data, self.head = subject, data, head
        self.stored: asyncio.Future[Receipt] = new_future()
        self.sent, self.refused = time.monotonic(), False
        self.until = self.sent + timeout


class Publisher:
    """Publishes that wait for the broker's word. What is not confirmed is sent again, with the same id."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._inbox = transport.client.new_inbox()
        self._seed = transport.key.seed if transport.key else b""
        self._tokens = map(str, itertools.count())
        self._pending: dict[str, _Pending] = {}  # oldest first
        self._wake = anyio.Event()
        transport.when_denied.append(self._denied)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Hear confirmations and repeat what lacks one, until cancelled."""
        async with (
            self._transport.listen(f"{self._inbox}.*", self._confirmed),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._repeat_after_reconnects)
            task_status.started()
            while True:
                await self._wake.wait()
                await anyio.sleep(_SWEEP_INTERVAL)
                self._sweep(time.monotonic())
                if not self._pending:
                    self._wake = anyio.Event()

    async def store(
        self, subject: str, data: bytes, *, id: str = "", unless: str = "", timeout: float = PUBLISH_TIMEOUT
    ) -> Receipt:
        """Return once the message is stored: once per `id`, and only while `unless` holds none.

        Raises:
            GateClosed: `unless`, a pattern of subjects, holds a message. It may be ours, if the first word
                of the broker was lost: read what is stored.
            Busy: the stream is full; nothing is stored.
            NoResponders: no stream takes the subject, or its leader is being elected.
            Unavailable: not confirmed within `timeout` seconds; it may or may not be stored.
        """
        head = f"Nats-Msg-Id: {self._secret(id) if self._seed else id}\r\n" if id else ""
        if unless:
            head += (
                "Nats-Expected-Last-Subject-Sequence: 0\r\n"
                f"Nats-Expected-Last-Subject-Sequence-Subject: {unless}\r\n"
            )
        return await self.publish(subject, data, head, timeout=timeout)

    def _secret(self, id: str) -> str:
        """`id` as only holders of our key can write it.

        All who write to a stream share its message ids: whoever guessed ours could store a message of his
        under it, and ours would be taken for a repetition.
        """
        return base64.urlsafe_b64encode(hmac.digest(self._seed, id.encode(), "sha256")[:18]).decode()

    async def publish(
        self, subject: str, data: bytes, head: str = "", *, timeout: float = PUBLISH_TIMEOUT
    ) -> Receipt:
        """Store a message with these header lines; raises as `store` does."""
        token = next(self._tokens)
        pending = self._pending[token] = _Pending(subject, data, head, timeout)
        if len(self._pending) == 1:
            self._wake.set()
        try:
            if self._transport.connected:
                self._send(token, pending)
                if len(data) > _LARGE:
                    await self._transport.client.drain_pending()
            return await pending.stored
        finally:
            self._pending.pop(token, None)

    def _send(self, token: str, pending: _Pending) -> None:
        reply = f"{self._inbox}.{token}"
        try:
            self._transport.client.post(pending.subject, pending.data, reply=reply, head=pending.head)
        except Unavailable:  # the link went down just now: sent again when it is back
            pending.sent = 0.0
        except InvalidPayload as error:
            pending.stored.set_exception(error)

    def _confirmed(self, frame: Frame) -> None:
        pending = self._pending.get(frame.subject[len(self._inbox) + 1 :])
        if pending is None or pending.stored.done():
            return
        if not frame.data:
            if self._transport.key and not pending.refused:  # the server may be reading who is who
                pending.refused, pending.sent = True, 0.0
            else:
                pending.stored.set_exception(NoResponders(f"No stream takes {pending.subject}."))
            return
        receipt = _read_receipt(frame.data)
        if receipt.error is None:
            pending.stored.set_result(receipt)
        elif receipt.error.err_code in _TRY_AGAIN:
            pending.sent = 0.0  # the next sweep sends it again
        else:
            pending.stored.set_exception(_refusal(receipt.error, pending.subject))

    def _denied(self, subject: str) -> None:
        for pending in self._pending.values():
            if pending.subject.lower() == subject and not pending.stored.done():
                pending.stored.set_exception(forbidden(pending.subject))

    def _sweep(self, now: float) -> None:
        """One look at all that waits costs less than a timer for each."""
        for token, pending in list(self._pending.items()):
            if pending.stored.done():
                continue
            if refusal := self._transport.silence:
                pending.stored.set_exception(refusal)
            elif now > pending.until:
                pending.stored.set_exception(
                    Unavailable("The broker did not confirm a message in time: it may or may not be stored.")
                )
            elif now - pending.sent > _RESEND_AFTER and self._transport.connected:
                pending.sent = now
                self._send(token, pending)

    async def _repeat_after_reconnects(self) -> None:
        async for _ in self._transport.reconnections():
            for pending in self._pending.values():
                pending.sent = 0.0
            self._sweep(time.monotonic())


def _refusal(fault: _Fault, subject: str) -> XnaiError:
    if fault.err_code == _WRONG_LAST_SEQUENCE:
        return GateClosed(f"Another event stands where {subject} asked to be the first.")
    if fault.err_code in (_STREAM_FULL, _NO_RESOURCES):
        return Busy(f"There is no room for {subject}: {fault.description}.")
    return Unavailable(f"The broker refused {subject}: {fault.description} ({fault.err_code}).")
