"""Whether a request may wait, and for how long it will, by the measured speed. No I/O, no clock."""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from xnai.agents.inference.engine.jobs import URGENT, Job, Jobs, Limits, Phase, order
from xnai.agents.inference.engine.slots import yielding
from xnai.agents.inference.engine.speeds import Speeds
from xnai.agents.inference.frames import Refused

SHARED = 0.75  # of the queue is for whoever comes first; the rest for those who have less than an equal part
SLOWEST = 0.2  # of the time goes to prompts, at least, however much the answers beside them take
SHORTEST = 0.05  # seconds after which asking again may help, at least


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request may not wait.

    Attributes:
        kind: "busy" for a full queue, "deadline" for one that cannot be met.
        retry_after: seconds after which there is probably room; None where asking again does not help.
        first: seconds until its first token, as estimated.
        waiting, tokens: requests that wait, and tokens of their prompts.
        own: the request is refused because its sender has as much waiting as is its part.
    """

    kind: Literal["busy", "deadline"]
    retry_after: float | None
    first: float
    waiting: int
    tokens: int
    own: bool = False

    def frame(self, id: int) -> Refused:
        """What is said of it."""
        if self.kind == "deadline":
            why = f"its first token would come in {self.first:.1f} s, which is after its deadline"
        else:
            whose = "its sender has its part of the queue" if self.own else "the queue is full"
            room = f"there may be room in {self.retry_after or 0:.1f} s"
            why = f"{whose}: {self.waiting} requests of {self.tokens} tokens wait; {room}"
        return Refused(id, "busy", why, self.retry_after)


class Estimate(msgspec.Struct, frozen=True):
    """When a waiting job will start, and have its first token, if nothing else arrives: seconds from now."""

    id: int
    position: int
    start: float
    first: float


def positions(jobs: Jobs, speeds: Speeds, now: float, limits: Limits) -> list[Estimate]:
    """Those that wait in the order in which they will start, the next one at position 0.

    The slots are taken to be served in this order, prompts to be read one after the other, and answers to be
    as long as they were lately.
    """
    waiting = list(order(jobs, speeds, now, limits))
    together = max(1, min(limits.slots, len(jobs.running) + len(waiting)))
    step = speeds.decode(together)
    reading = max(SLOWEST, 1 - step / limits.gap) if together > 1 else 1.0
    read = 0.0  # seconds until the prompts before have been read
    free = [0.0] * max(0, limits.slots - len(jobs.running))
    for job in sorted(jobs.running, key=lambda job: (job.lane, job.since)):
        read += _prefill(job, speeds) / reading
        free.append((read if job.todo else 0.0) + speeds.left(job.made, job.limit) * step)
    heapq.heapify(free)
    running, aside = list(jobs.running), limits.aside - jobs.aside
    found = []
    for position, job in enumerate(waiting):
        able = yielding(job, running, jobs.ledger, aside=aside) if free[0] > 0 else []
        if able:
            start, aside = 0.0, aside - (job.lane != URGENT)
            running.remove(able[0])
            running.append(job)
        else:
            start = heapq.heappop(free)
            aside = 0 if start else aside  # nobody goes before whoever waits here
        read = max(start, read) + _prefill(job, speeds) / reading
        found.append(Estimate(job.id, position, start, read))
        heapq.heappush(free, read + speeds.left(job.made, job.limit) * step)
    return found


def _prefill(job: Job, speeds: Speeds) -> float:
    """Seconds that the rest of its prompt takes with nothing beside it."""
    return speeds.prefill(job.unread, job.depth)


def admit(job: Job, jobs: Jobs, speeds: Speeds, *, now: float, limits: Limits) -> Refusal | None:
    """None if the job, which has not been added, may wait; otherwise why not."""
    waiting = [other for other in jobs.waiting if other.phase is Phase.QUEUED]
    tokens = sum(other.prompt for other in waiting)
    full = len(waiting) >= limits.queue or tokens + job.prompt > limits.queue_tokens
    own = not full and _has_its_part(job, waiting, tokens=tokens, limits=limits)
    if waiting and (full or own):
        soon = max(SHORTEST, min(place.start for place in positions(jobs, speeds, now, limits)))
        return Refusal(
            kind="busy", retry_after=soon, first=math.inf, waiting=len(waiting), tokens=tokens, own=own
        )
    if job.deadline is None:
        return None
    if now + _at_most((*jobs.running, *jobs.waiting, job), speeds, limits) <= job.deadline:
        return None  # as nearly always, and known without an order
    first = _first(job, jobs, speeds, now=now, limits=limits)
    if now + first <= job.deadline:
        return None
    return Refusal(kind="deadline", retry_after=None, first=first, waiting=len(waiting), tokens=tokens)


def _has_its_part(job: Job, waiting: list[Job], *, tokens: int, limits: Limits) -> bool:
    """Whether the queue is nearly full and an equal part of it, or more, is of this sender."""
    mine = [other.prompt for other in waiting if other.sender == job.sender]
    parts = len({other.sender for other in waiting} | {job.sender}) + 1
    if len(waiting) >= limits.queue * SHARED and len(mine) >= limits.queue / parts:
        return True
    return tokens + job.prompt > limits.queue_tokens * SHARED and sum(mine) >= limits.queue_tokens / parts


def _at_most(everybody: Iterable[Job], speeds: Speeds, limits: Limits) -> float:
    """Seconds until all of these have ended, were they computed one after the other."""
    step = speeds.decode(limits.slots)
    return sum(_prefill(job, speeds) / SLOWEST + speeds.left(job.made, job.limit) * step for job in everybody)


def _first(job: Job, jobs: Jobs, speeds: Speeds, *, now: float, limits: Limits) -> float:
    """Seconds until the first token of a job that has not been added."""
    trial = copy.copy(jobs)
    trial.waiting = [*jobs.waiting, job]
    return next(place.first for place in positions(trial, speeds, now, limits) if place.id == job.id)
