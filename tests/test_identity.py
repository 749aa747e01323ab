"""Members whom the broker knows by their keys: all that worked with one token for everybody works."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from joining import open_link
from society import Society, agent, person, society

from xnai.agents import Agent, Context, Reject
from xnai.agents.skills import Backoff
from xnai.protocol import NoBus, NotAllowed, TaskFailed, TaskRejected, TaskState, subjects

PATIENCE = 30.0


def maths(*, roles: tuple[str, ...] = ()) -> Agent:
    made = Agent("maths", description="Arithmetic", version="1.0.0", roles=roles)

    @made.skill
    async def double(n: int, ctx: Context) -> int:
        """Twice n."""
        return 2 * n

    @made.skill
    async def quadruple(n: int, ctx: Context) -> int:
        """Four times n, by two calls of another."""
        return await ctx.call("helper.twice", await ctx.call("helper.twice", n, int), int)

    @made.skill
    async def count(n: int) -> AsyncIterator[int]:
        """The numbers below n."""
        for number in range(n):
            yield number

    @made.skill
    async def wait(n: float) -> str:
        """Sleep."""
        await anyio.sleep(n)
        return "slept"

    @made.skill
    async def length(text: str) -> int:
        """How long a text is."""
        return len(text)

    @made.skill
    async def large(size: int, ctx: Context) -> str:
        """A text of some size."""
        await ctx.progress("begun")
        return "x" * size

    return made


def helper() -> Agent:
    made = Agent("helper", description="Helps", version="1.0.0")

    @made.skill
    async def twice(n: int) -> int:
        """Twice n."""
        return 2 * n

    return made


@pytest.fixture
async def known() -> AsyncIterator[Society]:
    async with society(
        agent("maths", "reviewer"), agent("helper"), person("alice"), person("bob")
    ) as all_of_us:
        yield all_of_us


async def test_calls_streams_subtasks_and_large_parts_work_with_keys(known: Society) -> None:
    async with (
        known.worker(maths(roles=("reviewer",))),
        known.worker(helper()),
        known.member("alice") as alice,
    ):
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
        assert await alice.call("reviewer.double", 4, int, timeout=PATIENCE) == 8
        assert await alice.call("maths.quadruple", 5, int, timeout=PATIENCE) == 20
        assert [chunk async for chunk in alice.stream("maths.count", 3, int, timeout=PATIENCE)] == [0, 1, 2]
        assert await alice.call("maths.large", 3 << 20, str, timeout=PATIENCE) == "x" * (3 << 20)
        assert await alice.call("maths.double", 2, int, timeout=PATIENCE, lane="urgent") == 4


async def test_a_story_is_read_by_whoever_sent_the_task(known: Society) -> None:
    async with known.worker(maths()), known.member("alice") as alice:
        id = await alice.send("maths.large", 10)
        kinds = [event.kind async for event in alice.subscribe(id)]
        assert kinds == ["status", "outcome"]
        assert (await alice.task(id)).status.state is TaskState.COMPLETED
        slow = await alice.send("maths.wait", 600.0)
        assert (await alice.task(slow)).status.state in (TaskState.SUBMITTED, TaskState.WORKING)
        await alice.cancel(slow)
        assert [event.kind async for event in alice.subscribe(slow)][-2:] == ["cancel", "outcome"]


async def test_a_task_that_is_given_up_leaves_a_dead_letter(known: Society) -> None:
    failing = Agent("maths", description="Fails", version="1.0.0")

    @failing.skill(max_attempts=2, backoff=Backoff(first=0.01, most=0.01))
    async def fail(n: int) -> int:
        """Fail."""
        raise ValueError(f"not {n}")

    @failing.skill
    async def refuse(n: int) -> int:
        """Refuse at length."""
        raise Reject("x" * 100_000)

    async with known.worker(failing), known.member("alice") as alice:
        with pytest.raises(TaskFailed, match=r"Gave up after 2 attempts. The last: ValueError: not 7"):
            await alice.call("maths.fail", 7, timeout=PATIENCE)
        assert (await known.keeper.api.stream_info(subjects.DEAD_STREAM))["state"]["messages"] == 1
        with pytest.raises(TaskRejected, match=r"^x{2000}…$"):
            await alice.call("maths.refuse", 7, timeout=PATIENCE)


async def test_whoever_has_no_key_is_told_how_to_get_one(known: Society) -> None:
    with pytest.raises(NotAllowed, match=r"There is no key for carol in .*: xnai keys add carol"):
        async with known.member("carol"):
            pass


async def test_a_key_that_is_revoked_ends_the_link_at_once(known: Society) -> None:
    async with known.member("bob") as bob:
        await known.forget("bob")
        with pytest.raises(NotAllowed):
            await bob.call("maths.double", 1, int, timeout=PATIENCE)
    with pytest.raises(NotAllowed, match="does not take the key"):
        async with known.member("bob"):
            pass


async def test_who_is_cut_off_while_the_broker_reads_its_settings_again_tries_again(known: Society) -> None:
    async with open_link(known.server) as link:
        link.hang_ups = 1
        async with known.member("alice", url=link.url) as alice:
            assert alice.transport.connected
            assert link.hang_ups == 0
        link.hang_ups = 3
        with pytest.raises(NoBus, match="breaks off before it has let us in"):
            async with known.member("alice", url=link.url):
                pass
        assert link.hang_ups == 0
