"""Hearing what the broker stored about our tasks: one subscription for the whole life of a bus."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from xnai.bus.parser import Frame
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.subjects import EventSubject

log = logging.getLogger(__name__)
_TOKENS = (8, 9)  # of the subject of a delta, and of a live event
Listener = Callable[[Frame, list[str]], None]
"""Gets a frame and the tokens of its subject: the fourth is the agent with the log, the ninth its kind.

Another agent can write about our task too, in its own log: whoever listens looks at the fourth.
"""


def is_genuine(frame: Frame) -> bool:
    """Whether the broker itself republished this frame from the log that its subject names."""
    return stands_for(frame, subjects.stored_subject(frame.subject))


def genuine(frame: Frame) -> EventSubject | None:
    """What a live event is about; None where the broker did not republish it."""
    try:
        return subjects.read_event(frame.subject) if is_genuine(frame) else None
    except MalformedMessage:  # its sender may store it, and nobody reads it
        return None


def stands_for(frame: Frame, subject: str) -> bool:
    """Whether the broker says of this frame that it is stored under `subject`.

    A writer may have said so itself, in these letters, and have had its message handed out here: then the
    broker's word stands beside its own, so it must be the only one.
    """
    head = frame.head
    return f"\r\nNats-Subject: {subject}\r\n".encode() in head and head.count(b"\r\nNats-Subject:") == 1


def sequence_of(frame: Frame) -> int:
    """The place in the log of an event that was heard live."""
    return int(frame.header("Nats-Sequence") or 0)


class Hearing:
    """Hands what is heard about a task to those who listen for its id."""

    def __init__(self, transport: Transport, name: str, instance: str) -> None:
        self._transport, self._name, self._instance = transport, name, instance
        self._listeners: dict[str, list[Listener]] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hear the events and the deltas of every task that this bus sends."""
        live = subjects.live_of_instance(self._name, self._instance)
        deltas = subjects.deltas_of_instance(self._name, self._instance)
        async with self._transport.listen(live, self._heard), self._transport.listen(deltas, self._heard):
            yield

    def add(self, id: str, listener: Listener) -> None:
        """From now on, hand what is heard about a task to `listener`."""
        self._listeners.setdefault(id, []).append(listener)

    def remove(self, id: str, listener: Listener) -> None:
        others = self._listeners[id]
        others.remove(listener)
        if not others:
            del self._listeners[id]

    @contextmanager
    def listen(self, id: str, listener: Listener) -> Iterator[None]:
        """Hand what is heard about a task to `listener` while the context is open."""
        self.add(id, listener)
        try:
            yield
        finally:
            self.remove(id, listener)

    @asynccontextmanager
    async def listen_elsewhere(self, id: str) -> AsyncIterator[None]:
        """Hear also the events of a task of ours that another bus sent. On entry the broker knows of it."""
        live, deltas = subjects.live_of_task(self._name, id), subjects.deltas_of_task(self._name, id)
        async with (
            self._transport.listen(live, self._heard_elsewhere),
            self._transport.listen(deltas, self._heard_elsewhere),
        ):
            with anyio.CancelScope(shield=True):
                await self._transport.flush()
            yield

    def _heard_elsewhere(self, frame: Frame) -> None:
        if frame.subject.split(".")[6] != self._instance:  # what this bus sent is heard already
            self._heard(frame)

    def _heard(self, frame: Frame) -> None:
        tokens = frame.subject.split(".")
        listeners = self._listeners.get(tokens[5]) if len(tokens) in _TOKENS else None
        if not listeners:
            return
        # A delta comes from a worker and has no headers; what the broker was made to send here has.
        if not is_genuine(frame) if tokens[2] == "live" else frame.head:
            log.warning("heard an event that was never stored", extra={"subject": frame.subject})
            return
        for listener in tuple(listeners):
            listener(frame, tokens)
