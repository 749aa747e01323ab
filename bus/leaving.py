"""How a caller's wait ends without an outcome: its time is over, or it has left."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from xnai.bus.ending import CANCELED, Owner, deadline_exceeded
from xnai.protocol.a2a import Task, TaskState
from xnai.protocol.envelope import Envelope
from xnai.protocol.errors import CallTimeout, TaskNotCancelable, Unavailable
from xnai.protocol.timestamps import parse_timestamp

log = logging.getLogger(__name__)
CANCEL_GRACE = 2.0  # seconds that a worker has to stop
_LEAVING = 2.0  # seconds that a caller takes to write its own last word


def time_left(task: Envelope) -> float:
    """Seconds until the deadline; negative once it has passed."""
    return parse_timestamp(task.deadline) - time.time()


class Leaving:
    """Says a caller's last word about its tasks; what it says behind its back runs in `tasks`."""

    def __init__(self, owner: Owner, tasks: TaskGroup) -> None:
        self._owner, self._tasks = owner, tasks

    async def give_up(self, task: Envelope) -> Task:
        """The deadline has passed and no worker said so: say it, or read what was said.

        Raises:
            CallTimeout: the broker cannot be asked.
        """
        try:
            with anyio.fail_after(_LEAVING):
                return await self._owner.end(task, TaskState.FAILED, deadline_exceeded(task))
        except (TimeoutError, Unavailable):
            raise CallTimeout(
                f"No outcome of {task.agent}.{task.skill} is known in time, and the broker cannot be asked. "
                f"Ask again later for the task {task.id}."
            ) from None

    def leave(self, task: Envelope, why: BaseException | None = None) -> None:
        """Nobody waits any more. A task of its own, because whoever waited may not wait for this either."""
        if isinstance(why, Unavailable):  # whoever is told that may ask again
            return
        with suppress(RuntimeError):  # the bus is closed: a generator that was dropped ends that late
            self._tasks.start_soon(self._abandon, task)

    async def _abandon(self, task: Envelope) -> None:
        try:
            with anyio.CancelScope(shield=True), anyio.fail_after(_LEAVING):
                await self._owner.cancel(task, "the caller has left")
            await anyio.sleep(CANCEL_GRACE)
            await self._owner.end(task, TaskState.CANCELED, CANCELED)
        except TaskNotCancelable:
            return
        except (TimeoutError, Unavailable):
            log.warning("a task whose caller has left could not be canceled", extra={"task": task.id})
