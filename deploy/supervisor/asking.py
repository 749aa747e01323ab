"""How the commands of a folder talk to the supervisor that keeps its stack up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio

from xnai.bus import Bus, open_bus
from xnai.bus.locating import ADDRESS_FILE, read_address
from xnai.deploy.folders import stack_folder
from xnai.deploy.stack import Stack, Supervision
from xnai.deploy.supervisor.orders import NotReady
from xnai.deploy.supervisor.window import View, look_through
from xnai.protocol.errors import CallTimeout, InvalidArgument, InvalidSettings, NoBus, TaskRejected, XnaiError

T = TypeVar("T")
_KINDS: dict[str, type[XnaiError]] = {kind.code: kind for kind in (NotReady, InvalidSettings)}
TIMEOUT = 300.0  # seconds: a model may be large, and a drain slow
_COMING_UP = 20.0
_TRY_AGAIN = 0.1


class Supervisor:
    """The supervisor of a stack, as an agent on its bus."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus, self._name = bus, name

    async def ask(self, skill: str, payload: object, returns: type[T], *, timeout: float = TIMEOUT) -> T:
        """What one of its skills answers.

        Raises:
            InvalidArgument: there is no such agent, or not so many of it.
            InvalidSettings: it cannot use those that it is to apply.
            NotReady: a new process does not take tasks.
            And what `Bus.call` raises.
        """
        try:
            return await self._bus.call(f"{self._name}.{skill}", payload, returns, timeout=timeout)
        except TaskRejected as error:
            kind = _KINDS.get(error.code, InvalidArgument)
            raise kind(str(error)) from error


async def found(folder: Path) -> tuple[Stack, Supervision]:
    """The stack that `folder` belongs to, and its supervisor; one that is coming up is waited for.

    Raises:
        NoBus: no stack is up there.
    """
    stack = Stack(stack_folder(folder))
    with anyio.move_on_after(_COMING_UP):
        while stack.supervision() is None and stack.holder() is not None:  # noqa: ASYNC110  # a file
            await anyio.sleep(_TRY_AGAIN)
    known = stack.supervision()
    if stack.holder() is None:
        raise NoBus(f"No stack is up in {stack.folder.parent}. Start it with: xnai up")
    if known is None:
        raise _between(stack)
    return stack, known


def _between(stack: Stack) -> NoBus:
    return NoBus(f"The stack in {stack.folder.parent} is just coming up or going down. Try again.")


async def view(folder: Path) -> View:
    """What the supervisor of the stack that `folder` belongs to sees; it needs no broker for that.

    Raises:
        NoBus: no stack is up there.
        CallTimeout: the supervisor does not answer.
    """
    stack, known = await found(folder)
    try:
        seen = await look_through(stack.folder)
    except TimeoutError:
        raise CallTimeout(
            f"The supervisor does not answer: it may be stopped. Continue it with: kill -CONT {known.pid}"
        ) from None
    if seen is None:
        raise _between(stack)
    return seen


@asynccontextmanager
async def open_supervision(folder: Path) -> AsyncIterator[Supervisor]:
    """The supervisor of the stack that `folder` belongs to; one that is coming up is waited for.

    Raises:
        NoBus: no stack is up there.
    """
    stack, known = await found(folder)
    address = read_address(stack.folder / ADDRESS_FILE)
    async with open_bus(address) as bus:
        yield Supervisor(bus, known.agent)
