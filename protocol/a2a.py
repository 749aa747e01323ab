"""The data objects of A2A 1.0, read and written as the canonical A2A JSON.

Source: `a2a.proto` of the A2A specification 1.0 and its JSON mapping (ProtoJSON): camelCase names, enums by
name, bytes as base64, members with their default value left out. Unknown members are ignored, and `null`
means absent wherever a member is optional. The fields stand in the order of the specification, here and on
the wire.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec.structs import force_setattr

T = TypeVar("T")

if TYPE_CHECKING:
    Many: TypeAlias = tuple[T, ...]
    Flag: TypeAlias = bool
else:  # the decoder must let null pass; `__post_init__` makes it (and what is empty) the default
    Many = tuple[T, ...] | None
    Flag = bool | None

NO_DATA: Final = msgspec.Raw()
"""What `Part.data` holds in a part of another kind. JSON null is a value, `Raw(b"null")`, and not this."""


class TaskState(enum.StrEnum):
    """Where a task stands (A2A 1.0, TaskState)."""

    UNSPECIFIED = "TASK_STATE_UNSPECIFIED"
    SUBMITTED = "TASK_STATE_SUBMITTED"
    WORKING = "TASK_STATE_WORKING"
    COMPLETED = "TASK_STATE_COMPLETED"
    FAILED = "TASK_STATE_FAILED"
    CANCELED = "TASK_STATE_CANCELED"
    INPUT_REQUIRED = "TASK_STATE_INPUT_REQUIRED"
    REJECTED = "TASK_STATE_REJECTED"
    AUTH_REQUIRED = "TASK_STATE_AUTH_REQUIRED"

    @property
    def terminal(self) -> bool:
        """Whether a task in this state has ended and never changes again."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset((TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED))


class Role(enum.StrEnum):
    """Who speaks in a message: the client (USER) or the agent."""

    UNSPECIFIED = "ROLE_UNSPECIFIED"
    USER = "ROLE_USER"
    AGENT = "ROLE_AGENT"


class A2AObject(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """What all objects of A2A share: immutable, camelCase on the wire, defaults left out there.

    They are made by the thousand and never refer to themselves, so the collector of cycles passes them over.
    """


class Part(A2AObject, frozen=True, kw_only=True, gc=False):
    """One piece of content: exactly one of `text`, `raw` (bytes), `url` and `data` (any JSON value).

    `data` is the value's JSON text, to be decoded once, into the type its reader wants. In a decoded part it
    is a view into the message's bytes and keeps them in memory; its syntax was checked, its UTF-8 was not.

    Raises:
        ValueError: none of the four is given, or more than one.
    """

    text: str | None = None
    raw: bytes | None = None
    url: str | None = None
    data: msgspec.Raw = NO_DATA
    metadata: dict[str, Any] | None = None
    filename: str | None = None
    media_type: str | None = None

    def __post_init__(self) -> None:
        # A sum of truths, not a loop: this runs for every message.
        if (self.text is not None) + (self.raw is not None) + (self.url is not None) + bool(self.data) != 1:
            raise ValueError("a Part holds exactly one of text, raw, url and data")


class Message(A2AObject, frozen=True, kw_only=True, gc=False):
    """One turn of a conversation.

    Raises:
        ValueError: there are no parts.
    """

    message_id: str
    context_id: str | None = None
    task_id: str | None = None
    role: Role
    parts: tuple[Part, ...]
    metadata: dict[str, Any] | None = None
    extensions: Many[str] = ()
    reference_task_ids: Many[str] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a Message has at least one part")
        if not self.extensions and self.extensions != ():
            force_setattr(self, "extensions", ())
        if not self.reference_task_ids and self.reference_task_ids != ():
            force_setattr(self, "reference_task_ids", ())


class TaskStatus(A2AObject, frozen=True, kw_only=True, gc=False):
    """The state of a task, what its agent says about it, and since when.

    `timestamp` is ISO 8601 in UTC with milliseconds: `2026-11-21T09:30:00.000Z`.
    """

    state: TaskState
    message: Message | None = None
    timestamp: str | None = None


class Artifact(A2AObject, frozen=True, kw_only=True, gc=False):
    """One result of a task, or one chunk of it.

    Raises:
        ValueError: there are no parts.
    """

    artifact_id: str
    name: str | None = None
    description: str | None = None
    parts: tuple[Part, ...]
    metadata: dict[str, Any] | None = None
    extensions: Many[str] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("an Artifact has at least one part")
        if not self.extensions and self.extensions != ():
            force_setattr(self, "extensions", ())


class Task(A2AObject, frozen=True, kw_only=True, gc=False):
    """A task: where it stands, what it has produced so far, and the messages that led there, oldest first."""

    id: str
    context_id: str | None = None
    status: TaskStatus
    artifacts: Many[Artifact] = ()
    history: Many[Message] = ()
    metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.artifacts and self.artifacts != ():
            force_setattr(self, "artifacts", ())
        if not self.history and self.history != ():
            force_setattr(self, "history", ())


class TaskStatusUpdateEvent(A2AObject, frozen=True, kw_only=True, gc=False):
    """A task's status changed, or its agent said something about it."""

    task_id: str
    context_id: str
    status: TaskStatus
    metadata: dict[str, Any] | None = None


class TaskArtifactUpdateEvent(A2AObject, frozen=True, kw_only=True, gc=False):
    """An artifact or a chunk of one.

    `append` adds its parts to what the artifact of this id holds; `last_chunk` says that nothing follows.
    """

    task_id: str
    context_id: str
    artifact: Artifact
    append: Flag = False
    last_chunk: Flag = False
    metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.append:
            force_setattr(self, "append", False)
        if not self.last_chunk:
            force_setattr(self, "last_chunk", False)
