"""An engine that computes nothing: jobs arrive on a virtual clock, and steps take what a model of costs says.

It stands for the loop and llama.cpp under the scheduler's tests; the scheduler is the real one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import msgspec

from xnai.agents.inference.engine.jobs import Job, Jobs, Ledger, Limits
from xnai.agents.inference.engine.scheduling import Plan, plan
from xnai.agents.inference.engine.speeds import Figures, Speeds

# About a model of 120 million parameters on two cores: 6 ms a token, 27 ms for eight, 1.3 ms a token of a
# prompt, 4 ms at 4,000.
MEDIUM = Figures(fixed=0.003, each=0.003, start=0.003, token=0.0013, attend=0.7e-6)


class Story(msgspec.Struct):
    """What happened to a job: its first slot, each token of its answer, what was read, and its end."""

    job: Job
    answer: int
    started: float | None = None
    tokens: list[float] = []
    read: int = 0
    pauses: int = 0
    ended: float | None = None
    finish: str = ""

    @property
    def first(self) -> float:
        """Seconds from its arrival to its first token."""
        return self.tokens[0] - self.job.arrived

    @property
    def longest_gap(self) -> float:
        """Seconds between two of its tokens, at most."""
        return max((b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)), default=0.0)


class Engine:
    """Plans and computes until nothing is left.

    `costs` are what steps really take. The scheduler knows them, and that answers reach their limits, if it
    is `informed`; otherwise it learns.
    """

    def __init__(self, limits: Limits, *, costs: Figures = MEDIUM, informed: bool = True) -> None:
        self.limits = limits
        self.informed = informed
        self.now = 0.0
        self.truth = Speeds(costs)
        self.speeds = Speeds(costs) if informed else Speeds()
        if informed:
            self.speeds.answer = 1e9
        self.ledger = Ledger()
        self.jobs = Jobs(self.ledger)
        self.stories: dict[int, Story] = {}
        self.starts: list[int] = []  # ids, in the order of their first slot
        self.watch: Callable[[Plan], None] = lambda made: None  # called when a plan has been enacted
        self._coming: list[tuple[float, int]] = []

    def send(self, job: Job, answer: int | None = None) -> Story:
        """Let a job arrive at its time; its answer ends after so many tokens, or at its limit."""
        story = Story(job, job.limit if answer is None else min(answer, job.limit))
        self.stories[job.id] = story
        heapq.heappush(self._coming, (job.arrived, job.id))
        return story

    def run(self, until: float = float("inf"), *, most: int = 100_000) -> None:
        """Compute until nothing is left, or that time. `most` steps are more than a test needs."""
        for _ in range(most):
            if self.now >= until or not self.step():
                return
        raise AssertionError("the engine never comes to an end")

    def step(self) -> bool:
        """One plan and what it computes, or the wait for the next arrival. False once nothing is left."""
        while self._coming and self._coming[0][0] <= self.now:
            self.jobs.add(self.stories[heapq.heappop(self._coming)[1]].job)
        made = plan(self.jobs, self.speeds, self.now, self.limits)
        self._enact(made)
        self.watch(made)
        if made.rows:
            self._compute(made.rows)
            return True
        times = [time for time in (made.wake, *(time for time, _ in self._coming[:1])) if time is not None]
        if times:
            self.now = max(self.now, min(times))
        return bool(times)

    def _enact(self, made: Plan) -> None:
        for id in (*made.drop, *made.end):
            self._end(self.stories[id], "deadline")
        for id in made.pause:
            self.stories[id].pauses += 1
        for id in made.start:
            story = self.stories[id]
            if story.started is None:
                story.started = self.now
                story.job.todo = story.job.unread
                story.job.cached = 0
                self.starts.append(id)
        made.enact(self.jobs, self.now)

    def _compute(self, rows: list[tuple[int, int]]) -> None:
        jobs = [(self.jobs.by_id[id], tokens) for id, tokens in rows]
        decodes = sum(not tokens for _, tokens in jobs)
        prefill = sum(tokens for _, tokens in jobs)
        took = self.truth.decode(decodes) + sum(self.truth.prefill(n, job.depth) for job, n in jobs)
        depth = sum(n * job.depth for job, n in jobs) // max(prefill, 1)
        self.now += took
        if not self.informed:
            self.speeds.observe(decodes, prefill, depth, took)
        for job, tokens in jobs:
            job.served = self.now
            job.todo -= tokens
            self.stories[job.id].read += tokens
            self.ledger.charge(job, tokens or 1)
            if not job.todo:
                self._said(self.stories[job.id])

    def _said(self, story: Story) -> None:
        """All of the prompt has been read, or the last token: another token of the answer is known."""
        if story.answer:
            story.tokens.append(self.now)
            story.job.made += 1
        if story.job.made >= story.answer:
            if not self.informed:
                self.speeds.ended(story.job.made)
            self._end(story, "stop")

    def _end(self, story: Story, finish: str) -> None:
        self.jobs.remove(story.job)
        story.ended, story.finish = self.now, finish


def new_job(id: int, prompt: int = 20, limit: int = 100, **facts: object) -> Job:
    """A job of which nothing is read yet; its sender is itself unless told."""
    known = {"id": id, "prompt": prompt, "todo": prompt, "limit": limit, "sender": str(id)}
    return msgspec.convert(known | facts, Job)
