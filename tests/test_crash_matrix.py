"""Killed with SIGKILL at each named point of a task's journey: one outcome each time, and everybody is told it."""

from __future__ import annotations

import pytest
from crashing_worker import AGENT, BETWEEN_CHUNKS, IN_THE_HANDLER, PUBLISHED, RECEIVED, WORKER, WORKING, Options
from recording import CALLER, Recording, recording

from xnai.bus import Server


@pytest.mark.parametrize("point", [RECEIVED, IN_THE_HANDLER])
async def test_a_task_whose_worker_is_killed_is_done_by_another(server: Server, point: str) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=point))
        run.ask(f"{AGENT}.work", 7, id="task")
        await run.until_at("first", point)
        run.follow("task")
        await run.kill(first)
        second = await run.start(WORKER, "second", Options())
        await run.until_returned(CALLER)
        await run.end(second)
        assert await run.faults() == []
        assert await run.queued() == 0
