"""What became of the tasks of this process: counted where the outcome is stored."""

from __future__ import annotations

import msgspec


class SkillTally(msgspec.Struct):
    """Outcomes that were stored for one skill, and the seconds that its attempts took."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0


class Tally:
    """Counts by skill; `last_error` is what the last failed attempt said."""

    def __init__(self) -> None:
        self.skills: dict[str, SkillTally] = {}
        self.last_error: str | None = None

    def count(self, skill: str, *, done: bool, seconds: float) -> None:
        """One outcome was stored."""
        tally = self.skills.get(skill)
        if tally is None:
            tally = self.skills[skill] = SkillTally()
        tally.seconds += seconds
        if done:
            tally.done += 1
        else:
            tally.failed += 1

    @property
    def done(self) -> int:
        return sum(tally.done for tally in self.skills.values())

    @property
    def failed(self) -> int:
        return sum(tally.failed for tally in self.skills.values())
