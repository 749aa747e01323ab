"""The agent card of an agent, and whether it agrees with those that are held already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from xnai.agents.agent import Agent
from xnai.agents.skills import Skill
from xnai.bus import Bus
from xnai.protocol.card import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from xnai.protocol.errors import InvalidAgent
from xnai.protocol.events import EXTENSION
from xnai.protocol.presence import Presence, SkillFacts, with_presence
from xnai.protocol.subjects import tasks
from xnai.registry import Instance, hold_card

_MODES = ("application/json", "text/plain", "application/octet-stream")


@asynccontextmanager
async def announced(
    agent: Agent, bus: Bus, presence: Callable[[], Presence], *, lease: float
) -> AsyncIterator[None]:
    """Hold the agent's card while the context is open. An agent without skills has nothing to announce.

    Raises:
        Unavailable: the card could not be stored.
    """
    if not agent.skills:
        yield
        return
    card = card_of(agent)
    async with hold_card(bus, agent.name, lambda: with_presence(card, presence()), lease=lease):
        yield


def card_of(agent: Agent) -> AgentCard:
    """What A2A wants to know of an agent, which has at least one skill."""
    return AgentCard(
        name=agent.name,
        description=agent.description or f"The agent {agent.name}",
        version=agent.version,
        supported_interfaces=(
            AgentInterface(
                url=f"nats:{tasks(agent.name)}", protocol_binding=EXTENSION, protocol_version="1.0"
            ),
        ),
        capabilities=AgentCapabilities(streaming=True, push_notifications=False),
        default_input_modes=_MODES,
        default_output_modes=_MODES,
        skills=tuple(map(_skill, agent.skills.values())),
    )


def _skill(skill: Skill) -> AgentSkill:
    return AgentSkill(
        id=skill.name,
        name=skill.name,
        description=skill.description or skill.name,
        tags=skill.tags or (skill.name,),  # A2A wants at least one
        examples=skill.examples,
    )


def schemas_of(agent: Agent) -> dict[str, SkillFacts]:
    """The JSON Schemas of each skill."""
    return {
        skill.name: SkillFacts(
            input=skill.accepts.schema() if skill.accepts else None,
            output=skill.returns.schema(),
            streams=skill.streams,
            whole=skill.whole.schema() if skill.whole else msgspec.UNSET,
        )
        for skill in agent.skills.values()
    }


def check_agreement(agent: Agent, ours: dict[str, SkillFacts], others: Iterable[Instance]) -> None:
    """Refuse to run beside another instance that understands the same words differently.

    Of the same version the schemas of the same skill must be equal; roles are shared by agents of any name,
    and so must agree whatever their versions are.

    Raises:
        InvalidAgent: they contradict each other, and where.
    """
    for other in others:
        theirs = other.presence
        shared = set(theirs.roles) & set(agent.roles)
        if (theirs.agent, theirs.version) != (agent.name, agent.version) and not shared:
            continue
        for name in ours.keys() & theirs.skills.keys():
            if difference := _difference(ours[name], theirs.skills[name]):
                raise InvalidAgent(
                    f"{agent.name} {agent.version} cannot run beside {_who(theirs)}: {name} differs in "
                    f"{difference}. Give it another version or name."
                )


def _who(presence: Presence) -> str:
    return f"{presence.agent} {presence.version} on {presence.host}, pid {presence.pid}"


def _difference(ours: SkillFacts, theirs: SkillFacts) -> str | None:
    for what, mine, other in (
        ("input", ours.input, theirs.input),
        ("output", ours.output, theirs.output),
        ("streaming", ours.streams, theirs.streams),
        ("whole", ours.whole or None, theirs.whole or None),
    ):
        if mine != other:
            return _first_difference(what, mine, other)
    return None


def _first_difference(path: str, mine: Any, other: Any) -> str:
    """Where two schemas part, and what each says there."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted(mine.keys() | other.keys()):
            if mine.get(key) != other.get(key):
                return _first_difference(f"{path}.{key}", mine.get(key), other.get(key))
    return f"{path}: here {mine!r}, there {other!r}"
