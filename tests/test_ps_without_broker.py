"""`xnai ps` without the broker: the supervisor is asked directly, and says what the system knows."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

from stacks import processes, write_agent, write_stack
from terminal import Done, command, processes_of, up

from xnai.bus import Server
from xnai.bus.locating import STACK_FOLDER

MISSING = "The broker does not answer the supervisor: what the processes say of themselves is missing.\n"


def rows(done: Done) -> list[dict[str, Any]]:
    assert done.status == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


async def test_without_its_broker_a_stack_still_shows_its_processes(tmp_path: Path, server: Server) -> None:
    write_agent(tmp_path, "own")
    outside = f'[server]\nurl = "{server.url}"\ntoken = "{server.token}"\n'
    async with up(write_stack(tmp_path, outside, own="replicas = 2")) as stack:
        before = rows(await command("ps", "--json", folder=tmp_path))
        assert [row["level"] for row in before] == ["progressing"] * 2
        await server.stop(kill=True)
        pids = processes(tmp_path, "own")
        done = await command("ps", "--json", folder=tmp_path)
        assert done.err == MISSING
        assert [(row["level"], row["pid"] in pids) for row in rows(done)] == [("process", True)] * 2
        os.kill(pids[0], signal.SIGKILL)
        await stack.says("ended with status -9")
        left = [row["pid"] for row in rows(await command("ps", "--json", folder=tmp_path))]
        assert pids[0] not in left
        assert pids[1] in left
        await server.start()
        assert await stack.stop() == 0


async def test_a_broker_that_is_stopped_does_not_keep_ps_waiting(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        (broker,) = (pid for pid, words in processes_of(tmp_path).items() if "nats-server" in words)
        os.kill(broker, signal.SIGSTOP)
        try:
            done = await command("ps", "--json", folder=tmp_path)
            assert [(row["level"], done.err) for row in rows(done)] == [("process", MISSING)]
        finally:
            os.kill(broker, signal.SIGCONT)
        assert await stack.stop() == 0


async def test_a_supervisor_that_is_stopped_is_named(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        os.kill(stack.pid, signal.SIGSTOP)
        try:
            done = await command("ps", folder=tmp_path)
        finally:
            os.kill(stack.pid, signal.SIGCONT)
        assert (done.status, done.out) == (5, "")
        assert done.err.startswith("error[timeout]: The supervisor does not answer: it may be stopped. ")
        assert f"kill -CONT {stack.pid}" in done.err
        assert await stack.stop() == 0


async def test_only_the_owner_of_a_folder_may_look_and_its_path_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    folder.mkdir(parents=True)
    write_agent(folder, "own")
    async with up(write_stack(folder, own="")) as stack:
        socket = folder / STACK_FOLDER / "supervisor.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        (row,) = rows(await command("ps", "--json", folder=folder))
        assert [row["pid"]] == processes(folder, "own")
        assert await stack.stop() == 0
        assert not socket.exists()
