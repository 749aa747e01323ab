"""Putting a stream together from what is heard: deltas early, stored events for certain, each chunk once."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

import anyio

from xnai.bus.blobs import Blobs
from xnai.bus.finding import Finder, read_outcome
from xnai.bus.hearing import sequence_of
from xnai.bus.parser import Frame
from xnai.bus.told import Told
from xnai.protocol.a2a import Part, Task, TaskArtifactUpdateEvent, TaskState
from xnai.protocol.envelope import Envelope, encode
from xnai.protocol.errors import InvalidPayload, InvalidResult, MalformedMessage, StreamChanged, Unavailable
from xnai.protocol.events import ARTIFACT, OUTCOME, facts_of, read_body
from xnai.protocol.payload import Codec

T = TypeVar("T")
_DELTA = "delta"


class ChunkReader(Generic[T]):
    """The chunks of one task.

    What is heard counts if it is of `agent`, which was asked. A chunk has a number within its attempt. A new
    attempt begins again at 0: what was handed out is compared and skipped.
    """

    def __init__(self, id: str, agent: str, blobs: Blobs, codec: Codec[T]) -> None:
        self.outcome: Task | None = None
        self.must_read = False
        self.agent = agent
        self._id, self._blobs, self._codec = id, blobs, codec
        self._after = 0
        self._run = (0, "")
        self._position = 0
        self._started_over = False
        self._winner: tuple[int, str] | None = None  # the attempt that the outcome is of, once that matters
        self._told = Told(id)
        self._frames: deque[tuple[str, int, bytes]] = deque()
        self._news = anyio.Event()

    def take(self, frame: Frame, tokens: list[str]) -> None:
        """What is heard; a listener."""
        kind = tokens[8] if tokens[2] == "live" else tokens[2]
        if kind in (ARTIFACT, OUTCOME, _DELTA) and tokens[3] == self.agent:
            self._frames.append((kind, sequence_of(frame) if kind != _DELTA else 0, frame.data))
            self._news.set()

    def read_again(self) -> None:
        """Something may have been missed: read the log before going on."""
        self.must_read = True
        self._news.set()

    async def wait(self) -> None:
        if not self._frames and not self.must_read:
            await self._news.wait()
        self._news = anyio.Event()

    async def read_log(self, finder: Finder, task: Envelope) -> None:
        """Take from the log what was not heard. Raises Unavailable, and is to be tried again then."""
        self.must_read = False
        try:
            events = await finder.story(task, after=self._after)
        except Unavailable:
            self.must_read = True
            raise
        read = [
            (event.kind, event.sequence, encode(event.body))
            for event in events
            if event.kind in (ARTIFACT, OUTCOME)
        ]
        self._frames.extendleft(reversed(read))  # ahead of what was heard meanwhile, which lies behind it

    @property
    def streamed(self) -> bool:
        """Whether the outcome is that of a skill that streams."""
        return self.outcome is not None and facts_of(self.outcome).chunks >= 0

    async def chunks(self) -> AsyncGenerator[T, None]:
        """What was heard by now and was not handed out before.

        Raises:
            StreamChanged: a new attempt yields something else.
            InvalidResult: a chunk is of another type.
        """
        async for part in self._parts():
            try:
                yield self._codec.read(await self._blobs.whole([part]))
            except InvalidPayload as error:
                raise InvalidResult(f"A chunk of {self._id} is of another type. {error}") from error

    async def _parts(self) -> AsyncGenerator[Part, None]:
        while self._frames and self.outcome is None:
            kind, sequence, data = self._frames.popleft()
            if kind != _DELTA and sequence <= self._after:
                continue
            self._after = max(self._after, sequence)
            if kind == OUTCOME:
                self._end(read_outcome(data))
                continue
            try:
                update = read_body(ARTIFACT, data)
            except MalformedMessage:
                if kind == _DELTA:  # a receipt that somebody had the broker send here
                    continue
                raise
            if isinstance(update, TaskArtifactUpdateEvent):
                for part in self._new(update, stored=kind == ARTIFACT):
                    yield part

    def _new(self, update: TaskArtifactUpdateEvent, *, stored: bool) -> list[Part]:
        facts = facts_of(update)
        if update.artifact.artifact_id != f"{self._id}-{facts.attempt}":
            return []  # an artifact of its own, not the stream
        run = (facts.attempt, facts.instance)
        if self._winner is not None and run != self._winner:
            return []
        if run != self._run:
            if facts.attempt < self._run[0]:
                return []  # the late word of an attempt that is over
            self._run, self._position = run, 0
            self._told.start_over()
        if facts.index > self._position:  # a delta was lost on the way: the stored event brings it
            if stored and not self._started_over:
                self._start_over()
            return []
        chunks = update.artifact.parts[self._position - facts.index :]
        self._position += len(chunks)
        return [part for chunk in chunks if (part := self._told.new(chunk)) is not None]

    def _end(self, outcome: Task) -> None:
        facts = facts_of(outcome)
        if outcome.status.state is TaskState.COMPLETED and facts.chunks >= 0:
            winner = (facts.attempt, facts.instance)
            if facts.chunks and (winner != self._run or self._position < facts.chunks):
                if self._winner is not None:
                    raise MalformedMessage(f"The log of {self._id} lacks chunks that were counted.")
                self._winner = winner
                return self._start_over()
            if not facts.chunks:
                self._told.start_over()
            if not self._told.repeated:
                raise StreamChanged(f"Attempt {facts.attempt} of {self._id} yields less than before.")
        self.outcome = outcome

    def _start_over(self) -> None:
        """Chunks were missed, or belong to an attempt that was overtaken: the log has those that count."""
        self._started_over = True
        self._after = 0
        self._run, self._position = (0, ""), 0
        self._frames.clear()
        self.read_again()
