"""`xnai up` as a user meets it: what it prints, what it leaves on the disk, and what it leaves running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from pathlib import Path

import anyio
import pytest
from joining import member, worker
from stacks import address, visitor
from terminal import (
    PATIENCE,
    SMALL,
    XNAI,
    Done,
    command,
    environment,
    processes_of,
    program,
    settings,
    until,
    up,
)

from xnai.agents import Agent
from xnai.bus import Bus, Server
from xnai.bus.locating import ADDRESS_FILE, STACK_FOLDER, sender_name
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol import TaskState
from xnai.protocol.errors import UnknownTask

ERROR = re.compile(r"error\[([a-z_]+)\]: [^\n]+\n").fullmatch
NOBODY_ELSE = stat.S_IRWXG | stat.S_IRWXO


def place(folder: Path, *agents: str, more: str = SMALL) -> Path:
    """A folder with the settings of a stack with these examples."""
    folder.mkdir(exist_ok=True)
    (folder / "xnai.toml").write_text(settings(*agents, more=more))
    return folder


async def begin(bus: Bus, to: str, payload: object) -> str:
    """Send a task and return its id once it is at work and has said so."""
    id = await bus.send(to, payload)
    async for event in bus.subscribe(id):
        if event.kind == "status":
            break
    return id


def own(folder: Path, source: str, *, more: str = "") -> None:
    """A stack with one agent, `own`, that is written here."""
    (folder / "own.py").write_text(
        "import sys\nfrom xnai.agents import Agent\nagent = Agent('own')\n"
        f"{source}\n"
        "@agent.skill\ndef nothing() -> None:\n    return None\n"
    )
    (folder / "xnai.toml").write_text(f'{SMALL}\n[agents.own]\nmodule = "own.py"\n{more}')


def running(folder: Path, words: str) -> list[int]:
    """The processes of a stack whose arguments have these words."""
    return [pid for pid, arguments in processes_of(folder).items() if words in arguments]


def complaint(done: Done) -> str:
    """The code of the error: the last line on stderr, with nothing on stdout."""
    assert done.out == ""
    found = ERROR(done.err.splitlines(keepends=True)[-1])
    assert found, done.err
    return found[1]


# Coming up


async def test_each_agent_says_ready_behind_its_name_and_the_stack_says_it_last(tmp_path: Path) -> None:
    async with up(place(tmp_path, "hello", "maths")) as stack:
        assert sorted(stack.out[:-1]) == ["hello | ready hello", "maths | ready maths"]
        assert stack.out[-1] == "ready"
        where = address(tmp_path)
        data = tmp_path / STACK_FOLDER / "server"
        assert stack.err == [f"xnai  | nats-server listens at {where.url}, its data is in {data}"]
        assert where.pid == stack.pid
        for to, payload, answer in (
            ("hello.greet", "World", "Hello, World!\n"),
            ("maths.double", "21", "42\n"),
        ):
            assert await command("call", to, payload, folder=tmp_path) == Done(0, answer, "")
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}
    assert len(stack.out) == 3
    assert stack.err[1] == "xnai  | Terminated: stopping; once more kills"
    assert sorted(stack.err[2:]) == ["hello | hello is leaving", "maths | maths is leaving"]
    assert not (tmp_path / STACK_FOLDER / ADDRESS_FILE).exists()


async def test_json_on_stdout_is_one_line_and_what_agents_say_is_on_stderr(tmp_path: Path) -> None:
    async with program("up", "--json", folder=place(tmp_path, "hello")) as stack:
        facts = json.loads(await stack.says("{"))
        folder = str(tmp_path / STACK_FOLDER)
        assert facts == {"ready": ["hello"], "url": address(tmp_path).url, "folder": folder}
        assert await stack.stop() == 0
    assert len(stack.out) == 1
    assert "hello | ready hello" in stack.err


async def test_what_an_agent_prints_stands_behind_its_name_on_the_same_stream(tmp_path: Path) -> None:
    source = (
        "def configure(settings, folder):\n"
        "    import os\n"
        "    print('digits', settings['digits'], os.environ['TZ'])\n"
        "    print('below', folder)\n"
        "    sys.stderr.buffer.write(b'odd \\xff bytes\\r\\nno end')\n"
        "    sys.stderr.buffer.flush()\n"
    )
    own(tmp_path, source, more='env = { TZ = "UTC" }\nsettings = { digits = 12 }\n')
    async with up(tmp_path) as stack:
        below = f"own  | below {tmp_path / STACK_FOLDER}"
        assert stack.out == ["own  | digits 12 UTC", below, "own  | ready own", "ready"]
        await stack.says("own  | odd � bytes")
        assert await stack.stop() == 0
    assert "own  | no endown is leaving" in stack.err


async def test_an_agent_that_fails_at_its_start_says_why_and_is_started_until_it_does_not(
    tmp_path: Path,
) -> None:
    own(tmp_path, "1 / 0\n")
    async with program("up", folder=tmp_path) as stack:
        await stack.says("own  | ended with status 1; starts again in 1 s")
        why = await stack.says(
            "own  | error[invalid_agent]: own.py fails: ZeroDivisionError: division by zero"
        )
        assert why.endswith(f"({tmp_path / 'own.py'}:4)")
        assert stack.out == []
        own(tmp_path, "")
        await stack.prints("ready")
        assert await stack.stop() == 0
    assert stack.out == ["own  | ready own", "ready"]


@pytest.mark.parametrize(
    ("text", "status", "code", "words"),
    [
        ("[sever]\n", 1, "invalid_settings", "xnai.toml, sever: there is no such key. Did you mean server?"),
        ("[agents.maths]\n", 1, "invalid_settings", "xnai.toml, agents: maths needs a module"),
        ('[server]\nbinary = "none"\n', 1, "invalid_settings", "none cannot be run"),
        ('[server]\nurl = "nats://127.0.0.1:1"\n', 3, "no_bus", "nats://127.0.0.1:1"),
    ],
)
async def test_what_keeps_a_stack_from_coming_up_is_one_sentence_and_a_status(
    tmp_path: Path, text: str, status: int, code: str, words: str
) -> None:
    (tmp_path / "xnai.toml").write_text(text)
    done = await command("up", folder=tmp_path)
    assert (done.status, complaint(done)) == (status, code)
    assert words in done.err
    assert processes_of(tmp_path) == {}


async def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place(tmp_path, "hello", more=f"{SMALL}\n[server]\nport = {port}\n")
        done = await command("up", folder=tmp_path)
        assert (done.status, complaint(done)) == (3, "no_bus")
        assert "address already in use" in done.err
        assert str(port) in done.err
    assert processes_of(tmp_path) == {}
    async with up(tmp_path):
        assert address(tmp_path).url == f"nats://127.0.0.1:{port}"


# The folder


async def test_nobody_else_can_read_a_key(tmp_path: Path) -> None:
    async with up(place(tmp_path, "hello")) as stack:
        folder = tmp_path / STACK_FOLDER
        seeds = {file: file.read_bytes() for file in (folder / "keys").glob("*.nk")}
        supervisor = agent_name(folder)
        assert {file.stem for file in seeds} == {"system", supervisor, "hello", sender_name(None)}
        for place_of_secrets in (folder, folder / "keys"):
            assert not place_of_secrets.stat().st_mode & NOBODY_ELSE
        for seed in seeds.values():
            holders = [file for file in folder.rglob("*") if file.is_file() and seed in file.read_bytes()]
            assert len(holders) == 1
            assert not holders[0].stat().st_mode & NOBODY_ELSE
            for pid, arguments in processes_of(tmp_path).items():
                assert seed.decode() not in arguments
                assert seed not in Path(f"/proc/{pid}/environ").read_bytes()
            assert seed.decode() not in "".join((*stack.out, *stack.err))
        assert (folder / ".gitignore").read_text() == "*\n"


async def test_a_restart_keeps_the_data_the_keys_and_the_port(tmp_path: Path) -> None:
    place(tmp_path, "maths")

    def keys() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / STACK_FOLDER / "keys").iterdir()}

    async with up(tmp_path) as stack:
        before, seeds = address(tmp_path), keys()
        assert (await command("call", "maths.double", "21", "--id", "kept", folder=tmp_path)).out == "42\n"
        assert await stack.stop() == 0
    async with up(tmp_path) as stack:
        assert (address(tmp_path).url, keys()) == (before.url, seeds)
        done = await command("task", "kept", folder=tmp_path)
        assert done.out.startswith("maths.double kept ended: TASK_STATE_COMPLETED after ")
        assert "answer: 42\n" in done.out
        assert await stack.stop() == 0


async def test_two_stacks_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    left, right = place(tmp_path / "left", "hello"), place(tmp_path / "right", "maths")
    async with up(left) as one, up(right):
        done = await command("call", "hello.greet", "you", folder=right)
        assert (done.status, complaint(done)) == (1, "unknown_agent")
        stranger = {"XNAI_URL": address(left).url, "XNAI_KEY": address(right).key or ""}
        done = await command("call", "hello.greet", "you", folder=right, env=stranger)
        assert (done.status, complaint(done)) == (3, "not_allowed")
        assert await one.stop() == 0
        assert processes_of(left) == {}
        assert (await command("call", "maths.double", "4", folder=right)).out == "8\n"


async def test_a_stack_comes_up_once_and_is_found_from_any_folder_below_its_settings(tmp_path: Path) -> None:
    below = place(tmp_path, "hello") / "a" / "b"
    below.mkdir(parents=True)
    async with up(below) as stack:
        assert await command("up", folder=tmp_path) == Done(0, "nothing has changed\n", "")
        assert (await command("call", "hello.greet", "you", folder=below)).out == "Hello, you!\n"
        assert address(tmp_path).pid == stack.pid
        assert await stack.stop() == 0
    done = await command("call", "hello.greet", "you", folder=below)
    assert (done.status, complaint(done)) == (3, "no_bus")


# Going down


async def test_ctrl_c_stops_every_process_when_what_is_at_work_is_finished(tmp_path: Path) -> None:
    async with up(place(tmp_path, "maths")) as stack, visitor(tmp_path) as bus:
        known = ("xnai.deploy.cli up", "xnai.deploy.forkserver", "nats-server", "xnai.deploy.cli run")
        assert all(any(words in each for words in known) for each in processes_of(tmp_path).values())
        id = await begin(bus, "maths.rest", 0.3)
        stack.process.send_signal(signal.SIGINT)
        async for event in bus.subscribe(id):
            if event.kind == "outcome":
                assert (await bus.task(id)).status.state is TaskState.COMPLETED
        assert await stack.ends() == 0
        assert processes_of(tmp_path) == {}
    assert stack.err[1:] == ["xnai  | Interrupt: stopping; once more kills", "maths | maths is leaving"]


async def test_a_signal_while_it_comes_up_stops_every_process(tmp_path: Path) -> None:
    own(tmp_path, "print('importing', flush=True)\nimport time\ntime.sleep(600)\n")
    async with program("up", folder=tmp_path) as stack:
        await stack.prints("own  | importing")
        assert await stack.stop() == 0
        assert processes_of(tmp_path) == {}
    assert stack.out == ["own  | importing"]


async def test_a_second_signal_kills_what_does_not_leave(tmp_path: Path) -> None:
    async with up(place(tmp_path, "maths")) as stack:
        async with visitor(tmp_path) as bus:
            await begin(bus, "maths.rest", 600)
        stack.process.send_signal(signal.SIGINT)
        await stack.says("maths is leaving")
        assert await stack.stop(signal.SIGINT) == 0
        assert processes_of(tmp_path) == {}
    assert "xnai  | killing what is left" in stack.err
    assert "maths | did not leave in time and is killed" in stack.err


async def test_a_reader_of_its_output_who_leaves_takes_the_stack_down(tmp_path: Path) -> None:
    own(tmp_path, "@agent.skill\nasync def talk() -> None:\n    print('a word', flush=True)\n")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as output:
        process = await anyio.open_process([*XNAI, "up"], cwd=tmp_path, stdout=writer, env=environment())
        os.close(writer)
        await until((tmp_path / STACK_FOLDER / ADDRESS_FILE).exists)
        await anyio.to_thread.run_sync(output.read, 1)
    async with process:
        await command("send", "own.talk", folder=tmp_path)
        try:
            with anyio.fail_after(PATIENCE):
                assert await process.wait() == 1
        finally:
            if process.returncode is None:
                process.terminate()
    assert processes_of(tmp_path) == {}


# What is killed


async def test_when_the_stack_is_killed_nothing_goes_on_and_the_next_one_has_the_tasks(
    tmp_path: Path,
) -> None:
    place(tmp_path, "maths")
    async with up(tmp_path) as stack:
        async with visitor(tmp_path) as bus:
            await bus.send("maths.double", 21, id="kept")
        assert await stack.stop(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: processes_of(tmp_path) == {})
    async with up(tmp_path) as stack:
        assert len(running(tmp_path, "nats-server")) == 1
        async with visitor(tmp_path) as bus:
            assert await bus.call("maths.double", 21, int, id="kept", timeout=PATIENCE) == 42
        assert await stack.stop() == 0
    assert processes_of(tmp_path) == {}


async def test_an_agent_and_a_broker_that_are_killed_are_started_again_and_no_task_is_lost(
    tmp_path: Path,
) -> None:
    place(tmp_path, "maths", more='[limits]\nlog = "16MiB"\nack_wait = "1s"\n')
    async with up(tmp_path) as stack, visitor(tmp_path) as bus:
        before = address(tmp_path)
        id = await begin(bus, "maths.rest", 0.1)
        (maths,), (broker,) = running(tmp_path, "maths.py"), running(tmp_path, "nats-server")
        os.kill(maths, signal.SIGKILL)
        os.kill(broker, signal.SIGKILL)
        await stack.says("maths | ended with status -9; starts again in 1 s")
        await stack.says("xnai  | nats-server ended with status -9; starts again in 1 s")
        with anyio.fail_after(PATIENCE):
            assert await bus.call("maths.double", 21, int, timeout=PATIENCE) == 42
            async for _ in bus.subscribe(id):
                pass
        assert (await bus.task(id)).status.state is TaskState.COMPLETED
        assert stack.out == ["maths | ready maths", "ready", "maths | ready maths"]
        assert address(tmp_path) == before
        assert await stack.stop() == 0


# An outside broker


async def test_an_outside_broker_is_used_where_the_settings_name_one(server: Server, tmp_path: Path) -> None:
    place(tmp_path, "maths", more=f'{SMALL}\n[server]\nurl = "{server.url}"\ntoken = "{server.token}"\n')
    async with up(tmp_path) as stack:
        assert running(tmp_path, "nats-server") == []
        assert (await command("call", "maths.double", "21", folder=tmp_path)).out == "42\n"
        assert await stack.stop() == 0
    async with member(server) as bus:
        supervisor = agent_name(tmp_path / STACK_FOLDER)
        assert sorted(await bus.finder.agents()) == ["maths", "supervisor", supervisor]


async def test_a_wrong_token_for_an_outside_broker_is_one_sentence(server: Server, tmp_path: Path) -> None:
    place(tmp_path, "hello")
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": "wrong"}
    done = await command("up", folder=tmp_path, env=env)
    assert (done.status, complaint(done)) == (3, "not_allowed")
    assert processes_of(tmp_path) == {}


async def test_the_keeper_works_inside_the_stack(server: Server, tmp_path: Path) -> None:
    brief = Agent("brief")

    @brief.skill
    async def nothing() -> None:
        return None

    (tmp_path / "xnai.toml").write_text('[agents]\n[keeper]\nkept = "1ms"\ninterval = "100ms"\n')
    async with worker(server, brief), member(server) as bus:
        await bus.call("brief.nothing", None, type(None), id="done", timeout=20)
        assert (await bus.task("done")).status.state is TaskState.COMPLETED
        env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
        async with program("up", "--debug", folder=tmp_path, env=env) as stack:
            await stack.says("logs of ended tasks are removed")
        with pytest.raises(UnknownTask):
            await bus.task("done")
