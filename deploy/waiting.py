"""Waiting for a task at a terminal: Ctrl-C cancels it and says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from xnai.bus import Bus
from xnai.bus.background import background_tasks
from xnai.deploy.output import say
from xnai.deploy.signals import STOPPING, first_of
from xnai.deploy.statuses import Status
from xnai.protocol.errors import TaskCanceled, TaskNotCancelable, Unavailable, UnknownTask


async def until_interrupted(bus: Bus, id: str, work: Callable[[], Awaitable[int]]) -> int:
    """Do `work`, which waits for the task `id`, and return its status.

    SIGINT and SIGTERM cancel the task, and the status is INTERRUPTED; a second one ends the process at once.
    """
    interrupted = False
    with (
        anyio.open_signal_receiver(*STOPPING) as signals,
        anyio.CancelScope() as waiting,
    ):

        async def listen() -> None:
            nonlocal interrupted
            await first_of(signals)
            interrupted = True
            say(f"canceling the task {id}")
            if not await _cancel(bus, id):
                waiting.cancel()

        try:
            async with background_tasks() as tasks:
                tasks.start_soon(listen)
                return await work()
        except TaskCanceled:
            if not interrupted:
                raise
            say(f"the task {id} is canceled")
    return Status.INTERRUPTED


async def _cancel(bus: Bus, id: str) -> bool:
    """Cancel the task; returns whether there is an outcome to wait for."""
    try:
        await bus.cancel(id)
    except TaskNotCancelable:  # it has just ended
        return True
    except (UnknownTask, Unavailable) as error:
        say(str(error))
        return False
    return True
