"""What agents print is kept in files that rotate, and `xnai logs` shows it."""

from __future__ import annotations

import json
import re
import signal
import stat
from contextlib import closing
from pathlib import Path

from stacks import visitor, write_agent, write_stack
from terminal import PATIENCE, command, program, until, up

from xnai.bus.locating import STACK_FOLDER
from xnai.deploy.supervisor.following import Reader, Tail
from xnai.deploy.supervisor.logfiles import Line, LogFiles, names, path_of

SAY = "@agent.skill\nasync def say(words: str) -> None:\n    print(words, flush=True)\n"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def files(folder: Path, *, size: int, count: int) -> LogFiles:
    return LogFiles(folder, size=size, count=count, complain=lambda text: None)


def texts(folder: Path, name: str | None = None) -> list[str]:
    with closing(Tail(folder, name)) as tail:
        return [line.text for line in tail.before()]


def test_a_full_file_is_rotated_and_the_oldest_goes(tmp_path: Path) -> None:
    logs = files(tmp_path, size=200, count=3)
    for number in range(100):
        logs.keep("own", "own", f"line {number}")
    logs.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["own.log", "own.log.1", "own.log.2"]
    assert all(file.stat().st_size <= 200 for file in tmp_path.iterdir())
    found = texts(tmp_path, "own")
    assert found == [f"line {number}" for number in range(100 - len(found), 100)]
    assert len(found) > 8


def test_a_line_that_is_longer_than_a_file_is_kept_whole(tmp_path: Path) -> None:
    logs = files(tmp_path, size=10, count=2)
    logs.keep("own", "own", "x" * 1000)
    logs.close()
    assert texts(tmp_path) == ["x" * 1000]


def test_lines_of_several_are_merged_by_time(tmp_path: Path) -> None:
    for name, seconds in (("a", (1, 4)), ("b", (2, 3))):
        lines = [f"2026-01-01T00:00:0{second}.000Z {name} | {second}\n" for second in seconds]
        path_of(tmp_path, name).write_text("".join(lines))
    path_of(tmp_path, "c").write_bytes(b"no line of ours\n\xff\n")
    assert names(tmp_path) == ["a", "b", "c"]
    assert texts(tmp_path) == ["1", "2", "3", "4"]


def test_a_reader_goes_on_in_the_next_file(tmp_path: Path) -> None:
    logs = files(tmp_path, size=200, count=9)
    logs.keep("own", "own.2", "before")
    reader = Reader(path_of(tmp_path, "own"))
    logs.keep("own", "own.2", "behind it")
    assert [line.text for line in reader.before()] == ["before"]
    heard: list[Line] = []
    for number in range(50):
        logs.keep("own", "own.2", f"line {number}")
        if number % 7 == 0:
            heard += reader.read()
    heard += reader.read()
    reader.close()
    logs.close()
    assert [(line.label, line.text) for line in heard] == [
        ("own.2", text) for text in ("behind it", *(f"line {number}" for number in range(50)))
    ]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    said: list[str] = []
    logs = LogFiles(tmp_path / "logs", size=100, count=2, complain=said.append)
    for _ in range(3):
        logs.keep("own", "own", "line")
    assert len(said) == 1
    assert said[0].startswith(f"logs are not kept: {tmp_path / 'logs'}: ")


async def test_logs_shows_what_was_printed_also_when_the_stack_is_down(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", SAY)
    write_agent(tmp_path, "other", SAY)
    async with up(write_stack(tmp_path, own="", other="")) as stack, visitor(tmp_path) as bus:
        for name in ("own", "other", "own"):
            await bus.call(f"{name}.say", f"words of {name}", timeout=PATIENCE)
        assert await stack.stop() == 0
    done = await command("logs", "own", folder=tmp_path)
    assert done.status == 0
    found = re.findall(rf"^{TIME} own \| (.*)$", done.out, re.MULTILINE)
    assert found == ["ready own", "words of own", "words of own", "own is leaving"]
    assert len(done.out.splitlines()) == len(found)
    everything = (await command("logs", "-n", "1000", folder=tmp_path)).out
    assert "xnai | Terminated: stopping; once more kills" in everything
    assert [everything.count(f"words of {name}\n") for name in ("own", "other")] == [2, 1]
    assert sorted(everything.splitlines(), key=lambda line: line[:24]) == everything.splitlines()
    last = await command("logs", "own", "-n", "1", "--json", folder=tmp_path)
    assert json.loads(last.out) | {"time": ""} == {"time": "", "label": "own", "text": "own is leaving"}
    for file in (tmp_path / STACK_FOLDER / "logs").iterdir():
        assert not file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


async def test_logs_follows_until_interrupted(tmp_path: Path) -> None:
    write_agent(tmp_path, "own", SAY)
    more = "[supervisor]\nlog_size = 300\nlog_files = 9\n"
    async with up(write_stack(tmp_path, more, own="")) as stack, visitor(tmp_path) as bus:
        async with program("logs", "-f", folder=tmp_path) as logs:
            await logs.says("own | ready own")
            await until(lambda: "xnai" in "".join(logs.out))
            for number in range(20):
                await bus.call("own.say", f"number {number}", timeout=PATIENCE)
            await logs.says("own | number 19")
            assert await logs.stop(signal.SIGINT) == 130
        assert [line for line in logs.out if "number" in line] == [
            line for line in logs.out if re.fullmatch(rf"{TIME} own \| number \d+", line)
        ]
        assert len([line for line in logs.out if "number" in line]) == 20
        assert await stack.stop() == 0


async def test_logs_of_an_agent_that_never_ran_are_a_sentence(tmp_path: Path) -> None:
    done = await command("logs", folder=write_stack(tmp_path, own=""))
    assert (done.status, done.out) == (0, "")
    done = await command("logs", "own", folder=tmp_path)
    assert (done.status, done.err) == (2, "error[invalid_argument]: There are no logs yet.\n")
