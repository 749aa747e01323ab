"""Following a task: its log from any cursor, then what comes, each event once, until the outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest
from joining import member, open_link, worker

from xnai.agents import Agent, Context
from xnai.agents.testing import running
from xnai.bus import Bus, Server, stories
from xnai.protocol import (
    Event,
    InvalidName,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatusUpdateEvent,
    UnknownTask,
)

STEPS = ("one", "two", "three")


class Gate:
    """Lets a handler go on one step at a time."""

    def __init__(self) -> None:
        self._steps, self._step = anyio.create_memory_object_stream[None](100)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._steps.send_nowait(None)

    async def wait(self) -> None:
        await self._step.receive()

    def close(self) -> None:
        self._steps.close()
        self._step.close()


def teller(gate: Gate | None = None) -> Agent:
    """An agent that says some words, each when it may."""
    agent = Agent("teller")

    @agent.skill
    async def tell(words: list[str], ctx: Context) -> int:
        for word in words:
            if gate:
                await gate.wait()
            await ctx.progress(word)
        await ctx.artifact("last", words[-1])
        return len(words)

    @agent.skill
    async def count(most: int) -> AsyncIterator[int]:
        for n in range(most):
            yield n

    @agent.skill
    async def echo(x: int) -> int:
        return x

    return agent


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


def word_of(event: Event) -> str | None:
    """What a handler said in an event, if it said something."""
    body = event.body
    if isinstance(body, TaskStatusUpdateEvent) and body.status.message:
        return body.status.message.parts[0].text
    return None


def words_in(events: list[Event]) -> list[str]:
    return [word for word in map(word_of, events) if word]


async def story(bus: Bus, id: str, *, after: int = 0) -> list[Event]:
    return [event async for event in bus.subscribe(id, after=after)]


def places(bus: Bus) -> tuple[int, int]:
    """How much a bus listens to: subscriptions at the broker, and tasks whose events are handed on."""
    return len(bus.transport.client._subs), len(bus.hearing._listeners)


async def until_followed(bus: Bus, id: str, *, times: int = 1) -> None:
    """Return once so many subscribers on a bus are listening: nothing tells of it."""
    while len(bus.hearing._listeners.get(id, ())) < times:
        await anyio.lowlevel.checkpoint()


def check_order(events: list[Event]) -> None:
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    assert [event.kind for event in events].index("outcome") == len(events) - 1


# What is told


async def test_a_story_has_every_event_in_order_and_ends_with_the_outcome() -> None:
    with anyio.fail_after(10):
        async with running(teller()) as bus:
            id = await bus.send("teller.tell", STEPS)
            events = await story(bus, id)
    check_order(events)
    assert words_in(events) == list(STEPS)
    assert [event.kind for event in events if event.kind != "working"] == [
        *("status" for _ in STEPS),
        "artifact",
        "outcome",
    ]
    assert {event.writer for event in events} == {"teller"}
    (artifact,) = [e.body for e in events if isinstance(e.body, TaskArtifactUpdateEvent)]
    assert artifact.artifact.name == "last"
    outcome = events[-1].body
    assert isinstance(outcome, Task)
    assert outcome.status.state is TaskState.COMPLETED


async def test_an_event_is_told_before_the_handler_goes_on(gate: Gate) -> None:
    heard: list[str] = []
    with anyio.fail_after(10):
        async with running(teller(gate)) as bus:
            id = await bus.send("teller.tell", STEPS)
            gate.step()
            async for event in bus.subscribe(id):
                if word := word_of(event):
                    heard.append(word)
                    gate.step()
    assert heard == list(STEPS)


async def test_a_story_may_begin_before_anybody_works(server: Server, gate: Gate) -> None:
    events: list[Event] = []

    async def follow(bus: Bus, id: str) -> None:
        events.extend(await story(bus, id))

    with anyio.fail_after(10):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await bus.declare("teller")
            id = await bus.send("teller.tell", STEPS)
            tasks.start_soon(follow, bus, id)
            await until_followed(bus, id)
            gate.step(len(STEPS))
            async with worker(server, teller(gate)):
                await story(bus, id)
    check_order(events)
    assert words_in(events) == list(STEPS)


async def test_a_task_that_has_ended_is_told_in_the_same_words(server: Server) -> None:
    with anyio.fail_after(10):
        async with worker(server, teller()), member(server) as bus:
            id = await bus.send("teller.tell", STEPS)
            live = await story(bus, id)
            assert await story(bus, id) == live
        async with member(server) as bus:  # nobody works any more, and the bus is another
            assert await story(bus, id) == live


async def test_from_a_cursor_only_what_lies_beyond_it_is_told() -> None:
    with anyio.fail_after(10):
        async with running(teller()) as bus:
            id = await bus.send("teller.tell", STEPS)
            whole = await story(bus, id)
            for n, event in enumerate(whole[:-1], start=1):
                assert await story(bus, id, after=event.sequence) == whole[n:]


async def test_a_cursor_of_a_task_at_work_leads_on_live(gate: Gate) -> None:
    with anyio.fail_after(10):
        async with running(teller(gate)) as bus:
            id = await bus.send("teller.tell", STEPS)
            gate.step(2)
            seen: list[Event] = []
            async with aclosing(bus.subscribe(id)) as events:
                async for event in events:
                    seen.append(event)
                    if word_of(event) == "two":
                        break
            gate.step()
            rest = await story(bus, id, after=seen[-1].sequence)
    check_order(seen + rest)
    assert words_in(seen) == ["one", "two"]
    assert words_in(rest) == ["three"]


async def test_a_cursor_behind_the_outcome_ends_at_once() -> None:
    with anyio.fail_after(10):
        async with running(teller()) as bus:
            id = await bus.send("teller.tell", STEPS)
            whole = await story(bus, id)
            for after in (whole[-1].sequence, whole[-1].sequence + 1000):
                assert await story(bus, id, after=after) == []


async def test_each_story_holds_the_events_of_its_own_task_alone() -> None:
    told: dict[int, list[Event]] = {}

    async def follow(bus: Bus, n: int) -> None:
        id = await bus.send("teller.tell", [f"{n}-{step}" for step in range(5)])
        told[n] = await story(bus, id)

    with anyio.fail_after(15):
        async with running(teller()) as bus, anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(follow, bus, n)
    for n, events in told.items():
        check_order(events)
        assert words_in(events) == [f"{n}-{step}" for step in range(5)]
    sequences = [event.sequence for events in told.values() for event in events]
    assert len(sequences) == len(set(sequences))


async def test_two_subscribers_hear_the_same(server: Server, gate: Gate) -> None:
    told: list[list[Event]] = []

    async def follow(bus: Bus, id: str) -> None:
        told.append(await story(bus, id))

    with anyio.fail_after(10):
        async with worker(server, teller(gate)), member(server) as one, member(server) as two:
            id = await one.send("teller.tell", STEPS)
            async with anyio.create_task_group() as tasks:
                for bus in (one, one, two):
                    tasks.start_soon(follow, bus, id)
                await until_followed(one, id, times=2)
                await until_followed(two, id)
                gate.step(len(STEPS))
    first, second, third = told
    check_order(first)
    assert words_in(first) == list(STEPS)
    assert first == second == third


async def test_a_task_of_another_bus_of_the_same_sender_is_told_live(server: Server, gate: Gate) -> None:
    with anyio.fail_after(10):
        async with worker(server, teller(gate)):
            async with member(server) as sender:
                id = await sender.send("teller.tell", STEPS)
            gate.step()
            async with member(server) as watcher:
                events = []
                async for event in watcher.subscribe(id):
                    events.append(event)
                    if word_of(event):
                        gate.step()
    check_order(events)
    assert words_in(events) == list(STEPS)


async def test_chunks_of_a_stream_are_events_of_its_story() -> None:
    with anyio.fail_after(10):
        async with running(teller()) as bus:
            assert [n async for n in bus.stream("teller.count", 50, int, id="counted")] == list(range(50))
            events = await story(bus, "counted")
    check_order(events)
    assert "artifact" in {event.kind for event in events}


async def test_a_call_that_is_under_way_may_be_followed(gate: Gate) -> None:
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("teller.tell", STEPS, int, id="asked"))

    with anyio.fail_after(10):
        async with running(teller(gate)) as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            gate.step(len(STEPS))
            while await bus.finder.find("asked") is None:
                await anyio.lowlevel.checkpoint()
            assert words_in(await story(bus, "asked")) == list(STEPS)
    assert answers == [len(STEPS)]


# What is not told


async def test_an_id_that_nobody_sent_is_unknown(server: Server) -> None:
    with anyio.fail_after(10):
        async with member(server) as bus:
            for declared in (False, True):
                if declared:
                    await bus.declare("teller")
                with pytest.raises(UnknownTask, match="nothing") as caught:
                    await story(bus, "nothing")
                assert caught.value.code == "unknown_task"


async def test_the_task_of_another_sender_is_unknown(server: Server) -> None:
    with anyio.fail_after(10):
        async with worker(server, teller()), member(server) as bus, member(server, "stranger") as stranger:
            await bus.call("teller.echo", 1, id="mine")
            with pytest.raises(UnknownTask):
                await story(stranger, "mine")


@pytest.mark.parametrize("id", ["", "a.b", "*", ">", "a b", "x" * 200])
async def test_an_id_that_is_no_token_is_refused(server: Server, id: str) -> None:
    with anyio.fail_after(10):
        async with member(server) as bus:
            with pytest.raises(InvalidName):
                await story(bus, id)


# What stays


async def test_a_subscriber_that_leaves_early_leaves_nothing_behind(gate: Gate) -> None:
    with anyio.fail_after(10):
        async with running(teller(gate)) as bus:
            before = places(bus)
            id = await bus.send("teller.tell", STEPS)
            gate.step()
            async with aclosing(bus.subscribe(id)) as events:
                async for event in events:
                    if word_of(event) == "one":
                        break
                assert places(bus) > before
            assert places(bus) == before
            gate.step(2)
            assert words_in(await story(bus, id)) == list(STEPS)
            assert places(bus) == before


async def test_a_subscriber_that_is_cancelled_leaves_nothing_behind(gate: Gate) -> None:
    with anyio.fail_after(10):
        async with running(teller(gate)) as bus:
            before = places(bus)
            id = await bus.send("teller.tell", STEPS)
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(story, bus, id)
                await until_followed(bus, id, times=10)
                tasks.cancel_scope.cancel()
            assert places(bus) == before
            gate.step(len(STEPS))
            assert words_in(await story(bus, id)) == list(STEPS)  # it was not canceled with them
            assert places(bus) == before


async def test_the_number_of_subscriptions_does_not_grow_with_the_calls() -> None:
    most = 0

    async def ask(bus: Bus, n: int) -> None:
        nonlocal most
        assert await bus.call("teller.echo", n, int) == n
        most = max(most, places(bus)[0])

    with anyio.fail_after(15):
        async with running(teller()) as bus:
            subscriptions, _ = before = places(bus)
            async with anyio.create_task_group() as tasks:
                for n in range(100):
                    tasks.start_soon(ask, bus, n)
            await bus.send("teller.echo", 1)
            assert [n async for n in bus.stream("teller.count", 3, int)] == [0, 1, 2]
            assert most == subscriptions
            assert places(bus) == before


# Trouble


async def test_a_slow_subscriber_reads_from_the_log_what_it_could_not_keep(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "_BUFFER", 4)
    words = [str(n) for n in range(40)]
    with anyio.fail_after(15):
        async with running(teller(gate)) as bus:
            id = await bus.send("teller.tell", words)
            gate.step()
            told: list[Event] = []
            async for event in bus.subscribe(id):
                told.append(event)
                if word_of(event) == "0":
                    gate.step(len(words) - 1)
                    await story(bus, id)  # meanwhile everything happens
    check_order(told)
    assert words_in(told) == words


async def test_what_happened_while_the_link_was_cut_is_told_once_it_is_back(
    server: Server, gate: Gate
) -> None:
    with anyio.fail_after(20):
        async with worker(server, teller(gate)), member(server) as sender, open_link(server) as link:
            id = await sender.send("teller.tell", STEPS)
            gate.step()
            told: list[Event] = []
            async with member(server, url=link.url) as watcher:
                async for event in watcher.subscribe(id):
                    told.append(event)
                    if word_of(event) == "one":
                        link.cut()
                        gate.step(2)
                        await story(sender, id)
                        link.mend()
            assert told == await story(sender, id)
    assert words_in(told) == list(STEPS)
