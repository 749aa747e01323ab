"""The broker is killed and comes back between each two steps of a task: one outcome, and all are told it."""

from __future__ import annotations

import signal
from functools import partial

import crashing_caller
import pytest
from crashing_caller import CALLING
from crashing_worker import (
    AGENT,
    BEFORE_MIDWAY,
    IN_THE_HANDLER,
    MIDWAY,
    PUBLISHED,
    RECEIVED,
    STOPPED,
    WORKER,
    WORKING,
    Options,
)
from recording import Program, Recording, recording
from witness import CALLER

from xnai.bus import Server
from xnai.protocol import TaskState
from xnai.protocol.events import ARTIFACT

TASK = "the-task"
CHUNKS = 8
IN_FLIGHT = 300


async def restart(server: Server) -> None:
    await server.stop(kill=True)
    await server.start()


async def finish(run: Recording, *workers: Program, acknowledged: bool = True) -> None:
    """What holds behind every restart: everybody was told the one outcome, and nothing is left over.

    An acknowledgement that was on its way when the broker died is lost, and the next worker repeats it. That
    of a task which the broker no longer knows to have handed out is lost too: it hands it out again.
    """
    await run.until_returned(CALLER)
    await run.until_followed()
    if acknowledged:
        await run.until_empty()
    for worker in workers:
        await run.end(worker)
    assert await run.faults(all_heard=False) == []
    assert (await run.outcome(TASK)).state == TaskState.COMPLETED


async def test_before_the_task_is_sent(server: Server) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options())
        await restart(server)
        await run.send(f"{AGENT}.work", 7, id=TASK)
        run.follow(TASK)
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await finish(run, worker)


async def test_while_the_task_is_sent(server: Server) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options())
        await server.stop(kill=True)
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await run.until_asked(CALLER)
        await server.start()
        await run.until_returned(CALLER)
        run.follow(TASK)
        await finish(run, worker)


async def test_between_the_send_and_the_delivery(server: Server) -> None:
    async with recording(server, AGENT) as run:
        await run.send(f"{AGENT}.work", 7, id=TASK)
        run.follow(TASK)
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await restart(server)
        worker = await run.start(WORKER, "worker", Options())
        await finish(run, worker)
        assert len(run.attempts(TASK)) == 1


@pytest.mark.parametrize("skill", ["work", "count"])
@pytest.mark.parametrize("point", [RECEIVED, PUBLISHED])
async def test_between_the_delivery_and_the_handler_or_the_outcome_and_the_ack(
    server: Server, point: str, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=point, until_told=True))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("worker", point)
        run.follow(TASK)
        await restart(server)
        await worker.tell()
        await finish(run, worker)


async def test_between_the_record_of_an_attempt_and_its_handler(server: Server) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=RECEIVED))
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await run.until_at("first", RECEIVED)
        run.follow(TASK)
        await run.kill(first)
        second = await run.start(WORKER, "second", Options(point=WORKING, until_told=True))
        await run.until_at("second", WORKING)
        await restart(server)
        await second.tell()
        await finish(run, second)


@pytest.mark.parametrize("away", [False, True])
async def test_while_the_handler_is_at_work_or_ends(server: Server, *, away: bool) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=IN_THE_HANDLER, until_told=True))
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await run.until_at("worker", IN_THE_HANDLER)
        run.follow(TASK)
        await server.stop(kill=True)
        if away:
            await worker.tell()
        await server.start()
        await worker.tell()
        await finish(run, worker)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("away", [False, True])
async def test_in_the_midst_of_a_stream(server: Server, *, away: bool, stored: bool) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=MIDWAY, until_told=True))
        run.read(f"{AGENT}.count", CHUNKS, id=TASK)
        await run.until_at("worker", MIDWAY)
        await run.until_yielded(CALLER, times=BEFORE_MIDWAY)
        if stored:
            await run.until_heard(ARTIFACT)
        run.follow(TASK)
        await server.stop(kill=True)
        if away:
            await worker.tell()
        await server.start()
        await worker.tell()
        await finish(run, worker)


@pytest.mark.parametrize("skill", ["work", "count"])
async def test_after_the_end_and_the_same_id_asked_again_is_told_the_same_outcome(
    server: Server, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options())
        ask = run.read if skill == "count" else run.ask
        ask(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_returned(CALLER)
        await restart(server)
        run.follow(TASK)
        ask(f"{AGENT}.{skill}", CHUNKS, id=TASK, by="later caller")
        await run.until_returned("later caller")
        await finish(run, worker, acknowledged=False)
        assert run.attempts(TASK) == [1]


async def test_twice_with_a_worker_killed_in_between(server: Server) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=MIDWAY))
        run.read(f"{AGENT}.count", CHUNKS, id=TASK)
        await run.until_at("first", MIDWAY)
        run.follow(TASK)
        await restart(server)
        await run.kill(first)
        second = await run.start(WORKER, "second", Options(point=MIDWAY, until_told=True))
        await run.until_at("second", MIDWAY)
        await restart(server)
        await second.tell()
        await finish(run, second)


@pytest.mark.parametrize(
    "asks",
    [
        crashing_caller.Options(id=TASK, skill="work", payload=7),
        crashing_caller.Options(id=TASK, skill="work", payload=7, stepwise=True),
        crashing_caller.Options(id=TASK, skill="count", payload=CHUNKS, streams=True),
    ],
    ids=["call", "subscribe", "stream"],
)
async def test_a_caller_that_hears_nothing_until_the_task_has_ended_reads_the_outcome(
    server: Server, asks: crashing_caller.Options
) -> None:
    point = MIDWAY if asks.streams else IN_THE_HANDLER
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=point, until_told=True))
        deaf = await run.start(CALLING, "deaf", asks)
        await run.until_at("worker", point)
        deaf.signal(signal.SIGSTOP)
        await restart(server)
        run.follow(TASK)
        await worker.tell()
        await run.until_followed()
        deaf.signal(signal.SIGCONT)
        await run.until_returned("deaf")
        assert await deaf.ended() == 0
        run.ask(f"{AGENT}.{asks.skill}", asks.payload, id=TASK)
        await finish(run, worker)


async def test_a_worker_that_hears_nothing_of_a_cancel_reads_it_and_stops(server: Server) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=IN_THE_HANDLER, until_told=True))
        run.ask(f"{AGENT}.work", 7, id=TASK)
        await run.until_at("worker", IN_THE_HANDLER)
        run.follow(TASK)
        worker.signal(signal.SIGSTOP)
        await restart(server)
        canceled = await run.bus.cancel(TASK)
        assert canceled.status.state is TaskState.CANCELED
        await run.until_returned(CALLER)
        await run.until_followed()
        worker.signal(signal.SIGCONT)
        await run.until_at("worker", STOPPED)
        await worker.tell()
        await run.end(worker)
        assert await run.faults(all_heard=False) == []


async def test_three_times_while_300_tasks_are_in_flight(server: Server) -> None:
    async with recording(server, AGENT) as run:
        workers = [await run.start(WORKER, by, Options()) for by in ("first", "second")]
        for number in range(IN_FLIGHT):
            skill = ("work", "report", "count")[number % 3]
            ask = partial(run.send_and_ask, f"{AGENT}.{skill}", CHUNKS, id=f"task-{number}")
            run.tasks.start_soon(partial(ask, streams=skill == "count", followed=number % 10 == 0))
        for done in (IN_FLIGHT // 10, IN_FLIGHT // 3, IN_FLIGHT // 2):
            await run.until_returned(CALLER, times=done)
            await restart(server)
        await run.until_returned(CALLER, times=IN_FLIGHT)
        await run.until_followed(times=IN_FLIGHT // 10)
        for worker in workers:
            await run.end(worker)
        assert await run.faults(all_heard=False) == []
