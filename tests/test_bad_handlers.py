"""Handlers that misbehave: each is named, none takes the agent or its other tasks down."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import pytest
from joining import listening, member, worker

from xnai.agents import Agent, Backoff, Context, Reject
from xnai.agents.testing import running
from xnai.bus import Bus, Limits, Server
from xnai.protocol import (
    DeadlineExceeded,
    InvalidAgent,
    InvalidName,
    InvalidPayload,
    TaskCanceled,
    TaskFailed,
    TaskRejected,
    TaskState,
)
from xnai.protocol.events import error_in

AT_ONCE = Backoff(first=0.01, most=0.01)


class Odd(Exception):
    """An author's own error, with no words."""


async def code_of(bus: Bus, id: str) -> str | None:
    error = error_in((await bus.task(id)).status)
    return error.code if error else None


async def test_a_handler_that_blocks_the_loop_is_named_in_the_log() -> None:
    agent = Agent("rude")

    @agent.skill
    async def hog(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - that is the fault

    with anyio.fail_after(15), listening("xnai.agents", "blocks the event loop") as said:
        async with running(agent) as bus:
            await bus.call("rude.hog", 2.3)
            await said.heard.wait()
    assert "the skill hog of rude" in said.lines[0]
    assert "test_bad_handlers.py:" in said.lines[0]
    assert len(said.lines) == 1


async def test_a_handler_that_only_waits_long_is_not_blamed() -> None:
    agent = Agent("slow")
    begun, go_on = anyio.Event(), anyio.Event()

    @agent.skill
    async def wait() -> None:
        begun.set()
        await go_on.wait()

    with anyio.fail_after(15), listening("xnai.agents", "blocks the event loop") as said:
        async with running(agent) as bus:
            id = await bus.send("slow.wait")
            async for event in bus.subscribe(id):
                if event.kind == "working":  # it has run for a second
                    go_on.set()
    assert not said.lines


async def test_a_handler_that_swallows_its_cancellation_is_named_and_its_answer_dropped() -> None:
    agent = Agent("stubborn")
    begun, release = anyio.Event(), anyio.Event()

    @agent.skill
    async def stay() -> str:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await release.wait()
        return "late"

    @agent.skill
    async def quick() -> str:
        return "well"

    with (
        anyio.fail_after(15),
        listening("xnai.agents", "goes on though it was stopped") as stuck,
        listening("xnai.agents", "dropped") as dropped,
    ):
        async with running(agent) as bus:
            id = await bus.send("stubborn.stay")
            await begun.wait()
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED
            await stuck.heard.wait()
            assert await bus.call("stubborn.quick") == "well"
            release.set()
            await dropped.heard.wait()
            assert (await bus.task(id)).status.state is TaskState.CANCELED
    assert "stubborn.stay" in stuck.lines[0]
    assert "stubborn.stay" in dropped.lines[0]


async def test_a_handler_that_turns_its_cancellation_into_an_error_is_canceled_all_the_same() -> None:
    agent = Agent("sore")
    begun = anyio.Event()

    @agent.skill
    async def work() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise RuntimeError("ouch") from None

    with anyio.fail_after(15):
        async with running(agent) as bus:
            id = await bus.send("sore.work")
            await begun.wait()
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED


async def test_a_handler_that_turns_its_cancellation_into_an_answer_is_canceled_all_the_same() -> None:
    agent = Agent("sly")
    begun = anyio.Event()

    @agent.skill
    async def work() -> str:
        begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        return "done after all"

    with anyio.fail_after(15):
        async with running(agent) as bus:
            id = await bus.send("sly.work")
            await begun.wait()
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED


async def test_a_handler_that_raises_a_cancellation_of_its_own_does_not_end_the_agent() -> None:
    agent = Agent("strange")

    @agent.skill(backoff=AT_ONCE, max_attempts=2)
    async def work() -> None:
        raise anyio.get_cancelled_exc_class()("by myself")

    @agent.skill
    async def quick() -> str:
        return "well"

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed):
                await bus.call("strange.work", timeout=3)
            assert await bus.call("strange.quick") == "well"


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit])
async def test_a_handler_that_calls_exit_does_not_end_the_agent(error: type[BaseException]) -> None:
    agent = Agent("quitter")

    @agent.skill(backoff=AT_ONCE, max_attempts=2)
    def leave() -> None:
        raise error

    @agent.skill
    async def quick() -> str:
        return "well"

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed):
                await bus.call("quitter.leave", timeout=3)
            assert await bus.call("quitter.quick") == "well"


async def test_an_answer_of_a_type_not_declared_fails_the_task_at_once() -> None:
    agent = Agent("liar")
    attempts: list[int] = []

    @agent.skill
    async def number(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        return "many"  # type: ignore[return-value]  # that is the point

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match="number answered something else") as caught:
                await bus.call("liar.number")
            assert caught.value.code == "invalid_result"
            assert caught.value.task.status.state is TaskState.FAILED
            assert attempts == [1]


async def test_an_answer_that_cannot_be_written_fails_the_task_at_once() -> None:
    agent = Agent("liar")

    @agent.skill
    async def thing():  # type: ignore[no-untyped-def]  # noqa: ANN202, RUF100 - without annotations all is allowed
        return threading.Lock()

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed) as caught:
                await bus.call("liar.thing")
            assert caught.value.code == "invalid_result"


async def test_an_artifact_that_was_refused_does_not_keep_the_task_from_its_end() -> None:
    agent = Agent("odd")

    @agent.skill
    async def say(ctx: Context) -> str:
        with pytest.raises(InvalidPayload):
            await ctx.artifact("a\ud800", 1)
        await ctx.artifact("b", 2)
        return "well"

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("odd.say", None, str, id="t") == "well"
            assert [artifact.name for artifact in (await bus.task("t")).artifacts[1:]] == ["b"]


async def test_a_handler_that_never_ends_is_stopped_at_its_cap_and_tried_again() -> None:
    agent = Agent("endless")
    attempts: list[int] = []

    @agent.skill(cap=0.2, backoff=AT_ONCE, max_attempts=2)
    async def work(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await anyio.sleep_forever()

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match="cap") as caught:
                await bus.call("endless.work")
            assert caught.value.code == "exhausted"
            assert attempts == [1, 2]


async def test_a_stopped_thread_is_left_behind_and_its_answer_dropped_and_named() -> None:
    agent = Agent("threaded")
    begun, release = threading.Event(), threading.Event()

    @agent.skill
    def work() -> str:
        begun.set()
        release.wait(15)
        return "late"

    @agent.skill
    async def quick() -> str:
        return "well"

    with anyio.fail_after(15), listening("xnai.agents", "its result is dropped") as said:
        async with running(agent) as bus:
            id = await bus.send("threaded.work")
            assert await anyio.to_thread.run_sync(begun.wait, 10)
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED
            assert await bus.call("threaded.quick") == "well"
            release.set()
            await said.heard.wait()
            assert (await bus.task(id)).status.state is TaskState.CANCELED
    assert "threaded.work" in said.lines[0]
    assert id in said.lines[0]


async def test_a_thread_past_its_deadline_does_not_keep_the_task() -> None:
    agent = Agent("threaded")
    release = threading.Event()

    @agent.skill
    def work() -> str:
        release.wait(15)
        return "late"

    with anyio.fail_after(15), listening("xnai.agents", "its result is dropped") as said:
        async with running(agent) as bus:
            with pytest.raises(DeadlineExceeded):
                await bus.call("threaded.work", timeout=0.3)
            release.set()
            await said.heard.wait()


async def test_an_error_names_its_class_and_its_words() -> None:
    agent = Agent("failing")

    @agent.skill(max_attempts=1)
    async def speak(words: str) -> None:
        raise Odd(words) if words else Odd

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match="Odd: broken"):
                await bus.call("failing.speak", "broken")
            with pytest.raises(TaskFailed, match="Odd"):
                await bus.call("failing.speak", "")


async def test_an_error_in_a_thread_and_in_a_stream_is_tried_again() -> None:
    agent = Agent("failing")

    @agent.skill(backoff=AT_ONCE)
    def thread(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Odd
        return ctx.attempt

    @agent.skill(backoff=AT_ONCE)
    async def stream(ctx: Context) -> AsyncIterator[int]:
        if ctx.attempt == 1:
            raise Odd
        yield ctx.attempt

    with anyio.fail_after(15):
        async with running(agent) as bus:
            assert await bus.call("failing.thread", None, int) == 2
            assert await bus.call("failing.stream", None, list[int]) == [2]


async def test_an_error_group_is_an_error_like_any_other() -> None:
    agent = Agent("failing")

    @agent.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> int:
        if ctx.attempt == 1:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
        return ctx.attempt

    async def fail() -> None:
        raise Odd

    with anyio.fail_after(15):
        async with running(agent) as bus:
            assert await bus.call("failing.work", None, int) == 2


async def test_a_rejection_is_final_in_whatever_kind_of_handler() -> None:
    agent = Agent("picky")

    @agent.skill
    async def plain() -> None:
        raise Reject("no")

    @agent.skill
    def thread() -> None:
        raise Reject("no")

    @agent.skill
    async def stream() -> AsyncIterator[int]:
        yield 1
        raise Reject("no")

    with anyio.fail_after(15):
        async with running(agent) as bus:
            for skill in ("plain", "thread", "stream"):
                with pytest.raises(TaskRejected, match="no"):
                    await bus.call(f"picky.{skill}")


async def test_a_handlers_own_timeout_error_is_a_failure_and_no_deadline() -> None:
    agent = Agent("failing")

    @agent.skill(max_attempts=1)
    async def work() -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    with anyio.fail_after(15):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed) as caught:
                await bus.call("failing.work")
            assert caught.value.code == "exhausted"


async def test_a_handler_without_a_checkpoint_is_not_cut_off() -> None:
    agent = Agent("busy")

    @agent.skill
    async def work(n: int) -> int:
        return sum(range(n))

    with anyio.fail_after(15):
        async with running(agent) as bus:
            assert await bus.call("busy.work", 1000, int) == sum(range(1000))


async def test_errors_of_one_task_leave_its_neighbours_alone(server: Server) -> None:
    agent = Agent("mixed", concurrency=4)

    @agent.skill(max_attempts=1)
    async def work(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        if n % 3 == 0:
            raise Odd
        return n

    results: dict[int, object] = {}

    async def ask(bus: Bus, n: int) -> None:
        try:
            results[n] = await bus.call("mixed.work", n, int)
        except TaskFailed as error:
            results[n] = error.code

    with anyio.fail_after(20):
        async with worker(server, agent), member(server) as bus, anyio.create_task_group() as tasks:
            for n in range(60):
                tasks.start_soon(ask, bus, n)
        assert results == {n: n if n % 3 else "exhausted" for n in range(60)}


async def test_a_blocked_loop_that_outlasts_the_ack_wait_leaves_one_outcome(server: Server) -> None:
    agent = Agent("rude")
    limits = Limits(ack_wait=1.0)
    runs: list[int] = []

    @agent.skill
    async def hog(seconds: float, ctx: Context) -> int:
        runs.append(ctx.attempt)
        time.sleep(seconds)  # noqa: ASYNC251 - that is the fault
        return ctx.attempt

    with anyio.fail_after(20):
        async with worker(server, agent, limits=limits), member(server) as bus:
            answer = await bus.call("rude.hog", 2.5, int, id="t")
            events = [event async for event in bus.subscribe("t")]
            assert [event.kind for event in events].count("outcome") == 1
            assert answer == 1
            assert runs == [1]


@pytest.mark.parametrize("bad", ["two", "var", "keywords", "generator", "name"])
def test_what_cannot_be_a_handler_is_refused_where_it_is_declared(bad: str) -> None:
    agent = Agent("picky")

    async def two(a: int, b: int) -> None: ...

    async def var(*args: int) -> None: ...

    async def keywords(**options: int) -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def name(x: Undefined) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the fault

    handlers: dict[str, Callable[..., Any]] = {
        "two": two,
        "var": var,
        "keywords": keywords,
        "generator": generator,
        "name": name,
    }
    with pytest.raises(InvalidAgent, match=bad) as caught:
        agent.skill(handlers[bad])
    assert caught.value.code == "invalid_agent"
    assert not agent.skills


def test_an_agent_that_cannot_be_is_refused_where_it_is_declared() -> None:
    async def work() -> None: ...

    with pytest.raises(InvalidName):
        Agent("No Good")
    with pytest.raises(InvalidName):
        Agent("system")
    with pytest.raises(InvalidName):
        Agent("good", roles=["a.b"])
    with pytest.raises(InvalidAgent):
        Agent("good", concurrency=0)
    agent = Agent("good")
    with pytest.raises(InvalidAgent):
        agent.skill(max_attempts=0)(work)
    with pytest.raises(InvalidAgent):
        agent.skill(cap=0)(work)
    with pytest.raises(InvalidAgent, match="coalesce"):
        agent.skill(coalesce=-1)(work)
    with pytest.raises(InvalidName):
        agent.skill(name="a.b")(work)
    agent.skill(work)
    with pytest.raises(InvalidAgent, match="already"):
        agent.skill(work)


async def test_a_caller_sees_a_canceled_task_of_a_stubborn_handler() -> None:
    agent = Agent("stubborn")
    begun, release = anyio.Event(), anyio.Event()

    @agent.skill
    async def stay() -> str:
        begun.set()
        with anyio.CancelScope(shield=True):
            await release.wait()
        return "late"

    async def ask(bus: Bus) -> None:
        with pytest.raises(TaskCanceled):
            await bus.call("stubborn.stay", id="t")

    with anyio.fail_after(15):
        async with running(agent) as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await begun.wait()
            await bus.cancel("t")
            assert await code_of(bus, "t") == "canceled"
            release.set()
