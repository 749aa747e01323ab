"""The envelope: what is published to do a task, and what the bus must know of it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from xnai.protocol.a2a import Message
from xnai.protocol.errors import InvalidPayload, MalformedMessage
from xnai.protocol.names import ID
from xnai.protocol.subjects import TaskSubject

T = TypeVar("T")
Token = Annotated[str, msgspec.Meta(pattern=rf"\A{ID}\Z")]
"""What a peer says will stand in a subject: anything else could be more than one."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A request for one skill of one agent.

    Attributes:
        v: version of the wire, 1; fields are only ever added.
        id, context: of the task and of the conversation that it belongs to.
        agent, skill, sender, lane: as in the subject, which wins where the two differ.
        instance: of the bus that sent it, which hears its events: a token of their subjects.
        sent, deadline: ISO 8601 UTC.
        max_attempts: how often to try, at most; None leaves it to the skill.
        depth, ancestors: how many tasks stand above this one, and which (`agent.skill`), outermost first.
        parent: id of the task whose handler asked for this one.
        traceparent: W3C trace context.
        message: the request itself.
    """

    v: int
    id: str
    context: str
    agent: str
    skill: str
    sender: str
    instance: Token
    lane: str
    sent: str
    deadline: str
    max_attempts: int | None = None
    depth: int = 0
    ancestors: tuple[str, ...] = ()
    parent: str | None = None
    traceparent: str | None = None
    message: Message

    @property
    def subject(self) -> TaskSubject:
        return TaskSubject(self.agent, self.lane, self.sender, self.skill, self.id)


_encode = msgspec.json.Encoder().encode
_envelopes = msgspec.json.Decoder(Envelope)


def encode(value: object) -> bytes:
    """What goes onto the wire: canonical JSON.

    Raises:
        InvalidPayload: a text in it is no valid Unicode.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError as error:
        raise InvalidPayload(f"A text in it cannot be sent: {error}.") from error


def read_envelope(data: bytes, subject: TaskSubject) -> Envelope:
    """The envelope in `data`, with the tokens of the subject, which the broker has checked.

    Raises:
        MalformedMessage: `data` is no envelope of this version.
    """
    envelope = decode(_envelopes, data)
    if envelope.v != 1:
        raise MalformedMessage(f"This is wire version {envelope.v}, and only 1 is understood here.")
    if envelope.subject != subject:
        return msgspec.structs.replace(envelope, **subject._asdict())
    return envelope


def decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """What `decoder` reads in the bytes of a peer.

    Raises:
        MalformedMessage: they are not what it reads.
    """
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"These bytes are no message: {error}.") from error


def as_dict(value: object) -> dict[str, Any]:
    """A Struct as plain data, for metadata."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
