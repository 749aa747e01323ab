"""What a running instance of an agent says of itself, and the agent card that carries it.

The card is A2A's AgentCard; what A2A has no place for travels in the parameters of our extension.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from xnai.protocol.card import AgentCard, AgentExtension
from xnai.protocol.envelope import Token, as_dict, decode
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.events import EXTENSION

PING, PROBE, DRAIN = b"ping", b"probe", b"drain"
"""What may be asked of an instance on its control subject."""


class Level(enum.StrEnum):
    """How alive an instance is. Each level holds those before it.

    Its process answers; it has its link to the broker; its pulls are answered and its loop turns; what it
    works on keeps to its limits.
    """

    PROCESS = "process"
    LINK = "link"
    CONSUMING = "consuming"
    PROGRESSING = "progressing"

    def reaches(self, other: Level) -> bool:
        """Whether `other` is this level or one before it."""
        ranks = list(Level)
        return ranks.index(self) >= ranks.index(other)


class SkillFacts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One skill: its JSON Schemas, and what became of its tasks in this process.

    Attributes:
        input: schema of the payload; None when it takes none.
        output: schema of the answer, or of each chunk of it.
        whole: schema of the answer that follows the chunks, where there is one.
        done, failed: outcomes that this process stored, COMPLETED and others.
        seconds: spent on them.
    """

    input: dict[str, Any] | None
    output: dict[str, Any]
    streams: bool = False
    whole: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


class Presence(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A running instance.

    Attributes:
        agent, roles: the names under which it takes tasks.
        instance: that of its bus, new for each start.
        started: ISO 8601.
        concurrency, running: how many tasks it takes at once, and has now.
        done, failed: outcomes that it stored, COMPLETED and others.
        healed: how often it made a lost pull or consumer again.
        level, why: how alive it is, and what keeps it from the next level.
        last_error: the last attempt that failed, in one line.
        memory_mb: resident.
    """

    agent: str
    roles: tuple[str, ...] = ()
    instance: Token
    host: str
    pid: int
    version: str
    started: str
    concurrency: int
    running: int = 0
    done: int = 0
    failed: int = 0
    healed: int = 0
    level: Level = Level.PROCESS
    why: str | None = None
    last_error: str | None = None
    memory_mb: float = 0.0
    skills: dict[str, SkillFacts] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its name and its roles, each once."""
        return tuple(dict.fromkeys((self.agent, *self.roles)))


_read_card = msgspec.json.Decoder(AgentCard)


def with_presence(card: AgentCard, presence: Presence) -> AgentCard:
    """The card as this instance holds it."""
    ours = AgentExtension(uri=EXTENSION, description="A running instance", params=as_dict(presence))
    others = tuple(extension for extension in card.capabilities.extensions if extension.uri != EXTENSION)
    capabilities = msgspec.structs.replace(card.capabilities, extensions=(*others, ours))
    return msgspec.structs.replace(card, capabilities=capabilities)


def read_card(data: bytes) -> tuple[AgentCard, Presence]:
    """A held card, and the instance that holds it.

    Raises:
        MalformedMessage: these are no such bytes.
    """
    card = decode(_read_card, data)
    for extension in card.capabilities.extensions:
        if extension.uri == EXTENSION:
            try:
                return card, msgspec.convert(extension.params, Presence)
            except msgspec.ValidationError as error:
                raise MalformedMessage(f"This card names no instance: {error}.") from error
    raise MalformedMessage("This card is not that of a running instance.")
