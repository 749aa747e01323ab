"""What the engine has to compute, who asked for it, and who goes first."""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterator

import msgspec

from xnai.agents.inference.engine.speeds import Speeds
from xnai.agents.inference.frames import Embed, Generate

URGENT, NORMAL, BACKGROUND = 0, 1, 2
FOREVER = math.inf


class Phase(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of scheduling.

    Attributes:
        slots: sequences that compute at the same time.
        batch: tokens of one step.
        gap: seconds between two tokens of a running answer, at most, whatever prompts are read beside it.
        background_gap: the same for an answer of the background, which nobody watches.
        alone: seconds of a step in which no answer goes on, at most: what an urgent request may have to wait.
        least: tokens of a prompt that are read in a step even if the machine is too slow for the gap.
        lead: tokens by which a cached prefix may put a sender ahead of its fair turn.
        overtaking: seconds of waiting after which nobody's cached prefix goes ahead of a request any more.
        aging: seconds of waiting after which a request may go first out of its turn ...
        share: ... which every so many starts is one.
        aside: answers that may be set aside at a time, so that each sender has a slot.
        queue: requests that may wait.
        queue_tokens: tokens of the prompts that may wait; one request always may.
    """

    slots: int = 4
    batch: int = 512
    gap: float = 0.1
    background_gap: float = 0.2
    alone: float = 0.2
    least: int = 4
    lead: float = 1024.0
    overtaking: float = 10.0
    aging: float = 20.0
    share: int = 8
    aside: int = 3
    queue: int = 256
    queue_tokens: int = 262_144


class Job(msgspec.Struct, kw_only=True, eq=False):
    """A request in the engine. The loop keeps it up to date; all times are of the loop's clock, in seconds.

    Attributes:
        sender, lane, weight: whose it is; lane 0 is urgent, 1 normal, 2 background.
        prompt: tokens of the prompt.
        todo: tokens that are not in its KV sequence yet, of the prompt and of what was made before a restart
            or an eviction; 0 while the answer goes on.
        cached: tokens of the prompt that a kept prefix would save, while it is queued.
        limit, made: tokens of the answer: at most, and so far. A limit of 0 is a prompt that is only read.
        deadline: when it is of no use any more.
        pausable: its KV sequence may wait while another request computes.
        phase: changed by Jobs.
        since: when the phase began.
        served: when a step last computed something for it.
        aged: it went first out of its turn, and is not paused.
        aside: it is paused for another sender, and goes on when it is the turn of its own.
    """

    id: int
    sender: str = ""
    lane: int = 1
    weight: float = 1.0
    arrived: float = 0.0
    prompt: int = 1
    todo: int = 1
    cached: int = 0
    limit: int = 1
    made: int = 0
    deadline: float | None = None
    model: str = ""
    pausable: bool = True
    phase: Phase = Phase.QUEUED
    since: float = 0.0
    served: float = -FOREVER
    aged: bool = False
    aside: bool = False

    @property
    def unread(self) -> int:
        """Tokens to compute before its answer goes on: while it is queued, those that are not cached."""
        return max(self.todo - self.cached, 1) if self.phase is Phase.QUEUED else self.todo

    @property
    def depth(self) -> int:
        """The position at which its next token stands."""
        return self.prompt + self.made - self.unread


def job_of(ask: Generate | Embed, arrived: float, *, prompt: int) -> Job:
    """A request of which nothing is computed yet; `prompt` is its tokens."""
    return Job(
        id=ask.id,
        sender=ask.sender,
        lane=ask.lane,
        weight=ask.weight,
        arrived=arrived,
        prompt=prompt,
        todo=prompt,
        deadline=None if ask.deadline is None else arrived + ask.deadline,
    )


class Ledger:
    """Tokens that each sender used in each lane, over its weight: who used least goes first.

    Someone who comes, or comes back, begins where the least of those who have something to do stood when the
    step began that is computed meanwhile, so that resting earns nothing: start-time fair queueing (Goyal, Vin
    and Cheng, 1996). What was used above that is remembered, so that leaving earns nothing either.
    """

    def __init__(self) -> None:
        self._used: dict[tuple[int, str], float] = {}
        self._jobs: dict[tuple[int, str], int] = {}
        self._floor: dict[int, float] = {}  # where a newcomer begins

    def begin(self) -> None:
        """A step begins."""
        least: dict[int, float] = {}
        for key in self._jobs:
            least[key[0]] = min(self._used[key], least.get(key[0], FOREVER))
        for lane, used in least.items():
            self._floor[lane] = max(used, self._floor.get(lane, 0.0))

    def arrive(self, job: Job) -> None:
        """A job of this sender came."""
        key = (job.lane, job.sender)
        if key not in self._jobs:
            self._used[key] = max(self.used(job), self._least(job.lane))
        self._jobs[key] = self._jobs.get(key, 0) + 1

    def leave(self, job: Job) -> None:
        """A job of this sender ended."""
        key = (job.lane, job.sender)
        self._jobs[key] -= 1
        if not self._jobs[key]:
            del self._jobs[key]
            self._forget(job.lane)

    def charge(self, job: Job, tokens: int) -> None:
        """So many tokens were computed for it."""
        key = (job.lane, job.sender)
        self._used[key] = self._used.get(key, 0.0) + tokens / job.weight

    def used(self, job: Job) -> float:
        """Tokens over weight of its sender in its lane."""
        return self._used.get((job.lane, job.sender), self._least(job.lane))

    def _least(self, lane: int) -> float:
        return self._floor.get(lane, 0.0)

    def _forget(self, lane: int) -> None:
        """Who rests, and would begin as a newcomer does."""
        for key in [key for key in self._used if key[0] == lane and key not in self._jobs]:
            if self._used[key] <= self._least(lane):
                del self._used[key]


class Jobs:
    """The jobs of one model: those that run, and those that wait because they are queued or paused."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.by_id: dict[int, Job] = {}
        self.turns = 0  # starts since one went first out of its turn
        self.urgent = 0  # urgent jobs that wait
        self.soonest = FOREVER  # no deadline of a job is before this

    def add(self, job: Job) -> None:
        """A job has arrived; it is queued."""
        job.phase, job.since = Phase.QUEUED, job.arrived
        self.by_id[job.id] = job
        self.ledger.arrive(job)
        self._wait(job)

    def start(self, job: Job, now: float, *, aged: bool = False) -> None:
        """It has a slot from now on, for the first time or again."""
        self.waiting.remove(job)
        self.urgent -= job.lane == URGENT
        self.running.append(job)
        job.phase, job.since, job.aged, job.aside = Phase.RUNNING, now, job.aged or aged, False
        self.turns = 0 if aged else self.turns + 1

    def pause(self, job: Job, now: float, *, aside: bool = False) -> None:
        """It yields its slot, and keeps what it has; set aside, until it is the turn of its sender."""
        self.running.remove(job)
        job.phase, job.since, job.aside = Phase.PAUSED, now, aside
        self._wait(job)

    def remove(self, job: Job) -> None:
        """It has ended, wherever it was."""
        del self.by_id[job.id]
        if job.phase is Phase.RUNNING:
            self.running.remove(job)
        else:
            self.waiting.remove(job)
            self.urgent -= job.lane == URGENT
        self.ledger.leave(job)

    @property
    def aside(self) -> int:
        """How many are set aside."""
        return sum(job.aside for job in self.waiting)

    def _wait(self, job: Job) -> None:
        self.waiting.append(job)
        self.urgent += job.lane == URGENT
        if job.deadline is not None:
            self.soonest = min(self.soonest, job.deadline)


def expected(job: Job, speeds: Speeds) -> float:
    """Tokens that are still to be computed for it, as far as one can know, over its weight."""
    answer = speeds.left(job.made, job.limit)
    # The last token of a prompt gives the first of the answer.
    return (job.unread + answer - (1 if job.unread and answer else 0)) / job.weight


def order(jobs: Jobs, speeds: Speeds, now: float, limits: Limits) -> Iterator[Job]:
    """Those that wait, in the order in which they start if nothing else arrives.

    Urgent ones, then those that yielded to urgent ones, then normal ones, then background. Within a lane the
    sender goes first that used least, what its jobs in slots are still going to use included, less the lead
    of a cached prefix; of one sender's jobs those that were set aside, then the one with the longest cached
    prefix, the earliest deadline, the earliest arrival.
    """
    paused = [job for job in jobs.waiting if job.phase is Phase.PAUSED and not job.aside]
    lanes: dict[int, list[Job]] = {}
    for job in jobs.waiting:
        if job.phase is Phase.QUEUED or job.aside:
            lanes.setdefault(job.lane, []).append(job)
    yield from _by_turns(lanes.pop(URGENT, []), jobs, speeds, now=now, limits=limits)
    yield from sorted(paused, key=lambda job: (job.lane, job.since, job.arrived, job.id))
    for lane in sorted(lanes):
        yield from _by_turns(lanes[lane], jobs, speeds, now=now, limits=limits)


def _by_turns(queued: list[Job], jobs: Jobs, speeds: Speeds, *, now: float, limits: Limits) -> Iterator[Job]:
    """The jobs of one lane that wait: each sender's in its own order, senders by what they will have used."""
    if len(queued) < 2:
        yield from queued
        return
    used: dict[str, float] = {}
    own: dict[str, list[tuple[bool, float, float, float, int, Job]]] = {}
    for job in queued:
        lead = limits.lead if now - job.arrived > limits.overtaking else min(job.cached, limits.lead)
        lead = 0.0 if job.aside else lead
        deadline = FOREVER if job.deadline is None else job.deadline
        own.setdefault(job.sender, []).append((not job.aside, -lead, deadline, job.arrived, job.id, job))
        used.setdefault(job.sender, jobs.ledger.used(job))
    for job in jobs.running:
        if job.sender in used and job.lane == queued[0].lane:
            used[job.sender] += expected(job, speeds)
    for mine in own.values():
        heapq.heapify(mine)
    heads = [(used[sender] + mine[0][1], *mine[0][3:5], sender) for sender, mine in own.items()]
    heapq.heapify(heads)
    while heads:
        *_, sender = heapq.heappop(heads)
        mine = own[sender]
        job = heapq.heappop(mine)[-1]
        yield job
        used[sender] += expected(job, speeds)
        if mine:
            heapq.heappush(heads, (used[sender] + mine[0][1], *mine[0][3:5], sender))
