"""An engine that computes nothing: jobs arrive on a virtual clock, and steps take what a model of costs says.

It stands for the loop and llama.cpp under the scheduler's tests; the scheduler is the real one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from xnai.agents.inference.engine.jobs import Job, Jobs, Ledger, Limits, Phase
from xnai.agents.inference.engine.scheduling import Plan, plan
from xnai.agents.inference.engine.speeds import Figures, Speeds

# The medium model on two cores: 6 ms a token, 26 ms for eight, 1.3 ms a token of a prompt, 4 ms at 4,000.
MEDIUM = Figures(fixed=0.003, each=0.003, start=0.003, token=0.0013, attend=0.7e-6)


class Story(msgspec.Struct):
    """What happened to a job: when it first had a slot, each token of its answer, and its end."""

    job: Job
    answer: int
    started: float | None = None
    tokens: list[float] = []
    ended: float | None = None
    finish: str = ""

    @property
    def first(self) -> float:
        """Seconds from its arrival to its first token."""
        return self.tokens[0] - self.job.arrived

    @property
    def longest_gap(self) -> float:
        """Seconds between two of its tokens, at most."""
        return max(
            (after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)), default=0
        )


class Engine:
    """Plans and computes until nothing is left.

    `costs` are what steps really take; the scheduler knows them if it is `informed`, and learns them else.
    """

    def __init__(self, limits: Limits, *, costs: Figures = MEDIUM, informed: bool = True) -> None:
        self.limits = limits
        self.now = 0.0
        self.truth = Speeds(costs)
        self.speeds = Speeds(costs) if informed else Speeds()
        self.ledger = Ledger()
        self.jobs = Jobs(self.ledger)
        self.stories: dict[int, Story] = {}
        self.steps: list[tuple[float, float, list[tuple[int, int]]]] = []
        self.plans: list[Plan] = []
        self._coming: list[tuple[float, int]] = []

    def send(self, job: Job, answer: int = 1) -> Story:
        """Let a job arrive at its time; its answer ends after so many tokens, or at its limit."""
        story = self.stories[job.id] = Story(job, min(answer, job.limit))
        heapq.heappush(self._coming, (job.arrived, job.id))
        return story

    def run(self, until: float = float("inf"), *, most: int = 100_000) -> None:
        """Compute until nothing is left, or that time; `most` steps are a mistake of the scheduler."""
        for _ in range(most):
            if self.now >= until or not self.step():
                return
        raise AssertionError("it never ends")

    def step(self) -> bool:
        """One plan and what it computes, or the wait for the next arrival. False once nothing is left."""
        while self._coming and self._coming[0][0] <= self.now:
            self.jobs.add(self.stories[heapq.heappop(self._coming)[1]].job)
        made = plan(self.jobs, self.speeds, self.now, self.limits)
        self.plans.append(made)
        self._enact(made)
        if made.rows:
            self._compute(made.rows)
            return True
        times = [time for time in (made.wake, *(time for time, _ in self._coming[:1])) if time is not None]
        if times:
            self.now = max(self.now, min(times))
        return bool(times) or bool(made.drop) or bool(made.end)

    def _enact(self, made: Plan) -> None:
        for id in (*made.drop, *made.end):
            self._end(self.stories[id], "deadline")
        made.enact(self.jobs, self.now)
        for id in made.start:
            story = self.stories[id]
            if story.started is None:
                story.started = self.now
                story.job.todo -= min(story.job.cached, story.job.todo - 1)

    def _compute(self, rows: list[tuple[int, int]]) -> None:
        jobs = [(self.jobs.by_id[id], tokens) for id, tokens in rows]
        decodes = sum(not tokens for _, tokens in jobs)
        prefill = sum(tokens for _, tokens in jobs)
        took = self.truth.decode(decodes) + sum(self.truth.prefill(n, job.depth) for job, n in jobs)
        depth = sum(n * job.depth for job, n in jobs) // prefill if prefill else 0
        self.steps.append((self.now, took, rows))
        self.now += took
        self.speeds.observe(decodes, prefill, depth, took)
        for job, tokens in jobs:
            job.served = self.now
            job.todo -= tokens
            self.ledger.charge(job, tokens or 1)
            if not job.todo:
                self._said(self.stories[job.id])

    def _said(self, story: Story) -> None:
        """The prompt has been read, or the last token: another token of the answer is known."""
        if story.answer:
            story.tokens.append(self.now)
            story.job.made += 1
        if story.job.made >= story.answer:
            self.speeds.ended(story.job.made)
            self._end(story, "stop")

    def _end(self, story: Story, finish: str) -> None:
        self.jobs.remove(story.job)
        story.ended, story.finish = self.now, finish


def job(id: int, prompt: int = 20, limit: int = 100, **facts: object) -> Job:
    """A job whose prompt is not read yet; its sender is itself unless told."""
    return msgspec.convert(
        {"id": id, "prompt": prompt, "todo": prompt, "limit": limit, "sender": str(id), **facts}, Job
    )


def ran_at_once(engine: Engine) -> int:
    """The most jobs of one step."""
    return max((len(rows) for _, _, rows in engine.steps), default=0)


def by_sender(stories: Iterable[Story]) -> dict[str, list[Story]]:
    found: dict[str, list[Story]] = {}
    for story in stories:
        found.setdefault(story.job.sender, []).append(story)
    return found


def paused(engine: Engine) -> list[Job]:
    return [job for job in engine.jobs.waiting if job.phase is Phase.PAUSED]
