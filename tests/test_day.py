"""A day in the life of a stack: what can happen to it happens, while work goes on, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
from stacks import address, visitor
from steady_load import (
    AGENTS,
    ROLE,
    Load,
    effects,
    faults,
    load,
    stored_events,
    write_chief,
    write_clerk,
)
from terminal import PATIENCE, Program, command, processes_of, until, up
from truth import WELL, Row, Stack, column, public_keys

from xnai.bus.locating import STACK_FOLDER
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol import TaskState
from xnai.protocol.events import OUTCOME

SETTINGS = """
[limits]
log = "16MiB"
blobs = "16MiB"
lease = "2s"
ack_wait = "2s"

[supervisor]
first_delay = "2s"

[agents.clerk]
module = "clerk.py"
"""
HERE = (
    SETTINGS
    + """
replicas = 2

[agents.chief]
module = "chief.py"

[server]
tls = true
"""
)


async def test_a_day_in_the_life_of_a_stack(tmp_path: Path) -> None:
    here, there = Stack(tmp_path / "here"), Stack(tmp_path / "there")
    await make(here, there)
    async with up(here.folder) as program:
        async with visitor(here.folder) as bus, load(bus) as work:
            await scale(here, work)
            rows = await kill_a_process(here, work, program)
            await stop_a_process(here, work, rows)
            await kill_the_broker(here, work, program, rows)
            rows = await restart(here, work)
            await rotate_keys(here, work, rows)
            await let_another_machine_join(here, there, work)
            await work.stop()
        await nothing_is_lost(here, there, work)
        done = await command("down", folder=here.folder)
        assert (done.status, done.out) == (0, "down\n")
        assert await program.ends() == 0
    assert processes_of(here.folder) == processes_of(there.folder) == {}


async def make(here: Stack, there: Stack) -> None:
    """A first stack as `xnai init` makes it, with two agents more; and the folder of another machine."""
    done = await command("init", here.folder.name, folder=here.folder.parent)
    assert done.status == 0, done.err
    settings = here.folder / "xnai.toml"
    settings.write_text(settings.read_text() + HERE)
    write_chief(here.folder)
    there.folder.mkdir()
    (there.folder / "xnai.toml").write_text(SETTINGS)
    for folder in (here.folder, there.folder):
        write_clerk(folder)


async def scale(here: Stack, work: Load) -> None:
    """More processes, then fewer; all of them are at work once they are there."""
    await here.until_well(hello=[0], clerk=[0, 0], chief=[0])
    for number in (4, 2):
        rows = await here.does("scale", "clerk", str(number))
        assert {row["pid"] for row in rows} == set(here.processes("clerk"))
        assert len(await here.until_well(hello=[0], clerk=[0] * number, chief=[0])) == number + 2
    await here.until_agents(set(here.processes()))
    await work.goes_on()


async def kill_a_process(here: Stack, work: Load, program: Program) -> list[Row]:
    """One that dies is shown as dead, never as alive, until there is another one in its place."""
    victim = min(here.processes("clerk"))
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    await program.says("ended with status -9; starts again in 2 s")
    rows = await here.ps()
    assert victim not in column(rows, "clerk", "pid")
    for row in rows:
        if row["level"] == "dead":
            assert (row["name"], row["last_error"]) == ("clerk", "ended with status -9")
    rows = await here.until_well(hello=[0], clerk=[0, 1], chief=[0])
    (successor,) = (row for row in rows if row["restarts"] == 1)
    assert successor["uptime"] <= time.monotonic() - killed_at
    assert successor["pid"] != victim
    await work.goes_on()
    return rows


async def stop_a_process(here: Stack, work: Load, before: list[Row]) -> None:
    """One that stands still is a process and no more, also when others know it no longer; then it goes on."""
    stopped = min(here.processes("clerk"))
    here.stopped.add(stopped)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert [row["level"] for row in await here.ps() if row["pid"] == stopped] == ["process"]
        await here.until_agents(set(here.processes()) - {stopped})
        await work.goes_on()
        assert [row["level"] for row in await here.ps() if row["pid"] == stopped] == ["process"]
    finally:
        os.kill(stopped, signal.SIGCONT)
    here.stopped.clear()
    await same_processes(here, before)
    await work.goes_on()


async def kill_the_broker(here: Stack, work: Load, program: Program, before: list[Row]) -> None:
    """Whoever waits for the broker is a process, and none of them is dead or started again."""
    broker = here.broker()
    os.kill(broker, signal.SIGKILL)
    await program.says("nats-server ended with status -9")
    rows = await here.ps()
    assert {row["pid"] for row in rows} == {row["pid"] for row in before}
    assert {row["level"] for row in rows} <= {"process", "link", *WELL}
    await same_processes(here, before)
    assert here.broker() != broker
    await work.goes_on()


async def same_processes(here: Stack, before: list[Row]) -> None:
    """All are well again, and they are who they were."""
    rows = await here.until_well(hello=[0], clerk=[0, 1], chief=[0])
    for name in ("pid", "instance", "restarts"):
        assert [row[name] for row in rows] == [row[name] for row in before]
    assert all(row["uptime"] > old["uptime"] for row, old in zip(rows, before, strict=True))
    held = await here.until_agents(set(here.processes()))
    assert {each["instance"] for each in held.values()} == {row["instance"] for row in rows}


async def restart(here: Stack, work: Load) -> list[Row]:
    """New processes, one after another, that know nothing of what the old ones did."""
    for name in ("clerk", "chief"):
        old, began = here.processes(name), time.monotonic()
        rows = await here.does("restart", name)
        assert {row["pid"] for row in rows} == set(here.processes(name))
        assert not {row["pid"] for row in rows} & set(old)
        assert all(row["uptime"] <= time.monotonic() - began for row in rows)
    await here.until_agents(set(here.processes()))
    await work.goes_on()
    return await here.until_well(hello=[0], clerk=[1, 2], chief=[1])


async def rotate_keys(here: Stack, work: Load, before: list[Row]) -> None:
    """Everybody who lives here has another key, and goes on as who it is."""
    machine = agent_name(here.folder / STACK_FOLDER)
    old = public_keys(await here.does("keys"), machine)
    assert set(old) >= {*AGENTS, machine, "system"}
    assert await here.does("keys", "rotate") == sorted(old)
    with anyio.fail_after(PATIENCE):
        new = old
        while any(len(keys) > 1 for keys in new.values()) or new == old:
            new = public_keys(await here.does("keys"), machine)
    assert set(new) == set(old)
    assert not {key for keys in old.values() for key in keys} & {key for keys in new.values() for key in keys}
    rows = await here.until_well(hello=[0], clerk=[1, 2], chief=[1])
    assert [row["pid"] for row in rows] == [row["pid"] for row in before]
    await work.goes_on()


async def let_another_machine_join(here: Stack, there: Stack, work: Load) -> None:
    """Its agent is seen from here, takes tasks of here, and leaves without leaving anything behind."""
    said = await here.does("keys", "invite")
    joined = await there.does("join", "-", stdin=said["invitation"].encode())
    machine = agent_name(there.folder / STACK_FOLDER)
    assert {machine, "clerk"} <= set(joined["members"])
    ours = set(here.processes())
    async with up(there.folder) as program:
        (row,) = await there.until_well(clerk=[0])
        assert {row["pid"]} == set(there.processes())
        assert {*public_keys(await here.does("keys"), machine)} == set(joined["members"])
        held = await here.until_agents({*ours, row["pid"]})
        assert held[row["pid"]]["instance"] == row["instance"]
        await until(lambda: str(row["pid"]) in {record.by for record in effects(there.folder)})
        assert {each["pid"] for each in await here.until_well(hello=[0], clerk=[1, 2], chief=[1])} == ours
        done = await command("down", folder=there.folder)
        assert (done.status, done.out) == (0, "down\n")
        assert await program.ends() == 0
    assert processes_of(there.folder) == {}
    await here.until_agents(ours)
    await work.goes_on()


async def nothing_is_lost(here: Stack, there: Stack, work: Load) -> None:
    """Each task has the outcome that it was to have, which is what everybody was told and everything says."""
    log = await stored_events(address(here.folder))
    assert faults(work, log, here.folder, there.folder) == []
    ended = {event.id: event for event in log if event.kind == OUTCOME}
    assert {id: ended[id].state for id in work.wanted} == work.wanted
    begun = {event.id for event in log} | {record.id for record in effects(here.folder)}
    assert begun == set(ended)
    states = await listed(here)
    assert {id: states[id] for id in ended} == {id: event.state for id, event in ended.items()}
    assert TaskState.SUBMITTED not in states.values()
    for row in await here.until_well(hello=[0], clerk=[1, 2], chief=[1]):
        own = [event.state for event in ended.values() if event.instance == row["instance"]]
        completed = own.count(TaskState.COMPLETED)
        assert (row["done"], row["failed"], row["running"]) == (completed, len(own) - completed, 0), row


async def listed(here: Stack) -> dict[str, str]:
    """The tasks of our agents, and their states, of which `xnai tasks` tells, page by page."""
    rows: list[Row] = []
    after: list[str] | None = []
    while after is not None:
        page = await here.does("tasks", "--all", "--limit", "400", *after)
        rows += page["tasks"]
        after = page["next"] and ["--after", page["next"]]
    ours = [row for row in rows if row["agent"] in (*AGENTS, ROLE)]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["state"] for row in ours}
