"""Handlers beside each other: context variables of their own, and threads for plain functions."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from joining import listening

from xnai.agents import Agent, Backoff, Context
from xnai.agents.isolation import Isolated
from xnai.agents.testing import running
from xnai.bus import Bus
from xnai.protocol import DeadlineExceeded, TaskState

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
BOUND = 10.0  # seconds: more than a test takes, so that a thread never outlives a run that has failed


async def all_of(bus: Bus, to: str, payloads: list[Any]) -> list[Any]:
    """The answers to many calls at once, in order."""
    answers: list[Any] = [None] * len(payloads)

    async def ask(n: int, payload: Any) -> None:
        answers[n] = await bus.call(to, payload)

    async with anyio.create_task_group() as tasks:
        for n, payload in enumerate(payloads):
            tasks.start_soon(ask, n, payload)
    return answers


# Context variables


def namer(concurrency: int = 1) -> Agent:
    """One slot, unless said otherwise, so that every task comes into the place of the one before."""
    agent = Agent("namer", concurrency=concurrency)

    @agent.skill
    async def mark(name: str) -> str:
        before = who.get()
        who.set(name)
        await anyio.lowlevel.checkpoint()
        return f"{before} then {who.get()}"

    @agent.skill
    def mark_in_thread(name: str) -> str:
        before = who.get()
        who.set(name)
        return f"{before} then {who.get()}"

    @agent.skill
    async def mark_in_stream(names: list[str]) -> AsyncIterator[str]:
        for name in names:
            token = who.set(name)
            yield f"{who.get()}"
            who.reset(token)
            yield f"{who.get()}"

    @agent.skill(max_attempts=1)
    async def mark_and_fail(name: str) -> None:
        who.set(name)
        raise ValueError(name)

    @agent.skill
    async def mark_and_wait(name: str) -> None:
        who.set(name)
        await anyio.sleep_forever()

    return agent


async def test_what_a_handler_sets_is_not_seen_by_the_next_one() -> None:
    with anyio.fail_after(10):
        async with running(namer()) as bus:
            for skill in ("mark", "mark_in_thread", "mark", "mark_in_thread"):
                assert await bus.call(f"namer.{skill}", "anna", str) == "nobody then anna"


async def test_what_a_stream_sets_stays_set_between_its_chunks_and_ends_with_it() -> None:
    with anyio.fail_after(10):
        async with running(namer()) as bus:
            chunks = [chunk async for chunk in bus.stream("namer.mark_in_stream", ["anna", "bert"], str)]
            assert chunks == ["anna", "nobody", "bert", "nobody"]
            assert await bus.call("namer.mark", "carl", str) == "nobody then carl"


async def test_a_handler_that_failed_or_was_stopped_leaves_nothing_set() -> None:
    with anyio.fail_after(10):
        async with running(namer()) as bus:
            failed = await bus.send("namer.mark_and_fail", "anna")
            _ = [event async for event in bus.subscribe(failed)]
            with pytest.raises(DeadlineExceeded):
                await bus.call("namer.mark_and_wait", "bert", timeout=0.2)
            assert await bus.call("namer.mark", "carl", str) == "nobody then carl"


async def test_handlers_at_once_each_see_what_they_set_themselves() -> None:
    names = [f"n{n}" for n in range(30)]
    with anyio.fail_after(10):
        async with running(namer(concurrency=10)) as bus:
            for skill in ("mark", "mark_in_thread"):
                answers = await all_of(bus, f"namer.{skill}", names)
                assert answers == [f"nobody then {name}" for name in names]


async def test_what_the_lifespan_sets_is_seen_by_every_handler() -> None:
    agent = namer()

    @agent.lifespan
    async def hold() -> AsyncIterator[None]:
        who.set("the lifespan")
        yield

    with anyio.fail_after(10):
        async with running(agent) as bus:
            for skill in ("mark", "mark_in_thread", "mark"):
                assert await bus.call(f"namer.{skill}", "anna", str) == "the lifespan then anna"


async def test_scopes_groups_and_cancellations_within_a_handler_are_its_own() -> None:
    agent = Agent("nested")

    @agent.skill
    async def work(x: int) -> list[str]:
        said = []

        async def say(word: str) -> None:
            await anyio.lowlevel.checkpoint()
            said.append(f"{word} {who.get()}")

        who.set(f"w{x}")
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, "a")
            tasks.start_soon(say, "b")
        return sorted(said)

    with anyio.fail_after(10):
        async with running(agent) as bus:
            for x in range(3):
                assert await bus.call("nested.work", x, list[str]) == [f"a w{x}", f"b w{x}"]


# The awaitable itself


async def test_an_isolated_coroutine_returns_raises_and_is_cancelled_like_any_other() -> None:
    ended: list[str] = []

    async def value() -> int:
        await anyio.lowlevel.checkpoint()
        who.set("inside")
        return 7

    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError("no")

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(who.get())

    assert await Isolated(value()) == 7
    assert who.get() == "nobody"
    with pytest.raises(LookupError, match="no"):
        await Isolated(fails())
    who.set("outside")
    with anyio.move_on_after(0.01) as scope:
        await Isolated(waits())
    assert scope.cancelled_caught
    assert ended == ["outside"]


@pytest.mark.parametrize("swallows", [True, False])
async def test_what_an_isolated_coroutine_does_with_a_cancellation_is_its_own_affair(swallows: bool) -> None:
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if not swallows:
                raise
        return "still here"

    answers: list[str] = []
    with anyio.fail_after(5), anyio.move_on_after(0.01):
        answers.append(await Isolated(stubborn()))
    assert answers == (["still here"] if swallows else [])


def test_an_isolated_coroutine_is_closed_with_its_surroundings() -> None:
    ended = []

    async def inner() -> None:
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            ended.append("inner")

    async def outer() -> None:
        await Isolated(inner())

    async def never() -> None:
        coroutine: Coroutine[Any, Any, None] = outer()
        coroutine.send(None)
        coroutine.close()

    anyio.run(never)
    assert ended == ["inner"]


# Threads


async def test_plain_functions_run_beside_each_other_and_leave_the_loop_free() -> None:
    agent = Agent("threads", concurrency=4)
    together = threading.Barrier(4)

    @agent.skill
    def meet() -> int:
        together.wait(BOUND)  # passes only if four are there at once
        return threading.get_ident()

    @agent.skill
    async def loop() -> int:
        return threading.get_ident()

    with anyio.fail_after(BOUND + 5):
        async with running(agent) as bus:
            threads = await all_of(bus, "threads.meet", [None] * 4)
            assert len(set(threads)) == 4
            assert await bus.call("threads.loop", None, int) == threading.get_ident()
            assert threading.get_ident() not in threads


async def test_as_many_threads_run_as_the_agent_has_slots_however_many_those_are() -> None:
    agent = Agent("many", concurrency=60)
    together = threading.Barrier(60)

    @agent.skill
    def meet() -> bool:
        together.wait(BOUND)
        return True

    with anyio.fail_after(BOUND + 5):
        async with running(agent) as bus:
            assert all(await all_of(bus, "many.meet", [None] * 60))


async def test_no_more_threads_run_at_once_than_there_are_slots() -> None:
    agent = Agent("few", concurrency=2)
    lock = threading.Lock()
    together = threading.Barrier(2)  # every pair meets here, and a third would be counted
    running_now, most = 0, 0

    @agent.skill
    def work() -> None:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        together.wait(BOUND)
        with lock:
            running_now -= 1

    with anyio.fail_after(10):
        async with running(agent) as bus:
            await all_of(bus, "few.work", [None] * 20)
    assert most == 2


async def test_a_thread_that_blocks_does_not_hold_up_anything_else() -> None:
    agent = Agent("mixed", concurrency=2)
    release = threading.Event()

    @agent.skill
    def block() -> bool:
        return release.wait(BOUND)

    @agent.skill
    async def quick(x: int) -> int:
        return x

    with anyio.fail_after(BOUND + 5):
        async with running(agent) as bus:
            try:
                id = await bus.send("mixed.block")
                for n in range(10):
                    assert await bus.call("mixed.quick", n, int) == n
            finally:
                release.set()
            events = [event async for event in bus.subscribe(id)]
            assert events[-1].kind == "outcome"
            assert await bus.call("mixed.quick", 1, int) == 1


async def test_a_thread_says_where_it_stands_by_way_of_the_loop() -> None:
    agent = Agent("teller")

    @agent.skill
    def tell(ctx: Context) -> int:
        anyio.from_thread.run(ctx.progress, "half")
        anyio.from_thread.run(ctx.artifact, "notes", "x")
        return anyio.from_thread.run(ctx.call, "teller.seven", None, int)

    @agent.skill
    async def seven() -> int:
        return 7

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("teller.tell", None, int, id="told") == 7
            kinds = [event.kind async for event in bus.subscribe("told")]
            assert kinds[-3:] == ["status", "artifact", "outcome"]


async def test_the_slot_of_a_thread_that_is_left_behind_takes_the_next_task() -> None:
    agent = Agent("single", concurrency=1)
    begun, release = anyio.Event(), threading.Event()

    @agent.skill
    def hang() -> str:
        anyio.from_thread.run_sync(begun.set)
        release.wait(BOUND)
        return "late"

    @agent.skill
    def quick() -> str:
        return "well"

    with anyio.fail_after(BOUND + 5), listening("xnai.agents", "its result is dropped") as dropped:
        async with running(agent) as bus:
            try:
                id = await bus.send("single.hang")
                await begun.wait()
                assert (await bus.cancel(id)).status.state is TaskState.CANCELED
                assert await bus.call("single.quick", None, str) == "well"
                assert not dropped.lines  # it is still at work
            finally:
                release.set()
            await dropped.heard.wait()
            assert (await bus.task(id)).status.state is TaskState.CANCELED
    assert f"single.hang of task {id}, attempt 1" in dropped.lines[0]


async def test_what_a_thread_says_of_its_task_after_it_was_stopped_is_not_kept() -> None:
    agent = Agent("late", concurrency=1)
    begun, release, over = anyio.Event(), threading.Event(), threading.Event()

    @agent.skill
    def hang(ctx: Context) -> None:
        anyio.from_thread.run_sync(begun.set)
        release.wait(BOUND)
        try:
            anyio.from_thread.run(ctx.progress, "late")
            anyio.from_thread.run(ctx.artifact, "late", 1)
        finally:
            over.set()

    @agent.skill
    async def quick() -> str:
        return "well"

    with anyio.fail_after(BOUND + 5):
        async with running(agent) as bus:
            try:
                id = await bus.send("late.hang")
                await begun.wait()
                await bus.cancel(id)
            finally:
                release.set()
            assert await anyio.to_thread.run_sync(over.wait, BOUND)
            assert await bus.call("late.quick", None, str) == "well"
            events = await bus.finder.story(await bus.found(id))
            assert events[-1].kind == "outcome"
            assert not {"status", "artifact"} & {event.kind for event in events}


async def test_a_deadline_leaves_a_thread_behind_and_the_next_attempt_is_not_made() -> None:
    agent = Agent("slow", concurrency=1)
    release = threading.Event()
    attempts: list[int] = []

    @agent.skill(backoff=Backoff(first=0.01, most=0.01))
    def hang(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        release.wait(BOUND)

    with anyio.fail_after(BOUND + 5), listening("xnai.agents", "its result is dropped") as dropped:
        async with running(agent) as bus:
            try:
                with pytest.raises(DeadlineExceeded):
                    await bus.call("slow.hang", timeout=0.3)
            finally:
                release.set()
            await dropped.heard.wait()
    assert attempts == [1]
