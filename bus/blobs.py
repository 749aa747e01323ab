"""Large parts: stored once by their hash, in chunks, and named by a URL in the message.

A chunk lives as long as any task that names it may: until its deadline and a week beyond. Storing the same
content again renews that. The broker itself removes what is over (`Nats-TTL`).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar, cast

import anyio
import msgspec

from xnai.bus.jetstream import JetStream
from xnai.bus.publisher import Publisher
from xnai.protocol import subjects
from xnai.protocol.a2a import (
    NO_DATA,
    Artifact,
    Message,
    Part,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatusUpdateEvent,
)
from xnai.protocol.envelope import Envelope, encode
from xnai.protocol.errors import InvalidPayload, MalformedMessage, Unavailable
from xnai.protocol.events import BLOB_KEY, Event
from xnai.protocol.names import NAME

CHUNK = 512 * 1024
LARGEST = 64 << 30  # bytes of one part
_WINDOW = 16  # chunks on their way at once, below what the server lets a slow reader owe
_SCHEME = "xnai-blob:"
_IS_URL = re.compile(rf"{_SCHEME}({NAME})/({NAME})/([0-9a-f]{{64}})").fullmatch
_ROOM_FOR_HEADERS = 2048
_SHORTEST_TTL = 60
_SMALLEST = 512  # bytes: the reference to a smaller part is no smaller
Whole: TypeAlias = Envelope | Task | TaskArtifactUpdateEvent | TaskStatusUpdateEvent | Message
Carrier = TypeVar("Carrier", bound=Whole)
Holder = TypeVar("Holder", Artifact, Message)


class PartGone(Unavailable):
    """A large part is no longer kept: its time is over, or it was removed."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What a part that was stored apart says of itself in its metadata."""

    kind: Literal["text", "raw", "data"]
    size: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


class Blobs:
    """Stores and fetches large parts as `name`."""

    def __init__(self, api: JetStream, publisher: Publisher, name: str) -> None:
        self._api, self._publisher, self._name = api, publisher, name

    @property
    def room(self) -> int:
        """Bytes that a message may have: three quarters of the server's limit, headers included."""
        return self._api.transport.max_payload * 3 // 4 - _ROOM_FOR_HEADERS

    async def fit(self, carrier: Carrier, *, reader: str, until: float) -> bytes:
        """`carrier` as bytes that the broker takes: its largest parts are stored apart where need be.

        Args:
            reader: the name of who will read it.
            until: seconds since the epoch until which the parts are needed.

        Raises:
            Busy: there is no room for them.
            Unavailable: they were not confirmed.
        """
        data = encode(carrier)
        if len(data) <= self.room:
            return data
        for part in sorted(_parts_in(carrier), key=_size, reverse=True):
            if len(data) <= self.room or _size(part) <= _SMALLEST:
                break
            carrier = _replace(carrier, part, await self._put(part, reader, until))
            data = encode(carrier)
        if len(data) > self.room:
            raise Unavailable(f"A message of {len(data)} bytes in too many small parts cannot be sent.")
        return data

    async def _put(self, part: Part, reader: str, until: float) -> Part:
        most = self._api.transport.max_payload
        if most < CHUNK + _ROOM_FOR_HEADERS:
            raise InvalidPayload(
                f"This message is too large, and a server that takes {most} bytes keeps no large parts."
            )
        kind, content = _content(part)
        sha256 = hashlib.sha256(content).hexdigest()
        known = await self._api.last(
            subjects.BLOB_STREAM, subjects.blob(self._name, reader, sha256, _chunks(len(content)) - 1)
        )
        if known is not None:  # another task may need it for longer
            until = max(until, known.expires)
        ttl = max(_SHORTEST_TTL, int(until - time.time()))
        limiter = anyio.Semaphore(_WINDOW)

        async def put_chunk(number: int) -> None:
            async with limiter:
                await self._publisher.publish(
                    subjects.blob(self._name, reader, sha256, number),
                    content[number * CHUNK : (number + 1) * CHUNK],
                    f"Nats-TTL: {ttl}s\r\n",
                )

        try:
            async with anyio.create_task_group() as tasks:
                for number in range(_chunks(len(content))):
                    tasks.start_soon(put_chunk, number)
        except ExceptionGroup as failed:  # the first reason is enough: the others have the same
            raise failed.exceptions[0] from None
        reference = Reference(kind=kind, size=len(content))
        return Part(
            url=f"{_SCHEME}{self._name}/{reader}/{sha256}",
            metadata={**(part.metadata or {}), BLOB_KEY: reference},
            media_type=part.media_type,
            filename=part.filename,
        )

    async def whole(self, parts: Sequence[Part], *, writer: str | None = None) -> tuple[Part, ...]:
        """`parts`, with what was stored apart in its place.

        Args:
            writer: who must have stored it: somebody else's could be fetched here for whoever names it.

        Raises:
            PartGone: a part is no longer kept.
            Unavailable: a part could not be read.
            MalformedMessage: what is kept is not what was named, or was stored by somebody else.
        """
        if not has_references(parts):
            return tuple(parts)
        return tuple([await self._get(part, writer) for part in parts])

    async def whole_or_named(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        """As `whole`, but what is gone or spoilt stays named: for those who want to see the rest."""
        found = []
        for part in parts:
            try:
                found.append(await self._get(part))
            except (PartGone, MalformedMessage):
                found.append(part)
        return tuple(found)

    async def whole_task(self, task: Task) -> Task:
        """A task to look at."""
        return msgspec.structs.replace(
            task,
            artifacts=tuple([await self._whole_holder(artifact) for artifact in task.artifacts]),
            history=tuple([await self._whole_holder(message) for message in task.history]),
        )

    async def whole_event(self, event: Event) -> Event:
        """An event to look at."""
        body = event.body
        if isinstance(body, Task):
            body = await self.whole_task(body)
        elif isinstance(body, TaskArtifactUpdateEvent):
            body = msgspec.structs.replace(body, artifact=await self._whole_holder(body.artifact))
        elif isinstance(body, TaskStatusUpdateEvent) and body.status.message is not None:
            message = await self._whole_holder(body.status.message)
            body = msgspec.structs.replace(body, status=msgspec.structs.replace(body.status, message=message))
        return msgspec.structs.replace(event, body=body)

    async def _whole_holder(self, holder: Holder) -> Holder:
        if not has_references(holder.parts):
            return holder
        return msgspec.structs.replace(holder, parts=await self.whole_or_named(holder.parts))

    async def _get(self, part: Part, only: str | None = None) -> Part:
        if part.url is None or not part.url.startswith(_SCHEME):
            return part
        writer, reader, sha256 = _read_url(part.url)
        if only is not None and writer != only:
            raise MalformedMessage(f"A part of {only} names what {writer} has stored.")
        metadata = dict(part.metadata or {})
        try:
            reference = msgspec.convert(metadata.pop(BLOB_KEY, None), Reference)
        except msgspec.ValidationError as error:
            raise MalformedMessage(f"A part stored apart does not say what it is: {error}.") from error
        content = await self._content(writer, reader, sha256, reference.size)
        return msgspec.structs.replace(
            part, url=None, metadata=metadata or None, **_field(reference.kind, content)
        )

    async def _content(self, writer: str, reader: str, sha256: str, size: int) -> bytes:
        chunks: list[bytes] = []
        for start in range(0, _chunks(size), _WINDOW):
            window = range(start, min(start + _WINDOW, _chunks(size)))
            names = [subjects.blob(writer, reader, sha256, number) for number in window]
            for stored in await self._api.last_in_each((subjects.BLOB_STREAM, name) for name in names):
                if stored is None:
                    raise PartGone(f"A large part of this message is no longer kept: {sha256[:12]}….")
                chunks.append(stored.data)
        content = b"".join(chunks)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise MalformedMessage(f"A large part is not what its name promises: {sha256[:12]}….")
        return content


def has_references(parts: Sequence[Part]) -> bool:
    """Whether any of `parts` is stored apart."""
    for part in parts:  # a loop, not a generator: this runs for every message  # noqa: SIM110
        if part.url is not None and part.url.startswith(_SCHEME):
            return True
    return False


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK))


def _size(part: Part) -> int:
    if part.data is not NO_DATA:
        return len(bytes(part.data))
    return len(part.raw) * 4 // 3 if part.raw is not None else len(part.text or "")


def _content(part: Part) -> tuple[Literal["text", "raw", "data"], bytes]:
    if part.data is not NO_DATA:
        return "data", bytes(part.data)
    return ("raw", part.raw) if part.raw is not None else ("text", (part.text or "").encode())


def _field(kind: str, content: bytes) -> dict[str, object]:
    if kind == "data":
        return {"data": msgspec.Raw(content)}
    if kind == "raw":
        return {"raw": content}
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError as error:
        raise MalformedMessage("A large part that should be text is none.") from error


def _read_url(url: str) -> tuple[str, str, str]:
    found = _IS_URL(url)
    if found is None:
        raise MalformedMessage(f"{url[:200]!r} names no part that is stored apart.")
    return found[1], found[2], found[3]


def _parts_in(
    carrier: Envelope | Task | TaskArtifactUpdateEvent | TaskStatusUpdateEvent | Message,
) -> list[Part]:
    holders: list[Message | Artifact]
    if isinstance(carrier, Message):
        holders = [carrier]
    elif isinstance(carrier, Envelope):
        holders = [carrier.message]
    elif isinstance(carrier, TaskStatusUpdateEvent):
        holders = [carrier.status.message] if carrier.status.message else []
    elif isinstance(carrier, Task):
        holders = [*carrier.artifacts, *carrier.history]
    else:
        holders = [carrier.artifact]
    return [part for holder in holders for part in holder.parts]


def _replace(carrier: Carrier, old: Part, new: Part) -> Carrier:
    def changed(holder: Message | Artifact) -> Message | Artifact:
        if not any(part is old for part in holder.parts):
            return holder
        return msgspec.structs.replace(
            holder, parts=tuple(new if part is old else part for part in holder.parts)
        )

    replace: Callable[..., Carrier] = msgspec.structs.replace
    if isinstance(carrier, Message):
        return cast(Carrier, changed(carrier))
    if isinstance(carrier, Envelope):
        return replace(carrier, message=changed(carrier.message))
    if isinstance(carrier, TaskStatusUpdateEvent):
        said = carrier.status.message
        status = msgspec.structs.replace(carrier.status, message=changed(said) if said else None)
        return replace(carrier, status=status)
    if isinstance(carrier, Task):
        return replace(
            carrier,
            artifacts=tuple(map(changed, carrier.artifacts)),
            history=tuple(map(changed, carrier.history)),
        )
    return replace(carrier, artifact=changed(carrier.artifact))
