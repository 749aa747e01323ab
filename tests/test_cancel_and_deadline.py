"""Ending before the end: cancel and deadline stop what runs, drop what waits, and are final."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from joining import listening, member, open_link, worker

from xnai.agents import Agent, Backoff, Context
from xnai.bus import Bus, Server
from xnai.protocol import (
    DeadlineExceeded,
    Event,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskNotCancelable,
    TaskState,
    UnknownTask,
)
from xnai.protocol.events import error_in

AT_ONCE = Backoff(first=0.01, most=0.01)


class Patient:
    """A skill that waits until it is let go, and remembers what happened to it."""

    def __init__(self, **options: Any) -> None:
        self.agent = Agent("patient", concurrency=2)
        self.begun, self.open, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()
        self.began = 0
        options.setdefault("backoff", AT_ONCE)
        self.agent.skill(**options)(self.wait)
        self.agent.skill(self.quick)

    async def wait(self, ctx: Context) -> str:
        self.began += 1
        self.begun.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        return "done"

    async def quick(self) -> str:
        return "done"


@asynccontextmanager
async def waiting(server: Server, **options: Any) -> AsyncIterator[tuple[Patient, Bus]]:
    patient = Patient(**options)
    with anyio.fail_after(20):
        async with worker(server, patient.agent), member(server) as bus:
            yield patient, bus


async def story(bus: Bus, id: str) -> list[Event]:
    return [event async for event in bus.subscribe(id)]


def code_of(task: Task) -> str | None:
    error = error_in(task.status)
    return error.code if error else None


async def test_cancel_stops_the_handler_and_returns_the_outcome(server: Server) -> None:
    async with waiting(server) as (patient, bus):
        id = await bus.send("patient.wait")
        await patient.begun.wait()
        task = await bus.cancel(id, reason="changed my mind")
        assert task.status.state is TaskState.CANCELED
        assert code_of(task) == "canceled"
        assert patient.stopped.is_set()
        assert await bus.task(id) == task


async def test_the_reason_of_a_cancel_stands_in_the_story(server: Server) -> None:
    async with waiting(server) as (patient, bus):
        id = await bus.send("patient.wait")
        await patient.begun.wait()
        await bus.cancel(id, reason="changed my mind")
        events = await story(bus, id)
        assert [event.kind for event in events] == ["cancel", "outcome"]
        assert "changed my mind" in str(events[0].body)
        assert [event.writer for event in events] == [bus.name, "patient"]


async def test_a_canceled_task_is_not_tried_again(server: Server) -> None:
    async with waiting(server) as (patient, bus):
        id = await bus.send("patient.wait")
        await patient.begun.wait()
        await bus.cancel(id)
        patient.open.set()
        assert await bus.call("patient.quick") == "done"
        assert patient.began == 1


async def test_a_task_that_waits_is_canceled_before_it_costs_anything(server: Server) -> None:
    patient = Patient()
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("patient")
            id = await bus.send("patient.wait")
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED
            async with worker(server, patient.agent):
                assert await bus.call("patient.quick") == "done"
            assert patient.began == 0
            assert (await bus.task(id)).status.state is TaskState.CANCELED


async def test_a_task_canceled_between_two_attempts_is_not_tried_again(server: Server) -> None:
    agent = Agent("shaky")
    attempts: list[int] = []

    @agent.skill(backoff=Backoff(first=36_000, most=36_000))  # of which chance takes a part
    async def work(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise RuntimeError("no")

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            id = await bus.send("shaky.work")
            async for event in bus.subscribe(id):
                if event.kind == "failed":
                    break
            begun = len(attempts)
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED
            assert [event.kind for event in await story(bus, id)][-1] == "outcome"
            assert len(attempts) == begun == 1


async def test_a_task_that_has_ended_cannot_be_canceled(server: Server) -> None:
    async with waiting(server) as (_, bus):
        await bus.call("patient.quick", id="t")
        with pytest.raises(TaskNotCancelable) as caught:
            await bus.cancel("t")
        assert caught.value.code == "task_not_cancelable"
        assert (await bus.task("t")).status.state is TaskState.COMPLETED


async def test_a_task_that_was_canceled_cannot_be_canceled_again(server: Server) -> None:
    async with waiting(server) as (patient, bus):
        id = await bus.send("patient.wait")
        await patient.begun.wait()
        await bus.cancel(id)
        with pytest.raises(TaskNotCancelable):
            await bus.cancel(id)


async def test_two_cancels_at_once_agree_on_one_outcome(server: Server) -> None:
    outcomes: list[Task] = []

    async def cancel(bus: Bus, id: str) -> None:
        try:
            outcomes.append(await bus.cancel(id))
        except TaskNotCancelable:
            outcomes.append(await bus.task(id))

    async with waiting(server) as (patient, one), member(server) as two:
        id = await one.send("patient.wait")
        await patient.begun.wait()
        async with anyio.create_task_group() as tasks:
            for bus in (one, two, one, two):
                tasks.start_soon(cancel, bus, id)
        assert len(outcomes) == 4
        assert all(outcome == outcomes[0] for outcome in outcomes)
        assert [event.kind for event in await story(one, id)].count("outcome") == 1


async def test_a_task_that_does_not_exist_cannot_be_canceled(server: Server) -> None:
    async with waiting(server) as (_, bus):
        with pytest.raises(UnknownTask):
            await bus.cancel("nothing")


async def test_the_task_of_another_sender_is_not_ours_to_cancel(server: Server) -> None:
    async with waiting(server) as (patient, bus), member(server, "stranger") as stranger:
        id = await bus.send("patient.wait")
        await patient.begun.wait()
        with pytest.raises(UnknownTask):
            await stranger.cancel(id)
        patient.open.set()
        assert [event.kind for event in await story(bus, id)] == ["outcome"]


async def test_a_second_process_cancels_what_the_first_one_sent(server: Server) -> None:
    async def ask(bus: Bus) -> None:
        with pytest.raises(TaskCanceled):
            await bus.call("patient.wait", id="t")

    async with waiting(server) as (patient, one), member(server) as two, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, one)
        await patient.begun.wait()
        assert (await two.cancel("t")).status.state is TaskState.CANCELED
        await patient.stopped.wait()


async def test_cancelling_and_finishing_at_once_leaves_one_outcome_that_all_believe(server: Server) -> None:
    async def cancel(bus: Bus, id: str, outcomes: list[Task]) -> None:
        try:
            outcomes.append(await bus.cancel(id))
        except TaskNotCancelable:
            outcomes.append(await bus.task(id))

    async def call(bus: Bus, id: str, outcomes: list[Task]) -> None:
        try:
            await bus.call("patient.quick", id=id)
            outcomes.append(await bus.task(id))
        except TaskFailed as error:
            outcomes.append(error.task)

    async with waiting(server) as (_, one), member(server) as two:
        for n in range(30):
            outcomes: list[Task] = []
            id = await two.send("patient.quick", id=f"t{n}")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, one, id, outcomes)
                tasks.start_soon(cancel, two, id, outcomes)
            assert outcomes[0].status == outcomes[1].status
            assert [event.kind for event in await story(one, id)].count("outcome") == 1


async def test_a_cancel_while_the_workers_link_is_down_stops_it_when_it_is_back(server: Server) -> None:
    patient = Patient()
    with anyio.fail_after(30):
        async with (
            open_link(server) as link,
            worker(server, patient.agent, url=link.url),
            member(server) as bus,
        ):
            id = await bus.send("patient.wait")
            await patient.begun.wait()
            link.cut()
            task = await bus.cancel(id)  # the owner writes the outcome itself
            assert task.status.state is TaskState.CANCELED
            assert not patient.stopped.is_set()
            link.mend()
            await patient.stopped.wait()
            assert await bus.task(id) == task


async def test_the_owner_ends_what_a_worker_does_not(server: Server) -> None:
    agent = Agent("deaf")
    begun, release = anyio.Event(), anyio.Event()

    @agent.skill
    async def work() -> str:
        begun.set()
        with anyio.CancelScope(shield=True):
            await release.wait()
        return "late"

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            id = await bus.send("deaf.work")
            await begun.wait()
            with (
                listening("xnai.agents", "goes on though it was stopped") as stuck,
                listening("xnai.agents", "dropped") as dropped,
            ):
                task = await bus.cancel(id)
                assert task.status.state is TaskState.CANCELED
                await stuck.heard.wait()
                release.set()
                await dropped.heard.wait()
            assert (await bus.task(id)).status == task.status
            assert "deaf.work" in stuck.lines[0]
            assert "deaf.work" in dropped.lines[0]


async def test_a_deadline_stops_the_handler(server: Server) -> None:
    async with waiting(server) as (patient, bus):
        id = await bus.send("patient.wait", ttl=0.3)
        events = await story(bus, id)
        assert patient.stopped.is_set()
        task = await bus.task(id)
        assert task.status.state is TaskState.FAILED
        assert code_of(task) == "deadline_exceeded"
        assert events[-1].writer == "patient"


async def test_a_task_past_its_deadline_is_dropped_before_it_costs_anything(server: Server) -> None:
    patient = Patient()
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("patient")
            with pytest.raises(DeadlineExceeded):
                await bus.call("patient.wait", timeout=0.1)  # nobody works: the waiting owner ended it
            id = await bus.send("patient.wait", ttl=0.001)
            async with worker(server, patient.agent):
                await story(bus, id)
                assert await bus.call("patient.quick") == "done"
            assert patient.began == 0
            assert code_of(await bus.task(id)) == "deadline_exceeded"


async def test_a_deadline_between_two_attempts_ends_the_task(server: Server) -> None:
    agent = Agent("shaky")
    attempts: list[int] = []

    @agent.skill(backoff=Backoff(first=36_000, factor=1, most=36_000))  # of which chance takes a part
    async def work(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise RuntimeError("no")

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            with pytest.raises(DeadlineExceeded):
                await bus.call("shaky.work", timeout=0.5)
            assert attempts == [1]


async def test_a_handler_knows_how_long_it_has(server: Server) -> None:
    agent = Agent("clock")

    @agent.skill
    async def left(ctx: Context) -> list[float]:
        return [ctx.time_left, ctx.deadline]

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            before = time.time()
            time_left, deadline = await bus.call("clock.left", None, list[float], timeout=5)
            assert 0 < time_left <= 5
            assert before + 5 - 0.002 <= deadline <= time.time() + 5


async def test_a_handler_may_clean_up_when_it_is_stopped(server: Server) -> None:
    agent = Agent("tidy")
    begun, cleaned = anyio.Event(), anyio.Event()

    @agent.skill
    async def work() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                cleaned.set()

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            id = await bus.send("tidy.work")
            await begun.wait()
            await bus.cancel(id)
            assert cleaned.is_set()


async def test_nothing_is_written_into_a_story_behind_its_end(server: Server) -> None:
    agent = Agent("chatty")
    begun, go_on, refused = anyio.Event(), anyio.Event(), anyio.Event()

    @agent.skill
    async def work(ctx: Context) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await go_on.wait()
                await ctx.progress("still here")
                await ctx.artifact("late", 1)
                refused.set()

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus:
            id = await bus.send("chatty.work")
            await begun.wait()
            await bus.cancel(id)
            go_on.set()
            await refused.wait()
            assert [event.kind for event in await story(bus, id)][-1] == "outcome"
            assert not (await bus.task(id)).artifacts
