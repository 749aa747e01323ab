"""What the plain `nats micro` tool sees: the service protocol of ADR-32, with the numbers of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from joining import member, worker

from xnai.agents import Agent, Reject
from xnai.bus import Bus, Server
from xnai.bus.finding import read_outcome
from xnai.bus.parser import Frame
from xnai.protocol import TaskFailed, TaskState, subjects

agent = Agent("maths", description="Arithmetic", version="1.2.3", roles=("counter",))


@agent.skill
async def double(n: int) -> int:
    return 2 * n


@agent.skill
async def refuse(n: int) -> int:
    raise Reject("no")


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Bus]:
    async with worker(server, agent), member(server) as joined:
        yield joined


async def ask(bus: Bus, subject: str) -> dict[str, Any]:
    answer = await bus.transport.request(subject)
    return msgspec.json.decode(answer.data, type=dict[str, Any])


async def test_ping_info_and_stats_are_answered_for_all_for_the_name_and_for_the_id(bus: Bus) -> None:
    with anyio.fail_after(15):
        ping = await ask(bus, "$SRV.PING")
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        assert (ping["name"], ping["version"]) == ("maths", "1.2.3")
        assert ping["metadata"]["roles"] == "counter"
        for verb in ("PING", "INFO", "STATS"):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.maths", f"$SRV.{verb}.maths.{ping['id']}"):
                said = await ask(bus, subject)
                assert (said["type"], said["id"]) == (f"io.nats.micro.v1.{verb.lower()}_response", ping["id"])


async def test_info_names_the_skills_where_their_tasks_go(bus: Bus) -> None:
    with anyio.fail_after(15):
        info = await ask(bus, "$SRV.INFO.maths")
    assert info["description"] == "Arithmetic"
    assert [one["name"] for one in info["endpoints"]] == ["double", "refuse"]
    assert info["endpoints"][0]["subject"] == "xnai.v1.task.maths.*.*.double.*"
    assert msgspec.json.decode(info["endpoints"][0]["metadata"]["input"]) == {"type": "integer"}


async def test_the_numbers_are_those_of_the_log(bus: Bus) -> None:
    with anyio.fail_after(15):
        for n in range(7):
            await bus.call("maths.double", n, int)
        for n in range(3):
            with pytest.raises(TaskFailed):
                await bus.call("maths.refuse", n, int)
        stats: dict[str, Any] = {}
        while sum(one["num_requests"] for one in stats.values()) < 10:  # a caller may know before the worker
            stats = {one["name"]: one for one in (await ask(bus, "$SRV.STATS.maths"))["endpoints"]}
        stream, pattern = subjects.log_stream("maths"), subjects.gate("maths", "*", "*")
        ends = [read_outcome(stored.data).status.state async for stored in bus.api.scan(stream, pattern)]
    assert stats["double"]["num_requests"] == ends.count(TaskState.COMPLETED) == 7
    assert stats["refuse"]["num_errors"] == ends.count(TaskState.REJECTED) == 3
    assert stats["double"]["num_errors"] == 0
    assert stats["double"]["average_processing_time"] > 0


async def test_two_instances_both_answer(server: Server, bus: Bus) -> None:
    answers: list[str] = []
    both = anyio.Event()

    def take(frame: Frame) -> None:
        answers.append(msgspec.json.decode(frame.data)["id"])
        if len(answers) == 2:
            both.set()

    with anyio.fail_after(15):
        async with worker(server, agent):
            with bus.transport.expect(take) as reply:
                bus.transport.client.post("$SRV.PING.maths", reply=reply)
                await both.wait()
    assert len(set(answers)) == 2


async def test_another_name_and_another_verb_are_left_to_others(bus: Bus) -> None:
    with anyio.fail_after(15):
        heard: list[Frame] = []
        with bus.transport.expect(heard.append) as reply:
            for subject in ("$SRV.PING.other", "$SRV.HELLO", "$SRV.STATS.maths.00000000"):
                bus.transport.client.post(subject, reply=reply)
            await bus.transport.flush()
            await ask(bus, "$SRV.PING.maths")
        assert [frame for frame in heard if frame.status != 503] == []
