"""The supervisor of a stack that is up: whether it answers, and what it says of its agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning
from xnai.deploy.doctor.stack import is_stopped, is_up
from xnai.deploy.stack import Stack
from xnai.deploy.supervisor.orders import DEAD, WAITING, Row
from xnai.deploy.supervisor.window import look_through
from xnai.protocol.presence import Level

_TAKES_NONE = (Level.PROCESS, Level.LINK)


async def answers(case: Case) -> AsyncIterator[Finding]:
    """Whether the supervisor answers, and its agents take tasks; nothing where no stack is up."""
    pid = Stack(case.folder).holder() if is_up(case.folder) else None
    if pid is None:
        return
    if is_stopped(case, pid):
        what = f"The supervisor, process {pid}, is stopped: no agent that ends is started again."
        yield problem("supervisor", what, f"kill -CONT {pid}")
        return
    try:
        seen = await look_through(case.folder)
    except TimeoutError:
        do = "Look at `xnai logs xnai`; `xnai down`, then `xnai up` starts it anew."
        yield problem("supervisor", f"The supervisor, process {pid}, does not answer.", do)
        return
    if seen is None:
        yield warning("supervisor", "The stack is just coming up or going down.", "Look again in a moment.")
        return
    yield fine("supervisor", f"The supervisor, process {pid}, answers.")
    for finding in _agents(case, seen.rows, linked=seen.linked):
        yield finding


def _agents(case: Case, rows: Sequence[Row], *, linked: bool) -> Iterator[Finding]:
    """What is wrong with the processes; a link that all have lost is a matter of the broker."""
    stopped = {row.pid for row in rows if row.pid and is_stopped(case, row.pid)}
    silent = _TAKES_NONE if linked else ()
    wrong = [row for row in rows if row.level in (DEAD, WAITING, *silent) or row.pid in stopped]
    for row in wrong:
        if row.level == DEAD:
            why = f": {row.last_error.rstrip('.')}" if row.last_error else ""
            what, do = f"{row.name} is dead{why}.", f"See `xnai logs {row.name}`; `xnai restart {row.name}`."
            yield problem("agents", what, do)
        elif row.level == WAITING:
            yield warning(
                "agents", f"{row.name} waits for what it needs.", "See `xnai ps` for what that does."
            )
        elif row.pid in stopped:
            yield problem("agents", f"{row.name}, process {row.pid}, is stopped.", f"kill -CONT {row.pid}")
        else:
            what = f"{row.name}, process {row.pid}, runs and takes no tasks."
            do = f"If it has not just begun: `xnai logs {row.name}`, then `xnai restart {row.name}`."
            yield warning("agents", what, do)
    if not wrong and linked:
        running = f"{len(rows)} process{'' if len(rows) == 1 else 'es'}"
        yield fine("agents", f"All agents take tasks, in {running}.")
