"""Streams: what a skill yields arrives as it comes, each chunk once, whatever breaks in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import msgspec
import pytest
from joining import member, open_link, worker

from xnai.agents import Agent, Backoff, Context
from xnai.agents.testing import running
from xnai.bus import Bus, Server
from xnai.protocol import (
    DeadlineExceeded,
    InvalidResult,
    StreamChanged,
    TaskArtifactUpdateEvent,
    TaskFailed,
    TaskRejected,
    TaskState,
    UnknownAgent,
)

AT_ONCE = Backoff(first=0.01, most=0.01)


class Point(msgspec.Struct, frozen=True):
    x: int
    label: str | None = None


maths = Agent("maths")


@maths.skill
async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@maths.skill
async def words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word


@maths.skill
async def blocks(sizes: list[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes([size % 251]) * size


@maths.skill
async def points(n: int) -> AsyncIterator[Point]:
    for i in range(n):
        yield Point(i, str(i) if i % 2 else None)


@maths.skill
async def anything() -> AsyncIterator[Any]:
    for value in (None, 1, "text", [1, 2], {"a": None}, True):
        yield value


@maths.skill
async def double(n: int) -> int:
    return 2 * n


async def read(bus: Bus, to: str, payload: object, type: Any, id: str | None = None) -> list[Any]:
    return [chunk async for chunk in bus.stream(to, payload, type, id=id)]


async def keep(seen: list[Any], chunks: AsyncIterator[Any]) -> None:
    """Append what comes, so that it is there when the stream raises."""
    async for chunk in chunks:
        seen.append(chunk)


class Stepper:
    """A skill that yields 0, 1, 2, … each when it is told to, and says when it is closed."""

    def __init__(self) -> None:
        self.agent = Agent("stepper")
        self.steps = [anyio.Event() for _ in range(100)]
        self.closed = anyio.Event()
        self.agent.skill(self.run)

    def allow(self, upto: int) -> None:
        """Let it yield all below `upto`."""
        for step in self.steps[:upto]:
            step.set()

    async def run(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                await self.steps[i].wait()
                yield i
        finally:
            self.closed.set()


async def test_each_chunk_arrives_typed_and_in_order() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await read(bus, "maths.count", 5, int) == [0, 1, 2, 3, 4]
            assert await read(bus, "maths.words", "to be or", str) == ["to", "be", "or"]
            assert await read(bus, "maths.points", 2, Point) == [Point(0), Point(1, "1")]
            assert await read(bus, "maths.blocks", [3, 0, 2], bytes) == [b"\3\3\3", b"", b"\2\2"]


async def test_chunks_of_any_kind_keep_their_kind() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            chunks: list[Any] = await read(bus, "maths.anything", None, Any)
            assert chunks == [None, 1, "text", [1, 2], {"a": None}, True]
            assert await bus.call("maths.anything") == [None, 1, "text", [1, 2], {"a": None}, True]


async def test_a_stream_without_chunks_ends_at_once() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await read(bus, "maths.count", 0, int) == []


async def test_a_skill_that_returns_one_value_is_a_stream_of_one_chunk() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            assert await read(bus, "maths.double", 4, int) == [8]


async def test_a_chunk_is_heard_before_the_next_is_made(server: Server) -> None:
    stepper = Stepper()
    seen = []
    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(1)
            async for chunk in bus.stream("stepper.run", 4, int):
                seen.append(chunk)
                stepper.allow(chunk + 2)
        assert seen == [0, 1, 2, 3]


async def test_many_chunks_arrive_once_each_in_few_stored_events() -> None:
    with anyio.fail_after(20):
        async with running(maths) as bus:
            assert await read(bus, "maths.count", 3000, int, "t") == list(range(3000))
            events = [event async for event in bus.subscribe("t")]
            assert len(events) < 300


async def test_chunks_are_heard_at_once_and_stored_together_for_as_long_as_the_skill_says() -> None:
    stepper = Agent("stepper")
    heard = [anyio.Event() for _ in range(3)]

    @stepper.skill(coalesce=3600)
    async def run() -> AsyncIterator[int]:
        for i, event in enumerate(heard):
            yield i
            await event.wait()
            await anyio.sleep(0.15)  # the worker looks for what is to be stored ten times a second

    with anyio.fail_after(10):
        async with running(stepper) as bus:
            async with aclosing(bus.stream("stepper.run", None, int, id="t")) as chunks:
                async for chunk in chunks:
                    heard[chunk].set()
            kinds = [event.kind async for event in bus.subscribe("t")]
            assert [kind for kind in kinds if kind in ("artifact", "outcome")] == ["artifact", "outcome"]


async def test_the_stored_events_hold_every_chunk_once(server: Server) -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            await read(bus, "maths.count", 50, int, "t")
            values: list[int] = []
            async for event in bus.subscribe("t"):
                if isinstance(event.body, TaskArtifactUpdateEvent):
                    assert event.facts.index == len(values)
                    values += [int(bytes(part.data)) for part in event.body.artifact.parts]
            assert values == list(range(50))


async def test_the_outcome_holds_the_whole_stream() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            await read(bus, "maths.words", "to be or", str, "t")
            task = await bus.task("t")
            assert task.status.state is TaskState.COMPLETED
            assert [artifact.artifact_id for artifact in task.artifacts] == ["t-1"]
            assert task.artifacts[0].parts[0].text == "tobeor"


async def test_a_large_chunk_travels_like_any_other() -> None:
    sizes = [10, 3 << 20, 5, 700_000, 1]
    with anyio.fail_after(20):
        async with running(maths) as bus:
            chunks = [chunk async for chunk in bus.stream("maths.blocks", sizes, bytes)]
            assert [len(chunk) for chunk in chunks] == sizes


async def test_two_streams_at_once_do_not_mix() -> None:
    async def check(bus: Bus, n: int) -> None:
        assert await read(bus, "maths.count", n, int) == list(range(n))

    with anyio.fail_after(20):
        async with running(maths) as bus, anyio.create_task_group() as tasks:
            for n in range(100, 120):
                tasks.start_soon(check, bus, n)


async def test_the_same_stream_read_again_gives_all_its_chunks(server: Server) -> None:
    with anyio.fail_after(10):
        async with worker(server, maths), member(server) as one, member(server) as two:
            for bus in (one, one, two):
                assert await read(bus, "maths.count", 20, int, "t") == list(range(20))


async def test_a_second_process_that_joins_a_stream_gets_all_its_chunks(server: Server) -> None:
    stepper = Stepper()
    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as one, member(server) as two:
            stepper.allow(3)
            async with aclosing(one.stream("stepper.run", 6, int, id="t")) as first:
                assert [await anext(first) for _ in range(3)] == [0, 1, 2]
                async with aclosing(two.stream("stepper.run", 6, int, id="t")) as second:
                    assert [await anext(second) for _ in range(3)] == [0, 1, 2]
                    stepper.allow(6)
                    assert [chunk async for chunk in second] == [3, 4, 5]
                assert [chunk async for chunk in first] == [3, 4, 5]


async def test_a_reader_that_leaves_stops_the_handler(server: Server) -> None:
    stepper = Stepper()
    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(2)
            async with aclosing(bus.stream("stepper.run", 9, int, id="t")) as chunks:
                async for chunk in chunks:
                    if chunk == 1:
                        break
            await stepper.closed.wait()
            events = [event async for event in bus.subscribe("t")]
            assert events[-1].kind == "outcome"
            assert (await bus.task("t")).status.state is TaskState.CANCELED


async def test_a_reader_that_breaks_off_without_closing_stops_the_handler_too(server: Server) -> None:
    stepper = Stepper()
    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(2)
            async for _ in bus.stream("stepper.run", 9, int):
                break
            await stepper.closed.wait()


async def test_a_reader_that_is_cancelled_stops_the_handler(server: Server) -> None:
    stepper = Stepper()
    heard = anyio.Event()

    async def listen(bus: Bus) -> None:
        async for _ in bus.stream("stepper.run", 9, int):
            heard.set()

    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(2)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen, bus)
                await heard.wait()
                tasks.cancel_scope.cancel()
            await stepper.closed.wait()


def flaky(name: str, attempts: list[list[Any]]) -> Agent:
    """Yields the first list and raises, then the second, …; the last attempt ends well."""
    agent = Agent(name)

    async def run(ctx: Context) -> AsyncIterator[Any]:
        for value in attempts[ctx.attempt - 1]:
            yield value
        if ctx.attempt < len(attempts):
            await ctx.progress("failing")
            raise RuntimeError("broken off")

    agent.skill(backoff=AT_ONCE)(run)
    return agent


async def test_a_new_attempt_goes_on_where_the_reader_stands() -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [[1, 2, 3], [1], [1, 2, 3, 4, 5]])) as bus:
            assert await read(bus, "flaky.run", None, int) == [1, 2, 3, 4, 5]


async def test_a_new_attempt_may_cut_the_same_text_in_other_places() -> None:
    attempts: list[list[Any]] = [["to be", " or", ""], ["to", " be o"], ["t", "", "o be or n", "ot", "!"]]
    with anyio.fail_after(10):
        async with running(flaky("flaky", attempts)) as bus:
            heard = await read(bus, "flaky.run", None, str)
    assert "".join(heard) == "to be or not!"


@pytest.mark.parametrize("second", [["to ", "see"], ["t"], [1], ["to", 1]])
async def test_a_new_attempt_with_another_text_is_an_error_for_the_reader(second: list[Any]) -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [["to", " be"], second])) as bus:
            heard: list[Any] = []
            with pytest.raises(StreamChanged):
                await keep(heard, bus.stream("flaky.run", None, object))
    assert heard == ["to", " be"]


async def test_a_new_attempt_that_yields_something_else_is_an_error_for_the_reader() -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [[1, 2, 3], [1, 7, 3, 4]])) as bus:
            seen: list[int] = []
            with pytest.raises(StreamChanged) as caught:
                await keep(seen, bus.stream("flaky.run", None, int, id="t"))
            assert caught.value.code == "stream_changed"
            assert seen == [1, 2, 3]


async def test_a_new_attempt_that_yields_less_is_an_error_for_the_reader() -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [[1, 2, 3], [1, 2]])) as bus:
            with pytest.raises(StreamChanged):
                await read(bus, "flaky.run", None, int)


async def test_a_new_attempt_that_yields_nothing_is_an_error_for_the_reader() -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [[1, 2, 3], []])) as bus:
            with pytest.raises(StreamChanged):
                await read(bus, "flaky.run", None, int)


async def test_the_answer_of_a_call_is_that_of_the_last_attempt_alone() -> None:
    with anyio.fail_after(10):
        async with running(flaky("flaky", [["a", "b"], ["x", "y", "z"]])) as bus:
            assert await bus.call("flaky.run") == "xyz"


async def test_a_stream_that_fails_gives_its_chunks_and_then_its_error() -> None:
    agent = Agent("short")

    @agent.skill(max_attempts=1)
    async def run() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise RuntimeError("no more")

    with anyio.fail_after(10):
        async with running(agent) as bus:
            seen: list[int] = []
            with pytest.raises(TaskFailed, match="no more") as caught:
                await keep(seen, bus.stream("short.run", None, int))
            assert caught.value.code == "exhausted"
            assert seen == [1, 2]


async def test_a_chunk_of_a_type_not_declared_fails_the_task() -> None:
    agent = Agent("liar")

    @agent.skill
    async def run() -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]  # that is the point

    with anyio.fail_after(10):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed) as caught:
                await read(bus, "liar.run", None, int)
            assert caught.value.code == "invalid_result"


async def test_a_chunk_that_the_reader_did_not_expect_is_an_error_of_the_reader() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(InvalidResult):
                await read(bus, "maths.words", "a b", int)


async def test_a_stream_of_nobody_and_of_nothing_is_refused() -> None:
    with anyio.fail_after(10):
        async with running(maths) as bus:
            with pytest.raises(UnknownAgent):
                await read(bus, "nobody.count", 1, int)
            with pytest.raises(TaskRejected) as caught:
                await read(bus, "maths.nothing", 1, int)
            assert caught.value.code == "unknown_skill"


async def test_a_stream_past_its_deadline_ends_as_such(server: Server) -> None:
    stepper = Stepper()
    with anyio.fail_after(10):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(2)
            seen: list[int] = []
            with pytest.raises(DeadlineExceeded):
                await keep(seen, bus.stream("stepper.run", 9, int, timeout=0.5))
            assert seen == [0, 1]
            await stepper.closed.wait()


async def test_a_reader_whose_link_was_cut_gets_what_it_missed(server: Server) -> None:
    stepper = Stepper()
    stored = anyio.Event()

    async def watch(bus: Bus) -> None:
        async for event in bus.subscribe("t"):
            body = event.body
            if (
                isinstance(body, TaskArtifactUpdateEvent)
                and event.facts.index + len(body.artifact.parts) == 5
            ):
                stored.set()

    with anyio.fail_after(30):
        async with (
            worker(server, stepper.agent),
            open_link(server) as link,
            member(server) as watcher,
            member(server, url=link.url) as bus,
            anyio.create_task_group() as tasks,
        ):
            stepper.allow(2)
            async with aclosing(bus.stream("stepper.run", 8, int, id="t")) as chunks:
                seen = [await anext(chunks), await anext(chunks)]
                tasks.start_soon(watch, watcher)
                link.cut()
                stepper.allow(5)
                await stored.wait()
                link.mend()
                seen += [await anext(chunks) for _ in range(3)]
                stepper.allow(8)
                seen += [chunk async for chunk in chunks]
            assert seen == list(range(8))


async def test_a_reader_whose_link_was_cut_hears_of_the_end(server: Server) -> None:
    stepper = Stepper()
    with anyio.fail_after(30):
        async with (
            worker(server, stepper.agent),
            open_link(server) as link,
            member(server) as watcher,
            member(server, url=link.url) as bus,
        ):
            stepper.allow(2)
            async with aclosing(bus.stream("stepper.run", 5, int, id="t")) as chunks:
                seen = [await anext(chunks), await anext(chunks)]
                link.cut()
                stepper.allow(5)
                _ = [event async for event in watcher.subscribe("t")]
                link.mend()
                seen += [chunk async for chunk in chunks]
            assert seen == list(range(5))


@pytest.mark.parametrize("kill", [False, True])
async def test_a_stream_survives_a_restart_of_the_broker(server: Server, kill: bool) -> None:
    stepper = Stepper()
    with anyio.fail_after(40):
        async with worker(server, stepper.agent), member(server) as bus:
            stepper.allow(2)
            async with aclosing(bus.stream("stepper.run", 6, int, id="t")) as chunks:
                seen = [await anext(chunks), await anext(chunks)]
                await server.stop(kill=kill)
                stepper.allow(4)
                await server.start()
                seen += [await anext(chunks), await anext(chunks)]
                stepper.allow(6)
                seen += [chunk async for chunk in chunks]
            assert seen == list(range(6))


async def test_artifacts_beside_a_stream_do_not_stand_in_it(server: Server) -> None:
    agent = Agent("mixed")

    @agent.skill
    async def run(ctx: Context) -> AsyncIterator[str]:
        yield "a"
        await ctx.artifact("notes", {"n": 1})
        yield "b"

    with anyio.fail_after(10):
        async with running(agent) as bus:
            assert await read(bus, "mixed.run", None, str, "t") == ["a", "b"]
            task = await bus.task("t")
            assert [artifact.name for artifact in task.artifacts] == [None, "notes"]
            assert task.artifacts[0].parts[0].text == "ab"
