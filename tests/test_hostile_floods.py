"""More of everything than anybody wants: what one member takes has a limit, and the others go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hostility import all_of_us, envelope, in_as, in_the_log, work
from intruder import PATIENCE, Intruder
from society import SMALL, Society, agent

from xnai.agents import Agent
from xnai.bus.keeper import Keeper
from xnai.protocol import Busy, subjects
from xnai.registry import read_instances

VIOLATIONS = 100_000
FULL = 10077
LARGE = b"x" * (700 << 10)


@pytest.fixture
async def known() -> AsyncIterator[Society]:
    async with all_of_us() as known:
        yield known


async def until_full(mallory: Intruder, subject: str, data: bytes, head: str = "") -> int:
    """Store it under `subject` and a number until the broker takes no more; how often it did."""
    number = 0
    while True:
        answer = await mallory.ask(subject.format(number), data, head=head)
        assert answer is not None, mallory.errors[-1]
        if error := msgspec.json.decode(answer.data).get("error"):
            assert error["err_code"] == FULL, error
            return number
        number += 1


async def test_a_queue_takes_no_more_than_its_limit_and_others_stay_open(known: Society) -> None:
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        taken = await until_full(mallory, "xnai.v1.task.maths.normal.mallory.double.t{}", envelope())
        assert taken == SMALL.queue
        with pytest.raises(Busy, match="The queue of maths is full"):
            await alice.send("maths.double", 1)
        await alice.send("helper.twice", 1)
        async with work(known):  # the queue drains, and alice is served
            with anyio.fail_after(PATIENCE):
                while True:
                    try:
                        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
                        break
                    except Busy:
                        continue


async def test_a_log_takes_no_more_than_its_limit_and_those_of_others_stay_open(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        place = "xnai.v1.log.maths.mallory.t{}.i.mallory.input"
        assert await until_full(mallory, place, LARGE) <= SMALL.log // len(LARGE)
        assert await alice.call("helper.twice", 21, int, timeout=PATIENCE) == 42


async def test_cards_that_are_made_up_push_no_card_out(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        before = {each.key for each in await read_instances(alice)}
        for head in ("", "Nats-TTL: never\r\n", "Nats-TTL: 3600\r\n"):
            number = f"{len(head):02}"
            await until_full(mallory, f"xnai.v1.card.mallory.{number}{{}}", LARGE, head)
        for size in (LARGE[: 1 << power] for power in range(19, 4, -1)):  # to the last byte
            await until_full(mallory, f"xnai.v1.card.mallory.s{len(size)}x{{}}", size, "Nats-TTL: never\r\n")
        held = {key: await last_card(known, *key) for key in before}
        with anyio.fail_after(PATIENCE):  # those who were there renew their cards all the same
            for key, sequence in held.items():
                while await last_card(known, *key) == sequence:
                    await anyio.lowlevel.checkpoint()
        assert {each.key for each in await read_instances(alice)} == before
        await known.know(agent("late"))
        await known.declare("late")
        late = Agent("late", description="Comes late", version="1.0.0")
        late.skill(hello)
        async with known.worker(late):  # whoever comes now has no card, and works all the same
            assert await alice.call("late.hello", None, str, timeout=PATIENCE) == "hello"
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42


async def hello() -> str:
    """Greet."""
    return "hello"


async def test_cards_that_were_made_to_stay_are_removed_by_the_keeper(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        before = {each.key for each in await read_instances(alice)}
        for number in range(3):
            answer = await mallory.ask(f"xnai.v1.card.mallory.{number}", b"{}", head="Nats-TTL: never\r\n")
            assert answer is not None
        config = (await known.keeper.api.stream_info(subjects.CARD_STREAM))["config"]
        assert config["max_age"] >= 10 * SMALL.lease * 1e9
        config |= {"max_age": int(0.1 * 1e9), "duplicate_window": int(0.1 * 1e9)}
        await known.keeper.api.ask(f"STREAM.UPDATE.{subjects.CARD_STREAM}", config)
        keeper = Keeper(known.keeper, kept=600.0)
        with anyio.fail_after(PATIENCE):
            while await known.keeper.api.last(subjects.CARD_STREAM, subjects.card("mallory")) is not None:
                await keeper.remove_stale_cards()
        config |= {"max_age": int(300 * 1e9)}
        await known.keeper.api.ask(f"STREAM.UPDATE.{subjects.CARD_STREAM}", config)
        with anyio.fail_after(PATIENCE):
            while {each.key for each in await read_instances(alice)} != before:
                await anyio.lowlevel.checkpoint()


async def last_card(known: Society, agent: str, instance: str) -> int:
    card = await known.keeper.api.last(subjects.CARD_STREAM, subjects.card(agent, instance))
    assert card is not None
    assert card.data
    return card.sequence


async def test_large_parts_take_no_more_room_than_there_is(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        taken = await until_full(mallory, f"xnai.v1.blob.mallory.maths.{'0' * 64}.{{}}", LARGE)
        assert taken <= (SMALL.blobs // len(LARGE))
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42


async def test_a_hundred_thousand_violations_disturb_nobody(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        line = b"PUB xnai.v1.log.maths.alice.t.i.maths.outcome 2\r\n{}\r\n"
        for _ in range(VIOLATIONS // 1_000):
            await mallory.say(line * 1_000)
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
        said = await mallory.settle()
        assert len(said) == VIOLATIONS
        assert mallory.key in in_the_log(known)
        written = sum(each.stat().st_size for each in known.server.folder.glob("nats-server.log*"))
        assert written < 60 << 20


async def test_a_message_that_is_too_large_ends_its_sender_and_nobody_else(known: Society) -> None:
    async with work(known) as alice:
        for line in (
            "PUB xnai.v1.blob.mallory.maths.x.0 99999999\r\n",
            f"PUB xnai.v1.blob.mallory.{'x' * 5_000} 1\r\n",
            "HPUB xnai.v1.blob.mallory.maths.x.0 9999999 99999999\r\n",
            "PUB xnai.v1.blob.mallory.maths.x.0 -1\r\n",
            "RUBBISH\r\n",
        ):  # fmt: skip
            async with in_as(known, "mallory") as mallory:
                await mallory.say(line)
                await mallory.until(lambda who=mallory: who.closed)  # type: ignore[misc]
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
        assert alice.transport.generation == 0


async def test_subscriptions_of_one_connection_have_a_limit(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        for start in range(0, 12_000, 1_000):
            await mallory.say(
                "".join(f"SUB _INBOX_mallory.{n} {n}9\r\n" for n in range(start, start + 1_000))
            )
        said = await mallory.settle()
        assert "maximum subscriptions" in said[-1].lower()
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42


async def test_connections_without_number_do_not_keep_the_keeper_out(known: Society) -> None:
    async with work(known) as alice, AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(in_as(known, "mallory"))
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
        await known.declare("another")
