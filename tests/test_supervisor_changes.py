"""Changes to a stack that is up: `xnai up` again, `--watch`, `--detach`, and a process that grows."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from stacks import QUICK, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, Done, command, processes_of, program, up

from xnai.bus.locating import STACK_FOLDER
from xnai.deploy.stack import Stack
from xnai.deploy.supervisor.watching import sources

# Up again


async def test_up_again_changes_what_changed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("same", "changed", "wide", "gone", "new"):
        write_agent(tmp_path, name)
    tables = {"same": "", "changed": "", "wide": ""}
    async with up(write_stack(tmp_path, gone="", **tables)) as stack:
        before = {name: processes(tmp_path, name) for name in tables}
        assert await command("up", folder=tmp_path) == Done(0, "nothing has changed\n", "")
        tables |= {"changed": "concurrency = 3", "wide": "replicas = 2"}
        write_stack(tmp_path, '[supervisor]\nstop_timeout = "9s"\n', new='needs = ["same"]', **tables)
        done = await command("up", folder=tmp_path)
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines() == [
            "started new",
            "stopped gone",
            "restarted changed",
            "scaled wide to 2",
            "[supervisor] is used from the next start: xnai down, then xnai up",
        ]
        after = {name: processes(tmp_path, name) for name in (*tables, "gone", "new")}
        assert after["same"] == before["same"]
        assert set(after["wide"]) > set(before["wide"])
        assert not set(after["changed"]) & set(before["changed"])
        assert [len(after[name]) for name in ("changed", "gone", "new")] == [1, 0, 1]
        assert await stack.stop() == 0


async def test_up_again_keeps_what_was_scaled_by_hand(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        assert (await command("scale", "own", "3", folder=tmp_path)).status == 0
        assert (await command("up", folder=tmp_path)).out == "nothing has changed\n"
        assert len(processes(tmp_path, "own")) == 3
        assert await stack.stop() == 0


async def test_up_again_gives_what_was_given_up_another_chance(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", "1 / 0\n")
    async with up(write_stack(tmp_path, QUICK, own="")) as stack:
        done = await command("up", "--json", folder=tmp_path)
        changes = json.loads(done.out)
        assert (done.status, changes["restarted"], list(changes["failed"])) == (1, ["own"], ["own"])
        write_agent(tmp_path, "own")
        assert await command("up", folder=tmp_path) == Done(0, "restarted own\n", "")
        assert len(processes(tmp_path, "own")) == 1
        assert await stack.stop() == 0


async def test_settings_that_cannot_be_used_change_nothing(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        before = processes(tmp_path, "own")
        done = await command("up", folder=write_stack(tmp_path, own="replicsa = 2"))
        assert (done.status, done.out) == (1, "")
        assert "Did you mean replicas?" in done.err
        assert processes(tmp_path, "own") == before
        assert await stack.stop() == 0


async def test_a_change_that_does_not_come_up_leaves_the_old_process_and_is_tried_again(
    tmp_path: Path,
) -> None:
    write_agent(tmp_path, "own", "import os\nif 'BROKEN' in os.environ: 1 / 0\n")
    async with up(write_stack(tmp_path, own="")) as stack:
        before = processes(tmp_path, "own")
        write_stack(tmp_path, own='env = { BROKEN = "yes" }')
        for _ in range(2):
            done = await command("up", folder=tmp_path)
            assert done.status == 1
            assert done.out.startswith("not changed: own: A new process of own does not take tasks; the old")
        assert processes(tmp_path, "own") == before
        assert await stack.stop() == 0


async def test_an_agent_that_waits_may_be_told_to_wait_for_another(tmp_path: Path) -> None:
    write_agent(tmp_path, "broken", "1 / 0\n")
    for name in ("good", "middle", "top"):
        write_agent(tmp_path, name)
    tables = {"broken": "", "good": "", "top": 'needs = ["middle"]'}
    async with up(write_stack(tmp_path, QUICK, middle='needs = ["broken"]', **tables)) as stack:
        assert "xnai   | not ready: middle, broken, top" in stack.err
        write_stack(tmp_path, QUICK, middle='needs = ["good"]', **tables)
        done = await command("up", folder=tmp_path)
        assert done.status == 1
        assert done.out.startswith("started middle, top\nnot changed: broken: ")
        assert await stack.stop() == 1


# Detached


async def test_a_detached_stack_goes_on_until_it_is_taken_down(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", "print('hello from own', flush=True)\n")
    write_stack(tmp_path, own="")
    try:
        done = await command("up", "--detach", folder=tmp_path)
        pid = Stack(tmp_path / STACK_FOLDER).holder()
        assert (done.status, done.out) == (0, "ready\n")
        assert done.err.endswith(f"It goes on as process {pid}. Its logs: xnai logs. Its end: xnai down\n")
        async with visitor(tmp_path) as bus:
            assert [await bus.call("own.pid", None, int, timeout=PATIENCE)] == processes(tmp_path, "own")
        assert (await command("up", "--detach", folder=tmp_path)).out == "nothing has changed\n"
        assert "own | hello from own" in (await command("logs", folder=tmp_path)).out
    finally:
        assert (await command("down", folder=tmp_path)).out == "down\n"
    assert processes_of(tmp_path) == {}


async def test_a_detached_stack_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    write_stack(tmp_path, '[server]\nurl = "nats://127.0.0.1:1"\n', own="")
    done = await command("up", "--detach", folder=tmp_path)
    assert (done.status, done.out) == (3, "")
    assert "error[no_bus]: " in done.err
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_a_detached_stack_comes_up_leaves_nothing_and_says_so(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_agent(tmp_path, "quick")
    write_agent(tmp_path, "own", "print('importing', flush=True)\nimport time\ntime.sleep(600)\n")
    stack = write_stack(tmp_path, quick="", own="")
    async with program("up", "--detach", folder=stack) as command_itself:
        await command_itself.says("own   | importing")
        assert await command_itself.stop(number) == 130
        assert processes_of(tmp_path) == {}
    assert command_itself.out == []
    assert command_itself.err[-1] == "The stack did not come up: it was interrupted, and all of it has ended."
    assert Stack(tmp_path / STACK_FOLDER).holder() is None


# Watched


async def test_watched_files_are_applied_when_they_are_saved(tmp_path: Path) -> None:
    for name in ("own", "other"):
        write_agent(tmp_path, name, f"import {name}_part\n")
        (tmp_path / f"{name}_part.py").write_text("WORD = 1\n")
    async with up(write_stack(tmp_path, own="", other=""), "--watch") as stack:
        before = {name: processes(tmp_path, name) for name in ("own", "other")}
        (tmp_path / "own_part.py").write_text("WORD = 1 / 0\n")
        await stack.says("xnai  | A new process of own does not take tasks; the old one goes on")
        assert processes(tmp_path, "own") == before["own"]
        (tmp_path / "own_part.py").write_text("WORD = 3333\nprint('third', flush=True)\n")
        await stack.says("own   | third")
        await stack.says("own is leaving")
        for times, kind in ((2, "int"), (3, "str")):  # of one version, so these two may not run side by side
            write_agent(tmp_path, "own", f"@agent.skill\nasync def more(n: {kind}) -> None: ...\n")
            await stack.says("own is leaving", times=times)
            await stack.says("ready own", times=times + 1)
        assert await stack.says("cannot run beside")
        write_stack(tmp_path, own="", other="replicas = 2")
        await stack.says("| scaled other to 2")
        write_stack(tmp_path, own="", other="replicas = -2")
        await stack.says("| nothing is changed: ")
        assert set(before["other"]) < set(processes(tmp_path, "other"))
        assert await stack.stop() == 0


def test_the_sources_of_an_agent_are_what_it_imports_below_its_folders(tmp_path: Path) -> None:
    files = {
        "agents/own.py": "import os, near\nfrom parts.deep import word\n",
        "agents/near.py": "import own\n",
        "agents/other.py": "",
        "parts/__init__.py": "",
        "parts/deep.py": "from . import sister\nfrom .cousin import thing\n",
        "parts/sister.py": "not python",
        "parts/cousin.py": "",
        "parts/stranger.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    wanted = set(files) - {"agents/other.py", "parts/stranger.py"}
    found = sources("agents/own.py:agent", tmp_path)
    assert {str(file.relative_to(tmp_path)) for file in found} == wanted
    by_name = {str(file.relative_to(tmp_path)) for file in sources("parts.deep", tmp_path)}
    assert by_name == {name for name in wanted if name.startswith("parts")}
    assert sources("xnai.agents.inference.agent:agent", tmp_path) == set()
    assert sources("nothing.py", tmp_path) == set()


# Growing


@pytest.mark.parametrize("policy", ["always", "on_failure"])
async def test_a_process_that_grows_too_large_drains_and_another_one_follows(
    tmp_path: Path, policy: str
) -> None:
    source = (
        "held = []\n@agent.skill\nasync def grow() -> str:\n    import anyio\n"
        "    held.append(b'x' * 335_000_000)\n    await anyio.sleep(1.5)\n"
        "    return 'done'\n"
    )
    write_agent(tmp_path, "own", source)
    table = f'memory = "400MB"\nrestart = "{policy}"'
    async with up(write_stack(tmp_path, QUICK, own=table)) as stack, visitor(tmp_path) as bus:
        (before,) = processes(tmp_path, "own")
        assert await bus.call("own.grow", timeout=PATIENCE) == "done"
        await stack.says("own  | holds ")
        await stack.says("ready own", times=2)
        (after,) = processes(tmp_path, "own")
        assert before != after
        assert await stack.stop() == 0
