"""A stack while it is up: the broker, the keeper, and the agents as processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from xnai.bus import Server, ServerOptions, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.indexing import answer_tasks
from xnai.bus.keeper import keep
from xnai.bus.keeper_service import KeeperService
from xnai.bus.locating import Address, login_name, sender_name
from xnai.bus.streams import declare_shared
from xnai.deploy.console import Console
from xnai.deploy.identity.admitting import admitting
from xnai.deploy.identity.door import Door
from xnai.deploy.identity.keyring import Keyring
from xnai.deploy.logs import log_to
from xnai.deploy.notify import keep_notifying, notify
from xnai.deploy.output import say, show
from xnai.deploy.settings import Settings
from xnai.deploy.signals import STOPPING
from xnai.deploy.stack import Stack
from xnai.deploy.statuses import Status
from xnai.deploy.supervisor.agent import ROLE, agent_name, open_supervisor, small
from xnai.deploy.supervisor.detaching import let_go
from xnai.deploy.supervisor.fleet import Fleet
from xnai.deploy.supervisor.group import label_of
from xnai.deploy.supervisor.logfiles import FOLDER, LogFiles

_KEEPER = "keeper"
_INDEX = "index.db"
_SERVER_DELAY = 1.0


class Up:
    """One stack, from its start to its end.

    Args:
        read: reads its settings.
        watched: the file of the settings, if changes of it and of sources are to be applied.
        background: whether to leave the terminal once it is ready.
    """

    def __init__(
        self,
        read: Callable[[], Settings],
        stack: Stack,
        *,
        as_json: bool,
        watched: Path | None = None,
        background: bool = False,
    ) -> None:
        settings = read()
        self._read, self._settings, self._stack, self._as_json = read, settings, stack, as_json
        self._watched, self._background = watched, background
        self._files = LogFiles(
            stack.folder / FOLDER,
            size=settings.supervisor.log_size,
            count=settings.supervisor.log_files,
            complain=say,
        )
        labels = [label_of(name, max(table.replicas, 1)) for name, table in settings.agents.items()]
        self._console = Console(labels, quiet_stdout=as_json, keep=self._files.keep)
        self._name = agent_name(stack.folder)
        self._fleet: Fleet | None = None
        self._leave = anyio.CancelScope()
        log_to(self._console.say, logging.getLogger().level)

    async def run(self) -> Status:
        """Bring it up; after a signal, take it down: agents first, then the broker.

        Returns FAILURE where an agent was given up, otherwise DONE.

        Raises:
            NoBus, NotAllowed, ServerTooOld: there is no broker to be had.
            Busy: it has no room for the agents' queues and logs.
        """
        async with background_tasks() as tasks:
            await tasks.start(self._listen)
            with self._leave:
                async with self._broker() as (address, door):
                    with self._stack.announced(address):
                        await self._serve(address, door)
        if self._fleet and (given_up := [name for name, each in self._fleet.groups.items() if each.given_up]):
            self._console.say(f"given up: {', '.join(given_up)}")
            return Status.FAILURE
        return Status.DONE

    async def _listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """The first signal takes the stack down, the second one kills what does not leave."""
        with anyio.open_signal_receiver(*STOPPING) as signals:
            task_status.started()
            async for number in signals:
                if self._leave.cancel_called:
                    self._console.say("killing what is left")
                    if self._fleet:
                        self._fleet.hurry()
                else:
                    self._go_down(f"{signal.strsignal(number)}: stopping; once more kills")

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[tuple[Address, Door | None]]:
        """The outside broker of the settings, otherwise our own with its door, started again when it dies."""
        table = self._settings.server
        if table.url is not None:
            yield Address(url=table.url, token=table.token, pid=os.getpid()), None
            return
        keyring = Keyring(self._stack.folder, self._name)
        keyring.ensure_all(agents=list(self._settings.agents), people=[login_name(), sender_name(None)])
        options = ServerOptions(**table.model_dump(exclude={"url"}))
        async with (
            self._stack.server(options, keyring.members()) as server,
            background_tasks() as tasks,
        ):
            tasks.start_soon(self._restart, server)
            self._console.say(f"nats-server listens at {server.url}, its data is in {server.folder}")
            address = Address(url=server.url, key=str(keyring.folder), pid=os.getpid())
            yield address, Door(keyring, server)

    async def _restart(self, server: Server) -> None:
        while (process := server.process) is not None:
            status = await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            self._console.say(f"nats-server ended with status {status}; starts again in {_SERVER_DELAY:g} s")
            await anyio.sleep(_SERVER_DELAY)
            await server.start()

    async def _serve(self, address: Address, door: Door | None) -> None:
        """Start the agents, answer for them, keep the bus in order, until cancelled."""
        keeper, limits = self._settings.keeper, self._settings.limits.limits()
        fleet = self._fleet = Fleet(
            self._read, folder=self._stack.folder, address=address, console=self._console, door=door
        )
        async with AsyncExitStack() as stack:
            kept = await stack.enter_async_context(open_bus(address.as_system(), name=_KEEPER))
            await declare_shared(kept.api, limits)
            await stack.enter_async_context(KeeperService(kept.transport, limits).open())
            await stack.enter_async_context(answer_tasks(kept, self._stack.folder / _INDEX))
            if door is not None:
                await stack.enter_async_context(admitting(kept.transport, door))
            bus = await stack.enter_async_context(open_bus(address, name=self._name))
            for served in (self._name, ROLE):
                await kept.declare(served, small(limits))
            await stack.enter_async_context(
                open_supervisor(
                    fleet,
                    bus,
                    name=self._name,
                    limits=limits,
                    say=self._console.say,
                    down=lambda: self._go_down("asked to go down: stopping"),
                )
            )
            await stack.enter_async_context(fleet.open(bus))
            stack.enter_context(self._stack.supervised_by(self._name))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(lambda: keep(kept, interval=keeper.interval, kept=keeper.kept))
            if self._watched:
                from xnai.deploy.supervisor.watching import watch  # reading sources takes memory

                await tasks.start(watch, fleet, self._watched, self._console)
            await fleet.settle()
            self._tell_ready(fleet, address)
            if self._background:
                self._console.silent = True
                let_go(self._stack.folder)
            notify("READY=1")
            await keep_notifying(lambda: True)  # which it does as long as our loop turns
            await anyio.sleep_forever()

    def _go_down(self, why: str) -> None:
        self._console.say(why)
        notify("STOPPING=1")
        self._leave.cancel()

    def _tell_ready(self, fleet: Fleet, address: Address) -> None:
        facts = {"ready": fleet.ready, "url": address.url, "folder": str(self._stack.folder)}
        if fleet.missing:
            self._console.say(f"not ready: {', '.join(fleet.missing)}")
            facts["missing"] = fleet.missing
        show(facts if self._as_json else "ready", as_json=self._as_json)
