"""The broker's stream API, as requests of JSON: what nats-py lacks or does with more round trips.

Durations are nanoseconds there and seconds here. Source: nats-server's ADR-1, ADR-31 (direct and batch
gets), ADR-8; the behaviour is pinned by tests on a real server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec

from xnai.bus.parser import Frame
from xnai.bus.transport import NoResponders, Transport
from xnai.bus.waiting import new_future, within
from xnai.protocol.errors import Busy, Unavailable
from xnai.protocol.timestamps import parse_timestamp

NANOSECONDS = 1_000_000_000
NO_STREAM, NO_CONSUMER, NO_MESSAGE = 10059, 10014, 10037
STREAM_EXISTS, CONSUMER_EXISTS = 10058, 10148
_NO_STORAGE = frozenset({10047, 10023, 10028})
_BATCH = 256
_MOST_SUBJECTS = 500  # the server refuses more than 1,024 results
_READ_TIMEOUT = 10.0
_encode = msgspec.json.encode


class ApiError(Unavailable):
    """The stream API refuses a request; `number` is the server's error code."""

    def __init__(self, number: int, description: str) -> None:
        super().__init__(f"The broker refuses: {description} ({number}).")
        self.number = number


class Stored(msgspec.Struct, frozen=True):
    """A message as it is stored: subject, place in the stream, time (seconds since the epoch), bytes.

    `expires` is when the broker removes it, in seconds since the epoch; 0 where it does not.
    """

    subject: str
    sequence: int
    time: float
    data: bytes
    expires: float = 0.0


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
        frames = await self.transport.request_all(_last_of(stream, subject) for stream, subject in places)
        return [None if frame.status in (404, 503) else _stored(frame) for frame in frames]

    async def last_of_each(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last message of every subject that one of `subjects`, patterns allowed, takes."""
        found: list[Stored] = []
        for start in range(0, len(subjects), _MOST_SUBJECTS):
            some = subjects[start : start + _MOST_SUBJECTS]
            found += (await self._batch(stream, {"multi_last": some}))[0]
        return found

    async def scan(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        """Every message under a pattern, in order, beyond the sequence `after`."""
        while True:
            some, more = await self._batch(
                stream, {"next_by_subj": subject, "seq": after + 1, "batch": _BATCH}
            )
            for message in some:
                after = message.sequence
                yield message
            if not more:
                return

    async def _batch(self, stream: str, body: object) -> tuple[list[Stored], bool]:
        """The messages of one batch read, and whether more wait behind them."""
        found: list[Stored] = []
        ended: asyncio.Future[Frame] = new_future()

        def received(frame: Frame) -> None:
            if ended.done():
                return
            if frame.status:
                ended.set_result(frame)
            else:
                found.append(_stored(frame))

        subject, question = f"$JS.API.DIRECT.GET.{stream}", _encode(body)
        with (
            self.transport.expect(received) as reply,
            self.transport.asking(subject, question, reply, again=found.clear),
        ):
            try:
                end = await within(_READ_TIMEOUT, ended)
            except TimeoutError:
                raise Unavailable(
                    f"The broker did not hand out {stream} within {_READ_TIMEOUT:g} s."
                ) from None
        if end.status == 503:
            raise NoResponders(f"Nobody hands out {stream}.")
        if end.status not in (204, 404):
            raise Unavailable(f"The broker did not hand out {stream}: status {end.status}.")
        return found, end.status == 204 and end.header("Nats-Num-Pending") not in ("", "0")


def _last_of(stream: str, subject: str) -> str:
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


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
