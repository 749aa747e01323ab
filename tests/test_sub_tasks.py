"""Sub-tasks: what a handler asks of others belongs to its task, and a later attempt finds it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from golden.wire_examples import envelope
from joining import member, worker

from xnai.agents import Agent, Backoff, Context, Reject
from xnai.agents.children import child_id
from xnai.agents.testing import running
from xnai.bus import Server
from xnai.protocol import (
    DeadlineExceeded,
    Envelope,
    InvalidName,
    InvalidResult,
    TaskCanceled,
    TaskFailed,
    TaskState,
    UnknownAgent,
)
from xnai.protocol.events import error_in
from xnai.protocol.names import check_id

AT_ONCE = Backoff(first=0.01, most=0.01)


class Helper:
    """An agent that keeps the envelopes that it saw."""

    def __init__(self) -> None:
        self.agent = Agent("helper")
        self.seen: list[Envelope] = []
        self.begun, self.open, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()
        self.agent.skill(self.double)
        self.agent.skill(self.wait)
        self.agent.skill(self.count)
        self.agent.skill(self.refuse)
        self.agent.skill(self.slow_count)

    async def double(self, n: int, ctx: Context) -> int:
        self.seen.append(ctx.task)
        return 2 * n

    async def wait(self, ctx: Context) -> str:
        self.seen.append(ctx.task)
        self.begun.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        return "done"

    async def count(self, n: int, ctx: Context) -> AsyncIterator[int]:
        self.seen.append(ctx.task)
        for i in range(n):
            yield i

    async def slow_count(self, ctx: Context) -> AsyncIterator[int]:
        try:
            for i in range(1000):
                yield i
                self.begun.set()
                await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise

    async def refuse(self, ctx: Context) -> None:
        self.seen.append(ctx.task)
        raise Reject("never")


async def test_a_handler_asks_another_agent() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(n: int, ctx: Context) -> int:
        return await ctx.call("helper.double", n, int) + 1

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", 4, int) == 9


async def test_a_sub_task_inherits_context_lane_deadline_and_descent() -> None:
    helper, boss = Helper(), Agent("boss")
    parents: list[Context] = []

    @boss.skill
    async def work(ctx: Context) -> int:
        parents.append(ctx)
        return await ctx.call("helper.double", 1, int, timeout=600)

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            await bus.call("boss.work", lane="urgent", context="talk", timeout=8)
            [child], parent = helper.seen, parents[0].task
            assert child.context == "talk"
            assert child.lane == "urgent"
            assert child.deadline == parent.deadline
            assert child.depth == 1
            assert child.ancestors == ("boss.work",)
            assert child.sender == "boss"


async def test_a_sub_task_may_have_less_time_than_its_parent() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> str:
        try:
            return await ctx.call("helper.wait", None, str, timeout=0.2)
        except DeadlineExceeded:
            return "went on"

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", timeout=9) == "went on"
            await helper.stopped.wait()


async def test_fifty_sub_tasks_at_once_each_get_their_own_answer() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> list[int]:
        answers = [0] * 50

        async def ask(n: int) -> None:
            answers[n] = await ctx.call("helper.double", n, int)

        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(ask, n)
        return answers

    with anyio.fail_after(15):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, list[int]) == [2 * n for n in range(50)]


async def test_equal_sub_tasks_of_one_attempt_are_several_tasks() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> list[int]:
        return [await ctx.call("helper.double", 1, int) for _ in range(3)]

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work") == [2, 2, 2]
            assert len({task.id for task in helper.seen}) == 3


async def test_a_later_attempt_finds_the_completed_sub_tasks_again() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> list[int]:
        answers = [await ctx.call("helper.double", n, int) for n in (1, 1, 2)]
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return answers

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, list[int]) == [2, 2, 4]
            assert len(helper.seen) == 3


async def test_a_later_attempt_finds_a_named_sub_task_whatever_its_payload() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> int:
        answer = await ctx.call("helper.double", 7, int, name="first")
        if ctx.attempt < 2:
            raise RuntimeError("not yet")
        return answer

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, int) == 14
            assert len(helper.seen) == 1


async def test_a_later_attempt_finds_the_chunks_of_a_streamed_sub_task_again() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> list[int]:
        chunks = [chunk async for chunk in ctx.stream("helper.count", 5, int)]
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return chunks

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, list[int]) == [0, 1, 2, 3, 4]
            assert len(helper.seen) == 1


async def test_a_sub_task_that_failed_is_asked_anew_by_a_later_attempt() -> None:
    boss, moody = Agent("boss"), Agent("moody")
    asked: list[str] = []

    @moody.skill(max_attempts=1)
    async def answer(ctx: Context) -> str:
        asked.append(ctx.task.id)
        if len(asked) < 3:
            raise RuntimeError("not now")
        return "well"

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> str:
        try:
            return await ctx.call("moody.answer", None, str)
        except TaskFailed as error:
            raise RuntimeError("again") from error

    with anyio.fail_after(10):
        async with running(moody, boss) as bus:
            assert await bus.call("boss.work", None, str) == "well"
            assert len(set(asked)) == 3


async def test_a_hopeless_sub_task_ends_its_parent_without_another_attempt() -> None:
    helper, boss = Helper(), Agent("boss")
    attempts: list[int] = []

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await ctx.call("helper.refuse")

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            with pytest.raises(TaskFailed, match="never"):
                await bus.call("boss.work")
            assert attempts == [1]


async def test_cancelling_a_task_stops_its_sub_tasks(server: Server) -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> None:
        await ctx.call("helper.wait")

    with anyio.fail_after(10):
        async with worker(server, helper.agent), worker(server, boss), member(server) as bus:
            id = await bus.send("boss.work")
            await helper.begun.wait()
            assert (await bus.cancel(id)).status.state is TaskState.CANCELED
            await helper.stopped.wait()
            async with member(server, "boss") as other:
                child = helper.seen[0].id
                _ = [event async for event in other.subscribe(child)]
                assert (await other.task(child)).status.state is TaskState.CANCELED


async def test_cancelling_a_task_stops_the_sub_tasks_of_its_sub_tasks() -> None:
    helper, boss, middle = Helper(), Agent("boss"), Agent("middle")

    @middle.skill
    async def pass_on(ctx: Context) -> None:
        await ctx.call("helper.wait")

    @boss.skill
    async def work(ctx: Context) -> None:
        await ctx.call("middle.pass_on")

    with anyio.fail_after(10):
        async with running(helper.agent, middle, boss) as bus:
            id = await bus.send("boss.work")
            await helper.begun.wait()
            await bus.cancel(id)
            await helper.stopped.wait()
            assert helper.seen[0].ancestors == ("boss.work", "middle.pass_on")


async def test_cancelling_a_task_stops_the_streams_that_it_reads() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> AsyncIterator[int]:
        async for chunk in ctx.stream("helper.slow_count", None, int):
            yield chunk

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            id = await bus.send("boss.work")
            await helper.begun.wait()
            await bus.cancel(id)
            await helper.stopped.wait()


async def test_the_deadline_of_a_task_stops_its_sub_tasks() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> None:
        await ctx.call("helper.wait", timeout=600)

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            with pytest.raises(DeadlineExceeded):
                await bus.call("boss.work", timeout=0.4)
            await helper.stopped.wait()


async def test_a_failed_attempt_takes_its_open_sub_tasks_with_it_and_the_next_one_asks_anew() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill(backoff=AT_ONCE)
    async def work(ctx: Context) -> str:
        async def ask() -> None:
            answers.append(await ctx.call("helper.wait", None, str))

        answers: list[str] = []
        if ctx.attempt > 1:
            helper.open.set()
            await ask()
            return answers[0]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await helper.begun.wait()
            raise RuntimeError("not so")
        raise AssertionError

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, str) == "done"
            assert helper.stopped.is_set()
            assert len({task.id for task in helper.seen}) == 2


async def test_a_request_that_goes_round_in_a_circle_is_refused() -> None:
    ping, pong = Agent("ping"), Agent("pong")

    @ping.skill(name="go")
    async def to_pong(ctx: Context) -> None:
        await ctx.call("pong.go")

    @pong.skill(name="go")
    async def to_ping(ctx: Context) -> None:
        await ctx.call("ping.go")

    with anyio.fail_after(10):
        async with running(ping, pong) as bus:
            with pytest.raises(TaskFailed, match=r"ping\.go → pong\.go → ping\.go"):
                await bus.call("ping.go")


async def test_an_agent_that_asks_itself_for_the_same_skill_is_refused() -> None:
    agent = Agent("mirror")
    codes: list[str] = []

    @agent.skill
    async def look(ctx: Context) -> None:
        try:
            await ctx.call("mirror.look")
        except TaskFailed as error:
            codes.append(error.code)

    with anyio.fail_after(10):
        async with running(agent) as bus:
            await bus.call("mirror.look")
            assert codes == ["loop"]


async def test_sub_tasks_nest_sixteen_deep_and_no_deeper() -> None:
    agent = Agent("deep")
    deepest: list[int] = []

    def skill(n: int) -> None:
        async def go(ctx: Context) -> str:
            deepest.append(ctx.task.depth)
            try:
                return await ctx.call(f"deep.level{n + 1}", None, str)
            except TaskFailed as error:
                return error.code

        agent.skill(name=f"level{n}")(go)

    for n in range(20):
        skill(n)
    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("deep.level0", None, str) == "loop"
            assert max(deepest) == 16


async def test_a_sub_task_for_nobody_is_an_error_that_the_handler_sees() -> None:
    boss = Agent("boss")
    errors: list[type[Exception]] = []

    @boss.skill
    async def work(ctx: Context) -> None:
        for to in ("nobody.work", "no address"):
            try:
                await ctx.call(to)
            except (UnknownAgent, InvalidName) as error:
                errors.append(type(error))

    with anyio.fail_after(10):
        async with running(boss) as bus:
            await bus.call("boss.work")
            assert errors == [UnknownAgent, InvalidName]


async def test_the_answer_of_a_sub_task_is_checked() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> str:
        try:
            return await ctx.call("helper.double", 1, str)
        except InvalidResult as error:
            return error.code

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            assert await bus.call("boss.work", None, str) == "invalid_result"


async def test_a_handler_sees_that_its_sub_task_was_canceled(server: Server) -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> str:
        try:
            return await ctx.call("helper.wait", None, str)
        except TaskCanceled as error:
            return error.code

    async def ask(into: list[Any]) -> None:
        into.append(await bus.call("boss.work", None, str))

    with anyio.fail_after(10):
        async with (
            worker(server, helper.agent),
            worker(server, boss),
            member(server) as bus,
            member(server, "boss") as other,
        ):
            answers: list[Any] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, answers)
                await helper.begun.wait()
                await other.cancel(helper.seen[0].id)
            assert answers == ["canceled"]


async def test_the_id_of_a_sub_task_follows_from_its_parent_and_is_22_letters_long(server: Server) -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(n: int, ctx: Context) -> int:
        return await ctx.call("helper.double", n, int)

    with anyio.fail_after(10):
        async with worker(server, helper.agent), worker(server, boss), member(server) as bus:
            await bus.call("boss.work", 1, int, id="one")
            await bus.call("boss.work", 1, int, id="two")
            ids = [task.id for task in helper.seen]
            assert len(set(ids)) == 2
            assert all(len(id) == 22 for id in ids)


async def test_a_large_payload_of_a_sub_task_travels_like_any_other() -> None:
    boss, scale = Agent("boss"), Agent("scale")

    @scale.skill
    async def weigh(content: bytes) -> bytes:
        return content[::-1]

    @boss.skill(backoff=AT_ONCE)
    async def work(size: int, ctx: Context) -> int:
        answer = await ctx.call("scale.weigh", b"x" * size, bytes)
        if ctx.attempt < 2:
            raise RuntimeError("not yet")
        return len(answer)

    with anyio.fail_after(10):
        async with running(scale, boss) as bus:
            assert await bus.call("boss.work", 2_000_000, int) == 2_000_000


async def test_why_a_sub_task_failed_stands_in_the_outcome_of_its_parent() -> None:
    helper, boss = Helper(), Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> None:
        await ctx.call("helper.refuse")

    with anyio.fail_after(10):
        async with running(helper.agent, boss) as bus:
            with pytest.raises(TaskFailed) as caught:
                await bus.call("boss.work")
            error = error_in(caught.value.task.status)
            assert error is not None
            assert error.message == "never"
            assert not msgspec.to_builtins(error)["retryable"]


def test_the_ids_of_sub_tasks_differ_and_none_begins_with_a_dash() -> None:
    ids = {
        child_id(envelope, "maths.double", "key", nth=nth, again=again)
        for nth in range(40)
        for again in range(40)
    }
    assert len(ids) == 1600
    assert {len(check_id(id)) for id in ids} == {22}
    assert not any(id.startswith("-") for id in ids)
