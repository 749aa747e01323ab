"""Streams with a whole: a value behind the chunks, for those who want more than the chunks joined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from joining import member, worker

from xnai.agents import Agent, Backoff, Context, Whole
from xnai.agents.announcing import schemas_of
from xnai.agents.testing import running
from xnai.bus import Bus, Server
from xnai.protocol import Facts, InvalidAgent, InvalidResult, TaskFailed
from xnai.protocol.events import facts_of

AT_ONCE = Backoff(first=0.01, most=0.01)


class Count(msgspec.Struct, frozen=True):
    words: int


counter = Agent("counter")


@counter.skill
async def count(text: str) -> AsyncIterator[str | Whole[Count]]:
    words = text.split()
    for word in words:
        yield word
    yield Whole(Count(len(words)))


@counter.skill
async def shout(text: str) -> AsyncIterator[str | Whole[str]]:
    yield text
    yield Whole(text.upper())


@counter.skill
async def large(size: int) -> AsyncIterator[int | Whole[bytes]]:
    yield size
    yield Whole(bytes(size))


async def read(bus: Bus, to: str, payload: object, type: Any, id: str | None = None) -> list[Any]:
    return [chunk async for chunk in bus.stream(to, payload, type, id=id)]


async def test_a_call_gets_the_whole() -> None:
    with anyio.fail_after(10):
        async with running(counter) as bus:
            assert await bus.call("counter.count", "to be or", Count) == Count(3)
            assert await bus.call("counter.shout", "no", str) == "NO"


async def test_a_stream_gets_the_chunks_alone_unless_it_asks_for_both() -> None:
    with anyio.fail_after(10):
        async with running(counter) as bus:
            assert await read(bus, "counter.count", "to be", str) == ["to", "be"]
            assert await read(bus, "counter.count", "to be", str | Count) == ["to", "be", Count(2)]
            assert await read(bus, "counter.count", "to be", str | int) == ["to", "be"]
            assert await read(bus, "counter.count", "to be", Any) == ["to", "be"]
            assert await read(bus, "counter.shout", "no", str) == ["no"]


async def test_a_stream_without_chunks_has_its_whole_all_the_same() -> None:
    with anyio.fail_after(10):
        async with running(counter) as bus:
            assert await read(bus, "counter.count", "", str | Count) == [Count(0)]


async def test_a_large_whole_travels_like_any_other() -> None:
    with anyio.fail_after(20):
        async with running(counter) as bus:
            assert await read(bus, "counter.large", 3 << 20, int | bytes) == [3 << 20, bytes(3 << 20)]


async def test_a_stream_that_is_read_again_ends_with_the_same_whole(server: Server) -> None:
    with anyio.fail_after(10):
        async with worker(server, counter), member(server) as one, member(server) as two:
            for bus in (one, one, two):
                assert await read(bus, "counter.count", "to be", str | Count, "t") == ["to", "be", Count(2)]
            task = await two.task("t")
    assert bytes(task.artifacts[0].parts[0].data) == b'{"words":2}'
    assert (facts_of(task).chunks, facts_of(task).whole) == (2, True)


async def test_the_whole_is_that_of_the_attempt_that_ended_well() -> None:
    agent = Agent("flaky")

    @agent.skill(backoff=AT_ONCE)
    async def run(ctx: Context) -> AsyncIterator[int | Whole[str]]:
        yield 1
        yield Whole(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise RuntimeError("broken off behind the whole")

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await read(bus, "flaky.run", None, int | str) == [1, "attempt 2"]


async def test_another_agent_is_read_in_the_same_way() -> None:
    agent = Agent("asker")

    @agent.skill
    async def run(text: str, ctx: Context) -> list[str]:
        return [repr(one) async for one in ctx.stream("counter.count", text, str | Count)]

    with anyio.fail_after(10):
        async with running(agent, counter) as bus:
            assert await bus.call("asker.run", "to be", list[str]) == ["'to'", "'be'", "Count(words=2)"]


async def test_a_caller_that_wants_the_joined_chunks_is_told_of_the_whole() -> None:
    with anyio.fail_after(10):
        async with running(counter) as bus:
            with pytest.raises(InvalidResult):
                await bus.call("counter.count", "to be", str)


# What a handler may do wrong


def ending_with(*values: object) -> Agent:
    agent = Agent("liar")

    @agent.skill
    async def run() -> AsyncIterator[str | Whole[Count]]:
        for value in values:
            yield value  # type: ignore[misc]  # that is the point

    return agent


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (ending_with("a"), "The Whole that it declares was not yielded"),
        (ending_with("a", Whole(Count(1)), "b"), "behind the Whole"),
        (ending_with(Whole(Count(1)), Whole(Count(1))), "behind the Whole"),
        (ending_with(Whole("another type")), "no Count"),
    ],
)
async def test_a_handler_that_does_not_keep_to_its_declaration_fails_the_task(
    agent: Agent, reason: str
) -> None:
    with anyio.fail_after(10):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match=reason) as caught:
                await bus.call("liar.run")
    assert caught.value.code == "invalid_result"


async def test_a_whole_that_is_not_declared_fails_the_task() -> None:
    agent = Agent("liar")

    @agent.skill
    async def run() -> AsyncIterator[str]:
        yield Whole("all")  # type: ignore[misc]  # that is the point

    with anyio.fail_after(10):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed, match="none is declared"):
                await bus.call("liar.run")


def test_a_skill_with_a_whole_alone_or_with_two_is_refused() -> None:
    agent = Agent("odd")

    async def alone() -> AsyncIterator[Whole[int]]:
        yield Whole(1)

    async def two() -> AsyncIterator[str | Whole[int] | Whole[str]]:
        yield Whole(1)

    for handler in (alone, two):
        with pytest.raises(InvalidAgent, match="chunks and one Whole"):
            agent.skill(handler)


def test_the_card_shows_the_schema_of_the_chunks_and_of_the_whole() -> None:
    facts = schemas_of(counter)["count"]
    assert facts.output == {"type": "string"}
    assert facts.whole == {
        "$ref": "#/$defs/Count",
        "$defs": {
            "Count": {
                "title": "Count",
                "type": "object",
                "properties": {"words": {"type": "integer"}},
                "required": ["words"],
            }
        },
    }


def test_a_skill_without_a_whole_is_written_as_before() -> None:
    agent = Agent("plain")

    @agent.skill
    async def run() -> AsyncIterator[str]:
        yield "a"

    assert b"whole" not in msgspec.json.encode(schemas_of(agent))
    assert b"whole" not in msgspec.json.encode(Facts(chunks=1))
