"""What is asked of the engine, and what came of it so far: all that a new engine has to know."""

from __future__ import annotations

import hashlib
import math
import time

import anyio
import msgspec

from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.frames import (
    Ask,
    Count,
    Done,
    Embed,
    FromEngine,
    Generate,
    Open,
    Opened,
    Queued,
    Refused,
    Text,
)
from xnai.protocol.errors import Reject, XnaiError

Said = Queued | Text | Done
POISONED = 2  # deaths of the engine during a request, or while it opens a model


class Opening:
    """A model that is to be open in every life of the engine."""

    def __init__(self, frame: Open) -> None:
        self.frame = frame
        self.deaths = 0
        self.opened: Opened | None = None
        self.refused: Refused | None = None
        self.answered = anyio.Event()


class Request:
    """A request that has not ended.

    Attributes:
        said: the tokens of its answer that have come.
        sent: whether the engine that lives now has it. waiting: whether it only waits there.
        ended: whether the engine has said its last word about it.
        deaths: of engines that computed it.
    """

    def __init__(self, frame: Generate | Embed | Count | Ask, id: int) -> None:
        deadline = getattr(frame, "deadline", None)
        self.frame = msgspec.structs.replace(frame, id=id)
        self.began = self.sent_at = time.monotonic()
        self.first = self.last = 0.0
        self._ends = None if deadline is None else self.began + deadline
        self.said: list[int] = list(getattr(frame, "said", ()))
        self.sent = self.waiting = self.ended = False
        self.deaths = 0
        self._tell, self.answers = anyio.create_memory_object_stream[FromEngine](math.inf)

    @property
    def model(self) -> str | None:
        return getattr(self.frame, "model", None)

    def to_send(self) -> Generate | Embed | Count | Ask:
        """The frame as it has to be now: with the time that is left, and behind what was said."""
        self.sent, self.sent_at = True, time.monotonic()
        if isinstance(self.frame, (Count, Ask)):
            return self.frame
        left = None if self._ends is None else max(0.0, self._ends - self.sent_at)
        if isinstance(self.frame, Embed):
            return msgspec.structs.replace(self.frame, deadline=left)
        return msgspec.structs.replace(self.frame, deadline=left, said=tuple(self.said))

    def take(self, frame: FromEngine) -> None:
        if isinstance(frame, Queued):
            self.waiting = True
        elif isinstance(frame, Text):
            self.waiting = False
            if frame.tokens:
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.said += frame.tokens
        elif isinstance(frame, Done) and self.deaths:
            frame = self._timed(frame)
        self.ended = not isinstance(frame, (Queued, Text))
        self._tell.send_nowait(frame)

    def close(self) -> None:
        self._tell.close()
        self.answers.close()

    def died(self, *, blamed: bool) -> bool:
        """The engine is dead, and not for another reason that is known; returns whether this may be why."""
        suspect = blamed and self.sent and not self.waiting and not self.ended
        self.sent = self.waiting = False
        self.deaths += suspect
        return self.deaths >= POISONED and not self.ended

    def digest(self) -> str:
        """The SHA-256 of what was asked: the same for the same request, whoever sends it."""
        plain = {
            name: getattr(self.frame, name)
            for name in ("model", "pieces", "texts", "sampling", "rule")
            if hasattr(self.frame, name)
        }
        return hashlib.sha256(msgspec.msgpack.encode(plain)).hexdigest()

    def _timed(self, done: Done) -> Done:
        """As it was for whoever waits: the engine knows of its own life only."""
        first = self.first - self.began if self.first else 0.0
        waited = min(done.waited + self.sent_at - self.began, first or math.inf)
        return msgspec.structs.replace(done, waited=waited, first=first, took=self.last - self.first)


def as_error(frame: Refused) -> XnaiError:
    """What to raise for a refusal: where trying again may help, an error that does not reject the task."""
    if frame.code == InferenceError.code:
        return InferenceError(frame.sentence)
    return Reject(frame.sentence, code=frame.code, retry_after=frame.retry_after)
