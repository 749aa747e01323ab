"""The worker: as many slots as credit, one watch for all running tasks, and an orderly leave."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import copy_context

import anyio
from anyio.abc import TaskGroup

from xnai.agents.agent import Agent
from xnai.agents.announcing import announced, check_agreement, schemas_of
from xnai.agents.blocking import LoopGuard
from xnai.agents.concluding import Probe
from xnai.agents.handling import Handler
from xnai.agents.past import FRESH, Past, look_up
from xnai.agents.run import Run, Slot
from xnai.agents.service import Service
from xnai.agents.stop import Stop
from xnai.agents.tally import Tally
from xnai.agents.vitals import Vitals
from xnai.bus.background import background_tasks
from xnai.bus.bus import Bus
from xnai.bus.hearing import genuine
from xnai.bus.parser import Frame
from xnai.bus.pull import Delivery, Puller
from xnai.bus.streams import Limits, ack_wait_of, declare_agent, declare_consumer
from xnai.bus.transport import NoResponders
from xnai.bus.waiting import new_future
from xnai.protocol import subjects
from xnai.protocol.errors import GateClosed, MalformedMessage, NotConsuming, Unavailable
from xnai.protocol.events import CANCEL, OUTCOME
from xnai.protocol.names import LANES, SYSTEM
from xnai.registry import LazyRegistry, read_instances

log = logging.getLogger(__name__)
DRAIN_TIMEOUT = 10.0
_TICK = 0.1
_WORKING_AFTER = 1.0
_STUCK_AFTER = 2.0  # seconds that a stopped handler has to end
_REMEMBERED_CANCELS = 1_000
_HOPELESS = 60.0  # seconds without pulls that are answered
_PAUSE_WHEN_FULL = 5.0


@asynccontextmanager
async def serve(
    agent: Agent,
    bus: Bus,
    *,
    limits: Limits | None = None,
    drain: float = DRAIN_TIMEOUT,
    probe: Probe | None = None,
) -> AsyncIterator[Worker]:
    """Answer an agent's tasks while the context is open. On entry it is consuming.

    At the end it takes nothing more, gives running handlers `drain` seconds, and hands back what is left, so
    that another process starts on it at once.

    Raises:
        Busy: the broker cannot reserve room for the agent's queue and log.
        InvalidAgent: another instance that runs contradicts it.
        Unavailable: the broker does not answer.
        NotConsuming: later, when the pulls are lost and cannot be made again.
    """
    limits = limits or Limits()
    for name in agent.addresses:
        await bus.declare(name, limits)
    schemas = schemas_of(agent)
    check_agreement(agent, schemas, await read_instances(bus))
    async with agent.alive() as state:
        worker = Worker(agent, bus, limits, Handler(agent, bus, state, probe))
        vitals = Vitals(worker, schemas)
        async with worker.open(), Service(bus, agent, vitals.presence, worker.ask_to_leave).open():
            try:
                async with announced(agent, bus, vitals.presence, lease=limits.lease):
                    yield worker
            finally:
                with anyio.CancelScope(shield=True):
                    await worker.leave(drain)


class Worker:
    """As many slots as credit, each a task that lives as long as the worker: starting a task for each message
    costs twenty times what waking one does. Use `serve`."""

    def __init__(self, agent: Agent, bus: Bus, limits: Limits, handler: Handler) -> None:
        self.agent, self.bus = agent, bus
        self._limits, self._handler = limits, handler
        self._puller = Puller(bus.transport, agent.addresses, LANES, slots=agent.concurrency, heal=self._heal)
        self._ready: tuple[deque[tuple[Delivery, Past]], ...] = tuple(deque() for _ in LANES)
        self._unsure: list[Delivery] = []
        self._taken: dict[str, Delivery] = {}
        self._idle: list[asyncio.Future[tuple[Delivery, Past]]] = []
        self._slots = 0
        self._canceled: dict[tuple[str, str], None] = {}
        self.leaving = False
        self.asked_to_leave = anyio.Event()
        self._something_taken, self._something_unsure = anyio.Event(), anyio.Event()
        self._all_settled = anyio.Event()
        self._guard = LoopGuard(agent)
        self._ack_wait = limits.ack_wait
        self._tasks: TaskGroup
        self._context = copy_context()  # with what the lifespan has set; a delivery comes in the connection's
        handler.on_full_log = self._pause

    @property
    def running(self) -> int:
        """How many handlers are at work."""
        return len(self._handler.runs)

    @property
    def runs(self) -> Iterable[Run]:
        """The attempts at work."""
        return self._handler.runs.values()

    @property
    def tally(self) -> Tally:
        """What became of the tasks of this process."""
        return self._handler.tally

    @property
    def silence(self) -> str | None:
        """Why it takes no tasks, if it does not."""
        return self._puller.lost or ("There is no room for outcomes." if self._puller.paused else None)

    def ask_to_leave(self) -> None:
        """Whoever serves this worker is to leave its context: `asked_to_leave` is set."""
        self.asked_to_leave.set()

    @property
    def healed(self) -> int:
        """How often a lost pull or consumer was made again."""
        return self._puller.healed

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            self._ack_wait = await ack_wait_of(self.bus.api, self.agent.name, LANES[0])
            self._tasks = await stack.enter_async_context(background_tasks())
            self.bus.sender.resolve = LazyRegistry(self.bus, self._tasks).resolve
            stack.enter_context(self._guard.watching())
            for name in self.agent.addresses:
                subject = subjects.live_kind(name, CANCEL)
                await stack.enter_async_context(self.bus.transport.listen(subject, self._heard_cancel))
            self._tasks.start_soon(self._watch)
            self._tasks.start_soon(self._end_when_hopeless)
            self._tasks.start_soon(self._look_up)
            self._tasks.start_soon(self._reread_after_reconnects)
            await stack.enter_async_context(self._puller.pulling(self._take))
            await self.bus.transport.flush()
            yield

    async def _heal(self, agent: str, lane: str) -> None:
        if self.bus.transport.confined:
            await self.bus.declare(agent)
            return
        try:
            await declare_consumer(self.bus.api, agent, lane, self._limits)
        except Unavailable:  # the stream itself is gone
            await declare_agent(self.bus.api, agent, self._limits)

    # Taking

    def _take(self, delivery: Delivery) -> None:
        if (known := self._taken.get(delivery.subject)) is not None:
            known.adopt(delivery)
            return
        self._taken[delivery.subject] = delivery
        if not self._something_taken.is_set():
            self._something_taken.set()
        try:
            delivery.about = subjects.read_task(delivery.subject)
        except MalformedMessage as error:
            self._tasks.start_soon(self._bury, delivery, error)
            return
        if self.leaving:
            self._return(delivery)
        elif delivery.fresh:
            self._offer(delivery, FRESH)
        else:
            self._unsure.append(delivery)
            self._something_unsure.set()

    def _offer(self, delivery: Delivery, past: Past) -> None:
        if self.leaving:
            self._return(delivery)
        elif self._idle:
            self._idle.pop().set_result((delivery, past))
        else:
            self._ready[delivery.lane.rank].append((delivery, past))
            if self._slots < self.agent.concurrency:
                self._slots += 1
                self._context.run(self._tasks.start_soon, self._slot)

    async def _slot(self) -> None:
        """Handle one task after another in one scope, until a handler is stopped, which cancels the scope."""
        while True:
            slot = Slot()
            with slot.scope:
                while True:
                    delivery, past = await self._next()
                    try:
                        await self._handler.handle(delivery, past, slot)
                    finally:
                        if slot.run is None:
                            self._settled(delivery)
            if slot.run is not None:
                await self._handler.conclude_stopped(slot.run)
                self._settled(slot.run.delivery)

    async def _next(self) -> tuple[Delivery, Past]:
        for lane in self._ready:
            if lane:
                delivery, past = lane.popleft()
                break
        else:
            ready = new_future()
            self._idle.append(ready)
            delivery, past = await ready
        if self._canceled and (key := (delivery.about.sender, delivery.about.id)) in self._canceled:
            del self._canceled[key]
            past = Past(canceled=True, attempt=past.attempt)
        return delivery, past

    async def _bury(self, delivery: Delivery, error: MalformedMessage) -> None:
        await self._handler.bury(delivery, error)
        self._settled(delivery)

    def _settled(self, delivery: Delivery) -> None:
        if self._taken.get(delivery.subject) is delivery:
            del self._taken[delivery.subject]
        if self.leaving and not self._taken:
            self._all_settled.set()

    async def _look_up(self) -> None:
        """Ask the log about tasks that may have a past, all that came meanwhile in one read."""
        while True:
            await self._something_unsure.wait()
            self._something_unsure = anyio.Event()
            asked, self._unsure = self._unsure, []
            try:
                for delivery, past in await look_up(self.bus.api, asked):
                    self._offer(delivery, past)
            except (NoResponders, Unavailable) as error:
                log.warning("tasks are given back: their past cannot be read: %s", error)
                for delivery in asked:
                    self._return(delivery, delay=1.0)

    def _return(self, delivery: Delivery, delay: float = 0.0) -> None:
        delivery.give_back(delay)
        self._settled(delivery)

    # Watching

    async def _watch(self) -> None:
        """One look at all running tasks, ten times a second, instead of timers for each."""
        while True:
            if not self._taken:
                self._something_taken = anyio.Event()
                self._guard.rest()
                await self._something_taken.wait()
            self._guard.beat()
            await anyio.sleep(_TICK)
            for run in list(self._handler.runs.values()):
                self._look_at(run)
            self._keep_alive()

    def _look_at(self, run: Run) -> None:
        now = time.monotonic()
        if run.stopped is None:
            if time.time() >= run.deadline:
                run.stop(Stop.DEADLINE)
            elif now - run.began >= run.skill.cap:
                run.stop(Stop.CAP)
            elif not run.recorded and now - run.began >= _WORKING_AFTER:
                run.recorded = True
                self._tasks.start_soon(self._record, run)
            elif run.writer is not None and run.writer.due:
                self._tasks.start_soon(self._flush, run)
        elif not run.over and now - run.stopped_at >= _STUCK_AFTER:
            log.error("a handler goes on though it was stopped: %s", run)
            self._tasks.start_soon(self._conclude_stuck, run)

    async def _end_when_hopeless(self) -> None:
        """What cannot be healed while the link is there ends this process, for a supervisor to see."""
        hopeless_since = math.inf
        while True:
            await anyio.sleep(_HOPELESS / 12)
            if refusal := self.bus.transport.silence:
                raise refusal
            lost = self._puller.lost if self.bus.transport.connected and not self.leaving else None
            now = time.monotonic()
            hopeless_since = min(hopeless_since, now) if lost else math.inf
            if lost and now - hopeless_since >= _HOPELESS:
                raise NotConsuming(f"{self.agent.name} has taken no tasks for {_HOPELESS:g} s: {lost}")

    async def _record(self, run: Run) -> None:
        try:
            await run.reporter.working()
        except GateClosed:
            run.stop(Stop.ENDED_ELSEWHERE)
        except Unavailable:
            run.recorded = False

    async def _flush(self, run: Run) -> None:
        try:
            if run.writer is not None:
                await run.writer.flush()
        except Unavailable as error:
            log.warning("chunks of %s are not stored: %s", run, error)
            run.stop(Stop.HANDED_BACK)

    async def _conclude_stuck(self, run: Run) -> None:
        await self._handler.conclude_stopped(run)
        self._settled(run.delivery)

    def _keep_alive(self) -> None:
        limit = time.monotonic() - self._ack_wait / 3
        for delivery in list(self._taken.values()):
            if delivery.touched < limit:
                try:
                    delivery.touch()
                except Unavailable:  # the link is down: it is delivered again, and looked up
                    return

    def _pause(self, reason: str) -> None:
        """The log has no room: take nothing more for a while, and say so."""
        log.error("%s stops taking tasks for %g s: %s", self.agent.name, _PAUSE_WHEN_FULL, reason)
        self._puller.pause(True)
        self._tasks.start_soon(self._resume)

    async def _resume(self) -> None:
        await anyio.sleep(_PAUSE_WHEN_FULL)
        self._puller.pause(False)

    # Cancelling

    def _heard_cancel(self, frame: Frame) -> None:
        about = genuine(frame)
        if about is None or about.writer not in (about.sender, SYSTEM):
            log.warning("a cancel by somebody else is ignored", extra={"subject": frame.subject[:200]})
            return
        if run := self._handler.runs.get((about.sender, about.id)):
            run.stop(Stop.CANCELED)
            return
        self._canceled[about.sender, about.id] = None  # its task may be on the way, and is fresh then
        if len(self._canceled) > _REMEMBERED_CANCELS:
            del self._canceled[next(iter(self._canceled))]

    async def _reread_after_reconnects(self) -> None:
        """What was stored about running tasks while the link was down: cancels, and outcomes of others."""
        async for _ in self.bus.transport.reconnections():
            for run in list(self._handler.runs.values()):
                try:
                    await self._reread(run)
                except (Unavailable, MalformedMessage) as error:  # a sender may have made a mess of its own
                    log.info("whether %s was canceled could not be read: %s", run, error)

    async def _reread(self, run: Run) -> None:
        task = run.task
        stream = subjects.log_stream(task.agent)
        for stored in await self.bus.api.last_of_each(
            stream, [subjects.log(task.agent, task.sender, task.id)]
        ):
            kind = subjects.read_event(stored.subject).kind
            if kind == OUTCOME:
                run.stop(Stop.ENDED_ELSEWHERE)
            elif kind == CANCEL:
                run.stop(Stop.CANCELED)

    # Leaving

    async def leave(self, drain: float) -> None:
        """Take nothing more; wait `drain` seconds for what runs; hand back the rest."""
        if self.leaving:
            return
        self.leaving = True
        with anyio.move_on_after(_STUCK_AFTER):
            await self._puller.stop()
        for lane in self._ready:
            while lane:
                self._return(lane.popleft()[0])
        if self._taken:
            with anyio.move_on_after(drain):
                await self._all_settled.wait()
        for run in list(self._handler.runs.values()):
            run.stop(Stop.HANDED_BACK)
        if self._taken:
            with anyio.move_on_after(2 * _STUCK_AFTER):
                await self._all_settled.wait()
