"""A place that an agent has: a process runs in it, and another one when that dies."""

from __future__ import annotations

import enum
import math
import random
import signal
import time
from collections.abc import Awaitable, Callable

import anyio

from xnai.deploy.members import Job, Member, Print
from xnai.deploy.plan import Policy
from xnai.deploy.starting import Starter
from xnai.deploy.supervisor.confining import Confined
from xnai.protocol.errors import XnaiError

Confine = Callable[[int], Confined | None]
"""Keeps a process to what the settings of its agent let it take; None where the kernel keeps nothing."""
_JUST_NOW = 5.0  # seconds


class State(enum.StrEnum):
    """Where a place stands."""

    STARTING = "starting"
    READY = "ready"
    PAUSE = "pause"
    """Its process has died, and the next one starts soon."""
    GIVEN_UP = "given up"
    ENDED = "ended"
    """Its process has ended, and its agent wants no other one."""


class Place:
    """One of the processes that an agent is to have.

    Attributes:
        number: 1 for the first of its agent.
        restart: whether there is to be a new process for one that ended, as in the settings.
        trial: whether its first death before it is ready is the last one.
        state: where it stands.
        member: the process that runs or ran last.
        restarts: how often there was a new one.
        last_error: what the last one that died said.
        settled: set when it is ready, or will not be.
        gone: set when it is empty for good.
    """

    def __init__(
        self,
        number: int,
        job: Job,
        policy: Policy,
        *,
        restart: str,
        show: Print,
        confine: Confine,
        starter: Starter,
        trial: bool = False,
    ) -> None:
        self.number, self.job, self.restart, self.trial = number, job, restart, trial
        self.state = State.STARTING
        self.restarts = 0
        self.last_error: str | None = None
        self.settled, self.gone = anyio.Event(), anyio.Event()
        self.on_settled: Callable[[], None] = lambda: None
        self.on_declared: Callable[[tuple[str, ...]], Awaitable[Job]]
        self._policy, self._show, self._starter = policy, show, starter
        self._confine = confine
        self._confined: Confined | None = None
        self._kills, self._killed_at = 0, -math.inf
        self._scope = anyio.CancelScope()
        self._quick_deaths = 0
        self._outgrown = False
        self.member = self._new_member()

    @property
    def over(self) -> bool:
        """Whether nothing runs here, and nothing will."""
        return self.state in (State.GIVEN_UP, State.ENDED)

    @property
    def running(self) -> bool:
        return self.member.pid is not None and self.member.status is None

    def retire(self) -> None:
        """Empty it: its process is asked to leave, and `gone` is set when it has."""
        self._scope.cancel()

    def outgrow(self, held: int, most: int) -> None:
        """Ask its process to leave, which holds more memory than it may; another one follows."""
        if self.member.leave_by is None:
            self._show("stderr", f"holds {held / 1e6:.0f} MB of {most / 1e6:.0f} MB: it is to start anew")
            self._outgrown = True
            self.member.leave()

    def confine(self) -> None:
        """Keep its process to what the settings say now."""
        if self.running and self.member.pid is not None:
            self._confined = self._confine(self.member.pid)

    def notice_kills(self) -> None:
        """Say where the kernel has ended a process here since the last look, because it held too much."""
        if self._confined and (kills := self._confined.killed) != self._kills:
            self._kills, self._killed_at = kills, time.monotonic()
            if self.running:
                self.last_error = f"the kernel ended a process of it: {self._too_much()}"
                self._show("stderr", self.last_error)

    def _too_much(self) -> str:
        most = self._confined.quota.memory if self._confined else None
        return f"it held more than the {(most or 0) / 1e6:.0f} MB that it may"

    async def run(self) -> None:
        """Keep a process running until retired or cancelled, or until it is not to be started again."""
        try:
            with self._scope:
                while await self._once():
                    self.restarts += self.member.declared is None
                    self.member = self._new_member()
        finally:
            if self.state in (State.STARTING, State.PAUSE):
                self.state = State.ENDED
            self._settle()
            self.gone.set()

    async def _once(self) -> bool:
        """Run one process to its end; returns whether there is to be another one."""
        self.state = State.STARTING
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._welcome)
            try:
                status = await self.member.run()
            finally:
                killed = self._release()
            tasks.cancel_scope.cancel()
        if self.member.declared is not None:
            try:
                self.job = await self.on_declared(self.member.declared)
            except XnaiError as error:  # whoever lets it serve them is away, for example
                self.last_error = f"error[{error.code}]: {error}"
                self._show("stderr", self.last_error)
                return await self._pause(1)
            return True
        if status != -signal.SIGKILL:
            killed = None
        if self._outgrown and self.restart != "never":
            self._outgrown = False
            self.last_error = killed or "held more memory than it may"
            return await self._pause(status)
        self.last_error = killed or self._reason(status)
        if self.trial or self.restart == "never" or (self.restart == "on_failure" and status == 0):
            self.state = State.GIVEN_UP if self.trial or status else State.ENDED
            self._show("stderr", f"ended with status {status}")
            return False
        return await self._pause(status)

    def _release(self) -> str | None:
        """Let go of what its process was confined to; returns why the kernel ended it just now, if it did."""
        if self._confined is None:
            return None
        self.notice_kills()
        why = f"ended by the kernel: {self._too_much()}"
        is_recent = time.monotonic() - self._killed_at < _JUST_NOW
        self._confined.close()
        self._confined, self._kills, self._killed_at = None, 0, -math.inf
        return why if is_recent else None

    async def _welcome(self) -> None:
        await self.member.ready.wait()
        self.state, self.trial = State.READY, False
        self._settle()

    async def _pause(self, status: int) -> bool:
        """Wait before the next process; returns False when there were too many quick deaths."""
        policy = self._policy
        quick = time.monotonic() - self.member.began <= policy.quick
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths >= policy.quick_deaths:
            self.state = State.GIVEN_UP
            self._show("stderr", self._obituary())
            return False
        delay = delay_after(self._quick_deaths, policy)
        self.state = State.PAUSE
        self._show("stderr", f"ended with status {status}; starts again in {round(delay, 2):g} s")
        await anyio.sleep(delay)
        return True

    def _reason(self, status: int) -> str:
        """Its own words where they name an error; others may be old, and stand behind its status."""
        words = self.member.last_words
        if status > 0 and words.startswith("error["):
            return words
        return f"ended with status {status}" + (f", after it said: {words}" if status and words else "")

    def _obituary(self) -> str:
        deaths, quick = self._policy.quick_deaths, self._policy.quick
        times = "once, at once" if deaths == 1 else f"{deaths} times, each within {quick:g} s"
        return f"died {times}, and is given up: {self.last_error}"

    def _settle(self) -> None:
        self.settled.set()
        self.on_settled()

    def _new_member(self) -> Member:
        member = Member(self.job, self._show, self._starter, stop_timeout=self._policy.stop_timeout)
        member.on_start = self.confine
        return member


def delay_after(deaths: int, policy: Policy) -> float:
    """Seconds before the next start: the first one soon, later ones at random, so that a herd spreads."""
    if deaths <= 1:
        return policy.first_delay
    most = min(policy.longest_delay, policy.first_delay * 2.0 ** min(deaths - 1, 32))
    return random.uniform(min(policy.first_delay, most), most)
