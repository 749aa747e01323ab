"""A stack that is up, asked over the bus: ps, scale, restart, down, and the same by hand."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from joining import worker
from stacks import QUICK, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, Program, command, processes_of, program, until, up

from xnai.agents import Agent
from xnai.agents.testing import fresh_server
from xnai.bus import Server
from xnai.bus.background import background_tasks
from xnai.bus.locating import STACK_FOLDER
from xnai.deploy.stack import Stack
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol.errors import TaskRejected

FIELDS = [
    *("name", "instance", "pid", "level", "uptime", "memory_mb"),
    *("done", "failed", "running", "restarts", "last_error"),
]
REST = "import anyio\n@agent.skill\nasync def rest(seconds: float) -> None:\n    await anyio.sleep(seconds)\n"


async def ps(folder: Path) -> list[dict[str, Any]]:
    done = await command("ps", "--json", folder=folder)
    assert done.status == 0, done.err
    rows = json.loads(done.out)
    assert isinstance(rows, list)
    return rows


# Seeing


async def test_ps_lists_each_process_with_what_it_did(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="replicas = 2", other="replicas = 0")) as stack:
        async with visitor(tmp_path) as bus:
            for _ in range(3):
                await bus.call("own.pid", None, int, timeout=PATIENCE)
        rows = await ps(tmp_path)
        assert [list(row) for row in rows] == [FIELDS, FIELDS]
        assert [row["name"] for row in rows] == ["own", "own"]
        assert sorted(row["pid"] for row in rows) == processes(tmp_path, "own")
        assert {row["level"] for row in rows} == {"progressing"}
        assert sum(row["done"] for row in rows) == 3
        assert all(row["memory_mb"] > 10 and row["uptime"] > 0 and row["restarts"] == 0 for row in rows)
        shown = await command("ps", folder=tmp_path)
        assert len(shown.out.splitlines()) == 3
        assert shown.out.startswith("NAME ")
        assert await stack.stop() == 0


async def test_a_dead_child_shows_at_once_and_why(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", "@agent.skill\nasync def die() -> None:\n    import os\n    os._exit(7)\n")
    slow = "[supervisor]\nfirst_delay = 600\n"
    async with up(write_stack(tmp_path, slow, own="")) as stack, visitor(tmp_path) as bus:
        await bus.send("own.die")
        await stack.says("own  | ended with status 7; starts again in 600 s")
        (row,) = await ps(tmp_path)
        assert (row["level"], row["pid"], row["last_error"]) == ("dead", None, "ended with status 7")
        assert await stack.stop() == 0


async def test_a_stopped_process_is_a_process_and_no_more(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        (pid,) = processes(tmp_path, "own")
        os.kill(pid, signal.SIGSTOP)
        (row,) = await ps(tmp_path)
        assert (row["level"], row["pid"]) == ("process", pid)
        os.kill(pid, signal.SIGCONT)
        assert (await ps(tmp_path))[0]["level"] == "progressing"
        assert await stack.stop() == 0


async def test_an_agent_that_waits_for_another_is_shown_as_waiting(tmp_path: Path) -> None:
    write_agent(tmp_path, "base", "1 / 0\n")
    write_agent(tmp_path, "top")
    async with up(write_stack(tmp_path, QUICK, top='needs = ["base"]', base="")) as stack:
        levels = {row["name"]: row["level"] for row in await ps(tmp_path)}
        assert levels == {"top": "waiting", "base": "dead"}
        write_agent(tmp_path, "base")
        assert (await command("restart", "base", folder=tmp_path)).status == 0
        await stack.says("ready top")
        assert await stack.stop() == 0


@pytest.mark.parametrize("words", [("ps",), ("restart", "own"), ("scale", "own", "2")])
async def test_without_a_stack_there_is_nobody_to_ask(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = await command(*words, folder=write_stack(tmp_path, own=""))
    assert (done.status, done.out) == (3, "")
    assert done.err == f"error[no_bus]: No stack is up in {tmp_path}. Start it with: xnai up\n"


# Scaling


async def test_scale_starts_and_stops_processes_and_returns_when_it_has(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        for number in (3, 1, 0, 2):
            done = await command("scale", "own", str(number), "--json", folder=tmp_path)
            assert done.status == 0, done.err
            rows = json.loads(done.out)
            assert sorted(row["pid"] for row in rows) == processes(tmp_path, "own")
            assert len(rows) == number
        assert await stack.stop() == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("scale", "onw", "2"), 2, "has no agent onw, only: own, single."),
        (("scale", "own", "65"), 2, "may have 0 to 64 processes"),
        (("scale", "own", "-1"), 2, "may have 0 to 64 processes"),
        (("scale", "single", "2"), 2, "single is to be alone"),
        (("restart", "onw"), 2, "has no agent onw"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="replicas = 0", single="alone = true\nreplicas = 0")):
        done = await command(*words, folder=tmp_path)
        assert (done.status, done.out) == (status, "")
        assert said in done.err


# Restarting


async def test_a_restart_leaves_no_gap_and_loses_no_task(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", REST)
    answers: list[int] = []
    async with up(write_stack(tmp_path, own="replicas = 2")) as stack, visitor(tmp_path) as bus:
        before = processes(tmp_path, "own")
        rests = [await bus.send("own.rest", 1.5) for _ in range(8)]

        async def ask_on() -> None:
            while True:
                answers.append(await bus.call("own.pid", None, int, timeout=PATIENCE))

        async with background_tasks() as tasks:
            tasks.start_soon(ask_on)
            done = await command("restart", "own", "--json", folder=tmp_path)
            heard = len(answers)
        after = processes(tmp_path, "own")
        assert done.status == 0
        assert [row["restarts"] for row in json.loads(done.out)] == [1, 1]
        assert not set(before) & set(after)
        assert heard > 10
        assert {*before, *after} >= set(answers)
        with anyio.fail_after(PATIENCE):
            for id in rests:
                kinds = [event.kind async for event in bus.subscribe(id)]
                assert kinds.count("outcome") == 1
        assert await stack.stop() == 0
    log = (tmp_path / STACK_FOLDER / "logs" / "own.log").read_text()
    story = [line.partition(" | ")[2] for line in log.splitlines()]
    assert story[:6] == [*["ready own"] * 3, "own is leaving", "ready own", "own is leaving"]


async def test_a_replacement_that_does_not_come_up_leaves_the_old_one_at_work(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack, visitor(tmp_path) as bus:
        before = processes(tmp_path, "own")
        write_agent(tmp_path, "own", "1 / 0\n")
        done = await command("restart", "own", folder=tmp_path)
        assert (done.status, done.out) == (1, "")
        assert "error[not_ready]: A new process of own does not take tasks; the old one goes on: " in done.err
        assert "own.py fails: ZeroDivisionError" in done.err
        assert processes(tmp_path, "own") == before
        assert [await bus.call("own.pid", None, int, timeout=PATIENCE)] == before
        assert await stack.stop() == 0


async def test_an_agent_that_is_to_be_alone_leaves_before_the_next_one_comes(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", "import fcntl\nfile = open('lock', 'w')\nfcntl.flock(file, 6)\n")
    async with up(write_stack(tmp_path, own="alone = true")) as stack:
        assert (await command("restart", "own", folder=tmp_path)).status == 0
        assert stack.out == ["own  | ready own", "ready", "own  | ready own"]
        assert await stack.stop() == 0


# Going down


async def test_down_returns_when_nothing_is_left_and_does_nothing_where_nothing_is_up(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        done = await command("down", folder=tmp_path)
        assert (done.status, done.out, done.err) == (0, "down\n", "")
        assert await stack.ends() == 0
        assert processes_of(tmp_path) == {}
    assert stack.err[1:] == ["xnai | asked to go down: stopping", "own  | own is leaving"]
    done = await command("down", "--json", folder=tmp_path)
    assert (done.status, json.loads(done.out)) == (0, {"down": False})


async def test_down_signals_a_supervisor_that_does_not_answer(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", "print('importing', flush=True)\nimport time\ntime.sleep(600)\n")
    async with program("up", folder=write_stack(tmp_path, own="")) as stack:
        await stack.prints("own  | importing")
        folder = Stack(tmp_path / STACK_FOLDER)
        await until(lambda: folder.supervision() is not None)
        (folder.folder / "bus.json").write_text('{"url":"nats://127.0.0.1:1"}')
        done = await command("down", folder=tmp_path)
        assert (done.status, done.out) == (0, "down\n")
        assert "gets a signal" in done.err
        assert await stack.ends() == 0


# Over the bus


async def test_the_supervisor_is_an_agent_that_starts_only_what_its_settings_name(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack, visitor(tmp_path) as bus:
        name = agent_name(tmp_path / STACK_FOLDER)
        assert re.fullmatch("supervisor-[0-9a-f]{8}", name)
        spawned = await bus.call(f"{name}.spawn", {"agent": "own"}, timeout=PATIENCE)
        assert sorted(row["pid"] for row in spawned) == processes(tmp_path, "own")
        assert len(spawned) == 2
        assert await bus.call("supervisor.list", timeout=PATIENCE)
        assert await bus.call(f"{name}.stop", {"agent": "own"}, timeout=PATIENCE) == []
        assert processes(tmp_path, "own") == []
        for payload in ({"agent": "sh"}, {"agent": "own", "command": "sh"}, {"agent": "../own"}, "own", None):
            with pytest.raises(TaskRejected):
                await bus.call(f"{name}.spawn", payload, timeout=PATIENCE)
        assert processes(tmp_path, "own") == []
        assert await stack.stop() == 0


@asynccontextmanager
async def two_stacks(left: Path, right: Path, **variables: str) -> AsyncIterator[tuple[Program, Program]]:
    """Two folders on one broker, each with two agents; `both` is in each of them."""
    for folder, own in ((left, "here"), (right, "there")):
        folder.mkdir()
        write_agent(folder, own)
        write_agent(folder, "both")
    async with fresh_server() as server:
        env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token, **variables}
        async with (
            up(write_stack(left, here="", both="replicas = 0"), env=env) as one,
            up(write_stack(right, there="", both="replicas = 0"), env=env) as other,
        ):
            yield one, other


async def test_each_of_two_supervisors_starts_what_it_is_asked_to(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    async with two_stacks(left, right) as (one, other), visitor(left) as bus:
        for folder in (right, left):
            supervisor = agent_name(folder / STACK_FOLDER)
            await bus.call(f"{supervisor}.scale", {"agent": "both", "replicas": 2}, timeout=PATIENCE)
            assert len(processes(folder, "both")) == 2
        assert [row["name"] for row in await ps(left)] == ["here", "both", "both"]
        assert await other.stop() == 0
        await one.says(f"{agent_name(right / STACK_FOLDER)} on ")
        await one.says("has left")
        assert await one.stop() == 0


async def test_a_spawn_without_a_place_goes_where_the_least_is_to_do(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    async with two_stacks(left, right) as (one, other), visitor(left) as bus:
        for _ in range(4):
            await bus.call("supervisor.spawn", {"agent": "both"}, timeout=PATIENCE)
        assert [len(processes(folder, "both")) for folder in (left, right)] == [2, 2]
        await bus.call("supervisor.spawn", {"agent": "there"}, timeout=PATIENCE)
        assert len(processes(right, "there")) == 2
        with pytest.raises(TaskRejected, match="None of 2 supervisors has a place for nobody"):
            await bus.call("supervisor.spawn", {"agent": "nobody"}, timeout=PATIENCE)
        assert await other.stop() == 0
        assert await one.stop() == 0


async def test_the_death_of_a_supervisor_is_seen_by_the_other(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    stacks = two_stacks(left, right, XNAI_LIMITS_LEASE="3s")
    async with stacks as (one, other), visitor(left) as bus:
        os.kill(other.pid, signal.SIGKILL)
        await one.says(f"process {other.pid}, is lost: its lease has ended")
        await bus.call("supervisor.spawn", {"agent": "both"}, timeout=PATIENCE)
        assert len(processes(left, "both")) == 1
        assert await one.stop() == 0


async def test_a_supervisor_of_another_release_keeps_no_stack_from_coming_up(
    server: Server, tmp_path: Path
) -> None:
    other = Agent("supervisor-00000000", roles=["supervisor"], version="9.0.0")

    @other.skill(name="list")
    async def rows(page: int) -> str:
        return f"page {page}"

    write_agent(tmp_path, "own")
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    async with worker(server, other), up(write_stack(tmp_path, own=""), env=env) as stack:
        name = agent_name(tmp_path / STACK_FOLDER)
        assert f"xnai | answers to {name} and not to supervisor: {name} " in "\n".join(stack.err)
        assert [row["name"] for row in await ps(tmp_path)] == ["own"]
        assert await stack.stop() == 0
