"""One attempt in the hands of a worker."""

from __future__ import annotations

import time

import anyio

from xnai.agents.children import Children
from xnai.agents.context import Context
from xnai.agents.reporter import Reporter
from xnai.agents.skills import Skill
from xnai.agents.stop import Stop
from xnai.agents.streaming import ChunkWriter
from xnai.bus.bus import Bus
from xnai.bus.pull import Delivery
from xnai.protocol.envelope import Envelope
from xnai.protocol.timestamps import parse_timestamp

_CANCELS_CHILDREN = (None, Stop.CANCELED, Stop.DEADLINE)


class Run:
    """A task, the attempt at it, and the scope that its handler runs in.

    Attributes:
        recorded: whether the log names this attempt, so that it counts after a crash.
        stopped: why the handler was asked to stop, if it was.
        chunks: how many chunks a finished stream had; -1 where there is none.
        writer: of a stream that is under way.
        over: the outcome or the hand-back is decided; what the handler still says is dropped.
    """

    def __init__(
        self, bus: Bus, agent: str, skill: Skill, delivery: Delivery, *, task: Envelope, attempt: int
    ) -> None:
        self.task, self.skill, self.delivery, self.attempt = task, skill, delivery, attempt
        self.deadline = parse_timestamp(task.deadline)
        self.began = time.monotonic()
        self.recorded = False
        self.stopped: Stop | None = None
        self.stopped_at = 0.0
        self.over = False
        self.chunks = -1
        self.writer: ChunkWriter | None = None
        self.scope = anyio.CancelScope()
        self.reporter = Reporter(bus, agent, self)
        self.children = Children(bus, self)

    @property
    def key(self) -> tuple[str, str]:
        """Who sent the task, and its id."""
        return self.task.sender, self.task.id

    @property
    def cancels_children(self) -> bool:
        """Whether sub-tasks end with this attempt. One that is handed on leaves them to its successor."""
        return self.stopped in _CANCELS_CHILDREN

    def context(self, state: object) -> Context:
        return Context(self, state)

    def stop(self, why: Stop) -> None:
        """Stop the handler at its next wait; the first reason counts."""
        if self.stopped is None and not self.over:
            self.stopped, self.stopped_at = why, time.monotonic()
            self.scope.cancel()

    def __str__(self) -> str:
        return f"{self.task.agent}.{self.task.skill} of task {self.task.id}, attempt {self.attempt}"
