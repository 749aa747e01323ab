"""Workers are killed at random points while 2,000 tasks are in flight: the history may have happened."""

from __future__ import annotations

import random
from functools import partial

from crashing_worker import AGENT, FROZEN, WORKER, Options
from history import Started
from recording import Program, Recording, recording
from witness import CALLER

from xnai.bus import Server

SEED = 20_260_131
TASKS = 2_000
STREAMS = 200
FOLLOWED = 40
WORKERS = 3
KILLS = 12
CHUNKS = 6


def begin(run: Recording, choose: random.Random) -> None:
    """Ask for everything at once: calls, calls that report and streams, some of them followed."""
    kinds = ["count"] * STREAMS + ["report"] * STREAMS + ["work"] * (TASKS - 2 * STREAMS)
    choose.shuffle(kinds)
    followed = set(choose.sample(range(TASKS), FOLLOWED))
    for number, kind in enumerate(kinds):
        run.tasks.start_soon(
            partial(
                run.send_and_ask,
                f"{AGENT}.{kind}",
                CHUNKS,
                id=f"task-{number}",
                streams=kind == "count",
                followed=number in followed,
            )
        )


async def kill_at_random(run: Recording, workers: list[Program], choose: random.Random) -> None:
    """Each worker stops somewhere with what it has in its hands, is killed there, and replaced."""
    for number in range(KILLS):
        victim = await run.first_at(FROZEN, workers)
        await run.kill(victim)
        workers.remove(victim)
        lives_on = number + WORKERS >= KILLS
        successor = Options() if lives_on else doomed(choose)
        workers.append(await run.start(WORKER, f"successor-{number}", successor))


def doomed(choose: random.Random) -> Options:
    return Options(freeze_after=choose.randrange(50, 400))


async def test_workers_are_killed_while_2000_tasks_are_in_flight(server: Server) -> None:
    choose = random.Random(SEED)
    async with recording(server, AGENT) as run:
        workers = [await run.start(WORKER, f"worker-{number}", doomed(choose)) for number in range(WORKERS)]
        begin(run, choose)
        await kill_at_random(run, workers, choose)
        await run.until_returned(CALLER, times=TASKS)
        await run.until_followed(times=FOLLOWED)
        for worker in workers:
            await run.end(worker)
        assert await run.faults() == []
        assert await run.queued() == 0
        assert max(record.attempt for record in run.records if isinstance(record, Started)) > 2
