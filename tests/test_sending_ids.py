"""Ids given by the caller: the same id is one task, whoever sends it again, and whenever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from joining import member, worker

from xnai.agents import Agent, Reject
from xnai.bus import Bus, Limits, Server
from xnai.protocol import IdConflict, TaskRejected, TaskState, UnknownAgent, UnknownTask


class Counter:
    """An agent that counts how often it was asked."""

    def __init__(self, name: str = "counter") -> None:
        self.agent = Agent(name)
        self.asked = 0
        self.agent.skill(self.count)
        self.agent.skill(self.other)
        self.agent.skill(self.refuse)
        self.agent.skill(self.size)

    async def count(self, n: int) -> int:
        self.asked += 1
        return self.asked * 100 + n

    async def other(self, n: int) -> int:
        self.asked += 1
        return n

    async def refuse(self) -> int:
        self.asked += 1
        raise Reject(f"no, for the {self.asked}. time")

    async def size(self, content: bytes) -> int:
        self.asked += 1
        return len(content)


@asynccontextmanager
async def counting(server: Server, limits: Limits | None = None) -> AsyncIterator[tuple[Counter, Bus]]:
    counter = Counter()
    with anyio.fail_after(25):
        async with worker(server, counter.agent, limits=limits), member(server) as bus:
            yield counter, bus


async def _until_the_broker_forgets_ids(bus: Bus) -> None:
    """Return once the de-duplication window has passed for whatever was published before."""
    mark = "xnai.v1.dead.nobody.mark"
    await bus.publisher.store(mark, b"", id="mark")
    while (await bus.publisher.store(mark, b"", id="mark")).duplicate:
        pass


async def test_the_same_id_called_twice_is_one_task_with_one_answer(server: Server) -> None:
    async with counting(server) as (counter, bus):
        assert await bus.call("counter.count", 1, int, id="t") == 101
        assert await bus.call("counter.count", 1, int, id="t") == 101
        assert counter.asked == 1


async def test_the_same_id_called_twice_at_once_by_one_bus_is_one_task(server: Server) -> None:
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("counter.count", 1, int, id="t"))

    async with counting(server) as (counter, bus):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, bus)
        assert answers == [101] * 20
        assert counter.asked == 1


async def test_the_same_id_called_at_once_by_several_processes_is_one_task(server: Server) -> None:
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("counter.count", 1, int, id="t"))

    async with counting(server) as (counter, one), member(server) as two, member(server) as three:
        async with anyio.create_task_group() as tasks:
            for bus in (one, two, three) * 5:
                tasks.start_soon(ask, bus)
        assert answers == [101] * 15
        assert counter.asked == 1


async def test_a_second_process_gets_the_outcome_of_the_first_ones_task(server: Server) -> None:
    async with counting(server) as (counter, one), member(server) as two:
        await one.call("counter.count", 1, int, id="t")
        assert await two.call("counter.count", 1, int, id="t") == 101
        assert (await two.task("t")).status.state is TaskState.COMPLETED
        assert counter.asked == 1


async def test_a_second_process_waits_for_the_first_ones_open_task(server: Server) -> None:
    counter = Counter()
    answers: list[int] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("counter.count", 1, int, id="t"))

    with anyio.fail_after(15):
        async with member(server) as one, member(server) as two:
            await one.declare("counter")
            await one.send("counter.count", 1, id="t")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, two)
                async with worker(server, counter.agent):
                    _ = [event async for event in one.subscribe("t")]
        assert answers == [101]
        assert counter.asked == 1


async def test_a_task_sent_again_after_the_window_runs_once(server: Server) -> None:
    async with counting(server, Limits(duplicate_window=0.1)) as (counter, bus):
        assert await bus.call("counter.count", 1, int, id="t") == 101
        await _until_the_broker_forgets_ids(bus)
        assert await bus.call("counter.count", 1, int, id="t") == 101
        assert await bus.send("counter.count", 1, id="t") == "t"
        assert counter.asked == 1


async def test_a_task_that_still_waits_after_the_window_is_not_stored_twice(server: Server) -> None:
    counter = Counter()
    limits = Limits(duplicate_window=0.1)
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("counter", limits)
            await bus.send("counter.count", 1, id="t")
            await _until_the_broker_forgets_ids(bus)
            await bus.send("counter.count", 1, id="t")
            async with worker(server, counter.agent, limits=limits):
                assert await bus.call("counter.count", 1, int, id="t") == 101
                await bus.call("counter.count", 5, int)  # whatever stood behind it was done as well
            assert counter.asked == 2


@pytest.mark.parametrize("kill", [False, True])
async def test_a_task_sent_again_after_a_restart_of_the_server_runs_once(server: Server, kill: bool) -> None:
    async with counting(server) as (counter, bus):
        assert await bus.call("counter.count", 1, int, id="t") == 101
        await server.stop(kill=kill)
        await server.start()
        async with member(server) as later:
            assert await later.call("counter.count", 1, int, id="t") == 101
        assert await bus.call("counter.count", 1, int, id="t") == 101
        assert counter.asked == 1


async def test_the_id_of_a_task_of_another_agent_is_a_conflict(server: Server) -> None:
    other = Counter("other")
    async with counting(server) as (counter, bus), worker(server, other.agent):
        await bus.call("counter.count", 1, int, id="t")
        with pytest.raises(IdConflict, match="agent") as caught:
            await bus.call("other.count", 1, int, id="t")
        assert caught.value.code == "id_conflict"
        assert (counter.asked, other.asked) == (1, 0)


async def test_the_id_of_a_task_of_another_skill_is_a_conflict(server: Server) -> None:
    async with counting(server) as (counter, bus):
        await bus.call("counter.count", 1, int, id="t")
        with pytest.raises(IdConflict, match="skill"):
            await bus.send("counter.other", 1, id="t")
        assert counter.asked == 1


async def test_the_id_of_a_task_with_another_payload_is_a_conflict(server: Server) -> None:
    async with counting(server) as (counter, bus):
        await bus.call("counter.count", 1, int, id="t")
        with pytest.raises(IdConflict, match="payload"):
            await bus.send("counter.count", 2, id="t")
        assert counter.asked == 1


async def test_the_id_of_a_waiting_task_is_a_conflict_for_another_one(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus, member(server) as second:
            await bus.declare("counter")
            await bus.declare("other")
            await bus.send("counter.count", 1, id="t")
            for sender in (bus, second):
                for to, payload in (("other.count", 1), ("counter.other", 1), ("counter.count", 2)):
                    with pytest.raises(IdConflict):
                        await sender.send(to, payload, id="t")


async def test_the_id_of_a_task_of_another_sender_is_a_conflict(server: Server) -> None:
    async with counting(server) as (counter, bus), member(server, "stranger") as stranger:
        await bus.call("counter.count", 1, int, id="t")
        with pytest.raises(IdConflict):
            await stranger.send("counter.count", 1, id="t")
        assert counter.asked == 1


async def test_of_two_payloads_sent_at_once_under_one_id_one_wins(server: Server) -> None:
    heard: list[int | str] = []

    async def ask(bus: Bus, n: int) -> None:
        try:
            heard.append(await bus.call("counter.count", n, int, id="t"))
        except IdConflict:
            heard.append("conflict")

    async with counting(server) as (counter, one), member(server) as two:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, one, 1)
            tasks.start_soon(ask, two, 2)
        assert "conflict" in heard
        assert {101, 102} & set(heard)
        assert counter.asked == 1


async def test_the_stored_failure_is_raised_to_whoever_asks_again(server: Server) -> None:
    async with counting(server) as (counter, one), member(server) as two:
        for bus in (one, two, one):
            with pytest.raises(TaskRejected, match=r"for the 1\. time"):
                await bus.call("counter.refuse", id="t")
        assert counter.asked == 1


async def test_a_large_payload_sent_again_is_the_same_task(server: Server) -> None:
    content = bytes(range(256)) * 8_192  # 2 MiB
    async with counting(server) as (counter, one), member(server) as two:
        assert await one.call("counter.size", content, int, id="t") == len(content)
        assert await two.call("counter.size", content, int, id="t") == len(content)
        with pytest.raises(IdConflict, match="payload"):
            await two.call("counter.size", content[::-1], int, id="t")
        assert counter.asked == 1


async def test_a_large_payload_sent_again_while_it_waits_is_the_same_task(server: Server) -> None:
    content = bytes(range(256)) * 8_192
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("counter")
            await bus.send("counter.size", content, id="t")
            assert await bus.send("counter.size", content, id="t") == "t"
            with pytest.raises(IdConflict, match="payload"):
                await bus.send("counter.size", content[::-1], id="t")


async def test_a_declared_agent_that_does_not_run_keeps_the_task(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("counter")
            id = await bus.send("counter.count", 1)
            assert (await bus.task(id)).status.state is TaskState.SUBMITTED
            counter = Counter()
            async with worker(server, counter.agent):
                events = [event async for event in bus.subscribe(id)]
                assert events[-1].kind == "outcome"
                assert (await bus.task(id)).status.state is TaskState.COMPLETED


async def test_a_given_id_does_not_make_an_agent_known(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            with pytest.raises(UnknownAgent):
                await bus.send("counter.count", 1, id="t")
            with pytest.raises(UnknownTask):
                await bus.task("t")


async def test_an_id_of_every_allowed_letter_and_length_is_kept(server: Server) -> None:
    async with counting(server) as (_, bus):
        for id in ("-", "_", "A", "0" * 128, "aZ-_9"):
            await bus.call("counter.count", 1, int, id=id)
            assert (await bus.task(id)).id == id
