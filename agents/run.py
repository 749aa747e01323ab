"""One attempt in the hands of a worker."""

from __future__ import annotations

import time
from functools import cached_property

import anyio

from xnai.agents.children import Children
from xnai.agents.context import Context
from xnai.agents.reporter import Reporter
from xnai.agents.skills import Skill
from xnai.agents.stop import Stop
from xnai.agents.streaming import ChunkWriter
from xnai.bus.bus import Bus
from xnai.bus.pull import Delivery
from xnai.protocol.a2a import Artifact
from xnai.protocol.envelope import Envelope

_CANCELS_CHILDREN = (None, Stop.CANCELED, Stop.DEADLINE)


class Slot:
    """Where handlers run, one after another: a scope, and the attempt at work in it.

    The scope outlives the attempts, because a scope for each costs a tenth of the throughput. Only a handler
    that is stopped cancels it, and then it is left: `run` is the one that was stopped.
    """

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.run: Run | None = None


class Run:
    """A task, and the attempt at it.

    Attributes:
        fresh: whether nothing of this task can have happened before.
        request: the message with its large parts in place, once they are there.
        key: who sent the task, and its id.
        recorded: whether the log names this attempt, so that it counts after a crash.
        stopped: why the handler was asked to stop, if it was.
        chunks: how many chunks a finished stream had; -1 where there is none.
        writer: of a stream that is under way.
        over: the outcome or the hand-back is decided; what the handler still says is dropped.
    """

    def __init__(
        self,
        bus: Bus,
        agent: str,
        skill: Skill,
        delivery: Delivery,
        *,
        scope: anyio.CancelScope,
        task: Envelope,
        deadline: float,
        attempt: int,
        fresh: bool,
    ) -> None:
        self.task, self.skill, self.delivery, self.attempt = task, skill, delivery, attempt
        self.request = task.message
        self.deadline, self.fresh = deadline, fresh
        self.key = task.sender, task.id
        self.began = time.monotonic()
        self.recorded = False
        self.stopped: Stop | None = None
        self.stopped_at = 0.0
        self.over = False
        self.chunks = -1
        self.writer: ChunkWriter | None = None
        self._bus, self._agent, self._scope = bus, agent, scope

    @cached_property
    def reporter(self) -> Reporter:
        """What writes into the task's log. Most short tasks never need it."""
        return Reporter(self._bus, self._agent, self)

    @cached_property
    def children(self) -> Children:
        """What asks other agents."""
        return Children(self._bus, self)

    @property
    def answer_id(self) -> str:
        """The id of the artifact that is this attempt's answer."""
        return f"{self.task.id}-{self.attempt}"

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts beside the answer."""
        return self.reporter.artifacts if "reporter" in self.__dict__ else []

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
            self._scope.cancel()

    def __str__(self) -> str:
        return f"{self.task.agent}.{self.task.skill} of task {self.task.id}, attempt {self.attempt}"
