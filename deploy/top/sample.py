"""What a stack and its inference agent say of themselves, looked at again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import anyio
import msgspec

from xnai.agents.inference.requests import InferenceStatus, LoadedModel, Models
from xnai.bus import Bus, open_bus
from xnai.deploy.supervisor.asking import view
from xnai.deploy.supervisor.orders import Row
from xnai.protocol.errors import DeadlineExceeded, UnknownAgent, XnaiError

STATUS, MODELS = "inference.status", "inference.models"
_PATIENCE = 5.0
_MODELS_EVERY = 10.0  # seconds: they seldom change, and each question is a task


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look.

    Attributes:
        at: seconds since 1970.
        agents: the processes of the stack, as `xnai ps` shows them.
        inference: what the inference agent says; None where there is none, or it does not answer.
        models: of its settings.
        trouble: sentences about what could not be seen.
    """

    at: float
    agents: list[Row] = []
    inference: InferenceStatus | None = None
    models: tuple[LoadedModel, ...] = ()
    trouble: list[str] = []


async def look_once(folder: Path) -> Sample:
    """The stack that `folder` belongs to, now.

    Raises:
        NoBus: no stack is up there.
        CallTimeout: its supervisor does not answer.
    """
    await view(folder)
    observer = _Observer(folder)
    try:
        async with open_bus() as bus:
            return (await observer.look(bus))[0]
    except XnaiError as error:
        return await observer.look_without(error)


async def follow(folder: Path, tell: Callable[[Sample], None], *, every: float) -> NoReturn:
    """Look every so many seconds. What cannot be seen meanwhile is told as trouble, and looked for again."""
    observer = _Observer(folder)
    while True:
        try:
            async with open_bus() as bus:
                whole = True
                while whole:
                    sample, whole = await observer.look(bus)
                    tell(sample)
                    await anyio.sleep(every)
        except XnaiError as error:
            tell(await observer.look_without(error))
            await anyio.sleep(every)


class _Observer:
    """Remembers what need not be asked each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: tuple[LoadedModel, ...] = ()
        self._asked = -_MODELS_EVERY

    async def look(self, bus: Bus) -> tuple[Sample, bool]:
        """What is seen, and whether the broker answered: where it did not, this bus may be of the past."""
        rows, trouble, linked = await self._rows()
        inference = None
        if linked:
            try:
                inference = await self._inference(bus)
            except UnknownAgent:  # nobody has to have one
                self._models = ()
            except DeadlineExceeded:
                trouble.append(f"The inference agent has not answered within {_PATIENCE:g} s.")
            except XnaiError as error:
                trouble.append(str(error))
        elif not trouble:
            trouble.append("The broker does not answer the supervisor.")
        return self._sample(rows, inference, trouble), linked

    async def look_without(self, error: XnaiError) -> Sample:
        """What is seen where `error` keeps us from the bus."""
        rows, trouble, _ = await self._rows()
        return self._sample(rows, None, trouble or [str(error)])

    async def _rows(self) -> tuple[list[Row], list[str], bool]:
        try:
            seen = await view(self._folder)
        except XnaiError as error:
            return [], [str(error)], False
        return seen.rows, [], seen.linked

    async def _inference(self, bus: Bus) -> InferenceStatus:
        status = await bus.call(STATUS, None, InferenceStatus, timeout=_PATIENCE, lane="urgent")
        if time.monotonic() - self._asked >= _MODELS_EVERY:
            models = await bus.call(MODELS, None, Models, timeout=_PATIENCE, lane="urgent")
            self._models, self._asked = models.models, time.monotonic()
        return status

    def _sample(self, rows: list[Row], inference: InferenceStatus | None, trouble: list[str]) -> Sample:
        models = self._models if inference else ()
        return Sample(at=time.time(), agents=rows, inference=inference, models=models, trouble=trouble)
