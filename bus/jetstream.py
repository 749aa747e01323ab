"""The broker's stream API, as requests of JSON: what nats-py lacks or does with more round trips.

Durations are nanoseconds there and seconds here. Source: nats-server's ADR-1, ADR-31 (direct and batch
gets), ADR-8; the behaviour is pinned by tests on a real server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Any, Protocol

import anyio
import msgspec

from xnai.bus.asking import ask_keeper
from xnai.bus.parser import Frame
from xnai.bus.transport import NoResponders, Question, Transport
from xnai.bus.waiting import new_future, within
from xnai.protocol import subjects
from xnai.protocol.errors import Busy, Unavailable
from xnai.protocol.timestamps import parse_timestamp

NANOSECONDS = 1_000_000_000
NO_STREAM, NO_CONSUMER, NO_MESSAGE = 10059, 10014, 10037
STREAM_EXISTS, CONSUMER_EXISTS = 10058, 10148
_NO_STORAGE = frozenset({10047, 10023, 10028})
_BATCH = 256
_PAGE = 256 << 10  # bytes
_MOST_SUBJECTS = 500  # the server refuses more than 1,024 results
_READ_TIMEOUT = 10.0
_ASKED_AGAIN = 0.05  # seconds
_encode = msgspec.json.encode


class ApiError(Unavailable):
    """The stream API refuses a request; `number` is the server's error code."""

    def __init__(self, number: int, description: str) -> None:
        super().__init__(f"The broker refuses: {description} ({number}).")
        self.number = number


class TooManySubjects(Unavailable):
    """More subjects were asked for than the server answers at once."""


class Stored(msgspec.Struct, frozen=True):
    """A message as it is stored: subject, place in the stream, time (seconds since the epoch), bytes.

    `expires` is when the broker removes it, in seconds since the epoch; 0 where it does not.
    """

    subject: str
    sequence: int
    time: float
    data: bytes
    expires: float = 0.0


class Page(msgspec.Struct, frozen=True):
    """Some messages, in order, and whether there are more behind them."""

    messages: list[Stored]
    more: bool


class After(msgspec.Struct, frozen=True):
    """What the keeper is asked for a page of a log: what stands beyond this sequence."""

    after: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0


_read_page = msgspec.json.Decoder(Page).decode


class TaskTokens(Protocol):
    """The tokens under which the events of a task stand."""

    @property
    def id(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def sender(self) -> str: ...


class JetStream:
    """Requests to the stream API over one transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def ask(self, what: str, body: object = None) -> dict[str, Any]:
        """The answer to `$JS.API.<what>`.

        Raises:
            ApiError: the server refuses.
            Unavailable: it does not answer.
        """
        frame = await self.transport.request(f"$JS.API.{what}", b"" if body is None else _encode(body))
        answer: dict[str, Any] = msgspec.json.decode(frame.data)
        if error := answer.get("error"):
            number = error.get("err_code", 0)
            if number in _NO_STORAGE:
                raise Busy(f"The broker has no room left: {error.get('description')} ({number}).")
            raise ApiError(number, error.get("description", "no reason given"))
        return answer

    async def stream_names(self, prefix: str = "") -> list[str]:
        """The names of all streams that begin with `prefix`."""
        names: list[str] = []
        while True:
            page = await self.ask("STREAM.NAMES", {"offset": len(names)})
            names += page.get("streams") or []
            if len(names) >= page["total"] or not page.get("streams"):
                return [name for name in names if name.startswith(prefix)]

    async def stream_info(self, stream: str) -> dict[str, Any]:
        return await self.ask(f"STREAM.INFO.{stream}")

    async def purge(self, stream: str, subject: str) -> None:
        """Remove every message that stands under `subject`."""
        await self.ask(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove one message; nothing happens if it is gone."""
        try:
            await self.ask(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except ApiError as error:
            if error.number not in (NO_MESSAGE, 10057):
                raise

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message under a subject, wildcards allowed.

        Raises:
            NoResponders: there is no such stream, or it is electing a leader.
        """
        frame = await self.transport.request(_last_of(stream, subject))
        return None if frame.status == 404 else _stored(frame)

    async def last_in_each(self, places: Iterable[tuple[str, str]]) -> list[Stored | None]:
        """The last message under each subject of each stream, all at once; None also without the stream."""
        found: list[Stored | None] = []
        asked = [_last_of(stream, subject) for stream, subject in places]
        for start in range(0, len(asked), _MOST_SUBJECTS):
            frames = await self.transport.request_all(asked[start : start + _MOST_SUBJECTS])
            found += [None if frame.status in (404, 503) else _stored(frame) for frame in frames]
        return found

    async def last_of_each(self, stream: str, patterns: Sequence[str]) -> list[Stored]:
        """The last message of every subject that one of `patterns` takes, in one answer."""
        found: list[Stored] = []
        for start in range(0, len(patterns), _MOST_SUBJECTS):
            some = patterns[start : start + _MOST_SUBJECTS]
            found += (await self._batch(hand_out(stream), {"multi_last": some}))[0]
        return found

    async def scan(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        """Every message under a pattern, in order, beyond the sequence `after`."""
        while True:
            body = {"next_by_subj": subject, "seq": after + 1, "batch": _BATCH}
            some, more = await self._batch(hand_out(stream), body)
            for message in some:
                after = message.sequence
                yield message
            if not more:
                return

    async def story(self, task: TaskTokens, *, after: int = 0, served: bool = False) -> AsyncIterator[Stored]:
        """The events of a task beyond the sequence `after`, in order; `served` says that we serve its agent.

        Raises:
            NoResponders: there is no such log.
            Unavailable: we may not read it ourselves, and no keeper does it for us.
        """
        stream, pattern = subjects.log_stream(task.agent), subjects.log(task.agent, task.sender, task.id)
        if served or not self.transport.confined:
            async for stored in self.scan(stream, pattern, after=after):
                yield stored
            return
        more = True
        while more:
            place = subjects.reading(task.agent, task.sender, task.id)
            page = _read_page(await ask_keeper(self.transport, place, After(after)))
            for stored in page.messages:
                after = stored.sequence
                yield stored
            more = page.more

    async def page(self, stream: str, pattern: str, *, after: int = 0) -> Page:
        """As many messages under a pattern, beyond the sequence `after`, as one answer of ours may hold."""
        body = {"next_by_subj": pattern, "seq": after + 1, "batch": _BATCH, "max_bytes": _PAGE}
        found, more = await self._batch(hand_out(stream), body)
        return Page(messages=found, more=more > 0)

    async def first(self, stream: str, subject: str) -> tuple[Stored | None, int]:
        """The first message under a pattern, and how many more there are behind it."""
        found, more = await self._batch(hand_out(stream), {"next_by_subj": subject, "seq": 1, "batch": 1})
        return (found[0] if found else None), more

    async def _batch(self, subject: str, body: object, *, again: bool = False) -> tuple[list[Stored], int]:
        """The messages of one batch read, and how many wait behind them."""
        found: list[Stored] = []
        ended: asyncio.Future[Frame] = new_future()

        def received(frame: Frame) -> None:
            if ended.done():
                return
            if frame.status:
                ended.set_result(frame)
            else:
                found.append(_stored(frame))

        with (
            self.transport.expect(received) as reply,
            self.transport.asking(Question(subject, _encode(body), reply), ended, again=found.clear),
        ):
            try:
                end = await within(_READ_TIMEOUT, ended)
            except TimeoutError:
                raise Unavailable(
                    f"The broker did not answer {subject} within {_READ_TIMEOUT:g} s."
                ) from None
        if end.status == 503 and self.transport.key and not again:  # as in `Transport.request_all`
            await anyio.sleep(_ASKED_AGAIN)
            return await self._batch(subject, body, again=True)
        if end.status == 503:
            raise NoResponders(f"Nobody answers {subject}.")
        if end.status == 413:
            raise TooManySubjects(f"{subject} has too many subjects for one answer.")
        if end.status not in (204, 404):
            raise Unavailable(f"The broker did not answer {subject}: status {end.status}.")
        return found, int(end.header("Nats-Num-Pending") or 0) if end.status == 204 else 0


def hand_out(stream: str) -> str:
    """Where the messages of a stream are asked for with a body of JSON, which no permission can narrow."""
    return f"$JS.API.DIRECT.GET.{stream}"


def _last_of(stream: str, subject: str) -> str:
    return f"{hand_out(stream)}.{subject}"


def _stored(frame: Frame) -> Stored:
    since = parse_timestamp(frame.header("Nats-Time-Stamp"))
    ttl = frame.header("Nats-TTL").removesuffix("s")
    return Stored(
        subject=frame.header("Nats-Subject"),
        sequence=int(frame.header("Nats-Sequence")),
        time=since,
        data=frame.data,
        expires=since + int(ttl) if ttl.isdecimal() else 0.0,
    )
