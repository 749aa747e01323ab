"""`bus.tasks()`: which tasks there are, chosen and in pages, and who may ask for whose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Unpack

import anyio
import msgspec
import pytest
from indexes import index
from joining import member, until_queue_holds, worker
from society import agent, person, society

from xnai.agents import Agent, Context, Reject
from xnai.bus import Bus, Server
from xnai.bus.asking import Reply
from xnai.bus.ending import CANCELED
from xnai.bus.indexing import answer_tasks
from xnai.bus.listing import Filters
from xnai.deploy.rungs import read_story, standing
from xnai.protocol import InvalidArgument, NotAllowed, TaskPage, TaskRow, TaskState, Unavailable, subjects
from xnai.protocol.listing import MOST_TASKS, TaskQuery, cursor_behind, read_cursor

PATIENCE = 60.0

maths = Agent("maths")


@maths.skill
async def double(x: int) -> int:
    return 2 * x


@maths.skill
async def refuse(size: int) -> None:
    raise Reject("x" * size)


@pytest.fixture
async def bus(server: Server, tmp_path: Path) -> AsyncIterator[Bus]:
    """A member, a keeper of an index, and three agents of which one runs."""
    async with member(server) as joined, index(server, tmp_path / "index.db"), worker(server, maths):
        for agent in ("asleep", "away"):
            await joined.declare(agent)
        with anyio.fail_after(PATIENCE):
            yield joined


async def ids(bus: Bus, **filters: Unpack[Filters]) -> list[str]:
    """The ids of the tasks that are so, in the order in which they are listed."""
    return [row.id async for row in bus.tasks.all(**filters)]


# Choosing


async def test_a_row_says_what_is_known_of_a_task(bus: Bus) -> None:
    await bus.send("asleep.rest", 1, id="one", context="talk", lane="urgent")
    (row,) = (await bus.tasks()).tasks
    assert row == TaskRow(
        id="one",
        agent="asleep",
        skill="rest",
        sender=bus.name,
        context="talk",
        lane="urgent",
        parent=None,
        state=TaskState.SUBMITTED,
        sent=row.sent,
        updated=row.updated,
        attempt=0,
        error=None,
    )
    await bus.cancel("one")
    (ended,) = (await bus.tasks()).tasks
    assert (ended.state, ended.lane, ended.sent) == (TaskState.CANCELED, "urgent", row.sent)
    assert ended.error is not None
    assert ended.error.code == "canceled"


async def test_tasks_are_chosen_by_agent_state_context_and_all_of_these(bus: Bus) -> None:
    await bus.send("asleep.rest", id="a", context="talk")
    await bus.send("away.rest", id="b", context="talk")
    await bus.call("maths.double", 1, id="c", context="talk")
    await bus.send("maths.refuse", 1, id="d")
    await until_queue_holds(bus, "maths", 0)
    assert await ids(bus) == ["d", "c", "b", "a"]
    assert await ids(bus, agent="asleep") == ["a"]
    assert await ids(bus, context="talk") == ["c", "b", "a"]
    assert await ids(bus, state=TaskState.COMPLETED) == ["c"]
    assert await ids(bus, state=[TaskState.COMPLETED, TaskState.REJECTED]) == ["d", "c"]
    assert await ids(bus, state=TaskState.SUBMITTED, context="talk", agent="away") == ["b"]
    assert await ids(bus, agent="nobody") == []
    assert await ids(bus, agent="maths", state=TaskState.WORKING) == []


async def test_tasks_are_chosen_by_age(bus: Bus) -> None:
    await bus.send("asleep.rest", id="a")
    assert await ids(bus, since=3600.0) == ["a"]
    assert await ids(bus, older=3600.0) == []
    row = (await bus.tasks()).tasks[0]
    for query, expected in (
        (TaskQuery(since=row.sent), [row]),
        (TaskQuery(before=row.sent), []),
        (TaskQuery(before="2999-01-01T00:00:00Z", since="1999-01-01T02:00:00+02:00"), [row]),
    ):
        answer = await ask(bus, msgspec.json.encode(query))
        assert list(msgspec.json.decode(answer.result, type=TaskPage).tasks) == expected


async def test_sub_tasks_are_found_below_their_parent_at_every_depth(bus: Bus, server: Server) -> None:
    boss, middle = Agent("boss"), Agent("middle")

    @boss.skill
    async def work(x: int, ctx: Context) -> int:
        return await ctx.call("middle.work", x, int) + await ctx.call("maths.double", x, int)

    @middle.skill(name="work")
    async def pass_on(x: int, ctx: Context) -> int:
        return await ctx.call("maths.double", x, int, name="named")

    async with worker(server, boss), worker(server, middle), member(server, "stranger") as stranger:
        assert await bus.call("boss.work", 2, int, id="top") == 8
        await bus.call("boss.work", 2, int, id="other")
        rows = {row.id: row async for row in bus.tasks.all(parent="top")}
        assert sorted(f"{row.sender} to {row.agent}" for row in rows.values()) == [
            *("boss to maths", "boss to middle", "middle to maths")
        ]
        (between,) = [row.id for row in rows.values() if row.agent == "middle"]
        assert sorted(row.parent or "" for row in rows.values()) == sorted(["top", "top", between])
        assert await ids(bus, parent="top", agent="middle") == [between]
        assert await ids(bus, parent=between) == []  # that one is not ours
        assert len(await ids(bus, parent=between, everybody=True)) == 1
        assert await ids(stranger, parent="top") == []


async def test_a_sender_sees_its_own_tasks_and_everybodys_are_asked_for_by_name(
    bus: Bus, server: Server
) -> None:
    async with member(server, "other") as other:
        await bus.send("asleep.rest", id="mine")
        await other.send("asleep.rest", id="theirs")
        assert await ids(bus) == ["mine"]
        assert await ids(other) == ["theirs"]
        assert sorted(await ids(bus, everybody=True)) == ["mine", "theirs"]


# Pages


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
async def test_pages_give_each_task_once_while_tasks_arrive_and_end(bus: Bus, limit: int) -> None:
    sent = [await bus.send("asleep.rest", n, id=f"t{n:02}") for n in range(20)]
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        page = await bus.tasks(limit=limit, after=cursor)
        seen += [row.id for row in page.tasks]
        pages += 1
        await bus.send("asleep.rest", id=f"z-new-{pages}")
        await bus.call("maths.double", pages, id=f"z-called-{pages}")
        if pages <= 3:
            await end(bus, f"t{pages:02}")
        if page.next is None:
            break
        assert len(page.tasks) == limit
        cursor = page.next
    assert seen == sent[::-1]
    assert len(await ids(bus)) == 20 + 2 * pages


async def test_every_task_comes_once_when_there_are_more_than_a_page_takes(bus: Bus) -> None:
    sent = {await bus.send("asleep.rest", n) for n in range(MOST_TASKS + 20)}
    seen = await ids(bus)
    assert len(seen) == len(sent)
    assert set(seen) == sent


async def test_tasks_of_the_same_moment_are_told_apart(bus: Bus, server: Server) -> None:
    async with member(server, "other") as other:
        async with anyio.create_task_group() as tasks:
            for each in (bus, other):
                for agent in ("asleep", "away"):
                    for n in range(10):
                        tasks.start_soon(each.send, f"{agent}.rest", f"{agent}-{n}")
        seen: list[tuple[str, str]] = []
        cursor: str | None = None
        while True:
            page = await bus.tasks(limit=3, after=cursor, everybody=True)
            seen += [(row.sender, row.id) for row in page.tasks]
            if page.next is None:
                break
            cursor = page.next
        assert len(seen) == len(set(seen)) == 40


async def test_a_page_fits_into_one_message_however_long_its_errors_are(bus: Bus) -> None:
    for n in range(300):
        await bus.send("maths.refuse", 100_000 if n % 50 == 0 else 3_000)
    await until_queue_holds(bus, "maths", 0)
    page = await bus.tasks(limit=300)
    assert page.next is not None
    assert 100 < len(page.tasks) < 300
    assert len(await ids(bus)) == 300
    assert all(row.error is not None and len(row.error.message) <= 2_001 for row in page.tasks)


# What cannot be answered


@pytest.mark.parametrize("limit", [0, -1, MOST_TASKS + 1])
async def test_a_limit_out_of_range_is_refused(bus: Bus, limit: int) -> None:
    with pytest.raises(InvalidArgument, match=f"not {limit}"):
        await bus.tasks(limit=limit)
    answer = await ask(bus, b'{"limit":%d}' % limit)
    assert answer.error is not None
    assert answer.error.code == "invalid_argument"


@pytest.mark.parametrize("cursor", ["", "x", "zzzz", "W10", "WyJhIl0", "ÿ", "bnVsbA"])
async def test_what_is_no_cursor_is_refused(bus: Bus, cursor: str) -> None:
    with pytest.raises(InvalidArgument, match="is no cursor"):
        await bus.tasks(after=cursor)


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("inf")])
async def test_what_is_no_age_is_refused(bus: Bus, age: float) -> None:
    with pytest.raises(InvalidArgument, match="number of seconds"):
        await bus.tasks(since=age)


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"states":["working"]}',
        b'{"limit":"many"}',
        b'{"since":"yesterday"}',
        b"[" * 10_000,
    ],
)
async def test_a_question_that_is_none_gets_an_error_and_the_next_one_an_answer(
    bus: Bus, question: bytes
) -> None:
    answer = await ask(bus, question)
    assert answer.error is not None
    assert answer.error.code == "malformed_message"
    assert (await ask(bus, b"{}")).error is None


async def test_without_a_keeper_an_error_says_who_keeps_the_index(server: Server) -> None:
    with anyio.fail_after(PATIENCE):
        async with member(server) as bus:
            with pytest.raises(Unavailable, match="inside `xnai up`"):
                await bus.tasks()
            with pytest.raises(Unavailable, match="No keeper answers"):
                await ids(bus)


async def test_of_several_keepers_one_answers(bus: Bus, server: Server, tmp_path: Path) -> None:
    async with index(server, tmp_path / "second.db"):
        sent = [await bus.send("asleep.rest", id=f"t{n}") for n in range(10)]
        for _ in range(10):
            assert await ids(bus) == sent[::-1]


async def test_a_hundred_who_ask_at_once_are_all_answered(bus: Bus) -> None:
    await bus.send("asleep.rest", id="one")
    answers: list[str] = []

    async def one() -> None:
        answers.extend(await ids(bus))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(one)
    assert answers == ["one"] * 100


async def test_a_cursor_is_the_place_of_a_task(bus: Bus) -> None:
    await bus.send("asleep.rest", id="one")
    (row,) = (await bus.tasks()).tasks
    assert read_cursor(cursor_behind(row)) == (row.sent, "one", "asleep", bus.name)
    assert (await bus.tasks(after=cursor_behind(row))).tasks == ()


async def end(bus: Bus, id: str) -> None:
    """Write the outcome of a task that nobody works on, as its owner may, and leave it in the queue."""
    found = await bus.found(id)
    assert found.queued is not None
    await bus.owner.end(found.queued[0], TaskState.CANCELED, CANCELED)


async def ask(bus: Bus, question: bytes) -> Reply:
    """The answer to a question as a foreign program writes it."""
    frame = await bus.transport.request(subjects.listing(bus.name), question)
    return msgspec.json.decode(frame.data, type=Reply)


async def test_a_broker_that_knows_its_members_lets_each_ask_for_its_own(tmp_path: Path) -> None:
    """A person may also ask for everybody's; nobody may read logs and queues, and the keeper does."""
    with anyio.fail_after(PATIENCE):
        async with (
            society(agent("boss"), agent("maths"), agent("asleep"), person("alice")) as known,
            answer_tasks(known.keeper, tmp_path / "index.db"),
            known.worker(maths),
            known.worker(boss()),
            known.member("alice") as alice,
            known.member("maths") as other,
        ):
            assert await alice.call("boss.work", 2, int, id="top") == 4
            assert await ids(alice) == ["top"]
            assert len(await ids(alice, everybody=True)) == 2
            story = await read_story(alice, await alice.found("top"))
            assert [row.sender for row in story.below] == ["boss"]
            assert standing(story).startswith("ended: TASK_STATE_COMPLETED after ")
            await alice.send("asleep.rest", id="waits")
            story = await read_story(alice, await alice.found("waits"))
            assert standing(story).endswith(": nobody takes tasks of asleep now")
            assert await ids(alice) == ["waits", "top"]
            assert await ids(other) == []
            with pytest.raises(NotAllowed):
                await ids(other, everybody=True)


def boss() -> Agent:
    """One that asks another."""
    agent = Agent("boss")

    @agent.skill
    async def work(x: int, ctx: Context) -> int:
        return await ctx.call("maths.double", x, int)

    return agent
