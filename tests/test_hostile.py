"""A member who keeps no rules: what the broker refuses, whoever's key it is that a stranger holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest
from hostility import all_of_us, in_as, in_the_log, nobody_hears, stored, work
from intruder import PATIENCE, Intruder
from society import Society, agent

ID = "a-task-that-mallory-knows"
LOG = f"xnai.v1.log.maths.alice.{ID}"
API = "$JS.API"
STREAMS = [*(f"XNAI_{kind}_{name}" for kind in ("TASK", "LOG") for name in ("maths", "mallory"))]

TASKS = [
    f"xnai.v1.task.maths.normal.alice.double.{ID}",
    f"xnai.v1.task.mallory.normal.alice.double.{ID}",
    f"xnai.v1.task.maths.normal.system.double.{ID}",
    f"xnai.v1.task.maths.normal.*.double.{ID}",
    f"xnai.v1.task.maths.normal.>.double.{ID}",
    f"xnai.v1.task.maths.lane-of-nobody.mallory.double.{ID}",
    f"xnai.v1.task.maths.normal.mallory.double.{ID}.more",
    f"xnai.v1.due.maths.normal.alice.double.{ID}",
    f"xnai.v1.timer.maths.{ID}.1",
]
EVENTS = [
    *(f"{LOG}.i.{writer}.outcome" for writer in ("maths", "alice", "system", "mallory", "*")),
    *(f"{LOG}.i.{writer}.{kind}" for writer in ("alice", "mallory") for kind in ("cancel", "input")),
    *(f"xnai.v1.log.maths.mallory.{ID}.i.{writer}.outcome" for writer in ("maths", "system", "*")),
    *(f"xnai.v1.log.maths.mallory.{ID}.i.mallory.{kind}" for kind in ("working", "artifact", "*", ">")),
    f"xnai.v1.log.mallory.alice.{ID}.i.maths.outcome",
    f"xnai.v1.live.maths.alice.{ID}.i.maths.outcome",
    f"xnai.v1.live.mallory.mallory.{ID}.i.mallory.outcome",
    f"xnai.v1.delta.maths.alice.{ID}.i.maths",
    f"xnai.v1.delta.mallory.alice.{ID}.i.maths",
    f"xnai.v1.dead.maths.{ID}",
]
CARDS = [
    "xnai.v1.card.maths.00000000",
    "xnai.v1.card.*.00000000",
    "xnai.v1.alive.maths.00000000",
    "xnai.v1.alive.mallory.00000000",
]
OTHERS = [
    f"xnai.v1.blob.alice.maths.{'0' * 64}.0",
    f"xnai.v1.blob.maths.mallory.{'0' * 64}.0",
    "xnai.v1.agent.maths.00000000",
    "xnai.v1.agent.mallory.00000000",
    f"xnai.v1.read.maths.alice.{ID}",
    "xnai.v1.declare.maths",
    "xnai.v1.declare.new",
    "xnai.v1.tasks.alice",
    "xnai.v1.tasks.-",
    "xnai.v1.keys.mallory",
    "xnai.v1.join.mallory",
    "_INBOX_alice.x",
    "_INBOX_mallory.raw.1",
    "_INBOX_maths.x",
    "_R_.x.y",
    "$SRV.PING",
    "$SRV.PING.maths",
    "anything",
]
ADMINISTRATION = [
    *(f"{API}.STREAM.{verb}.{stream}"
      for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "SNAPSHOT", "RESTORE", "MSG.GET",
                   "MSG.DELETE", "LEADER.STEPDOWN", "PEER.REMOVE")
      for stream in ("XNAI_LOG_maths", "XNAI_TASK_mallory", "XNAI_CARD", "NEW")),
    f"{API}.STREAM.LIST",
    *(f"{API}.CONSUMER.{verb}"
      for stream in ("XNAI_TASK_maths", "XNAI_TASK_mallory", "XNAI_LOG_mallory", "XNAI_CARD")
      for verb in (f"CREATE.{stream}", f"CREATE.{stream}.mine",
                   f"CREATE.{stream}.normal.xnai.v1.task.mallory.>",
                   f"DURABLE.CREATE.{stream}.mine", f"DELETE.{stream}.normal", f"PAUSE.{stream}.normal",
                   f"RESET.{stream}.normal", f"UNPIN.{stream}.normal", f"LIST.{stream}", f"NAMES.{stream}",
                   f"LEADER.STEPDOWN.{stream}.normal")),
    f"{API}.META.LEADER.STEPDOWN",
    f"{API}.ACCOUNT.PURGE.XNAI",
    f"{API}.SERVER.REMOVE",
    "$JS.hub.API.STREAM.DELETE.XNAI_LOG_maths",
    "$JS.XNAI.API.CONSUMER.MSG.NEXT.XNAI_TASK_maths.normal",
    *(f"$SYS.REQ.{what}" for what in (
        "SERVER.PING", "SERVER.x.RELOAD", "ACCOUNT.XNAI.CONNZ", "ACCOUNT.PING.CONNZ", "CLAIMS.UPDATE",
        "USER.AUTH", "SERVER.x.KICK")),
    "$SYS.ACCOUNT.XNAI.CONNECT",
    "$G.x",
]  # fmt: skip
READS = [
    *(f"{API}.CONSUMER.MSG.NEXT.XNAI_TASK_maths.{lane}" for lane in ("normal", "urgent", "*")),
    f"{API}.CONSUMER.MSG.NEXT.*.normal",
    f"{API}.DIRECT.GET.XNAI_LOG_maths",
    f"{API}.DIRECT.GET.XNAI_TASK_maths",
    f"{API}.DIRECT.GET.XNAI_BLOB",
    f"{API}.DIRECT.GET.XNAI_DEAD",
    f"{API}.DIRECT.GET.*",
    f"{API}.DIRECT.GET.XNAI_LOG_maths.{LOG}.>",
    f"{API}.DIRECT.GET.XNAI_LOG_maths.xnai.v1.log.maths.*.{ID}.>",
    f"{API}.DIRECT.GET.XNAI_LOG_maths.xnai.v1.log.>",
    f"{API}.DIRECT.GET.XNAI_LOG_maths.>",
    f"{API}.DIRECT.GET.XNAI_TASK_maths.xnai.v1.task.maths.normal.*.double.{ID}",
    f"{API}.DIRECT.GET.XNAI_TASK_maths.xnai.v1.task.maths.>",
    f"{API}.DIRECT.GET.XNAI_BLOB.xnai.v1.blob.alice.maths.*.0",
    f"{API}.DIRECT.GET.XNAI_BLOB.xnai.v1.blob.>",
    f"{API}.DIRECT.GET.XNAI_BLOB.xnai.v1.blob.*.*.*.*",
]
DELIVERIES = [
    *(f"$JS.ACK.XNAI_TASK_maths.normal.1.{n}.{n}.1.0" for n in range(1, 4)),
    "$JS.ACK._.x.XNAI_TASK_maths.normal.1.1.1.1.0",
    "$JS.ACK.*.normal.1.1.1.1.0",
]
HEARD = [
    ">", "*.>", "xnai.>", "xnai.v1.>", "xnai.v1.*.maths.>",
    "xnai.v1.task.>", "xnai.v1.log.>", "xnai.v1.log.mallory.>", "xnai.v1.live.>", "xnai.v1.live.maths.>",
    "xnai.v1.live.*.alice.>", "xnai.v1.live.*.*.>", "xnai.v1.live.maths.*.*.*.*.cancel", "xnai.v1.delta.>",
    "xnai.v1.delta.*.alice.>", "xnai.v1.blob.>", "xnai.v1.dead.>", "xnai.v1.agent.>", "xnai.v1.agent.maths.*",
    "xnai.v1.read.>", "xnai.v1.declare.>", "xnai.v1.tasks.>", "xnai.v1.keys.>", "xnai.v1.join.>",
    "_INBOX_alice.>", "_INBOX_maths.>", "_INBOX.>", "_ANSWER.>", "_ANSWER.alice.>", "_R_.>",
    "$JS.>", "$JS.ACK.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", "$SRV.PING.maths", "$SRV.>",
]  # fmt: skip


@pytest.fixture
async def known() -> AsyncIterator[Society]:
    async with all_of_us() as known:
        yield known


async def refused(known: Society, somebody: Intruder, forbidden: Iterable[str], data: bytes = b"{}") -> None:
    """The broker tells whoever says these things, and writes it down."""
    for subject in forbidden:
        before = len(somebody.errors)
        await somebody.post(subject, data, reply=f"{somebody.inbox}.refused")
        said = (await somebody.settle())[before:]
        assert len(said) == 1, (subject, said)
        assert f'Permissions Violation for Publish to "{subject}"' in said[0]
        assert somebody.at(f"{somebody.inbox}.refused") == []
    written = [line for line in in_the_log(known).splitlines() if somebody.key in line]
    seen = "\n".join(line.partition("Publish Violation")[2] for line in written)
    assert [subject for subject in forbidden if f'Subject "{subject}"' not in seen] == []


@pytest.mark.parametrize(
    "forbidden",
    [TASKS, EVENTS, CARDS, OTHERS, ADMINISTRATION, READS, DELIVERIES],
    ids=["tasks", "events", "cards", "others", "administration", "reads", "deliveries"],
)
async def test_an_agent_may_say_nothing_in_the_name_of_others(known: Society, forbidden: list[str]) -> None:
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        await alice.send("maths.double", 1, id=ID)
        before = await stored(known)
        async with nobody_hears(known):
            await refused(known, mallory, forbidden)
        assert await stored(known) == before


async def test_an_agent_hears_nothing_of_others(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        for subject in HEARD:
            for group in ("", "keepers"):
                before = len(mallory.errors)
                await mallory.say(f"SUB {subject} {group} 9{len(mallory.errors)}\r\n")
                said = (await mallory.settle())[before:]
                assert len(said) == 1, (subject, said)
                assert "Permissions Violation for Subscription to" in said[0]
        assert [subject for subject in HEARD if f'Subject "{subject}"' not in in_the_log(known)] == []
        assert await alice.call("maths.double", 21, int, timeout=PATIENCE) == 42
        assert await alice.call("maths.quadruple", 5, int, timeout=PATIENCE) == 20
        assert [each async for each in alice.stream("maths.count", 3, int, timeout=PATIENCE)] == [0, 1, 2]
        assert await alice.call("maths.large", 3 << 20, str, timeout=PATIENCE) == "x" * (3 << 20)
        await mallory.settle()
        assert mallory.heard == []


async def test_a_person_and_a_guest_may_not_either(known: Society) -> None:
    pulls = [subject for subject in READS if "MSG.NEXT" in subject]
    asked = {"xnai.v1.agent.maths.00000000", "xnai.v1.agent.mallory.00000000", "xnai.v1.tasks.alice",
             "xnai.v1.tasks.-", "$SRV.PING", "$SRV.PING.maths"}  # fmt: skip
    before = await stored(known)
    async with nobody_hears(known), in_as(known, "eve") as eve:
        others = [subject for subject in OTHERS if subject not in asked]
        await refused(known, eve, [*TASKS, *EVENTS, *CARDS, *others, *ADMINISTRATION, *READS, *DELIVERIES])
        await refused(known, eve, ["xnai.v1.card.eve.00000000", "xnai.v1.declare.eve", "_ANSWER.alice.x"])
    async with nobody_hears(known), in_as(known, "visitor") as visitor:
        own = ["xnai.v1.task.maths.normal.visitor.double.t", f"{API}.STREAM.NAMES", "xnai.v1.tasks.visitor"]
        await refused(known, visitor, [*own, *TASKS, *EVENTS, *CARDS, *OTHERS, *pulls, *ADMINISTRATION])
    assert await stored(known) == before


async def test_with_a_shared_role_the_rest_of_the_other_stays_closed(known: Society) -> None:
    await known.know(agent("mallory", "reviewer"))
    async with in_as(known, "mallory") as mallory:
        closed = [*TASKS[:6], *EVENTS, *CARDS, *READS, *DELIVERIES]
        await refused(known, mallory, closed)
        await refused(known, mallory, [
            f"xnai.v1.log.reviewer.alice.{ID}.i.maths.outcome", f"xnai.v1.delta.reviewer.alice.{ID}.i.maths",
        ])  # fmt: skip


HEADERS = {
    "Nats-Rollup: all": 10111,
    "Nats-Rollup: sub": 10111,
    "Nats-TTL: 1": 10166,
    f"Nats-Schedule: @at 2030-01-01T00:00:00Z\r\nNats-Schedule-Target: {TASKS[0]}": 10188,
    "Nats-Batch-Id: b\r\nNats-Batch-Sequence: 1": 10174,
    "Nats-Batch-Id: b\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1": 10174,
    "Nats-Incr: 1": 10168,
    "Nats-Expected-Stream: XNAI_LOG_mallory": 10060,
    "Nats-Expected-Last-Sequence: 9": 10071,
    "Nats-Expected-Last-Msg-Id: t": 10070,
}


@pytest.mark.parametrize("head", HEADERS)
async def test_headers_that_would_do_more_than_store_are_refused(known: Society, head: str) -> None:
    before = await stored(known)
    async with in_as(known, "mallory") as mallory:
        for subject in (
            "xnai.v1.log.maths.mallory.t.i.mallory.cancel",
            "xnai.v1.task.maths.normal.mallory.double.t",
        ):
            answer = await mallory.ask(subject, {}, head=f"{head}\r\n")
            assert answer is not None
            assert msgspec.json.decode(answer.data)["error"]["err_code"] == HEADERS[head]
    assert await stored(known) == before


async def test_a_trace_goes_nowhere_where_its_asker_may_not_write(known: Society) -> None:
    async with known.member("alice"), in_as(known, "mallory") as mallory:
        before = await stored(known)
        for place in (f"{LOG}.i.maths.outcome", "xnai.v1.card.maths.00000000", "_INBOX_alice.x"):
            said = len(mallory.errors)
            await mallory.post(f"{API}.INFO", head=f"Nats-Trace-Dest: {place}\r\nNats-Trace-Only: true\r\n")
            await mallory.settle()
            assert "Permissions Violation" in mallory.errors[said]
        assert await stored(known) == before


async def test_a_read_of_what_is_ours_cannot_be_widened_by_its_body(known: Society) -> None:
    everything = "xnai.v1.log.maths.>"
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        await alice.send("maths.double", 1, id=ID)
        await alice.cancel(ID)
        for body in (
            {"multi_last": [everything]}, {"seq": 1}, {"next_by_subj": everything, "batch": 10},
            {"last_by_subj": everything}, {"seq": 1, "batch": 100}, {"start_time": "2020-01-01T00:00:00Z"},
        ):  # fmt: skip
            for stream, own in (("LOG", "log.maths.mallory.>"), ("TASK", "task.maths.*.mallory.*.*")):
                place = f"{API}.DIRECT.GET.XNAI_{stream}_maths.xnai.v1.{own}"
                answer = await mallory.ask(place, body)
                assert answer is None or (b"408" in answer.head and answer.data == b""), (place, answer)
        for head in ("Nats-Required-Api-Level: 99\r\n",):
            answer = await mallory.ask(
                f"{API}.DIRECT.GET.XNAI_LOG_maths.xnai.v1.log.maths.mallory.>", head=head
            )
            assert answer is not None
            assert b"412" in answer.head


async def test_an_answer_can_settle_no_delivery_and_enter_no_way_back(known: Society) -> None:
    async with in_as(known, "mallory") as mallory:
        for reply in ("$JS.ACK.XNAI_TASK_maths.normal.1.1.1.1.0", "_R_.maths.x"):
            before = len(mallory.errors)
            await mallory.post(f"{API}.INFO", reply=reply)
            (said,) = (await mallory.settle())[before:]
            assert f'Permissions Violation for Publish with Reply of "{reply}"' in said
            assert f'Publish Violation - Reply "{reply}"' in in_the_log(known)
