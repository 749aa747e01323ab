"""A stack while it is up: the broker, the keeper, and the agents as processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from xnai.bus import Server, ServerOptions, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.keeper import keep
from xnai.bus.locating import Address
from xnai.deploy.assignment import Assignment
from xnai.deploy.console import Console
from xnai.deploy.logs import log_to
from xnai.deploy.members import Member
from xnai.deploy.output import show
from xnai.deploy.settings import Settings
from xnai.deploy.signals import STOPPING
from xnai.deploy.stack import Stack

_KEEPER = "keeper"
_LAST_WORDS = 2.0  # seconds for output that is still on its way when all agents have ended
_SERVER_DELAY = 1.0


class Up:
    """One stack, from its start to its end."""

    def __init__(self, settings: Settings, stack: Stack, *, as_json: bool) -> None:
        self._settings, self._stack, self._as_json = settings, stack, as_json
        self._console = Console(settings.agents, quiet_stdout=as_json)
        self._members: list[Member] = []
        self._leave = anyio.CancelScope()
        log_to(self._console.say, logging.getLogger().level)

    async def run(self) -> None:
        """Bring it up; after a signal, take it down: agents first, then the broker.

        Raises:
            NoBus, NotAllowed, ServerTooOld: there is no broker to be had.
            Busy: it has no room for the agents' queues and logs.
        """
        async with anyio.create_task_group() as readers, background_tasks() as tasks:
            await tasks.start(self._listen)
            with self._leave:
                async with self._broker() as address:
                    with self._stack.announced(address):
                        await self._serve(address, readers)
            readers.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS

    async def _listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """The first signal takes the stack down, the second one kills what does not leave."""
        with anyio.open_signal_receiver(*STOPPING) as signals:
            task_status.started()
            async for number in signals:
                if self._leave.cancel_called:
                    self._console.say("killing what is left")
                    for member in self._members:
                        member.hurry.cancel()
                else:
                    self._console.say(f"{signal.strsignal(number)}: stopping; once more kills")
                    self._leave.cancel()

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[Address]:
        """The outside broker of the settings, otherwise our own, started again when it dies."""
        table = self._settings.server
        if table.url is not None:
            yield Address(url=table.url, token=table.token, pid=os.getpid())
            return
        options = ServerOptions(**table.model_dump(exclude={"url"}))
        async with self._stack.server(options) as server, background_tasks() as tasks:
            tasks.start_soon(self._restart, server)
            self._console.say(f"nats-server listens at {server.url}, its data is in {server.folder}")
            yield Address(url=server.url, token=server.token, pid=os.getpid())

    async def _restart(self, server: Server) -> None:
        while (process := server.process) is not None:
            status = await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            self._console.say(f"nats-server ended with status {status}; starts again in {_SERVER_DELAY:g} s")
            await anyio.sleep(_SERVER_DELAY)
            await server.start()

    async def _serve(self, address: Address, readers: TaskGroup) -> None:
        """Declare the agents, start them, keep the bus in order, until cancelled."""
        keeper = self._settings.keeper
        async with open_bus(address.url, token=address.token, name=_KEEPER) as bus:
            for name in self._settings.agents:
                await bus.declare(name, self._settings.limits.limits())
            self._members = [self._member(name, address) for name in self._settings.agents]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: keep(bus, interval=keeper.interval, kept=keeper.kept))
                for member in self._members:
                    tasks.start_soon(member.run, readers)
                for member in self._members:
                    await member.ready.wait()
                self._tell_ready(address)

    def _member(self, name: str, address: Address) -> Member:
        table = self._settings.agents[name]
        assert table.module is not None
        assignment = Assignment(
            name=name,
            url=address.url,
            token=address.token,
            folder=str(self._stack.folder),
            concurrency=table.concurrency,
            limits=self._settings.limits.limits(),
            settings=table.settings,
        )
        return Member(
            table.module,
            assignment,
            folder=self._stack.folder.parent,
            env=table.env,
            show=lambda kind, line: self._console.line(name, kind, line),
        )

    def _tell_ready(self, address: Address) -> None:
        facts = {"ready": list(self._settings.agents), "url": address.url, "folder": str(self._stack.folder)}
        show(facts if self._as_json else "ready", as_json=self._as_json)
