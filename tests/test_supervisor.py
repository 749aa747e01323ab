"""Agents as processes: how many, in which order, what becomes of those that die, and how they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import anyio
import pytest
from stacks import QUICK, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, SMALL, command, processes_of, program, settings, until, up

from xnai.deploy.plan import Policy
from xnai.deploy.supervisor.place import delay_after

# How many


async def test_an_agent_runs_in_as_many_processes_as_its_settings_say(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="replicas = 3")) as stack:
        labels = sorted(line for line in stack.out if line.endswith("ready own"))
        assert labels == ["own   | ready own", "own.2 | ready own", "own.3 | ready own"]
        assert len(processes(tmp_path, "own")) == 3
        async with visitor(tmp_path) as bus:
            assert await bus.call("own.pid", None, int, timeout=PATIENCE) in processes(tmp_path, "own")
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}


async def test_an_agent_may_have_no_process_at_first(tmp_path: Path) -> None:
    async with up(write_stack(tmp_path, own="replicas = 0")) as stack:
        assert processes(tmp_path, "own") == []
        assert await stack.stop() == 0


# What becomes of one that dies


async def test_an_agent_that_dies_again_and_again_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    write_agent(tmp_path, "good")
    write_agent(tmp_path, "bad", "print('dear me', file=sys.stderr)\n1 / 0\n")
    async with up(write_stack(tmp_path, QUICK, good="", bad="")) as stack:
        said = await stack.says("bad  | died 2 times, each within 60 s, and is given up: error[")
        assert "bad.py fails: ZeroDivisionError: division by zero" in said
        assert "xnai | not ready: bad" in stack.err
        assert len([line for line in stack.err if line == "bad  | dear me"]) == 2
        async with visitor(tmp_path) as bus:
            assert await bus.call("good.pid", None, int, timeout=PATIENCE)
        assert await stack.stop() == 1
    assert stack.err[-1] == "xnai | given up: bad"


@pytest.mark.parametrize(
    ("policy", "status", "again"),
    [("always", 0, True), ("on_failure", 0, False), ("on_failure", 3, True), ("never", 3, False)],
)
async def test_what_starts_again_is_what_the_policy_says(
    tmp_path: Path, policy: str, status: int, again: bool
) -> None:
    write_agent(tmp_path, "own", f"sys.exit({status})\n")
    async with up(write_stack(tmp_path, QUICK, own=f'restart = "{policy}"')) as stack:
        assert any("starts again" in line for line in stack.err) == again
        assert f"own  | ended with status {status}" in "\n".join(stack.err)
        assert await stack.stop() == int(again or status != 0)


def test_the_first_new_start_is_soon_and_later_ones_spread() -> None:
    policy = Policy(first_delay=1, longest_delay=10)
    assert delay_after(1, policy) == 1
    for deaths, most in ((2, 2), (3, 4), (4, 8), (5, 10), (500, 10)):
        drawn = [delay_after(deaths, policy) for _ in range(50)]
        assert all(1 <= delay <= most for delay in drawn)
        assert len(set(drawn)) > 1


async def test_a_working_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, QUICK, own='cwd = "nowhere"')) as stack:
        assert f"cannot be started in {tmp_path / 'nowhere'}: No such file" in "\n".join(stack.err)
        assert await stack.stop() == 1


# In which order


async def test_what_is_needed_is_ready_first_and_leaves_last(tmp_path: Path) -> None:
    for name in ("top", "middle", "base"):
        write_agent(tmp_path, name, f"print('{name} begins', flush=True)\n")
    tables = {"top": 'needs = ["middle"]', "middle": 'needs = ["base"]', "base": ""}
    async with up(write_stack(tmp_path, **tables)) as stack:
        assert [line.partition("| ")[2] for line in stack.out[:-1]] == [
            f"{name} begins" if begins else f"ready {name}"
            for name in ("base", "middle", "top")
            for begins in (True, False)
        ]
        assert await stack.stop() == 0
    left = [line.partition("| ")[2] for line in stack.err if line.endswith("is leaving")]
    assert left == ["top is leaving", "middle is leaving", "base is leaving"]


async def test_what_needs_an_agent_that_was_given_up_waits_and_says_so(tmp_path: Path) -> None:
    write_agent(tmp_path, "base", "1 / 0\n")
    write_agent(tmp_path, "top")
    async with up(write_stack(tmp_path, QUICK, top='needs = ["base"]', base="")) as stack:
        assert "top  | waits: it needs base" in stack.err
        assert "xnai | not ready: top, base" in stack.err
        assert processes(tmp_path, "top") == []
        assert await stack.stop() == 1


@pytest.mark.parametrize(
    ("top", "base", "words"),
    [
        ('needs = ["base"]', 'needs = ["top"]', "none of them could start"),
        ('needs = ["bsae"]', "", "top needs bsae, which is not there. Did you mean base?"),
        ("alone = true\nreplicas = 2", "", "top is to be alone, and has 2 replicas."),
    ],
)
async def test_what_could_never_start_is_refused(tmp_path: Path, top: str, base: str, words: str) -> None:
    done = await command("up", folder=write_stack(tmp_path, top=top, base=base))
    assert (done.status, done.out) == (1, "")
    assert "error[invalid_settings]: " in done.err
    assert words in done.err


# With what


async def test_a_process_has_the_folder_and_the_rank_that_its_settings_say(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    source = (
        "import os, beside\n"
        "rank = os.getpriority(os.PRIO_PROCESS, 0), open('/proc/self/oom_score_adj').read().strip()\n"
        "print(os.getcwd(), *rank, beside.WORD)\n"
    )
    write_agent(tmp_path, "own", source)
    table = 'cwd = "below"\nnice = 7\noom_score_adj = 500'
    async with up(write_stack(tmp_path, own=table)) as stack:
        assert f"own  | {tmp_path / 'below'} 7 500 found" in stack.out
        assert await stack.stop() == 0


# How they leave


async def test_a_slow_leave_is_counted_down(tmp_path: Path) -> None:
    (tmp_path / "xnai.toml").write_text(settings("maths", more=f"{SMALL}\n[supervisor]\nstop_timeout = 9\n"))
    async with up(tmp_path) as stack, visitor(tmp_path) as bus:
        id = await bus.send("maths.rest", 600)
        async for event in bus.subscribe(id):
            if event.kind == "status":
                break
        stack.process.send_signal(signal.SIGTERM)
        assert (await stack.says("maths | has ")).endswith(" s left to leave")
        assert await stack.stop() == 0


async def test_the_service_manager_hears_of_the_stack_and_not_of_its_agents(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place)
        manager.settimeout(PATIENCE)
        env = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "200000"}
        async with up(write_stack(tmp_path, own=""), env=env) as stack:
            heard = [await anyio.to_thread.run_sync(manager.recv, 100) for _ in range(3)]
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert await stack.stop() == 0
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(100))
        assert heard[-1] == b"STOPPING=1"
        assert heard.count(b"READY=1") == heard.count(b"STOPPING=1") == 1


async def test_nothing_of_a_stack_outlives_it_when_it_is_killed(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with program("up", folder=write_stack(tmp_path, own="replicas = 2")) as stack:
        await stack.prints("ready")
        os.kill(stack.pid, signal.SIGKILL)
        await until(lambda: processes_of(tmp_path) == {})
