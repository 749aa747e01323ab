"""`xnai send --batch`: one task for each line, in order, and nothing behind a bad line."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from joining import member
from terminal import PATIENCE, XNAI, Done, command, environment

from xnai.bus import Bus, Server
from xnai.bus.locating import sender_name


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Bus]:
    """A bus with an agent that nobody runs: what is sent stays, and can be looked at."""
    async with member(server, sender_name(None)) as bus:
        await bus.declare("later")
        yield bus


@pytest.fixture
def env(server: Server) -> dict[str, str]:
    return {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}


async def payloads(bus: Bus, ids: str) -> list[object]:
    """What the tasks with these ids, one a line, were sent."""
    found: list[object] = []
    for id in ids.split():
        (message,) = (await bus.task(id)).history
        (part,) = message.parts
        found.append(msgspec.json.decode(part.data) if part.text is None else part.text)
    return found


async def send(*options: str, folder: Path, env: Mapping[str, str], stdin: bytes = b"") -> Done:
    return await command("send", "later.do", *options, folder=folder, env=env, stdin=stdin)


async def test_each_line_is_a_task_and_its_id_is_printed_in_its_place(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "lines").write_text('1\n{"a": [null]}\n\n"text"\n   \nfalse')
    done = await send("--batch", "lines", folder=tmp_path, env=env)
    assert (done.status, done.err) == (0, "")
    assert await payloads(bus, done.out) == [1, {"a": [None]}, "text", False]
    again = await send("--batch", "-", "--json", folder=tmp_path, env=env, stdin=b"1\r\n2\r\n")
    ids = [json.loads(line) for line in again.out.splitlines()]
    assert await payloads(bus, " ".join(ids)) == [1, 2]


async def test_an_empty_batch_sends_nothing(bus: Bus, env: dict[str, str], tmp_path: Path) -> None:
    assert await send("--batch", "-", folder=tmp_path, env=env, stdin=b"\n\n") == Done(0, "", "")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{", "It is no JSON: "),
        (b"text", "It is no JSON: "),
        (b"NaN", "NaN stands for no number"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b'"\\ud800"', ""),
    ],
)
async def test_a_bad_line_is_one_sentence_with_its_number_and_nothing_behind_it_is_sent(
    bus: Bus, env: dict[str, str], tmp_path: Path, bad: bytes, words: str
) -> None:
    done = await send("--batch", "-", folder=tmp_path, env=env, stdin=b"1\n\n2\n" + bad + b"\n3\n")
    assert done.status == 1
    assert done.err.startswith("error[invalid_payload]: Line 4: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert await payloads(bus, done.out) == [1, 2]
    stream = await bus.api.stream_info("XNAI_TASK_later")
    assert stream["state"]["messages"] == 2


async def test_what_the_bus_refuses_keeps_its_code_and_status(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    done = await command("send", "latre.do", "--batch", "-", folder=tmp_path, env=env, stdin=b"1\n2\n")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error[unknown_agent]: Line 1: ")
    assert "Did you mean later?" in done.err


async def test_a_batch_that_is_sent_again_under_its_name_adds_only_what_is_missing(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    first = await send("--batch", "-", "--id", "b", folder=tmp_path, env=env, stdin=b"1\n2\n{\n")
    assert (first.status, first.out) == (1, "b-1\nb-2\n")
    second = await send("--batch", "-", "--id", "b", folder=tmp_path, env=env, stdin=b"1\n2\n3\n")
    assert second == Done(0, "b-1\nb-2\nb-3\n", "")
    stream = await bus.api.stream_info("XNAI_TASK_later")
    assert stream["state"]["messages"] == 3


@pytest.mark.parametrize(
    "options", [("1", "--batch", "-"), ("--file", "x", "--batch", "-"), ("--batch", "none")]
)
async def test_two_payloads_or_a_file_that_is_not_there_are_a_usage_error(
    env: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = await send(*options, folder=tmp_path, env=env)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error[invalid_argument]: ")


async def test_on_a_terminal_there_is_a_progress_bar_beside_the_ids(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "lines").write_text("1\n2\n\n3\n")
    ours, theirs = pty.openpty()
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [*XNAI, "send", "later.do", "--batch", "lines"],
            stderr=theirs,
            cwd=tmp_path,
            env=environment({**env, "COLUMNS": "80"}),
        )
    os.close(theirs)
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert len(done.stdout.split()) == 3
    assert "] 1/3 tasks" in seen
    assert "] 3/3 tasks" in seen


async def test_a_batch_that_waits_for_its_next_line_can_be_interrupted(
    bus: Bus, env: dict[str, str], tmp_path: Path
) -> None:
    process = await anyio.open_process(
        [*XNAI, "send", "later.do", "--batch", "-", "--id", "slow"], cwd=tmp_path, env=environment(env)
    )
    async with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with anyio.fail_after(PATIENCE):
            await process.stdin.send(b"1\n")
            ids = BufferedByteReceiveStream(process.stdout)
            assert await ids.receive_until(b"\n", 100) == b"slow-1"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        assert [part async for part in process.stderr] == []
