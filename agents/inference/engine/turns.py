"""Which of several models computes the next batch: pure, no clock."""

from __future__ import annotations

from collections.abc import Mapping


class Turns:
    """Seconds that each model has computed, so that those with work share the time.

    Urgent work goes first. Among the others, whoever computed least goes first. A model that begins to have
    work starts where the least of those stands who had some: resting earns nothing. What it computed above
    that is remembered, so that ending and beginning again earns nothing either.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._last: dict[str, int] = {}
        self._before: frozenset[str] = frozenset()
        self._floor = 0.0
        self._count = 0

    def choose(self, waiting: Mapping[str, bool]) -> str:
        """Whose turn it is of those that have work, at least one; the values say whose work is urgent."""
        stayed = [self._used[name] for name in waiting if name in self._before]
        if stayed:
            self._floor = max(self._floor, min(stayed))
        for name in waiting:
            if name not in self._before:
                self._used[name] = max(self._used.get(name, 0.0), self._floor)
        self._before = frozenset(waiting)
        return min(
            waiting, key=lambda name: (not waiting[name], self._used[name], self._last.get(name, 0), name)
        )

    def charge(self, name: str, seconds: float) -> None:
        """It had its turn, which took so long."""
        self._count += 1
        self._last[name] = self._count
        self._used[name] = self._used.get(name, 0.0) + seconds

    def forget(self, name: str) -> None:
        """There is no such model any more."""
        self._used.pop(name, None)
        self._last.pop(name, None)
