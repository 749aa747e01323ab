"""Turning what a handler yields into deltas and stored events."""

from __future__ import annotations

import time

import anyio
import msgspec

from xnai.agents.reporter import Reporter
from xnai.agents.skills import Skill
from xnai.protocol.a2a import NO_DATA, Part
from xnai.protocol.envelope import encode
from xnai.protocol.errors import InvalidPayload
from xnai.protocol.payload import BYTES, JSON, Whole


class ChunkWriter:
    """Writes the chunks of one attempt, in order, and keeps the whole that may follow them."""

    def __init__(self, reporter: Reporter, skill: Skill) -> None:
        self._reporter, self._coalesce = reporter, skill.coalesce
        self._codec, self._whole = skill.returns, skill.whole
        self._parts: list[Part] = []
        self._answer: tuple[Part, ...] | None = None
        self._stored = 0
        self._since = 0.0
        self._one_at_a_time = anyio.Lock()

    @property
    def count(self) -> int:
        return len(self._parts)

    @property
    def due(self) -> bool:
        """Whether chunks have waited long enough to be stored."""
        return self._stored < len(self._parts) and time.monotonic() - self._since >= self._coalesce

    async def write(self, value: object) -> None:
        """Send a chunk, and store it with its neighbours; or keep the whole.

        Raises:
            InvalidPayload: it is not of the type that was declared, or follows the whole.
            Unavailable: an event was not confirmed.
        """
        if self._answer is not None:
            raise InvalidPayload("Something was yielded behind the Whole, which is the last.")
        if isinstance(value, Whole):
            return self._keep(value.value)
        (part, *_) = self._codec.write(value)
        if self._stored == len(self._parts):
            self._since = time.monotonic()
        self._parts.append(part)
        await self._reporter.delta(len(self._parts) - 1, part)
        if self.due:
            await self.flush()

    async def flush(self, *, last: bool = False) -> None:
        """Store what is not stored yet; two flushes at once would mix the order up."""
        async with self._one_at_a_time:
            index, parts = self._stored, tuple(self._parts[self._stored :])
            if parts:
                self._stored += len(parts)
                await self._reporter.chunks(index, parts, last=last)

    def _keep(self, value: object) -> None:
        if self._whole is None:
            raise InvalidPayload("A Whole was yielded, and none is declared: AsyncIterator[… | Whole[…]].")
        self._answer = self._whole.write(value)

    def answer(self) -> tuple[Part, ...]:
        """The answer as a call gets it: the whole, or the chunks joined.

        Raises:
            InvalidPayload: a whole was declared and not yielded.
        """
        if self._whole is None:
            return (self._joined(),)
        if self._answer is None:
            raise InvalidPayload("The Whole that it declares was not yielded.")
        return self._answer

    def _joined(self) -> Part:
        """Joined text, joined bytes, or a list of the values."""
        kind = self._codec.type
        if kind is str or (self._parts and all(part.text is not None for part in self._parts)):
            return Part(text="".join(part.text or "" for part in self._parts))
        if kind is bytes or (self._parts and all(part.raw is not None for part in self._parts)):
            return Part(raw=b"".join(part.raw or b"" for part in self._parts), media_type=BYTES)
        values = b",".join(_as_json(part) for part in self._parts)
        return Part(data=msgspec.Raw(b"[%b]" % values), media_type=JSON)


def _as_json(part: Part) -> bytes:
    if part.data is not NO_DATA:
        return bytes(part.data)
    return encode(part.text if part.text is not None else part.raw)
