"""The index of tasks: it says what queues and logs say, whatever was killed, removed, deleted or damaged."""

from __future__ import annotations

import random
import sqlite3
from functools import partial
from pathlib import Path

import anyio
import pytest
from crashing_worker import AGENT, FROZEN, WORKER, Options
from indexes import by_index, by_logs, index
from joining import listening, member, until_queue_holds, worker
from recording import recording
from witness import CALLER

from xnai.agents import Agent, Backoff, Context, Reject
from xnai.bus import Bus, Server, keeper
from xnai.protocol import TaskState, TaskStatus, TaskStatusUpdateEvent, Unavailable, subjects
from xnai.protocol.envelope import encode
from xnai.protocol.events import OUTCOME
from xnai.protocol.subjects import EventSubject

SEED = 20_260_131
TASKS = 120
KILLS = 4
WORKERS = 2
PATIENCE = 60.0

moods = Agent("moods")


@moods.skill
async def good(x: int) -> int:
    return x


@moods.skill(max_attempts=2, backoff=Backoff(first=0.01, most=0.01))
async def bad(x: int) -> None:
    raise RuntimeError(f"not {x}")


@moods.skill(backoff=Backoff(first=0.01, most=0.01))
async def slow_to_warm(x: int, ctx: Context) -> int:
    await ctx.progress("trying")
    if ctx.attempt < 3:
        raise RuntimeError("not yet")
    return x


@moods.skill
async def no(x: int) -> None:
    raise Reject("never")


@moods.skill(backoff=Backoff(first=36_000, most=36_000), max_attempts=9)  # of which chance takes a part
async def later(x: int) -> None:
    raise RuntimeError("much later")


async def send_all(bus: Bus) -> list[str]:
    """A task of each mood, ended or not, and some that nobody takes."""
    await bus.declare("asleep")
    ids = [f"{skill}-{n}" for skill in ("good", "bad", "slow_to_warm", "no", "later") for n in range(3)]
    for id in ids:
        await bus.send(f"moods.{id.partition('-')[0]}", 1, id=id, context=f"talk-{id[-1]}")
    ids += [await bus.send("asleep.work", n, lane="background", ttl=600) for n in range(3)]
    await until_queue_holds(bus, "moods", 3)
    await until_failed(bus, [f"later-{n}" for n in range(3)])
    return ids


async def send_again(bus: Bus, id: str) -> None:
    """A new task under an old id, which the broker would refuse for as long as it remembers it."""
    order = await bus.sender.order("moods.good", 2, lane="normal", ttl=600, id=id)
    task = bus.sender.envelope(order)
    await bus.publisher.store(subjects.task(task.subject), encode(task))
    async for _ in bus.subscribe(id):
        pass
    await until_queue_holds(bus, "moods", 3)


async def until_failed(bus: Bus, ids: list[str]) -> None:
    """Until the first attempt at each has failed: the queue does not show that."""
    for id in ids:
        async for event in bus.subscribe(id):
            if event.kind == "failed":
                break


# Kills and retries


async def test_the_index_says_what_the_logs_say_after_kills_and_retries(
    server: Server, tmp_path: Path
) -> None:
    choose = random.Random(SEED)
    async with recording(server, AGENT) as run, index(server, tmp_path / "index.db"):
        doomed = partial(Options, freeze_after=choose.randrange(10, 25))
        workers = [await run.start(WORKER, f"worker-{n}", doomed()) for n in range(WORKERS)]
        ids = [f"task-{n}" for n in range(TASKS)]
        for id in ids:
            skill = choose.choice(["work", "report", "count"])
            await run.send_and_ask(f"{AGENT}.{skill}", 6, id=id, streams=skill == "count", followed=False)
        for n in range(KILLS):
            assert (await by_index(run.bus)).keys() == set(ids)
            victim = await run.first_at(FROZEN, workers)
            await run.kill(victim)
            workers.remove(victim)
            assert (await by_index(run.bus)).keys() == set(ids)
            lives_on = n + WORKERS >= KILLS
            workers.append(await run.start(WORKER, f"next-{n}", Options() if lives_on else doomed()))
        await run.until_returned(CALLER, times=TASKS)
        said = await by_index(run.bus)
        assert said == await by_logs(run.bus, ids)
        assert {row.state for row in said.values()} == {TaskState.COMPLETED}
        assert max(row.attempt for row in said.values()) > 1
    async with member(server, CALLER) as bus, index(server, tmp_path / "another.db"):
        assert await by_index(bus) == said


async def test_every_state_is_listed_as_the_logs_have_it(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"), worker(server, moods):
            assert await by_index(bus) == {}
            ids = await send_all(bus)
            said = await by_index(bus)
            assert said == await by_logs(bus, ids)
            assert {row.state for row in said.values()} == {
                *(TaskState.SUBMITTED, TaskState.WORKING, TaskState.COMPLETED),
                *(TaskState.FAILED, TaskState.REJECTED),
            }
            assert said["bad-0"].error is not None
            assert (said["bad-0"].error.code, said["bad-0"].attempt) == ("exhausted", 2)
            assert said["later-0"].error is not None
            assert said["later-0"].error.message == "RuntimeError: much later"
            await bus.cancel("later-0")
            assert (await by_index(bus))["later-0"].state is TaskState.CANCELED


async def test_an_answer_holds_what_was_sent_before_the_question_and_what_became_of_it(
    server: Server, tmp_path: Path
) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"), worker(server, moods):
            for n in range(50):
                id = await bus.send("moods.good", n)
                assert id in await by_index(bus)
                await bus.call("moods.good", n, id=f"called-{n}")
                assert (await by_index(bus))[f"called-{n}"].state is TaskState.COMPLETED


# The file


async def test_an_index_whose_file_was_deleted_is_made_anew(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "index.db"
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, moods):
            async with index(server, file):
                ids = await send_all(bus)
                said = await by_index(bus)
                file.unlink()  # while it is open
                assert await by_index(bus) == said
                assert file.exists()
                await bus.call("moods.good", 1, id="one-more")
            file.unlink()
            async with index(server, file):
                assert await by_index(bus) == await by_logs(bus, [*ids, "one-more"])


async def test_an_index_goes_on_after_a_restart_from_where_it_was(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, moods):
            async with index(server, tmp_path / "index.db"):
                ids = await send_all(bus)
                await by_index(bus)
            await bus.call("moods.good", 1, id="meanwhile")
            await bus.cancel("later-1")
            async with index(server, tmp_path / "index.db"):
                assert await by_index(bus) == await by_logs(bus, [*ids, "meanwhile"])


def spoil_all(file: Path) -> None:
    file.write_bytes(b"this is no database at all" * 1000)


def spoil_the_middle(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def take_the_tables(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE tasks")
    database.close()


@pytest.mark.parametrize("damage", [spoil_all, spoil_the_middle, truncate, take_the_tables])
async def test_a_damaged_index_is_made_anew_with_a_warning(
    server: Server, tmp_path: Path, damage: object
) -> None:
    file = tmp_path / "index.db"
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, moods):
            async with index(server, file):
                await send_all(bus)
                said = await by_index(bus)
            assert callable(damage)
            damage(file)
            with listening("xnai.bus.indexing", "is damaged and is made anew") as warned:
                async with index(server, file):
                    assert await by_index(bus) == said
                    assert await by_index(bus) == said
            assert len(warned.lines) == 1


async def test_an_index_of_another_version_is_made_anew(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "index.db"
    with sqlite3.connect(file) as database:
        database.executescript("CREATE TABLE tasks (x); PRAGMA user_version = 99;")
    database.close()
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, moods), index(server, file):
            ids = await send_all(bus)
            assert await by_index(bus) == await by_logs(bus, ids)


async def test_a_place_where_no_file_can_be_is_said_in_a_sentence(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "missing" / "index.db"):
            with pytest.raises(Unavailable, match="The index of tasks cannot be used"):
                await bus.tasks()
            (tmp_path / "missing").mkdir()
            assert (await bus.tasks()).tasks == ()


# What is removed


async def test_tasks_that_the_keeper_has_removed_disappear(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_MOST_REMOVED", 12)
    with anyio.fail_after(PATIENCE):
        async with (
            member(server) as bus,
            member(server, "system-keeper") as own,
            worker(server, moods),
            index(server, tmp_path / "index.db"),
        ):
            ids = await send_all(bus)
            assert (await by_index(bus)).keys() == set(ids)
            await bus.call("moods.good", 1, id="young")
            assert await keeper.Keeper(own, 0.0).remove_old("moods") == 12
            kept = {*ids[12:], "young"}
            assert await by_index(bus) == await by_logs(bus, kept)
            await send_again(bus, "good-0")
            kept.add("good-0")
            assert await by_index(bus) == await by_logs(bus, kept)
            assert await keeper.Keeper(own, 0.0).remove_old("moods") == 2
            assert (await by_index(bus)).keys() == set(ids[12:])


async def test_a_task_that_came_ended_and_was_removed_while_nobody_asked_is_not_listed(
    server: Server, tmp_path: Path
) -> None:
    with anyio.fail_after(PATIENCE):
        async with (
            member(server) as bus,
            member(server, "system-keeper") as own,
            index(server, tmp_path / "index.db"),
        ):
            await bus.declare("moods")
            await bus.send("moods.good", 1, id="seen")
            assert (await by_index(bus)).keys() == {"seen"}
            async with worker(server, moods):
                await until_queue_holds(bus, "moods", 0)
            await keeper.Keeper(own, 0.0).remove_old("moods")
            assert await by_index(bus) == {}


async def test_what_somebody_removes_by_hand_disappears(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, worker(server, moods), index(server, tmp_path / "index.db"):
            ids = await send_all(bus)
            assert (await by_index(bus)).keys() == set(ids)
            await bus.api.purge(subjects.log_stream("moods"), subjects.log("moods", bus.name, "bad-1"))
            assert (await by_index(bus)).keys() == set(ids) - {"bad-1"}
            await bus.api.purge(subjects.task_stream("asleep"), subjects.tasks("asleep"))
            left = set(ids[:15]) - {"bad-1"}
            assert await by_index(bus) == await by_logs(bus, left)


@pytest.mark.parametrize("stream", [subjects.log_stream("moods"), subjects.task_stream("moods")])
async def test_a_stream_that_was_made_anew_is_read_from_its_start(
    server: Server, tmp_path: Path, stream: str
) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            async with worker(server, moods):
                await send_all(bus)
                await by_index(bus)
            await bus.api.ask(f"STREAM.DELETE.{stream}")
            await bus.declare("moods")
            async with worker(server, moods):
                for n in range(40):
                    await bus.call("moods.good", n, id=f"new-{n}")
                said = await by_index(bus)
                assert {f"new-{n}" for n in range(40)} <= said.keys()
                if stream == subjects.log_stream("moods"):
                    assert "bad-0" not in said
                else:
                    assert "later-0" not in said
                assert said == await by_logs(bus, said)


async def test_an_agent_whose_streams_are_deleted_is_forgotten(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            await bus.declare("asleep")
            await bus.send("asleep.work", 1)
            assert len(await by_index(bus)) == 1
            for stream in (subjects.task_stream("asleep"), subjects.log_stream("asleep")):
                await bus.api.ask(f"STREAM.DELETE.{stream}")
            assert await by_index(bus) == {}


# What foreign writers leave


async def test_bytes_that_are_no_task_and_no_outcome_hold_nothing_up(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            await bus.declare("moods")
            ids = [await bus.send("moods.good", n) for n in range(3)]
            queue = subjects.tasks("moods", lane="normal")[:-1]
            for n, junk in enumerate((b"", b"{", b"\xff\x00", encode({"v": 99}))):
                await bus.publisher.store(f"{queue}tester.good.junk{n}", junk)
                about = EventSubject("moods", bus.name, f"junk{n}", bus.instance, "moods", "working")
                await bus.publisher.store(subjects.event(about), junk)
                about = EventSubject("moods", bus.name, ids[0], bus.instance, "moods", OUTCOME)
                if n == 0:
                    await bus.publisher.store(subjects.event(about), junk)
                high = {"urn:xnai:agent-bus:v1": {"attempt": 2**63 - n, "sent": "9999-12-31T23:59:59-12:00"}}
                status = TaskStatusUpdateEvent(
                    task_id=ids[1],
                    context_id=ids[1],
                    status=TaskStatus(state=TaskState.WORKING, timestamp="0001-01-01T00:00+14:00"),
                    metadata=high,
                )
                await bus.publisher.store(
                    subjects.event(about._replace(id=ids[1], kind="status")), encode(status)
                )
                later = about._replace(id=f"junk{n}", kind="of-a-later-version")
                await bus.publisher.store(subjects.event(later), junk)
            for _ in range(2):
                said = await by_index(bus)
                assert said.keys() == set(ids)
                assert said[ids[0]].state is TaskState.UNSPECIFIED
                assert said[ids[1]].state is TaskState.WORKING
                assert said[ids[2]].state is TaskState.SUBMITTED


async def test_the_index_goes_on_over_a_restart_of_the_broker(server: Server, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus, index(server, tmp_path / "index.db"):
            await bus.declare("asleep")
            ids = [await bus.send("asleep.work", n) for n in range(5)]
            assert (await by_index(bus)).keys() == set(ids)
            await server.stop(kill=True)
            await server.start()
            ids.append(await bus.send("asleep.work", 5))
            assert (await by_index(bus)).keys() == set(ids)
