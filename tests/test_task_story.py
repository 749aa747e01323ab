"""`xnai tasks` and `xnai task`: what a person at the terminal is told, on real stacks and real processes."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest
from indexes import index
from joining import member, worker
from stacks import visitor, write_agent, write_stack
from terminal import PATIENCE, command, processes_of, until, up

from xnai.agents import Agent, Backoff, Context
from xnai.bus import Bus, Limits, Server
from xnai.bus.locating import sender_name
from xnai.deploy.rungs import read_story, rungs, standing
from xnai.protocol import Task, TaskState, TaskStatus, subjects
from xnai.protocol.envelope import encode
from xnai.protocol.errors import TaskFailed

WORK = """
import anyio
from xnai.agents import Backoff, Context


@agent.skill(max_attempts=3, backoff=Backoff(first=0.01, most=0.01))
async def moody(x: int, ctx: Context) -> int:
    if ctx.attempt < 3:
        raise RuntimeError("not yet")
    return x


@agent.skill
async def rest(ctx: Context) -> None:
    for n in range(3):
        await ctx.progress(f"resting {n}")
    await anyio.sleep_forever()


@agent.skill
async def ask(x: int, ctx: Context) -> int:
    return await ctx.call("other.moody", x, int) + await ctx.call("other.moody", x, int)
"""


def stack(folder: Path) -> Path:
    """A stack of `first`, `other`, and `asleep`, which has no process."""
    for name in ("first", "other", "asleep"):
        write_agent(folder, name, WORK)
    return write_stack(folder, first="", other="", asleep="replicas = 0")


async def task(folder: Path, id: str) -> list[str]:
    """The lines of `xnai task`."""
    done = await command("task", id, folder=folder)
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


def columns(lines: list[str], *names: str) -> list[list[str]]:
    """What stands in these columns of the first table, which begins with its heads."""
    head = next(line for line in lines if line.startswith("TIME"))
    starts = [head.index(name) for name in names]
    ends = [
        min([place.start() for place in re.finditer(r"\S+", head) if place.start() > s] + [999])
        for s in starts
    ]
    rows = []
    for line in lines[lines.index(head) + 1 :]:
        if not line.startswith("2"):
            break
        rows.append([line[start:end].strip() for start, end in zip(starts, ends, strict=True)])
    return rows


async def test_the_stories_of_a_stack_and_its_lists(tmp_path: Path) -> None:
    stack(tmp_path)
    async with up(tmp_path) as running:
        await a_retried_one(tmp_path)
        await one_with_sub_tasks(tmp_path)
        await one_that_nobody_takes(tmp_path)
        await one_that_runs_and_is_canceled(tmp_path)
        await lists(tmp_path)
        before = await command("tasks", "--all", "--json", folder=tmp_path)
        running.process.send_signal(signal.SIGKILL)
        await running.ends()
        await until(lambda: processes_of(tmp_path) == {})
    async with up(tmp_path):  # what the index says does not hang on the process that kept it
        after = await command("tasks", "--all", "--json", folder=tmp_path)
        assert json.loads(after.out) == json.loads(before.out)
        (tmp_path / ".xnai" / "index.db").unlink()
        after = await command("tasks", "--all", "--json", folder=tmp_path)
        assert json.loads(after.out) == json.loads(before.out)


async def a_retried_one(folder: Path) -> None:
    """Called by a person."""
    done = await command("call", "first.moody", "7", "--id", "retried", folder=folder)
    assert done.out == "7\n"
    lines = await task(folder, "retried")
    assert re.fullmatch(r"first\.moody retried ended: TASK_STATE_COMPLETED after .+", lines[0])
    rows = columns(lines, "WHAT", "ATTEMPT")
    assert (rows[0], rows[-1]) == (["stored", "-"], ["completed", "3"])
    assert ["failed", "2"] in rows
    assert {what for what, _ in rows[1:-1]} == {"failed", "started"}
    failed = sum("RuntimeError: not yet (handler_error); attempt" in line for line in lines)
    assert failed == sum(what == "failed" for what, _ in rows)
    assert lines[-1] == "answer: 7"


async def one_with_sub_tasks(folder: Path) -> None:
    """They were sent by the agent, and the person may see them."""
    await command("call", "first.ask", "2", "--id", "parent", folder=folder)
    lines = await task(folder, "parent")
    whats = [what for (what,) in columns(lines, "WHAT")]
    assert (whats[0], whats[-1]) == ("stored", "completed")
    below = lines[lines.index(next(line for line in lines if line.startswith("SUB-TASK"))) + 1 : -1]
    assert [line.split()[0] for line in below] == ["other.moody", "other.moody"]
    assert [line.split()[2:4] for line in below] == [["completed", "3"], ["completed", "3"]]
    assert lines[-1] == "answer: 4"


async def one_that_nobody_takes(folder: Path) -> None:
    """Its agent has no process."""
    await command("send", "asleep.rest", "--id", "queued", folder=folder)
    lines = await task(folder, "queued")
    assert re.fullmatch(
        r"asleep\.rest queued waits in the queue of asleep since .+: nobody takes tasks of asleep now",
        lines[0],
    )
    assert columns(lines, "WHAT") == [["stored"]]
    assert "its deadline is " in lines[2]


async def one_that_runs_and_is_canceled(folder: Path) -> None:
    """By the person."""
    await command("send", "first.rest", "--id", "stopped", folder=folder)
    async with visitor(folder) as bus:
        await until_started(bus, "stopped")
    lines = await task(folder, "stopped")
    running_now = r"first\.rest stopped runs since .+ in attempt \d \(first, instance [0-9a-f]{8}\)"
    assert re.match(running_now, lines[0])
    assert any("resting 2" in line for line in lines)
    await command("cancel", "stopped", folder=folder)
    lines = await task(folder, "stopped")
    assert lines[0].startswith("first.rest stopped ended: TASK_STATE_CANCELED after ")
    assert lines[0].endswith(", The task was canceled. (canceled)")
    assert columns(lines, "WHAT")[-2:] == [["cancel asked"], ["canceled"]]
    as_json = await command("task", "stopped", "--json", folder=folder)
    assert json.loads(as_json.out)["status"]["state"] == TaskState.CANCELED


async def lists(folder: Path) -> None:
    """What `xnai tasks` shows of the stack above."""
    done = await command("tasks", folder=folder)
    head, *rows = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert head.split() == ["TASK", "ID", "STATE", "AGE", "ATTEMPT", "ERROR"]
    assert [row.split()[:3] for row in rows] == [
        ["first.rest", "stopped", "canceled"],
        ["asleep.rest", "queued", "submitted"],
        ["first.ask", "parent", "completed"],
        ["first.moody", "retried", "completed"],
    ]
    chosen = await command(
        "tasks", "--state", "canceled", "--state", "submitted", "--since", "2h", folder=folder
    )
    assert [row.split()[1] for row in chosen.out.splitlines()[1:]] == ["stopped", "queued"]
    seen, words = list[str](), ["tasks", "--limit", "3"]
    while words:
        page = await command(*words, folder=folder)
        seen += [row.split()[1] for row in page.out.splitlines()[1:]]
        words = page.err.removeprefix("More: xnai ").split()
    assert seen == ["stopped", "queued", "parent", "retried"]
    as_json = await command("tasks", "--parent", "parent", "--json", folder=folder)
    found = json.loads(as_json.out)
    assert [row["sender"] for row in found["tasks"]] == ["first", "first"]
    assert found["next"] is None
    everybody = await command("tasks", "--all", "--agent", "other", folder=folder)
    assert [row.split()[2] for row in everybody.out.splitlines()] == ["SENDER", "first", "first"]
    none = await command("tasks", "--agent", "nobody", folder=folder)
    assert none.out == "No task is all of this.\n"


async def until_started(bus: Bus, id: str) -> None:
    """Until the log names an attempt."""
    async for event in bus.subscribe(id):
        if event.kind == "working":
            return


async def test_without_a_keeper_a_list_is_refused_and_a_story_is_told(server: Server, tmp_path: Path) -> None:
    where = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    async with member(server, sender_name(None)) as bus:
        await bus.declare("asleep")
        await bus.send("asleep.rest", id="one")
    done = await command("tasks", folder=tmp_path, env=where)
    assert (done.status, done.out) == (3, "")
    assert done.err == "error[unavailable]: No keeper answers: it runs inside `xnai up`.\n"
    done = await command("task", "one", folder=tmp_path, env=where)
    assert done.status == 0
    assert done.out.startswith("asleep.rest one waits in the queue of asleep since ")
    assert "sub-tasks are not known here. No keeper answers" in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--limit", "0"], "invalid_argument"),
        (["--after", "x"], "invalid_argument"),
        (["--state", "working well"], "usage"),
        (["--since", "soon"], "usage"),
    ],
)
async def test_a_wrong_option_is_a_usage_error(
    server: Server, tmp_path: Path, words: list[str], code: str
) -> None:
    where = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    done = await command("tasks", *words, folder=tmp_path, env=where)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error[{code}]: ")


# The one line, rung by rung


async def line(bus: Bus, id: str, now: float | None = None) -> str:
    return standing(await read_story(bus, await bus.found(id)), now)


async def test_a_task_that_waits_before_its_next_attempt_says_for_how_long(
    server: Server, tmp_path: Path
) -> None:
    agent = Agent("moods")

    @agent.skill(backoff=Backoff(first=36_000, most=36_000))  # of which chance takes a part
    async def later() -> None:
        raise RuntimeError("much later")

    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, agent), index(server, tmp_path / "index.db"):
            await bus.send("moods.later", id="t")
            async for event in bus.subscribe("t"):
                if event.kind == "failed":
                    break
            story = await read_story(bus, await bus.found("t"))
            failed = story.events[-1][0]
            due = failed + story.events[-1][1].facts.delay
            assert standing(story, due - 8.2) == "waits 8.2 s before attempt 2"
            assert re.match(
                r"waits in the queue: attempt 2 is due since 3 s; of \d+ slots of moods \d are taken",
                standing(story, due + 3.0),
            )
            assert [rung.what for rung in rungs(story)] == ["stored", "failed"]


async def test_a_task_behind_others_says_that_the_slots_are_taken(server: Server, tmp_path: Path) -> None:
    agent = Agent("moods", concurrency=1)
    running = anyio.Event()

    @agent.skill
    async def rest(ctx: Context) -> None:
        running.set()
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"), worker(server, agent):
            await bus.send("moods.rest", id="first")
            await running.wait()
            for n in range(9):
                await bus.send("moods.rest", id=f"t{n}")
            said = await line(bus, "t8")
            assert said.startswith("waits in the queue of moods since ")
            assert re.search(r": of 1 slots of moods \d are taken, \d tasks of its lane wait$", said)


async def test_a_task_in_the_hands_of_a_worker_that_died_says_that_another_one_gets_it(
    server: Server, tmp_path: Path
) -> None:
    agent = Agent("moods")

    @agent.skill
    async def rest(ctx: Context) -> None:
        await ctx.progress("resting")
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            async with worker(server, agent, limits=Limits(ack_wait=600.0)):
                await bus.send("moods.rest", id="t")
                async for _ in bus.subscribe("t"):
                    break
                running = r"runs since .+ in attempt \d \(moods, instance .{8}\)"
                assert re.match(running, await line(bus, "t"))
                story = await read_story(bus, await bus.found("t"))
            while "; nobody takes tasks of moods" not in await line(bus, "t"):
                await anyio.lowlevel.checkpoint()  # the broker forgets its pulls a little later
            assert re.match(r"waits in the queue: attempt \d was handed back; ", await line(bus, "t"))
            events = [each for each in story.events if each[1].kind == "status"]
            gone = await read_story(bus, await bus.found("t"))
            as_it_was = msgspec.structs.replace(gone, events=events)
            assert "holds no agent card now: another one gets it" in standing(as_it_was)


async def test_a_task_that_is_leased_and_on_no_record_yet_says_so(server: Server, tmp_path: Path) -> None:
    agent = Agent("moods")
    running, go = anyio.Event(), anyio.Event()

    async def stop(point: str, task: object) -> None:
        running.set()
        await go.wait()

    @agent.skill
    async def rest() -> None:
        return None

    with anyio.fail_after(PATIENCE):
        async with (
            member(server) as bus,
            index(server, tmp_path / "index.db"),
            worker(server, agent, probe=stop),
        ):
            await bus.send("moods.rest", id="t")
            await running.wait()
            assert await line(bus, "t") == "is leased to a worker of moods, and no attempt is on record yet"
            go.set()


async def test_a_task_that_is_being_canceled_and_a_parent_with_open_sub_tasks_say_so(
    server: Server, tmp_path: Path
) -> None:
    boss = Agent("boss")

    @boss.skill
    async def work(ctx: Context) -> None:
        await ctx.progress("asking")
        await ctx.call("asleep.rest")

    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"), worker(server, boss):
            await bus.declare("asleep")
            await bus.send("boss.work", id="t")
            while not (await read_story(bus, await bus.found("t"))).below:
                await anyio.lowlevel.checkpoint()  # nobody tells of a sub-task
            assert (await line(bus, "t")).endswith(", with 1 open sub-task")
            await bus.send("asleep.rest", id="waiting")
            found = await bus.found("waiting")
            assert found.queued is not None
            await bus.owner.cancel(found.queued[0], "no longer needed")
            assert (await line(bus, "waiting")).startswith("is being canceled since ")


async def test_an_outcome_without_a_time_of_its_own_is_told_all_the_same(
    server: Server, tmp_path: Path
) -> None:
    """As those are that were written before outcomes said when their task was sent."""
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            await bus.declare("moods")
            old = Task(id="old", context_id="old", status=TaskStatus(state=TaskState.COMPLETED))
            about = subjects.EventSubject("moods", bus.name, "old", "00000000", "moods", "outcome")
            await bus.publisher.store(subjects.event(about), encode(old))
            assert await line(bus, "old") == "ended: TASK_STATE_COMPLETED"
            assert [row.id async for row in bus.tasks.all()] == ["old"]


async def test_a_failed_task_says_why_in_its_line(server: Server, tmp_path: Path) -> None:
    agent = Agent("moods")

    @agent.skill(max_attempts=1)
    async def bad() -> None:
        raise RuntimeError("no such table")

    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"), worker(server, agent):
            with pytest.raises(TaskFailed):
                await bus.call("moods.bad", id="t")
            said = await line(bus, "t")
            assert re.match(r"ended: TASK_STATE_FAILED after .+, Gave up after \d attempts?\.", said)
            assert said.endswith("no such table (exhausted)")
