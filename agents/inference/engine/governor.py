"""How many threads and sequences compute on a machine that others use too: pure, no clock.

llama.cpp's threads wait for each other some hundred times a token. One that is not running, because another
process has its core, holds up all: first of all those that wait must not spin. Whether fewer threads are
faster depends on the machine and on who else computes, so it is tried where the machine is busy and the
engine slow: fewer, then more, and back where that was no faster. Once the others are gone, all compute.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

SLOW = 0.7  # of the speed on a quiet machine, below which other numbers of threads are tried
ROOM = 0.35  # cores that others may use beside all threads
CROWD = 0.75  # above which those that wait should not spin: the bus and its callers alone need less
FEWER, MORE = 1.25, 0.95  # other numbers of threads stay if they are so much faster: less is seldom better
_BEFORE, _TRIAL, _CALM = 10, 6, 4  # looks before a trial, of it, and before a step up where there is room
_LONG = 6  # looks on a quiet machine before threads spin for long again
_AGAIN, _LONGEST = 20, 640  # looks before the next trial, doubled each time that one was in vain
_MOST_PACE = 2.0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen since the last look.

    Attributes:
        cores: that the engine may use.
        others: cores that other processes, and other machines of the same host, kept busy.
        pace: speed relative to what was measured on the quiet machine with all threads; None where too
            little was computed.
    """

    cores: int
    others: float
    pace: float | None = None


class Governor:
    """Threads of a computation, at most `most`.

    Attributes:
        threads: to use now.
        strained: the machine is busy and the engine slow.
        short: threads that wait should not spin for long.
    """

    def __init__(self, most: int) -> None:
        self.threads = self._most = most
        self.strained, self.short = False, False
        self._quiet = self._calm = self._pause = 0
        self._lasting, self._down = _AGAIN, True
        self._paces: list[float] = []
        self._trial: tuple[int, float] | None = None  # threads before, and their pace

    def look(self, seen: Look) -> int:
        """The threads to use from now on, after what was seen with the present ones."""
        crowded = seen.others + self.threads > seen.cores + CROWD
        slow = seen.pace is not None and seen.pace < SLOW
        self.strained = (crowded or self.threads < self._most) and slow
        self._pause = max(0, self._pause - 1)
        self._quiet = 0 if crowded else self._quiet + 1
        if crowded and not self.short:
            self.short = True
            return self.threads  # what was seen was seen with long spins
        self.short = self.short and self._quiet < _LONG
        if self._roomy(seen):
            self._trial = None
            self._rise()
        elif slow and seen.pace is not None and self._most > 1:
            self._calm = 0
            self._paces.append(min(seen.pace, _MOST_PACE))
            self._judge() if self._trial else self._try()
        return self.threads

    def _roomy(self, seen: Look) -> bool:
        """Whether there are cores for more threads, or for all."""
        return seen.others + min(self._most, self.threads * 2) <= seen.cores + ROOM

    def _try(self) -> None:
        """After a while, fewer threads, and the next time more."""
        del self._paces[:-_BEFORE]
        if self._pause or len(self._paces) < _BEFORE:
            return
        self._trial = self.threads, _middle(self._paces)
        fewer, more = max(1, self.threads // 2), min(self._most, self.threads * 2)
        down = fewer < self.threads and (self._down or more == self.threads)
        self.threads, self._down = (fewer, False) if down else (more, True)
        self._paces.clear()

    def _judge(self) -> None:
        """Whether the other number of threads was faster."""
        if self._trial is None or len(self._paces) < _TRIAL:
            return
        before, pace = self._trial
        if _middle(self._paces) < (FEWER if self.threads < before else MORE) * pace:
            self.threads = before
            self._pause, self._lasting = self._lasting, min(self._lasting * 2, _LONGEST)
        else:  # the same way again, at once
            self._pause, self._lasting, self._down = 0, _AGAIN, self.threads < before
        self._trial = None
        self._paces.clear()

    def _rise(self) -> None:
        """More threads once there has been room for them for a while."""
        self._paces.clear()
        self._calm += 1
        if self._calm >= _CALM:
            self.threads, self._calm = min(self._most, self.threads * 2), 0
            self._lasting, self._pause, self._down = _AGAIN, 0, True


def _middle(paces: list[float]) -> float:
    return sorted(paces)[len(paces) // 2]


def affordable(most: int, step: Callable[[int], float], bound: float) -> int:
    """How many sequences compute together, 1 to `most`, in steps of at most `bound` seconds."""
    return next((count for count in range(most, 1, -1) if step(count) <= bound), 1)


NOTHING, HALF_KEPT, NONE_KEPT, HALF_SLOTS, ONE_SLOT, NONE_IDLE = range(6)
"""What is given back while memory is short, each beside those before it: half of the kept sequences, all of
them, half of those that compute, all but one, and the models that have no requests."""

_STALL = 0.1  # of the time somebody waited for memory
_STEPS = 10  # looks between two steps
_RELIEF, _LONGEST_RELIEF = 60, 960  # looks without pressure before a step back, doubled when it was too soon


class Pressure:
    """How much is given back to a machine that is short of memory.

    Attributes:
        reserve: bytes that should stay free; below half of it memory is short, below a quarter dangerously.
        level: NOTHING to NONE_IDLE.
    """

    def __init__(self, reserve: int) -> None:
        self.reserve, self.level = reserve, NOTHING
        self._since = self._calm = 0
        self._relief = _RELIEF

    def look(self, free: int, stalled: float) -> int:
        """The level from now on, `free` bytes being available and this share of the time lost to waiting."""
        self._since += 1
        danger = free < self.reserve / 4
        if danger or free < self.reserve / 2 or (stalled > _STALL and free < 2 * self.reserve):
            if self.level and self._calm:
                self._relief = min(self._relief * 2, _LONGEST_RELIEF)
            self._calm = 0
            if self.level < NONE_IDLE and (danger or not self.level or self._since >= _STEPS):
                self.level, self._since = self.level + 1, 0
        elif free > self.reserve:
            self._calm += 1
            if self.level and self._calm >= self._relief:
                self.level, self._calm = self.level - 1, 0
                self._since = 0
            if not self.level and self._calm >= self._relief:
                self._relief = _RELIEF
        return self.level


def eased(level: int, slots: int, kept: int) -> tuple[int, int]:
    """How many sequences compute and are kept at this level, of those there would be."""
    if level >= ONE_SLOT:
        return 1, 0
    if level >= HALF_SLOTS:
        return max(1, slots // 2), 0
    return slots, 0 if level >= NONE_KEPT else kept // 2 if level else kept
