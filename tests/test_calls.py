"""Calling a skill: answers, refusals, retries, and what a caller may believe."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from joining import dead_letter, member, open_link, worker

from xnai.agents import Agent, Backoff, Context, Reject
from xnai.agents.testing import running
from xnai.bus import Bus, Server
from xnai.protocol import (
    CallTimeout,
    DeadlineExceeded,
    InvalidArgument,
    InvalidName,
    InvalidPayload,
    InvalidResult,
    TaskCanceled,
    TaskFailed,
    TaskRejected,
    TaskState,
    Unavailable,
    UnknownAgent,
)

AT_ONCE = Backoff(first=0.01, most=0.01)

maths = Agent("maths", description="Arithmetic")


@maths.skill
async def double(n: int, ctx: Context) -> int:
    """Twice n."""
    return 2 * n


@maths.skill
async def half(n: int) -> float:
    return n / 2


@maths.skill
async def nothing() -> None:
    return


@maths.skill
def thread_of(ctx: Context) -> str:
    return threading.current_thread().name


@maths.skill
async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@maths.skill
async def spell(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


@maths.skill
async def about(ctx: Context) -> dict[str, Any]:
    task = ctx.task
    return {
        "id": task.id,
        "context": task.context,
        "sender": task.sender,
        "lane": task.lane,
        "attempt": ctx.attempt,
        "depth": task.depth,
    }


class Gate:
    """A skill that says when it has begun and waits until it is let go."""

    def __init__(self, **options: Any) -> None:
        self.agent = Agent("gate")
        self.begun, self.open, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()
        self.attempts: list[int] = []
        self.agent.skill(**options)(self.wait) if options else self.agent.skill(self.wait)

    async def wait(self, ctx: Context) -> int:
        self.attempts.append(ctx.attempt)
        self.begun.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        return ctx.attempt


@asynccontextmanager
async def gated(server: Server) -> AsyncIterator[tuple[Gate, Bus]]:
    gate = Gate()
    async with worker(server, gate.agent), member(server) as bus:
        yield gate, bus


async def test_a_call_returns_the_typed_answer() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.double", 21, int) == 42


async def test_a_call_without_a_type_returns_plain_data() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            answer = await bus.call("maths.half", 3)
            assert answer == 1.5


async def test_a_skill_may_take_nothing_and_answer_nothing() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.nothing") is None


async def test_a_plain_function_runs_in_a_worker_thread() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.thread_of", None, str) != threading.current_thread().name


async def test_a_call_of_a_streaming_skill_returns_the_joined_text() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.spell", "word", str) == "word"


async def test_a_call_of_a_streaming_skill_returns_the_list_of_values() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.count", 4, list[int]) == [0, 1, 2, 3]
            assert await bus.call("maths.count", 0, list[int]) == []


async def test_a_handler_sees_what_the_caller_said() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            seen = await bus.call("maths.about", lane="urgent", id="my-own-id", context="talk")
            assert seen == {
                "id": "my-own-id",
                "context": "talk",
                "sender": bus.name,
                "lane": "urgent",
                "attempt": 1,
                "depth": 0,
            }


@pytest.mark.parametrize("lane", ["urgent", "normal", "background"])
async def test_every_lane_is_answered(lane: str) -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await bus.call("maths.double", 1, int, lane=lane) == 2


async def test_two_hundred_calls_at_once_each_get_their_own_answer() -> None:
    answers: dict[int, int] = {}

    async def ask(bus: Bus, n: int) -> None:
        answers[n] = await bus.call("maths.double", n, int)

    with anyio.fail_after(20):
        async with running(maths) as bus, anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(ask, bus, n)
        assert answers == {n: 2 * n for n in range(200)}


async def test_an_answer_of_another_type_is_an_error_of_the_callers_expectation() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(InvalidResult, match="int") as caught:
                await bus.call("maths.spell", "word", int)
            assert caught.value.code == "invalid_result"


async def test_a_payload_that_does_not_fit_is_rejected_before_any_work() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(TaskRejected) as caught:
                await bus.call("maths.double", "many", int)
            assert caught.value.code == "invalid_payload"
            assert not caught.value.retryable
            assert caught.value.task.status.state is TaskState.REJECTED


async def test_a_payload_that_cannot_be_written_is_never_sent() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(InvalidPayload):
                await bus.call("maths.double", object(), int)


async def test_an_unknown_skill_is_rejected_and_the_known_ones_are_named() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(TaskRejected, match=r"double.*Did you mean double\?") as caught:
                await bus.call("maths.dubble", 1, int)
            assert caught.value.code == "unknown_skill"


async def test_an_agent_never_declared_is_unknown_and_a_close_name_is_suggested() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(UnknownAgent, match="Did you mean maths"):
                await bus.call("math.double", 1, int)
            with pytest.raises(UnknownAgent) as caught:
                await bus.call("zebra.double", 1, int)
            assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "to", ["maths", "maths.", ".double", "Maths.double", "a b.c", "maths.>", "system.x", "", "maths.a.b"]
)
async def test_an_address_that_is_none_is_refused_where_it_enters(to: str) -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(InvalidName):
                await bus.call(to, 1, int)


async def test_arguments_out_of_range_are_refused_where_they_enter() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(InvalidName):
                await bus.call("maths.double", 1, int, lane="slow")
            with pytest.raises(InvalidName):
                await bus.send("maths.double", 1, id="a.b")
            with pytest.raises(InvalidName):
                await bus.send("maths.double", 1, context="a b")
            for ttl in (0, -1, 31 * 86_400, float("nan"), float("inf")):
                with pytest.raises(InvalidArgument):
                    await bus.send("maths.double", 1, ttl=ttl)


async def test_a_failed_attempt_is_tried_again_and_the_next_one_answers() -> None:
    agent = Agent("shaky")

    @agent.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return ctx.attempt

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("shaky.work", None, int, id="t") == 3
            events = [event async for event in bus.subscribe("t")]
            failed = [event.facts.attempt for event in events if event.kind == "failed"]
            assert failed == [1, 2]
            assert events[-1].kind == "outcome"
            assert events[-1].facts.attempt == 3


async def test_a_hopeless_task_ends_as_exhausted_and_leaves_a_dead_letter() -> None:
    agent = Agent("hopeless")
    attempts: list[int] = []

    @agent.skill(backoff=AT_ONCE, max_attempts=3)
    async def work(n: int, ctx: Context) -> int:
        attempts.append(ctx.attempt)
        raise RuntimeError(f"no, {n}")

    with anyio.fail_after(10):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match="no, 7") as caught:
                await bus.call("hopeless.work", 7, int, id="t")
            assert caught.value.code == "exhausted"
            assert caught.value.task.status.state is TaskState.FAILED
            assert attempts == [1, 2, 3]
            letter = await dead_letter(bus, "xnai.v1.dead.hopeless.t")
            assert letter is not None
            assert letter["parts"][0]["data"]["id"] == "t"
            assert str(letter).count("no, 7") >= 3  # each attempt said so


async def test_a_rejected_task_is_tried_once() -> None:
    agent = Agent("picky")
    attempts: list[int] = []

    @agent.skill
    async def work(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        raise Reject("not for me")

    with anyio.fail_after(10):
        async with running(agent) as bus:
            with pytest.raises(TaskRejected, match="not for me"):
                await bus.call("picky.work", None, int)
            assert attempts == [1]


async def test_the_outcome_is_an_a2a_task_with_its_request_as_history() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            await bus.call("maths.double", 4, int, id="t")
            task = await bus.task("t")
            assert task.id == "t"
            assert task.status.state is TaskState.COMPLETED
            assert task.artifacts[0].artifact_id == "t-1"
            assert bytes(task.artifacts[0].parts[0].data) == b"8"
            assert bytes(task.history[0].parts[0].data) == b"4"


async def test_a_task_that_was_sent_is_done_though_nobody_waits() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            id = await bus.send("maths.double", 4)
            events = [event async for event in bus.subscribe(id)]
            assert [event.kind for event in events] == ["outcome"]
            assert (await bus.task(id)).status.state is TaskState.COMPLETED


async def test_a_call_past_its_deadline_is_a_failed_task_and_a_timeout(server: Server) -> None:
    with anyio.fail_after(10):
        async with gated(server) as (gate, bus):
            with pytest.raises(DeadlineExceeded) as caught:
                await bus.call("gate.wait", None, int, timeout=0.3)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.task.status.state is TaskState.FAILED
            await gate.stopped.wait()


async def test_a_call_that_nobody_works_on_ends_at_its_deadline(server: Server) -> None:
    with anyio.fail_after(10):
        async with member(server) as bus:
            await bus.declare("idle")
            with pytest.raises(DeadlineExceeded) as caught:
                await bus.call("idle.work", None, int, timeout=0.2, id="t")
            assert caught.value.code == "deadline_exceeded"
            assert (await bus.task("t")).status.state is TaskState.FAILED


async def test_a_caller_that_leaves_cancels_its_task(server: Server) -> None:
    with anyio.fail_after(10):
        async with gated(server) as (gate, bus):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bus.call, "gate.wait")
                await gate.begun.wait()
                tasks.cancel_scope.cancel()
            await gate.stopped.wait()


async def test_a_caller_that_leaves_finds_the_task_canceled(server: Server) -> None:
    async def ask(bus: Bus) -> None:
        await bus.call("gate.wait", id="t")

    with anyio.fail_after(10):
        async with gated(server) as (gate, bus):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, bus)
                await gate.begun.wait()
                tasks.cancel_scope.cancel()
            events = [event async for event in bus.subscribe("t")]
            assert [event.kind for event in events] == ["cancel", "outcome"]
            assert (await bus.task("t")).status.state is TaskState.CANCELED


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_call_survives_a_restart_of_the_broker(server: Server, *, forgets: bool) -> None:
    """A killed broker may forget what it handed out just before: it writes that down a moment later.

    Then it hands out as new what has ended meanwhile, which must not be worked on again.
    """
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("gate.wait", None, int, timeout=60))

    with anyio.fail_after(30):
        async with gated(server) as (gate, bus), anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await gate.begun.wait()
            await server.stop(kill=True)
            if forgets:
                states = [*(server.folder / "data").glob("jetstream/**/XNAI_TASK_gate/obs/*/o.dat")]
                assert states
                for state in states:
                    state.unlink()
                gate.open.set()
            await server.start()
            gate.open.set()
        assert answers == [1]
        assert gate.attempts == [1]


async def test_a_caller_whose_link_was_cut_still_gets_the_outcome(server: Server) -> None:
    gate = Gate()
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("gate.wait", None, int, timeout=60, id="t"))

    with anyio.fail_after(30):
        async with (
            worker(server, gate.agent),
            open_link(server) as link,
            member(server) as watcher,
            member(server, url=link.url) as bus,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(ask, bus)
            await gate.begun.wait()
            link.cut()
            gate.open.set()
            _ = [event async for event in watcher.subscribe("t")]  # the outcome is stored, unheard
            assert not answers
            link.mend()
        assert answers == [1]


async def test_a_call_ends_in_time_though_the_broker_is_gone(server: Server) -> None:
    async def ask(bus: Bus) -> None:
        with pytest.raises(CallTimeout):
            await bus.call("gate.wait", None, int, timeout=1)

    with anyio.fail_after(12):
        async with gated(server) as (gate, bus), anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await gate.begun.wait()
            await server.stop(kill=True)


async def test_a_call_begun_without_a_broker_ends_at_its_deadline_and_not_later(server: Server) -> None:
    with anyio.fail_after(10):
        async with gated(server) as (_, bus):
            await server.stop(kill=True)
            with pytest.raises((CallTimeout, Unavailable)):
                await bus.call("gate.wait", None, int, timeout=1)


async def test_a_send_that_is_not_confirmed_raises_and_never_pretends(server: Server) -> None:
    with anyio.fail_after(25):
        async with gated(server) as (_, bus):
            await server.stop(kill=True)
            with pytest.raises(Unavailable) as caught:
                await bus.send("gate.wait")
            assert caught.value.code == "unavailable"


async def test_a_canceled_call_raises_for_whoever_else_waits(server: Server) -> None:
    async def ask(bus: Bus) -> None:
        with pytest.raises(TaskCanceled) as caught:
            await bus.call("gate.wait", id="t")
        assert caught.value.code == "canceled"

    with anyio.fail_after(10):
        async with gated(server) as (gate, bus), anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await gate.begun.wait()
            assert (await bus.cancel("t")).status.state is TaskState.CANCELED
