"""The story of a task: every event of its log, then what comes, until its outcome."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio

from xnai.bus.finding import Finder, Found, event_of, is_known
from xnai.bus.hearing import Hearing, sequence_of
from xnai.bus.jetstream import Stored
from xnai.bus.parser import Frame
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.errors import Unavailable
from xnai.protocol.events import OUTCOME, Event

_BUFFER = 10_000


class Storyteller:
    """Replays a task's log and goes on live, without a gap and without a repetition.

    Listening begins first; then the log is read; then what was heard meanwhile follows, without what the log
    had. After a lost link, and when more came than could be kept, the log is read again from the cursor.
    """

    def __init__(self, transport: Transport, finder: Finder, hearing: Hearing) -> None:
        self._transport, self._finder, self._hearing = transport, finder, hearing

    async def tell(self, found: Found, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Events beyond the sequence `after`; ends behind the outcome."""
        heard = _Heard(found.agent)
        async with self._hearing.listen_elsewhere(found.id):
            with self._hearing.listen(found.id, heard.take), self._transport.when_lost(heard.read_again):
                while not (heard.must_read and after and await self._finder.ended_by(found, after)):
                    for event in await self._next(found, heard, after):
                        after = event.sequence
                        yield event
                        if event.kind == OUTCOME:
                            return

    async def _next(self, found: Found, heard: _Heard, after: int) -> list[Event]:
        if heard.must_read:
            heard.must_read = False
            try:
                return await self._finder.story(found, after=after)
            except Unavailable:
                if self._transport.connected:
                    raise
                heard.must_read = True  # once the link is back
        await heard.wait()
        if heard.must_read:  # what is heard now may lie beyond a gap
            return []
        return [event for event in heard.drain() if event.sequence > after]


class _Heard:
    """What came live and was not yet told."""

    def __init__(self, agent: str) -> None:
        self.must_read = True
        self._agent = agent
        self._frames: list[Frame] = []
        self._news = anyio.Event()

    def take(self, frame: Frame, tokens: list[str]) -> None:
        if tokens[2] != "live" or tokens[3] != self._agent:
            return
        if len(self._frames) >= _BUFFER:  # a reader this slow catches up from the log
            self._frames.clear()
            self.read_again()
            return
        self._frames.append(frame)
        self._news.set()

    def read_again(self) -> None:
        self.must_read = True
        self._news.set()

    async def wait(self) -> None:
        await self._news.wait()
        self._news = anyio.Event()

    def drain(self) -> list[Event]:
        frames, self._frames = self._frames, []
        return [
            event_of(Stored(subjects.stored_subject(frame.subject), sequence_of(frame), 0.0, frame.data))
            for frame in frames
            if is_known(frame.subject)
        ]
