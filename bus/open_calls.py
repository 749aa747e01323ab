"""The calls that wait for their outcome."""

from __future__ import annotations

import logging
from types import TracebackType

from xnai.bus.finding import read_outcome
from xnai.bus.hearing import Hearing
from xnai.bus.jetstream import JetStream
from xnai.bus.parser import Frame
from xnai.bus.transport import Transport
from xnai.bus.waiting import new_future, within
from xnai.protocol import subjects
from xnai.protocol.a2a import Task
from xnai.protocol.envelope import Envelope
from xnai.protocol.errors import Unavailable
from xnai.protocol.events import OUTCOME

log = logging.getLogger(__name__)


class OpenCalls:
    """What waits now. After a lost link the outcomes that may have been missed are read from the logs."""

    def __init__(self, transport: Transport, api: JetStream, hearing: Hearing) -> None:
        self._transport, self._api = transport, api
        self.hearing = hearing
        self.waiting: set[OpenCall] = set()

    def open(self, task: Envelope) -> OpenCall:
        """Wait for the outcome of `task` while the context is open."""
        return OpenCall(self, task)

    async def read_after_reconnects(self) -> None:
        async for _ in self._transport.reconnections():
            try:
                await self._read()
            except Unavailable:  # lost again: the next reconnect reads
                log.info("the outcomes of open calls could not be read yet")

    async def _read(self) -> None:
        calls = list(self.waiting)
        tasks = [call.task for call in calls]
        gates = [
            (subjects.log_stream(task.agent), subjects.gate(task.agent, task.sender, task.id))
            for task in tasks
        ]
        for call, stored in zip(calls, await self._api.last_in_each(gates), strict=True):
            if stored is not None:
                call.told(stored.data)


class OpenCall:
    """One caller that waits."""

    def __init__(self, calls: OpenCalls, task: Envelope) -> None:
        self.task = task
        self._calls = calls
        self._outcome = new_future()

    def __enter__(self) -> OpenCall:
        self._calls.waiting.add(self)
        self._calls.hearing.add(self.task.id, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._calls.hearing.remove(self.task.id, self._heard)
        self._calls.waiting.discard(self)

    def _heard(self, frame: Frame, tokens: list[str]) -> None:
        if tokens[2] == "live" and tokens[8] == OUTCOME and tokens[3] == self.task.agent:
            self.told(frame.data)

    def told(self, outcome: bytes) -> None:
        """The outcome is known."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    async def outcome(self, timeout: float) -> Task:
        """The outcome; raises TimeoutError after `timeout` seconds."""
        return read_outcome(await within(timeout, self._outcome))
