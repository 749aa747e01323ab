"""What an agent holds for its life, and the addresses that it shares with others."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from joining import listening, member, queue_of, until_queue_holds, worker

from xnai.agents import Agent, Backoff, Context, Worker, serve
from xnai.agents.testing import running
from xnai.bus import Bus, Server
from xnai.protocol import InvalidAgent, InvalidName, TaskRejected, TaskState

AT_ONCE = Backoff(first=0.01, most=0.01)


class Till:
    """Something that is opened and closed, and used only in between."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.open = False

    def use(self, what: str) -> str:
        assert self.open
        self.story.append(what)
        return what


def seller(name: str = "shop") -> Agent:
    """An agent that uses the till that it is given."""
    agent = Agent(name)

    @agent.skill
    async def sell(what: str, ctx: Context) -> str:
        return held(ctx).use(what)

    @agent.skill
    def sell_in_thread(what: str, ctx: Context) -> str:
        return held(ctx).use(what)

    @agent.skill
    async def sell_all(count: int, ctx: Context) -> AsyncIterator[str]:
        for n in range(count):
            yield held(ctx).use(f"s{n}")

    return agent


def shop(till: Till, name: str = "shop") -> Agent:
    """The same, and it holds a till for its life."""
    agent = seller(name)

    @agent.lifespan
    async def hold() -> AsyncIterator[Till]:
        till.open = True
        till.story.append("opened")
        try:
            yield till
        finally:
            till.open = False
            till.story.append("closed")

    return agent


def held(ctx: Context) -> Till:
    assert isinstance(ctx.state, Till)
    return ctx.state


# The lifespan


async def test_what_the_lifespan_yields_is_in_the_hands_of_every_handler() -> None:
    till = Till()
    with anyio.fail_after(10):
        async with running(shop(till)) as bus:
            assert await bus.call("shop.sell", "a", str) == "a"
            assert await bus.call("shop.sell_in_thread", "b", str) == "b"
            assert [chunk async for chunk in bus.stream("shop.sell_all", 2, str)] == ["s0", "s1"]
    assert till.story == ["opened", "a", "b", "s0", "s1", "closed"]


async def test_without_a_lifespan_there_is_no_state() -> None:
    agent = Agent("bare")

    @agent.skill
    async def state(ctx: Context) -> bool:
        return ctx.state is None

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("bare.state", None, bool)


async def test_a_task_that_waited_is_taken_only_once_the_lifespan_has_begun(server: Server) -> None:
    till = Till()
    agent = seller()
    begun, go_on = anyio.Event(), anyio.Event()

    @agent.lifespan
    async def slow() -> AsyncIterator[Till]:
        begun.set()
        await go_on.wait()
        till.open = True
        yield till

    async def work(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with worker(server, agent):
            task_status.started()
            await anyio.sleep_forever()

    async def start() -> None:
        await tasks.start(work)
        started.set()

    started = anyio.Event()
    with anyio.fail_after(10):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await bus.declare("shop")
            id = await bus.send("shop.sell", "early")
            tasks.start_soon(start)
            await begun.wait()
            assert await queue_of(bus, "shop") == 1
            assert not till.story
            go_on.set()
            await started.wait()
            events = [event async for event in bus.subscribe(id)]
            assert events[-1].kind == "outcome"
            assert till.story == ["early"]
            tasks.cancel_scope.cancel()


async def test_the_lifespan_ends_behind_the_last_task(server: Server) -> None:
    till = Till()
    agent = shop(till)
    begun, go_on = anyio.Event(), anyio.Event()

    @agent.skill
    async def sell_slowly(ctx: Context) -> str:
        begun.set()
        await go_on.wait()
        return held(ctx).use("the last")

    async def when_leaving(serving: Worker) -> None:
        while not serving.leaving:
            await anyio.lowlevel.checkpoint()
        go_on.set()

    with anyio.fail_after(10):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            async with worker(server, agent, drain=10.0) as serving:
                id = await bus.send("shop.sell_slowly")
                await begun.wait()
                tasks.start_soon(when_leaving, serving)
            assert (await bus.task(id)).status.state is TaskState.COMPLETED
    assert till.story == ["opened", "the last", "closed"]


async def test_the_lifespan_outlives_a_handler_that_is_handed_back(server: Server) -> None:
    till = Till()
    agent = shop(till)
    begun = anyio.Event()

    @agent.skill
    async def wait(ctx: Context) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            held(ctx).use("cleaned up")

    with anyio.fail_after(10):
        async with member(server) as bus:
            async with worker(server, agent):
                await bus.send("shop.wait")
                await begun.wait()
            assert await queue_of(bus, "shop") == 1
    assert till.story == ["opened", "cleaned up", "closed"]


async def test_each_process_has_a_lifespan_of_its_own(server: Server) -> None:
    tills: list[Till] = []
    agent = Agent("shop")

    @agent.lifespan
    async def hold() -> AsyncIterator[Till]:
        till = Till()
        till.open = True
        tills.append(till)
        yield till
        till.open = False

    @agent.skill
    async def sell(what: str, ctx: Context) -> str:
        return held(ctx).use(what)

    with anyio.fail_after(10):
        async with member(server) as bus:
            async with worker(server, agent), worker(server, agent):
                for n in range(10):
                    await bus.call("shop.sell", f"n{n}")
            assert [till.open for till in tills] == [False, False]
            async with worker(server, agent):  # the same declaration serves again
                await bus.call("shop.sell", "again")
    assert len(tills) == 3
    assert sorted(what for till in tills for what in till.story) == ["again", *(f"n{n}" for n in range(10))]


async def test_several_agents_of_one_process_each_hold_their_own() -> None:
    one, two = Till(), Till()
    with anyio.fail_after(10):
        async with running(shop(one, "one"), shop(two, "two")) as bus:
            await bus.call("one.sell", "a")
            await bus.call("two.sell", "b")
    assert one.story == ["opened", "a", "closed"]
    assert two.story == ["opened", "b", "closed"]


async def test_an_error_at_its_beginning_is_passed_on_and_no_task_is_touched(server: Server) -> None:
    agent = Agent("shop")
    ran = False

    @agent.lifespan
    async def hold() -> AsyncIterator[None]:
        for missing in ("key",):
            raise LookupError(f"no {missing}")
        yield

    @agent.skill
    async def sell(what: str) -> None:
        nonlocal ran
        ran = True

    with anyio.fail_after(10):
        async with member(server) as bus:
            await bus.declare("shop")
            id = await bus.send("shop.sell", "a")
            with pytest.raises(LookupError, match="no key"):
                async with worker(server, agent):
                    pass
            assert await queue_of(bus, "shop") == 1
            assert (await bus.task(id)).status.state is TaskState.SUBMITTED
    assert not ran


async def test_an_error_at_its_end_is_passed_on_and_what_was_done_is_done(server: Server) -> None:
    agent = Agent("shop")

    @agent.lifespan
    async def hold() -> AsyncIterator[None]:
        yield
        raise LookupError("lost the key")

    @agent.skill
    async def sell(what: str) -> str:
        return what

    with anyio.fail_after(10):
        async with member(server) as bus:
            with pytest.raises(LookupError, match="lost the key"):
                async with worker(server, agent):
                    assert await bus.call("shop.sell", "a", str, id="sold") == "a"
            assert (await bus.task("sold")).status.state is TaskState.COMPLETED


async def test_an_error_around_a_worker_reaches_its_lifespan(server: Server) -> None:
    till = Till()
    seen: list[str] = []
    agent = seller()

    @agent.lifespan
    async def hold() -> AsyncIterator[Till]:
        try:
            yield till
        except LookupError as error:
            seen.append(str(error))
            raise

    with anyio.fail_after(10):
        with pytest.raises(LookupError, match="outside"):
            async with worker(server, agent):
                raise LookupError("outside")
    assert seen == ["outside"]


async def test_a_lifespan_that_yields_nothing_or_twice_is_an_error(server: Server) -> None:
    none, twice = Agent("none"), Agent("twice")
    for agent in (none, twice):

        @agent.skill
        async def rest() -> None:
            """Nothing."""

    @none.lifespan
    async def never() -> AsyncIterator[None]:
        for _ in ():
            yield

    @twice.lifespan
    async def again() -> AsyncIterator[None]:
        yield
        yield

    with anyio.fail_after(10):
        for agent in (none, twice):
            with pytest.raises(RuntimeError, match="generator didn't"):
                async with worker(server, agent):
                    pass


def test_a_second_lifespan_is_refused_where_it_is_declared() -> None:
    agent = shop(Till())

    async def hold() -> AsyncIterator[None]:
        yield

    with pytest.raises(InvalidAgent, match="has a lifespan already"):
        agent.lifespan(hold)


async def test_a_failed_attempt_and_the_next_find_the_same_state() -> None:
    till = Till()
    agent = shop(till)

    @agent.skill(backoff=AT_ONCE)
    async def fail_once(ctx: Context) -> int:
        held(ctx).use(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise OSError("first")
        return ctx.attempt

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await bus.call("shop.fail_once", None, int) == 2
    assert till.story == ["opened", "attempt 1", "attempt 2", "closed"]


async def test_what_a_lifespan_runs_beside_the_tasks_ends_with_it(server: Server) -> None:
    agent = Agent("ticker")
    ticks: list[str] = []

    @agent.lifespan
    async def hold() -> AsyncIterator[anyio.Event]:
        ticked = anyio.Event()

        async def tick() -> None:
            try:
                ticked.set()
                await anyio.sleep_forever()
            finally:
                ticks.append("ended")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            yield ticked
            tasks.cancel_scope.cancel()

    @agent.skill
    async def ticked(ctx: Context) -> bool:
        await ctx.state.wait()
        return True

    with anyio.fail_after(10):
        async with member(server) as bus, worker(server, agent):
            assert await bus.call("ticker.ticked", None, bool)
            assert not ticks
    assert ticks == ["ended"]


async def test_a_lifespan_that_blocks_while_tasks_run_is_not_taken_for_a_skill() -> None:
    agent = Agent("shop")
    begun = threading.Event()

    @agent.lifespan
    async def hold() -> AsyncIterator[None]:
        begun.wait(1.2)  # no task can be kept from anything yet
        yield

    @agent.skill
    async def sell() -> str:
        return "sold"

    with anyio.fail_after(10), listening("xnai.agents", "blocks the event loop") as said:
        async with running(agent) as bus:
            assert await bus.call("shop.sell", None, str) == "sold"
    assert not said.lines


# Roles


def clerk(name: str, *roles: str) -> Agent:
    agent = Agent(name, roles=roles)

    @agent.skill
    async def who(ctx: Context) -> tuple[str, str]:
        return name, ctx.task.agent

    return agent


async def test_an_agent_answers_to_its_name_and_to_each_of_its_roles() -> None:
    with anyio.fail_after(10):
        async with running(clerk("anna", "clerk", "helper")) as bus:
            for address in ("anna", "clerk", "helper"):
                assert await bus.call(f"{address}.who", None, list[str]) == ["anna", address]


async def test_agents_with_the_same_role_share_its_work_and_keep_their_own() -> None:
    begun: list[str] = []
    both = anyio.Event()

    def waiting(name: str) -> Agent:
        agent = Agent(name, roles=["clerk"], concurrency=1)

        @agent.skill
        async def meet() -> str:
            begun.append(name)
            if len(begun) == 2:
                both.set()
            await both.wait()
            return name

        return agent

    answers: list[str] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("clerk.meet", None, str))

    with anyio.fail_after(15):
        async with running(waiting("anna"), waiting("bert")) as bus:
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(ask, bus)
            assert sorted(answers) == ["anna", "bert"]
            assert await bus.call("anna.meet", None, str) == "anna"


async def test_a_role_outlives_one_of_those_who_have_it(server: Server) -> None:
    with anyio.fail_after(10):
        async with member(server) as bus:
            async with worker(server, clerk("anna", "clerk")):
                assert (await bus.call("clerk.who", None, list[str]))[0] == "anna"
            id = await bus.send("clerk.who")
            assert await queue_of(bus, "clerk") == 1
            async with worker(server, clerk("bert", "clerk")):
                await until_queue_holds(bus, "clerk", 0)
            outcome = (await bus.task(id)).artifacts[0]
            assert bytes(outcome.parts[0].data) == b'["bert","clerk"]'


async def test_who_did_the_work_of_a_role_stands_in_the_story() -> None:
    with anyio.fail_after(10):
        async with running(clerk("anna", "clerk")) as bus:
            await bus.call("clerk.who", id="done")
            events = [event async for event in bus.subscribe("done")]
            assert {event.writer for event in events} == {"anna"}
            assert events[-1].facts.agent == "anna"


async def test_a_role_has_the_skills_of_whoever_takes_the_task() -> None:
    with anyio.fail_after(10):
        async with running(clerk("anna", "clerk")) as bus:
            with pytest.raises(TaskRejected, match="who") as caught:
                await bus.call("clerk.what")
            assert caught.value.code == "unknown_skill"


async def test_its_own_name_and_a_role_named_twice_count_once(server: Server) -> None:
    agent = clerk("anna", "clerk", "anna", "clerk")
    assert agent.addresses == ("anna", "clerk")
    with anyio.fail_after(10):
        async with member(server) as bus, member(server, "anna") as own, serve(agent, own, drain=0.0):
            assert await bus.call("clerk.who", None, list[str]) == ["anna", "clerk"]


@pytest.mark.parametrize("role", ["Clerk", "a.b", "", "*", "system", "a b"])
def test_a_role_that_is_no_token_is_refused_where_it_is_declared(role: str) -> None:
    with pytest.raises(InvalidName):
        Agent("anna", roles=[role])
