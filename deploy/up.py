"""A stack while it is up: the broker, the keeper, and the agents as processes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from xnai.bus import Bus, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.indexing import answer_tasks
from xnai.bus.keeper import keep
from xnai.bus.keeper_service import KeeperService
from xnai.bus.locating import Address
from xnai.bus.streams import declare_shared
from xnai.deploy.broker import Broker, open_broker
from xnai.deploy.console import Console
from xnai.deploy.identity.admitting import admitting
from xnai.deploy.logs import log_to
from xnai.deploy.notify import keep_notifying, notify
from xnai.deploy.output import say, show
from xnai.deploy.plan import Plan
from xnai.deploy.signals import STOPPING
from xnai.deploy.stack import Stack
from xnai.deploy.starting import Starter
from xnai.deploy.statuses import Status
from xnai.deploy.supervisor.agent import agent_name, open_supervisor, small
from xnai.deploy.supervisor.detaching import let_go
from xnai.deploy.supervisor.fleet import Fleet
from xnai.deploy.supervisor.group import label_of
from xnai.deploy.supervisor.logfiles import FOLDER, LogFiles
from xnai.deploy.supervisor.window import open_window
from xnai.protocol.names import SUPERVISOR

_KEEPER = "keeper"
_INDEX = "index.db"


class Up:
    """One stack, from its start to its end.

    Args:
        plan: what it is to be.
        read: reads that anew.
        starter: starts the processes of agents.
        watched: the file of the settings, if changes of it and of sources are to be applied.
        background: whether to leave the terminal once it is ready.
    """

    def __init__(
        self,
        plan: Plan,
        stack: Stack,
        *,
        read: Callable[[], Awaitable[Plan]],
        starter: Starter,
        as_json: bool,
        watched: Path | None = None,
        background: bool = False,
    ) -> None:
        self._read, self._settings, self._stack, self._as_json = read, plan, stack, as_json
        self._watched, self._background, self._starter = watched, background, starter
        self._files = LogFiles(
            stack.folder / FOLDER,
            size=plan.supervisor.log_size,
            count=plan.supervisor.log_files,
            complain=say,
        )
        labels = [label_of(name, max(table.replicas, 1)) for name, table in plan.agents.items()]
        self._console = Console(labels, quiet_stdout=as_json, keep=self._files.keep)
        self._name = agent_name(stack.folder)
        self._fleet: Fleet | None = None
        self._leave = anyio.CancelScope()
        starter.say = self._console.say
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
                async with open_broker(self._stack, self._settings, self._name, self._console.say) as broker:
                    await self._serve(broker)
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

    async def _serve(self, broker: Broker) -> None:
        """Start the agents, answer for them, keep the bus in order, until cancelled."""
        address, limits = broker.address, self._settings.limits
        async with AsyncExitStack() as stack:
            keeper = None if broker.is_elsewhere else await self._open_keeper(stack, broker)
            stack.enter_context(self._stack.announced(address))  # whoever finds it finds its keeper, too
            bus = await stack.enter_async_context(open_bus(address, name=self._name))
            fleet = self._fleet = Fleet(
                self._settings,
                self._read,
                folder=self._stack.folder,
                address=address,
                console=self._console,
                starter=self._starter,
                door=broker.door(bus),
            )
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
            await stack.enter_async_context(open_window(self._stack.folder, fleet.view))
            stack.enter_context(self._stack.supervised_by(self._name))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            if keeper is not None:
                tasks.start_soon(self._keep, keeper)
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

    async def _open_keeper(self, stack: AsyncExitStack, broker: Broker) -> Bus:
        """The bus of the keeper, which answers on it, and lets in who is to be let in."""
        limits = self._settings.limits
        bus = await stack.enter_async_context(open_bus(broker.address.as_system(), name=_KEEPER))
        await declare_shared(bus.api, limits)
        await stack.enter_async_context(KeeperService(bus.transport, limits).open())
        await stack.enter_async_context(answer_tasks(bus, self._stack.folder / _INDEX))
        if broker.own_door is not None:
            await stack.enter_async_context(admitting(bus.transport, broker.own_door, broker.address))
        for served in (self._name, SUPERVISOR):
            await bus.declare(served, small(limits))
        return bus

    async def _keep(self, bus: Bus) -> None:
        table = self._settings.keeper
        await keep(bus, interval=table.interval, kept=table.kept)

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
