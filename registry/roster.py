"""Who is there: what cards and ended leases mean. No I/O; the time is given.

A lease that the broker lets end proves little right after the broker, the link or the whole machine stood
still: its holder may have had no chance to renew it. For one lease after such a pause, ends are only noted,
and believed when the time has passed without a renewal.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

import msgspec

from xnai.protocol.card import AgentCard
from xnai.protocol.presence import Presence


class Kind(enum.StrEnum):
    """What happened to an instance: it is new, said something new, said goodbye, or its lease ended."""

    JOINED = "joined"
    RENEWED = "renewed"
    LEFT = "left"
    LOST = "lost"


class Instance(msgspec.Struct, frozen=True):
    """A running instance: its card, what it says of itself, and the sequence of the card."""

    card: AgentCard
    presence: Presence
    sequence: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.presence.agent, self.presence.instance


class Change(msgspec.Struct, frozen=True):
    kind: Kind
    instance: Instance


Key = tuple[str, str]
"""An agent's name and an instance."""


class Roster:
    """Instances by name. Every method returns what changed, in order."""

    def __init__(self, lease: float) -> None:
        self.instances: dict[Key, Instance] = {}
        self._lease = lease
        self._believing_from = -math.inf
        self._doubtful: dict[Key, float] = {}

    def doubt(self, now: float) -> None:
        """Everything stood still until `now`."""
        self._believing_from = now + self._lease

    def held(self, instance: Instance) -> list[Change]:
        """A card was stored."""
        known = self.instances.get(instance.key)
        if known is not None and known.sequence >= instance.sequence:
            return []
        self.instances[instance.key] = instance
        self._doubtful.pop(instance.key, None)
        return [Change(Kind.JOINED if known is None else Kind.RENEWED, instance)]

    def left(self, key: Key) -> list[Change]:
        """Its holder took the card back."""
        return self._gone(key, Kind.LEFT)

    def ended(self, key: Key, now: float) -> list[Change]:
        """The broker let a lease end."""
        if now >= self._believing_from:
            return self._gone(key, Kind.LOST)
        if key in self.instances:
            self._doubtful.setdefault(key, self._believing_from)
        return []

    def read(self, instances: Iterable[Instance], now: float) -> list[Change]:
        """All cards that are stored now; those that are missing are doubtful for a lease."""
        changes, here = [], set[Key]()
        for instance in instances:
            here.add(instance.key)
            changes += self.held(instance)
        for key in self.instances.keys() - here:
            self._doubtful.setdefault(key, now + self._lease)
        return changes

    def overdue(self, now: float) -> list[Change]:
        """Doubtful instances whose time has passed."""
        due = [key for key, until in self._doubtful.items() if until <= now]
        return [change for key in due for change in self._gone(key, Kind.LOST)]

    def _gone(self, key: Key, kind: Kind) -> list[Change]:
        self._doubtful.pop(key, None)
        instance = self.instances.pop(key, None)
        return [] if instance is None else [Change(kind, instance)]
