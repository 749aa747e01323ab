"""The commands as a user meets them: what they print where, and how they end."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import a2a.types as reference
import anyio
import pytest
from google.protobuf import json_format
from joining import member, worker
from terminal import EXAMPLES, PATIENCE, Done, command, program, settings

from xnai.agents import Agent, Context, Reject
from xnai.bus import Server
from xnai.bus.locating import sender_name
from xnai.protocol import TaskState

ERROR = re.compile(r"error\[([a-z_]+)\]: [^\n]+\n").fullmatch

agent = Agent("odd")


@agent.skill(max_attempts=1)
async def refuse(ctx: Context) -> str:
    raise Reject("not today")


@agent.skill(max_attempts=1)
async def break_down(ctx: Context) -> str:
    raise RuntimeError("broken")


@agent.skill
async def echo(payload: object) -> object:
    return payload


@agent.skill
async def size(payload: bytes) -> int:
    return len(payload)


@agent.skill
async def reverse(payload: bytes) -> bytes:
    return payload[::-1]


@agent.skill
async def rest(ctx: Context) -> None:
    await ctx.progress("resting")
    await anyio.sleep_forever()


@agent.skill
async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@agent.skill
async def words(n: int) -> AsyncIterator[str]:
    for number in range(n):
        yield f"{number} "


def where(server: Server, token: str | None = None) -> dict[str, str]:
    return {"XNAI_URL": server.url, "XNAI_TOKEN": token or server.token}


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Mapping[str, str]]:
    """A bus on which the odd agent serves, as the variables that lead to it."""
    async with worker(server, agent):
        yield where(server)


def complaint(done: Done) -> str:
    """The code of the error: the one line on stderr, with nothing on stdout."""
    assert done.out == ""
    found = ERROR(done.err)
    assert found, done.err
    return found[1]


# Answers


@pytest.mark.parametrize(
    ("payload", "shown", "as_json"),
    [
        ("21", "21\n", "21\n"),
        ("hello you", "hello you\n", '"hello you"\n'),
        ('"quoted"', "quoted\n", '"quoted"\n'),
        ('{"a": [1, null]}', '{"a":[1,null]}\n', '{"a":[1,null]}\n'),
        ("NaN", "NaN\n", '"NaN"\n'),
    ],
)
async def test_a_payload_is_json_or_else_text_and_so_is_the_answer(
    bus: Mapping[str, str], tmp_path: Path, payload: str, shown: str, as_json: str
) -> None:
    for options, expected in (((), shown), (("--json",), as_json)):
        done = await command("call", "odd.echo", payload, *options, folder=tmp_path, env=bus)
        assert done == Done(0, expected, "")


async def test_a_payload_comes_from_stdin_or_a_file_as_bytes_when_it_is_no_text(
    bus: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\x00\xfe")
    done = await command("call", "odd.size", "--file", "photo", folder=tmp_path, env=bus)
    assert done == Done(0, "3\n", "")
    done = await command("call", "odd.echo", "-", stdin=b"[1, 2]\n", folder=tmp_path, env=bus)
    assert done == Done(0, "[1,2]\n", "")


async def test_bytes_are_printed_as_they_are_or_as_base64(bus: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xc3\x00\xffba")
    (tmp_path / "back").write_bytes(b"ab\xff\x00\xc3")
    done = await command("call", "odd.reverse", "--file", "back", "--json", folder=tmp_path, env=bus)
    assert done == Done(0, '"wwD/YmE="\n', "")


async def test_a_stream_is_printed_as_it_comes(bus: Mapping[str, str], tmp_path: Path) -> None:
    done = await command("call", "odd.numbers", "3", "--stream", folder=tmp_path, env=bus)
    assert done == Done(0, "0\n1\n2\n", "")
    done = await command("call", "odd.words", "3", "--stream", folder=tmp_path, env=bus)
    assert done == Done(0, "0 1 2 \n", "")
    done = await command("call", "odd.words", "2", "--stream", "--json", folder=tmp_path, env=bus)
    assert [json.loads(line) for line in done.out.splitlines()] == ["0 ", "1 "]


# How it ends


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ("call odd.refuse", 4, "handler_error"),
        ("call odd.break_down", 4, "exhausted"),
        ("call odd.size text", 4, "invalid_payload"),
        ("call odd.nothing", 4, "unknown_skill"),
        ("call odd.numbers --stream", 4, "invalid_payload"),
        ("call odd.rest --timeout 300ms", 5, "deadline_exceeded"),
        ("call old.rest", 1, "unknown_agent"),
        ("call odd", 2, "invalid_name"),
        ("call odd.rest --timeout 99d", 2, "invalid_argument"),
        ("call odd.echo 1 --file 2", 2, "invalid_argument"),
        ("call odd.echo --file none", 2, "invalid_argument"),
        ("call odd.echo --timeout soon", 2, "usage"),
        ("call odd.echo --lane slow", 2, "usage"),
        ("task nothing", 1, "unknown_task"),
        ("watch nothing", 1, "unknown_task"),
        ("cancel nothing", 1, "unknown_task"),
        ("cancel no/id", 2, "invalid_name"),
    ],
)
async def test_the_exit_status_and_the_code_say_what_went_wrong(
    bus: Mapping[str, str], tmp_path: Path, words: str, status: int, code: str
) -> None:
    done = await command(*words.split(), "--json", folder=tmp_path, env=bus)
    assert (done.status, complaint(done)) == (status, code)


@pytest.mark.parametrize("words", ["call odd.echo 1", "send odd.echo 1", "task x", "cancel x", "watch x"])
async def test_without_a_bus_each_command_ends_with_3_and_says_how_to_start_one(
    tmp_path: Path, words: str
) -> None:
    done = await command(*words.split(), folder=tmp_path)
    assert (done.status, complaint(done)) == (3, "no_bus")
    assert "xnai up" in done.err


async def test_where_nothing_answers_the_status_is_3(tmp_path: Path) -> None:
    env = {"XNAI_URL": "nats://127.0.0.1:1"}
    done = await command("call", "odd.echo", folder=tmp_path, env=env)
    assert (done.status, complaint(done)) == (3, "no_bus")


async def test_a_wrong_token_is_one_sentence(server: Server, tmp_path: Path) -> None:
    for words in (("call", "odd.echo"), ("run", EXAMPLES / "hello.py")):
        done = await command(*words, folder=tmp_path, env=where(server, "wrong"))
        assert (done.status, complaint(done)) == (3, "not_allowed")
        assert "wrong" not in done.err


@pytest.mark.parametrize("words", [("-h",), ("call", "--help"), ("run", "--help"), ("up", "--help")])
async def test_help_has_an_example_and_ends_well(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = await command(*words, folder=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "example" in done.out or words == ("-h",)


@pytest.mark.parametrize(
    ("words", "hint"),
    [("cal odd.echo", "did you mean call?"), ("zzz", "known are up, "), ("call", "--help")],
)
async def test_a_wrong_word_is_a_usage_error_with_a_hint(tmp_path: Path, words: str, hint: str) -> None:
    done = await command(*words.split(), folder=tmp_path)
    assert (done.status, complaint(done)) == (2, "usage")
    assert hint in done.err


async def test_an_unexpected_error_is_one_sentence_and_debug_shows_where_it_comes_from(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        "from xnai.agents import Agent\n"
        "agent = Agent('odd')\n"
        "@agent.lifespan\n"
        "async def hold():\n"
        "    raise RuntimeError('no store')\n"
        "    yield\n"
    )
    done = await command("run", "odd.py", folder=tmp_path, env=where(server))
    assert (done.status, complaint(done)) == (1, "unexpected")
    assert "RuntimeError: no store" in done.err
    done = await command("run", "odd.py", "--debug", folder=tmp_path, env=where(server))
    assert 'odd.py", line 5' in done.err


# Tasks


async def test_a_task_is_sent_looked_at_watched_and_found_again(
    bus: Mapping[str, str], tmp_path: Path
) -> None:
    sent = await command(
        "send", "odd.echo", "7", "--lane", "background", "--ttl", "5m", folder=tmp_path, env=bus
    )
    id = sent.out.strip()
    watched = await command("watch", id, "--json", folder=tmp_path, env=bus)
    assert watched.status == 0
    assert [json.loads(line)["kind"] for line in watched.out.splitlines()] == ["outcome"]
    stood = await command("task", id, folder=tmp_path, env=bus)
    assert stood.out.startswith(f"odd.echo {id} ended: TASK_STATE_COMPLETED after ")
    assert "answer: 7\n" in stood.out
    again = await command("call", "odd.echo", "7", "--id", id, folder=tmp_path, env=bus)
    assert again == Done(0, "7\n", "")
    conflict = await command("send", "odd.echo", "8", "--id", id, folder=tmp_path, env=bus)
    assert (conflict.status, complaint(conflict)) == (1, "id_conflict")


async def test_the_json_of_a_task_is_the_task_of_a2a(bus: Mapping[str, str], tmp_path: Path) -> None:
    id = (await command("send", "odd.echo", '{"a": 1}', folder=tmp_path, env=bus)).out.strip()
    await command("watch", id, folder=tmp_path, env=bus)
    done = await command("task", id, "--json", folder=tmp_path, env=bus)
    task = json_format.Parse(done.out, reference.Task())
    assert task.id == id
    assert task.status.state == reference.TaskState.TASK_STATE_COMPLETED
    assert json_format.MessageToDict(task.artifacts[0].parts[0])["data"] == {"a": 1}


async def test_a_task_that_nobody_takes_says_so(server: Server, tmp_path: Path) -> None:
    async with member(server) as bus:
        await bus.declare("asleep")
    env = where(server)
    id = (await command("send", "asleep.echo", "7", folder=tmp_path, env=env)).out.strip()
    done = await command("task", id, folder=tmp_path, env=env)
    assert done.status == 0, done
    first = done.out.splitlines()[0]
    assert first.startswith(f"asleep.echo {id} waits in the queue of asleep since ")
    assert first.endswith(": nobody takes tasks of asleep now")
    as_json = await command("task", id, "--json", folder=tmp_path, env=env)
    assert json.loads(as_json.out)["status"]["state"] == TaskState.SUBMITTED


async def test_an_id_that_begins_with_a_dash_goes_behind_two(bus: Mapping[str, str], tmp_path: Path) -> None:
    id = "-a-dash"
    sent = await command("send", "odd.echo", "7", f"--id={id}", folder=tmp_path, env=bus)
    assert sent.out == f"{id}\n"
    for name in ("watch", "task"):
        done = await command(name, "--", id, folder=tmp_path, env=bus)
        assert done.status == 0, done
        bare = await command(name, id, folder=tmp_path, env=bus)
        assert (bare.status, complaint(bare)) == (2, "usage")


async def test_a_task_is_canceled_once(bus: Mapping[str, str], tmp_path: Path) -> None:
    id = (await command("send", "odd.rest", folder=tmp_path, env=bus)).out.strip()
    done = await command("cancel", id, folder=tmp_path, env=bus)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{id} was canceled at ")
    done = await command("cancel", id, folder=tmp_path, env=bus)
    assert (done.status, complaint(done)) == (1, "task_not_cancelable")
    watched = await command("watch", id, folder=tmp_path, env=bus)
    assert watched.status == 4
    assert "resting" in watched.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--stream",)])
async def test_a_signal_cancels_the_task_that_is_waited_for_and_says_so(
    server: Server, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    words = ("call", "still.rest", "--id", "restful", "--timeout", "60", *options)
    still, begun = Agent("still"), anyio.Event()

    @still.skill
    async def rest(ctx: Context) -> AsyncIterator[int]:
        begun.set()
        await anyio.sleep_forever()
        yield 1

    async with (
        worker(server, still),
        member(server, sender_name(None)) as bus,
        program(*words, folder=tmp_path, env=where(server)) as call,
    ):
        with anyio.fail_after(PATIENCE):
            await begun.wait()
        assert await call.stop(number) == 130
        assert call.out == []
        assert call.err == ["canceling the task restful", "the task restful is canceled"]
        assert (await bus.task("restful")).status.state is TaskState.CANCELED


# Running an agent


async def test_an_agent_prints_ready_serves_and_leaves_in_order(server: Server, tmp_path: Path) -> None:
    env = where(server)
    async with program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths:
        await maths.prints("ready maths")
        done = await command("call", "maths.double", "21", folder=tmp_path, env=env)
        assert done == Done(0, "42\n", "")
        assert await maths.stop() == 0
    assert maths.out == ["ready maths"]


async def test_an_agent_finishes_what_it_works_on_before_it_leaves(server: Server, tmp_path: Path) -> None:
    env = where(server)
    async with (
        program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths,
        member(server) as bus,
    ):
        await maths.prints("ready maths")
        id = await bus.send("maths.rest", 0.5)
        async for event in bus.subscribe(id):
            if event.kind == "status":
                maths.process.terminate()
        assert (await bus.task(id)).status.state is TaskState.COMPLETED
        assert await maths.ends() == 0


async def test_a_second_signal_ends_an_agent_at_once(server: Server, tmp_path: Path) -> None:
    env = where(server)
    async with (
        program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths,
        member(server) as bus,
    ):
        await maths.prints("ready maths")
        id = await bus.send("maths.rest", 600)
        async for event in bus.subscribe(id):
            if event.kind == "status":
                break
        maths.process.send_signal(signal.SIGTERM)
        await maths.says("leaving")
        assert await maths.stop(signal.SIGTERM) == -signal.SIGTERM


async def test_an_agent_waits_for_a_bus_that_comes_up_later(tmp_path: Path) -> None:
    (tmp_path / "xnai.toml").write_text(settings("hello"))
    async with program("run", EXAMPLES / "maths.py", folder=tmp_path) as maths:
        await maths.says("maths waits up to 60 s for a bus.")
        async with program("up", folder=tmp_path):
            await maths.prints("ready maths")
            done = await command("call", "maths.double", "4", folder=tmp_path)
            assert done.out == "8\n"
            assert await maths.stop() == 0
    assert len(maths.err) == 2


async def test_an_agent_gives_up_on_a_bus_that_does_not_come(tmp_path: Path) -> None:
    done = await command("run", EXAMPLES / "hello.py", "--wait", "300ms", folder=tmp_path)
    assert done.status == 3
    assert done.err.splitlines()[-1].startswith("error[no_bus]: ")


async def test_an_agent_that_waits_for_a_bus_leaves_when_asked(tmp_path: Path) -> None:
    async with program("run", EXAMPLES / "hello.py", folder=tmp_path) as hello:
        await hello.says("waits up to")
        assert await hello.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("target", "source", "status", "code", "words"),
    [
        ("none.py", "", 2, "invalid_argument", "There is no file none.py"),
        ("none.module", "", 2, "invalid_argument", "There is no module none.module"),
        ("mine.py", "", 1, "invalid_agent", "mine.py has no agent."),
        ("mine", "", 1, "invalid_agent", "mine has no agent."),
        (
            "mine.py:b",
            "from xnai.agents import Agent\na = Agent('a')\n",
            1,
            "invalid_agent",
            "Choose one: mine.py:a",
        ),
        (
            "mine.py",
            "from xnai.agents import Agent\na = Agent('a')\nb = Agent('b')\n",
            1,
            "invalid_agent",
            "more than one agent. Choose one: mine.py:a, mine.py:b",
        ),
        ("mine.py", "\nimport nothing_of_the_kind\n", 1, "invalid_agent", "mine.py:2)"),
        ("mine.py", "def f(:\n", 1, "invalid_agent", "mine.py fails: SyntaxError"),
        ("mine.py", "from xnai.agents import Agent\na = Agent('Ä')\n", 2, "invalid_name", "is no agent name"),
    ],
)
async def test_a_target_that_is_no_agent_is_one_sentence(
    tmp_path: Path, target: str, source: str, status: int, code: str, words: str
) -> None:
    (tmp_path / "mine.py").write_text(source)
    done = await command("run", target, folder=tmp_path)
    assert (done.status, complaint(done)) == (status, code)
    assert words in done.err


async def test_two_names_for_one_agent_are_one_agent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from xnai.agents import Agent\nagent = same = Agent('twice')\n")
    async with program("run", "mine", folder=tmp_path, env=where(server)) as twice:
        await twice.prints("ready twice")
