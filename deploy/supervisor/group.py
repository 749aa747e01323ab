"""An agent of the stack: the processes that it is to have, started in order, scaled, replaced, seen off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskGroup

from xnai.deploy.members import Job
from xnai.deploy.plan import AgentPlan, Policy
from xnai.deploy.starting import Starter
from xnai.deploy.supervisor.confining import Confined
from xnai.deploy.supervisor.orders import NotReady
from xnai.deploy.supervisor.place import Place, State
from xnai.protocol.errors import InvalidArgument

_READY_TIMEOUT = 120.0  # seconds that a replacement has, model files are large
Show = Callable[[str, str, str], None]
"""Gets the label of a process, "stdout" or "stderr", and a line."""
LetServe = Callable[[tuple[str, ...]], Awaitable[Job]]
"""Lets the agent serve some roles; returns what its processes are started with from then on."""
Confine = Callable[[str, int, AgentPlan], Confined | None]
"""Gets the label of a process, its id, and the settings to keep it to."""


def label_of(name: str, number: int) -> str:
    """What the n-th process of an agent is called where its lines are shown."""
    return name if number == 1 else f"{name}.{number}"


class Group:
    """One agent.

    Attributes:
        table: its settings.
        wanted: how many processes it is to have.
        places: its processes, those included that were given up.
        ready: set once it has been ready: all its processes at the same time.
        settled: set once it is ready, or will not be unless somebody does something about it.
        gone: set when nothing of it is left.
    """

    def __init__(
        self,
        name: str,
        table: AgentPlan,
        job: Job,
        *,
        policy: Policy,
        show: Show,
        starter: Starter,
        let_serve: LetServe,
        confine: Confine,
    ) -> None:
        self.name, self.table, self.job = name, table, job
        self.wanted = table.replicas
        self.places: list[Place] = []
        self.ready, self.settled, self.gone = anyio.Event(), anyio.Event(), anyio.Event()
        self._policy, self._show, self._starter = policy, show, starter
        self._let_serve, self._confine = let_serve, confine
        self._scope = anyio.CancelScope()
        self._changing = anyio.Lock()
        self._started = False
        self._tasks: TaskGroup

    @property
    def given_up(self) -> bool:
        """Whether a process of it is missing for good."""
        return any(place.state is State.GIVEN_UP for place in self.places)

    @property
    def leave_by(self) -> float | None:
        """When the last process that is leaving will be killed; None where none is."""
        members = [place.member for place in self.places]
        return max((each.leave_by for each in members if each.leave_by and each.status is None), default=None)

    @property
    def waiting(self) -> bool:
        """Whether it is to start when what it needs is ready."""
        return not self._started

    async def run(self, needs: Sequence[Group]) -> None:
        """Start it when all of `needs` are ready; keep it until told to leave."""
        try:
            with self._scope:
                async with anyio.create_task_group() as self._tasks:
                    await self._wait_for(needs)
                    self._started = True
                    for _ in range(self.wanted):
                        self._add()
                    self._look()
                    await anyio.sleep_forever()
        finally:
            self.settled.set()
            self.gone.set()

    async def _wait_for(self, needs: Sequence[Group]) -> None:
        for group in needs:
            await group.settled.wait()
        if missing := [group.name for group in needs if not group.ready.is_set()]:
            self._show(self.name, "stderr", f"waits: it needs {', '.join(missing)}")
            self.settled.set()
        for group in needs:
            await group.ready.wait()

    def leave(self, *, hurry: bool = False) -> None:
        """Ask all processes to go, or with `hurry` end them; `gone` is set when they have."""
        if hurry:
            for place in self.places:
                place.member.hurry.cancel()
        self._scope.cancel()

    # Changing

    def take(self, table: AgentPlan) -> None:
        """Go by these settings from now on, where they concern no process that runs."""
        self.table = table
        for place in self.places:
            place.restart = table.restart
            place.confine()

    async def scale(self, replicas: int) -> None:
        """Have so many processes, and return when they are ready, or gone.

        Raises:
            InvalidArgument: it is to be alone.
            NotReady: a new one does not come up.
        """
        if self.table.alone and replicas > 1:
            raise InvalidArgument(f"{self.name} is to be alone, as its settings say.")
        async with self._changing:
            self.wanted = replicas
            if self.waiting:
                return
            self.places = [place for place in self.places if not place.over]
            surplus = self.places[replicas:]
            for place in surplus:
                place.retire()
            added = [self._add() for _ in range(replicas - len(self.places))]
            for place in surplus:
                await place.gone.wait()
                self.places.remove(place)
            for place in added:
                await place.settled.wait()
            self._look()
        if wrong := [place for place in added if place.over]:
            raise NotReady(f"{self.name} does not come up: {wrong[0].last_error}")

    async def replace(
        self, table: AgentPlan | None = None, job: Job | None = None, *, alone: bool = False
    ) -> None:
        """New processes for the old ones, one after another: each takes tasks before the old one leaves.

        With `alone`, or where its settings say so, the old one leaves first. What was given up gets another
        chance.

        Raises:
            NotReady: the new one does not take tasks; what is old goes on.
        """
        async with self._changing:
            before = self.table, self.job
            self.table, self.job = table or self.table, job or self.job
            try:
                for old in list(self.places):
                    await self._replace(old, alone=alone or self.table.alone)
            except NotReady:
                self.table, self.job = before
                raise
            finally:
                self._look()

    async def _replace(self, old: Place, *, alone: bool) -> None:
        if alone or old.over:
            old.retire()
            await old.gone.wait()
            self.places.remove(old)
        new = self._add(number=old.number, trial=old in self.places)
        new.restarts = old.restarts + 1
        is_ready = False
        try:
            with anyio.move_on_after(_READY_TIMEOUT):
                await new.settled.wait()
                is_ready = not new.over
        finally:
            if not is_ready and old in self.places:
                new.retire()
                self.places.remove(new)
        if not is_ready:
            late = "it is leaving" if new.over else f"it is not ready after {_READY_TIMEOUT:g} s"
            why = new.last_error or late
            goes_on = "; the old one goes on" if old in self.places else ""
            raise NotReady(f"A new process of {self.name} does not take tasks{goes_on}: {why}")
        if old in self.places:
            old.retire()
            await old.gone.wait()
            self.places.remove(old)

    def _add(self, *, number: int | None = None, trial: bool = False) -> Place:
        if self._scope.cancel_called:
            raise NotReady(f"{self.name} is leaving.")
        taken = {place.number for place in self.places}
        number = number or next(each for each in range(1, len(taken) + 2) if each not in taken)
        label = label_of(self.name, number)
        place = Place(
            number,
            self.job,
            self._policy,
            restart=self.table.restart,
            show=lambda kind, line: self._show(label, kind, line),
            confine=lambda pid: self._confine(label, pid, self.table),
            starter=self._starter,
            trial=trial,
        )
        place.on_settled = self._look
        place.on_declared = self._declared
        self.places = sorted([*self.places, place], key=lambda each: each.number)
        self._tasks.start_soon(place.run)
        return place

    async def _declared(self, roles: tuple[str, ...]) -> Job:
        """A process serves these roles: what the next one is started with, which may."""
        self.job = await self._let_serve(roles)
        return self.job

    def _look(self) -> None:
        """See whether all of it is ready, or settled."""
        if self._started and all(place.settled.is_set() for place in self.places):
            self.settled.set()
            if not any(place.over for place in self.places):
                self.ready.set()
