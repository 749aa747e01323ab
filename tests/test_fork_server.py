"""Agents are forked by a process that has done their imports, and nobody could tell by how they are."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from stacks import QUICK, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, Program, command, processes_of, until, up

FORKED = '__import__("__main__").__spec__.name == "xnai.deploy.forkserver"'
PLAINLY = 'env = { LC_NAME = "C" }'  # is read once, by a program that starts
FACTS = f"""\
import gc, json, os, signal, threading
print(json.dumps({{
    "forked": {FORKED},
    "argv": sys.argv[:2] + [word.partition("=")[0] for word in sys.argv[2:]],
    "orig_argv": sys.orig_argv[:5],
    "path": sys.path,
    "flags": list(sys.flags),
    "cwd": os.getcwd(),
    "session": os.getsid(0) == os.getpid() == os.getpgrp(),
    "parent": os.getppid(),
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stderr.errors],
    "tty": [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": threading.active_count(),
    "variables": sorted(name for name in os.environ if name != "LC_NAME"),
}}))
"""


def fork_server(folder: Path) -> int | None:
    """The process that forks the agents of a stack."""
    found = [pid for pid, words in processes_of(folder).items() if "xnai.deploy.forkserver" in words]
    return found[0] if found else None


def sockets(pid: int) -> set[str]:
    """The sockets that a process has open."""
    found = set[str]()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed just now
            found.add(os.readlink(file))
    return {place for place in found if place.startswith("socket:")}


def facts(stack: Program, name: str) -> dict[str, object]:
    """What an agent has printed."""
    (line,) = [line for line in stack.out if line.startswith(name) and "| {" in line]
    told: dict[str, object] = json.loads(line.partition("| ")[2])
    return told


async def test_a_process_that_was_forked_is_as_one_that_was_started(tmp_path: Path) -> None:
    write_agent(tmp_path, "one", FACTS)
    write_agent(tmp_path, "two", FACTS)
    async with up(write_stack(tmp_path, one="", two=PLAINLY)) as stack:
        one, two = facts(stack, "one"), facts(stack, "two")
        assert (one.pop("forked"), two.pop("forked")) == (True, False)
        assert json.loads(json.dumps(one).replace("one.py", "two.py")) == two
        assert one["parent"] == stack.pid
        (pid,), server = processes(tmp_path, "one"), fork_server(tmp_path)
        assert server is not None
        assert sockets(pid).isdisjoint(sockets(server))
        words = processes_of(tmp_path)[pid].strip()
        assert words.endswith(f" -P -m xnai.deploy.cli run one.py --parent={stack.pid}")
        assert await stack.stop() == 0


async def test_variables_of_an_agent_have_their_effect(tmp_path: Path) -> None:
    source = f"import os\nprint(json := {FORKED}, os.environ['WORD'], sys.flags.optimize, flush=True)\n"
    write_agent(tmp_path, "own", f"{source}os.system('echo and $WORD')\n")
    write_agent(tmp_path, "other", source)
    tables = {"own": 'env = { WORD = "said" }', "other": 'env = { WORD = "said", PYTHONOPTIMIZE = "1" }'}
    async with up(write_stack(tmp_path, **tables)) as stack:
        assert "own   | True said 0" in stack.out
        assert "own   | and said" in stack.out
        assert "other | False said 1" in stack.out
        assert await stack.stop() == 0


async def test_processes_that_were_forked_draw_different_numbers(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", f"import random\nprint('drawn', {FORKED}, random.random())\n")
    async with up(write_stack(tmp_path, own="replicas = 3")) as stack:
        drawn = {line.partition("drawn ")[2] for line in stack.out if "drawn" in line}
        assert len(drawn) == 3
        assert all(each.startswith("True ") for each in drawn)
        assert await stack.stop() == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(7)", 7), ("os._exit(0)", 0), ("os.abort()", -6), ("os.kill(os.getpid(), 9)", -9)],
)
async def test_how_a_process_that_was_forked_ends_is_known(tmp_path: Path, end: str, status: int) -> None:
    write_agent(tmp_path, "own", f"import os\nprint('forked', {FORKED}, flush=True)\n{end}\n")
    async with up(write_stack(tmp_path, own='restart = "never"')) as stack:
        assert "own  | forked True" in stack.out
        assert f"own  | ended with status {status}" in stack.err
        await stack.stop()


async def test_agents_outlive_the_fork_server_and_another_one_follows(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", f"print('forked', {FORKED}, flush=True)\n")
    async with up(write_stack(tmp_path, QUICK, own="")) as stack, visitor(tmp_path) as bus:
        first, before = fork_server(tmp_path), processes(tmp_path, "own")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await stack.says("xnai | the fork server ended with status -9; agents start without it")
        assert [await bus.call("own.pid", None, int, timeout=PATIENCE)] == before
        assert (await command("restart", "own", folder=tmp_path)).status == 0
        await until(lambda: fork_server(tmp_path) not in (None, first))
        os.kill(processes(tmp_path, "own")[0], signal.SIGKILL)
        await stack.says("ready own", times=3)
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}


async def test_a_stop_that_goes_to_every_process_is_no_end_of_the_fork_server(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        server = fork_server(tmp_path)
        assert server is not None
        os.kill(server, signal.SIGTERM)
        assert (await command("restart", "own", folder=tmp_path)).status == 0
        assert fork_server(tmp_path) == server
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}
    assert "fork server" not in "\n".join(stack.err)


async def test_where_no_fork_server_comes_up_agents_are_started_plainly(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    refusing = "import sys\nif 'xnai.deploy.forkserver' in sys.orig_argv:\n    sys.exit('not here')\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(refusing)
    write_agent(tmp_path, "own", f"print('forked', {FORKED}, flush=True)\n")
    async with up(write_stack(tmp_path, own=""), env={"PYTHONPATH": str(tmp_path / "site")}) as stack:
        assert "own  | forked False" in stack.out
        await stack.says("the fork server ended with status 1: SystemExit: not here; agents start without it")
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}
