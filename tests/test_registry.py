"""The registry on a real broker: who is there, who has left, who was lost, and whom to ask."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from joining import member, open_link, worker
from terminal import EXAMPLES, PATIENCE, program

from xnai.agents import Agent, Context
from xnai.bus import Bus, Limits, Server
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.errors import InvalidAgent, InvalidArgument, UnknownAgent
from xnai.registry import Change, Registry, open_registry
from xnai.registry.roster import Kind

SHORT = Limits(lease=1.0)


@dataclass
class Size:
    """A payload with a schema."""

    width: int
    height: int
    colours: tuple[str, ...] = ()


def painter(name: str = "painter", *, version: str = "1", concurrency: int = 4) -> Agent:
    agent = Agent(name, version=version, roles=("artist",), concurrency=concurrency)

    @agent.skill(tags=["fast", "art"])
    async def paint(size: Size, ctx: Context) -> str:
        return f"{name} {size.width}x{size.height}"

    @agent.skill
    async def rest(ctx: Context) -> None:
        await anyio.sleep_forever()

    return agent


@asynccontextmanager
async def registry_of(
    server: Server, *, lease: float = 1.0, url: str | None = None
) -> AsyncIterator[tuple[Bus, Registry]]:
    async with member(server, url=url) as bus, open_registry(bus, lease=lease) as registry:
        yield bus, registry


async def until(registry: Registry, kind: Kind, agent: str = "painter") -> Change:
    async for change in registry.watch():
        if change.kind is kind and change.instance.presence.agent == agent:
            return change
    raise AssertionError("watching does not end")


async def test_whoever_serves_is_known_by_name_role_skill_and_tag(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, painter()), registry_of(server) as (_, registry):
            (found,) = registry.instances()
            for asked in (
                {"agent": "painter"},
                {"role": "artist"},
                {"skill": "paint"},
                {"tag": "fast"},
                {"skill": "paint", "tag": "art", "agent": "painter"},
            ):
                assert registry.find(**asked) == [found], asked
            for asked in (
                {"agent": "artist"},
                {"skill": "sing"},
                {"tag": "slow"},
                {"skill": "rest", "tag": "fast"},
            ):
                assert registry.find(**asked) == [], asked
            assert found.presence.skills["paint"].input is not None
            assert "width" in str(found.presence.skills["paint"].input)
            assert found.card.skills[0].tags == ("fast", "art")


async def test_whoever_comes_and_leaves_is_heard_of_at_once(server: Server) -> None:
    with anyio.fail_after(15):
        async with registry_of(server, lease=60.0) as (_, registry):
            assert registry.instances() == []
            async with worker(server, painter(), limits=Limits(lease=60.0)):
                await until(registry, Kind.JOINED)
            await until(registry, Kind.LEFT) if registry.instances() else None
            assert registry.instances() == []


async def test_a_process_that_is_killed_is_lost_within_the_lease(server: Server, tmp_path: Path) -> None:
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token, "XNAI_LIMITS_LEASE": "1"}
    async with (
        registry_of(server) as (_, registry),
        program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths,
    ):
        await maths.prints("ready maths")
        with anyio.fail_after(PATIENCE):
            joined = await until(registry, Kind.JOINED, "maths")
            assert joined.instance.presence.pid == maths.pid
            maths.process.kill()
            lost = await until(registry, Kind.LOST, "maths")
            assert lost.instance.key == joined.instance.key


async def test_a_watcher_that_lost_its_link_declares_nobody_dead(server: Server) -> None:
    with anyio.fail_after(20):
        async with (
            open_link(server) as link,
            worker(server, painter(), limits=SHORT),
            registry_of(server, url=link.url) as (bus, registry),
        ):
            link.cut()
            link.mend()
            async for _ in bus.transport.reconnections():
                break
            renewals = 0
            async for change in registry.watch():
                assert change.kind in (Kind.JOINED, Kind.RENEWED)
                renewals += change.kind is Kind.RENEWED
                if renewals == 4:  # more than a lease
                    break


async def test_nobody_is_lost_when_the_broker_is_killed_and_comes_back(server: Server) -> None:
    with anyio.fail_after(30):
        async with worker(server, painter(), limits=SHORT), registry_of(server) as (bus, registry):
            (before,) = registry.instances()
            await server.stop(kill=True)
            await server.start()
            async for _ in bus.transport.reconnections():
                break
            async for change in registry.watch():
                assert change.kind in (Kind.JOINED, Kind.RENEWED)
                if change.instance.sequence < before.sequence or change.kind is Kind.RENEWED:
                    break
            assert [one.key for one in registry.instances()] == [before.key]


async def test_after_a_pause_of_the_machine_nobody_is_lost_at_once(server: Server, tmp_path: Path) -> None:
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token, "XNAI_LIMITS_LEASE": "1"}
    async with (
        registry_of(server, lease=3600.0) as (bus, registry),
        program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths,
    ):
        with anyio.fail_after(PATIENCE):
            joined = await until(registry, Kind.JOINED, "maths")
            ended = anyio.Event()

            def take(frame: Frame) -> None:
                if b"MaxAge" in frame.head:
                    ended.set()

            async with bus.transport.listen(subjects.ALIVE_SUBJECTS, take):
                await bus.transport.flush()
                os.kill(maths.pid, signal.SIGSTOP)
                registry._ticked -= 60.0  # as after a minute in which the whole machine slept
                await ended.wait()
                assert registry.find(agent="maths")[0].key == joined.instance.key
                os.kill(maths.pid, signal.SIGCONT)
                await until(registry, Kind.RENEWED, "maths")


async def test_a_tag_asks_the_agent_with_the_most_room(server: Server) -> None:
    with anyio.fail_after(20):
        async with (
            worker(server, painter("small", concurrency=1)),
            worker(server, painter("large", concurrency=9)),
            registry_of(server) as (bus, _),
        ):
            answers = [await bus.call("tag:fast.paint", Size(1, 2), str) for _ in range(10)]
            assert sorted(set(answers)) == ["large 1x2", "small 1x2"]
            assert answers.count("large 1x2") >= 7
            with pytest.raises(UnknownAgent, match="Nobody alive offers a skill paint with the tag slow"):
                await bus.call("tag:slow.paint", Size(1, 2), str)


async def test_a_tagged_call_with_an_id_is_one_task_wherever_it_went(server: Server) -> None:
    with anyio.fail_after(20):
        async with (
            worker(server, painter("one")),
            worker(server, painter("two")),
            registry_of(server) as (bus, _),
        ):
            answers = {await bus.call("tag:art.paint", Size(1, 1), str, id="same") for _ in range(6)}
            assert len(answers) == 1


async def test_a_tag_without_a_registry_says_what_to_do(server: Server) -> None:
    async with member(server) as bus:
        with pytest.raises(InvalidArgument, match="open_registry"):
            await bus.call("tag:fast.paint", Size(1, 2), str)


async def test_a_handler_may_ask_by_tag(server: Server) -> None:
    asker = Agent("asker")

    @asker.skill
    async def ask(ctx: Context) -> str:
        return await ctx.call("tag:fast.paint", Size(3, 4), str)

    with anyio.fail_after(20):
        async with worker(server, painter()), worker(server, asker), member(server) as bus:
            assert await bus.call("asker.ask", None, str) == "painter 3x4"


async def test_two_that_contradict_each_other_do_not_run_side_by_side(server: Server) -> None:
    other = Agent("painter", version="1")

    @other.skill
    async def paint(size: str) -> str:
        return size

    newer = Agent("painter", version="2")
    newer.skill(paint)
    with anyio.fail_after(20):
        async with worker(server, painter()):
            with pytest.raises(
                InvalidAgent, match=r"paint differs in input.*Give it another version or name"
            ):
                async with worker(server, other):
                    pass
            async with worker(server, newer), worker(server, painter()):
                pass


async def test_those_who_share_a_role_must_agree_on_it(server: Server) -> None:
    other = Agent("sketcher", roles=("artist",))

    @other.skill
    async def paint(size: Size) -> int:
        return size.width

    with anyio.fail_after(20):
        async with worker(server, painter()):
            with pytest.raises(InvalidAgent, match=r"paint differs in output"):
                async with worker(server, other):
                    pass


async def test_a_card_that_nobody_stored_is_not_believed(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, painter()), registry_of(server) as (bus, registry):
            (painting,) = registry.instances()
            bus.transport.client.post(
                subjects.ALIVE_SUBJECTS[:-1] + "painter." + painting.presence.instance, b""
            )
            await bus.transport.flush()
            assert registry.instances() == [painting] or registry.instances()[0].key == painting.key


async def test_a_card_in_anothers_place_is_passed_over(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, painter()) as serving, registry_of(server) as (bus, registry):
            stored = await bus.api.last(subjects.CARD_STREAM, subjects.card("painter", serving.bus.instance))
            assert stored is not None
            await bus.publisher.store(subjects.card("thief", "00000000"), stored.data)
            await bus.publisher.store(subjects.card("junk", "00000000"), b"{}")
            await bus.transport.flush()
            await registry.read()
            assert [one.presence.agent for one in registry.instances()] == ["painter"]
