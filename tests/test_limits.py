"""What a process of an agent may take of memory and processors, and what becomes of one that wants more."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from stacks import QUICK, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, XNAI, Program, command, processes_of, program, until

from xnai.deploy.supervisor.families import families, held, resident

_MOUNTED = Path("/sys/fs/cgroup")
_PARENT = """
import os, subprocess
children = []

def started(code: str, megabytes: int) -> int:
    words = [sys.executable, "-c", code, str(megabytes)]
    children.append(subprocess.Popen(words, stdin=-1, stdout=-1))
    children[-1].stdout.readline()
    return children[-1].pid

def take(megabytes: int) -> None:
    file = os.memfd_create("held")
    for _ in range(megabytes):
        os.write(file, bytes(1_000_000))

@agent.skill(max_attempts=1)
async def grow(megabytes: int) -> None:
    take(megabytes)

@agent.skill(max_attempts=1)
async def let_grow(megabytes: int) -> int:
    import inspect
    first = "import os, sys\\nopen('/proc/self/oom_score_adj', 'w').write('1000')\\n"
    return started(f"{first}{inspect.getsource(take)}\\ntake(int(sys.argv[1]))", megabytes)

@agent.skill
async def start(megabytes: int) -> int:
    code = "import sys; held = b'x' * (int(sys.argv[1]) * 1_000_000); print(1, flush=True); input()"
    return started(code, megabytes)
"""
"""What `take` takes is resident in no process: the kernel counts it, and the supervisor does not."""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 that a stack can have for itself."""
    place = _MOUNTED / f"xnai-test-{os.getpid()}"
    try:
        has = (_MOUNTED / "cgroup.subtree_control").read_text().split()
        if not {"memory", "cpu"}.issubset(has):
            (_MOUNTED / "cgroup.subtree_control").write_text("+memory +cpu")
        place.mkdir()
    except OSError:
        pytest.skip("no control group of version 2 with memory and processors can be made here")
    try:
        yield place
    finally:
        for each in (*place.glob("*/"), place):
            each.rmdir()


def below(group: Path) -> list[str]:
    return [place.name for place in group.glob("*/")]


@asynccontextmanager
async def up_in(group: Path, folder: Path) -> AsyncIterator[Program]:
    """A stack that is ready, in a control group."""
    start = ("sh", "-c", f'echo $$ > {group / "cgroup.procs"}; exec "$@"', "sh", *XNAI)
    async with program("up", folder=folder, start=start) as stack:
        await stack.prints("ready")
        yield stack


def group_of(pid: int) -> Path:
    said = Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1]
    return _MOUNTED / said.removeprefix("0::/")


def limits_of(pid: int) -> list[str]:
    return [(group_of(pid) / name).read_text().strip() for name in ("memory.max", "cpu.max")]


async def last_error(folder: Path) -> str:
    rows = json.loads((await command("ps", "--json", folder=folder)).out)
    return str(rows[0]["last_error"])


# Where the kernel keeps them


async def test_a_process_gets_the_memory_and_the_processors_of_its_settings(
    tmp_path: Path, group: Path
) -> None:
    write_agent(tmp_path, "own")
    write_agent(tmp_path, "free")
    tables = {"free": "", "own": 'replicas = 2\nmemory = "256MiB"\ncpu = 0.5'}
    async with up_in(group, write_stack(tmp_path, **tables)) as stack:
        pids = processes(tmp_path, "own")
        assert [limits_of(pid) for pid in pids] == [["268435456", "50000 100000"]] * 2
        assert len({group_of(pid) for pid in pids}) == 2
        (free,) = processes(tmp_path, "free")
        assert group_of(free) == group_of(stack.pid)
        write_stack(tmp_path, **tables | {"own": 'replicas = 2\nmemory = "512MiB"'})
        assert (await command("up", folder=tmp_path)).status == 0
        assert [limits_of(pid) for pid in pids] == [["536870912", "max 100000"]] * 2
        assert processes(tmp_path, "own") == pids
        assert (await command("scale", "own", "1", folder=tmp_path)).status == 0
        assert await stack.stop() == 0
    assert below(group) == []


async def test_what_holds_more_than_it_may_is_ended_by_the_kernel_and_that_is_said(
    tmp_path: Path, group: Path
) -> None:
    write_agent(tmp_path, "own", _PARENT)
    async with up_in(group, write_stack(tmp_path, QUICK, own='memory = "200MB"')) as stack:
        async with visitor(tmp_path) as bus:
            await bus.send("own.grow", 600)
        await stack.says("ready own", times=2)
        assert await last_error(tmp_path) == "ended by the kernel: it held more than the 200 MB that it may"
        assert await stack.stop() == 0
    assert below(group) == []


async def test_a_process_that_an_agent_started_is_ended_alone(tmp_path: Path, group: Path) -> None:
    write_agent(tmp_path, "own", _PARENT)
    async with up_in(group, write_stack(tmp_path, QUICK, own='memory = "200MB"')) as stack:
        before = processes(tmp_path, "own")
        async with visitor(tmp_path) as bus:
            await bus.call("own.let_grow", 600, int, timeout=PATIENCE)
        await stack.says("own  | the kernel ended a process of it: it held more than the 200 MB that it may")
        assert processes(tmp_path, "own") == before
        assert await stack.stop() == 0


async def test_what_a_killed_supervisor_left_is_removed_by_the_next_one(tmp_path: Path, group: Path) -> None:
    write_agent(tmp_path, "own")
    write_stack(tmp_path, own='memory = "256MiB"')
    async with up_in(group, tmp_path) as stack:
        stack.process.kill()
        await until(lambda: processes_of(tmp_path) == {})
    assert below(group) != []
    (group / "cgroup.subtree_control").write_text("-memory -cpu")  # otherwise nobody could join it
    async with up_in(group, tmp_path) as stack:
        assert await stack.stop() == 0
    assert below(group) == []


# Where nobody but the supervisor does


async def test_processors_that_cannot_be_kept_are_said_once(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with program("up", folder=write_stack(tmp_path, own="replicas = 2\ncpu = 0.5")) as stack:
        await stack.prints("ready")
        write_stack(tmp_path, own="replicas = 2\ncpu = 0.7")
        assert (await command("up", folder=tmp_path)).out == "nothing has changed\n"
        said = [line for line in stack.err if "cpu of own cannot be kept here: " in line]
        kept = all(group_of(pid).name.startswith("xnai-") for pid in processes(tmp_path, "own"))
        assert await stack.stop() == 0
    assert len(said) == (0 if kept else 1)
    if kept:
        pytest.skip("control groups can be made here")


async def test_what_a_process_started_counts_as_its_own(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", _PARENT)
    async with program("up", folder=write_stack(tmp_path, QUICK, own='memory = "400MB"')) as stack:
        await stack.prints("ready")
        async with visitor(tmp_path) as bus:
            child = await bus.call("own.start", 335, int, timeout=PATIENCE)
        await stack.says("own  | holds ")
        await stack.says("ready own", times=2)
        await until(lambda: resident(child) in (None, 0))
        assert await last_error(tmp_path) == "held more memory than it may"
        assert await stack.stop() == 0


async def test_a_family_is_what_a_process_started_and_what_is_in_its_session(tmp_path: Path) -> None:
    """The shell starts one, one whose parent ends, and one that has a session of its own."""
    script = "sleep 600 & (sleep 600 &) ; setsid sleep 600 & wait"

    def sleeping() -> set[int]:
        return {pid for pid, words in processes_of(tmp_path).items() if words.startswith("sleep")}

    async with program("-c", script, folder=tmp_path, start=("setsid", "sh")) as shell:
        await until(lambda: len(sleeping()) == 3)
        await until(lambda: set(families([shell.pid])[shell.pid]) == {shell.pid, *sleeping()})
        ours = families([os.getpid(), shell.pid])
        assert ours[shell.pid][0] == shell.pid
        assert not set(ours[os.getpid()]) & set(ours[shell.pid])
        assert held(ours[shell.pid]) > (resident(shell.pid) or 0) > 0
        for pid in sleeping():
            os.kill(pid, 9)
