"""What a hostile member may store in its own name, and have sent elsewhere: nobody believes too much."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
from hostility import Held, all_of_us, envelope, holding, in_as, outcome, put, stored, work
from intruder import PATIENCE, Intruder
from society import Society

from xnai.bus.keeper import Keeper
from xnai.bus.parser import Frame
from xnai.protocol import IdConflict, TaskState, subjects
from xnai.protocol.timestamps import format_timestamp
from xnai.registry import open_registry, read_instances

ID = "a-task-that-mallory-knows"
API = "$JS.API"


@pytest.fixture
async def known() -> AsyncIterator[Society]:
    async with all_of_us() as known:
        yield known


async def handed_back(known: Society, tasks: int) -> None:
    """So many tasks of maths come a second time: they have a past, which is looked up."""
    transport, acks = known.keeper.transport, []
    all_here = anyio.Event()

    def take(frame: Frame) -> None:
        acks.append(frame.reply)
        if len(acks) == tasks:
            all_here.set()

    async with transport.listen("taken", take):
        body = msgspec.json.encode({"batch": tasks, "expires": int(PATIENCE * 1e9)})
        transport.client.post(f"{API}.CONSUMER.MSG.NEXT.XNAI_TASK_maths.normal", body, reply="taken")
        with anyio.fail_after(PATIENCE):
            await all_here.wait()
    for ack in acks:
        transport.client.post(ack, b"-NAK")
    await transport.flush()


async def test_what_the_broker_sends_where_mallory_says_is_stored_nowhere_and_believed_by_nobody(
    known: Society,
) -> None:
    async with holding(known) as (held, _, alice), in_as(known, "mallory") as mallory:
        async with anyio.create_task_group() as tasks, open_registry(alice) as registry:
            answers: list[object] = []

            async def call() -> None:
                answers.append(await alice.call("maths.hold", 21, int, timeout=PATIENCE, id=ID))

            async def stream() -> None:
                chunks = alice.stream("maths.count", 3, int, timeout=PATIENCE, id=f"{ID}-2")
                answers.append([chunk async for chunk in chunks])

            tasks.start_soon(call)
            await held.begun.wait()
            held.begun = anyio.Event()
            tasks.start_soon(stream)
            await held.begun.wait()
            (instance,) = [each.key for each in registry.instances()]
            places = [
                f"xnai.v1.task.maths.normal.alice.hold.{ID}x",
                *(f"xnai.v1.{kind}.maths.alice.{id}.{alice.instance}.{writer}.{what}"
                  for kind in ("log", "live") for id in (ID, f"{ID}-2")
                  for writer, what in (("maths", "outcome"), ("alice", "cancel"), ("maths", "artifact"))),
                *(f"xnai.v1.delta.maths.alice.{id}.{alice.instance}.maths" for id in (ID, f"{ID}-2")),
                *(f"xnai.v1.{kind}.{agent}.{number}" for kind in ("card", "alive")
                  for agent, number in (instance, ("maths", "00000000"))),
                "$JS.ACK.XNAI_TASK_maths.normal.1.1.1.1.0",
                f"{API}.STREAM.DELETE.XNAI_LOG_maths",
                "$SYS.REQ.SERVER.PING",
                f"{alice.transport.inbox}.99",
                "_INBOX_alice.>", "_INBOX_alice.*", "_INBOX_alice.x", "_ANSWER.alice.x", "_R_.x",
                "xnai.v1.live.>",
            ]  # fmt: skip
            await self_made(mallory)
            before = await stored(known, but=mine())
            for place in places:
                for question, data in questions():
                    await mallory.post(question, data, reply=place)
                await mallory.settle()
            assert await stored(known, but=mine()) == before
            log = [
                each.subject async for each in known.keeper.api.scan("XNAI_LOG_maths", subjects.log("maths"))
            ]
            assert [subject for subject in log if not subject.endswith(".maths.working")] == []
            assert [each.key for each in registry.instances()] == [instance]
            assert [each.key for each in await read_instances(alice)] == [instance]
            held.released.set()
        assert sorted(answers, key=str) == [42, [0, 1, 2]]
        assert held.starts == 2


def mine() -> list[str]:
    """Where mallory may store something, and where work that takes a second is noted."""
    own = [subjects.task_stream("mallory"), subjects.log_stream("mallory"), subjects.log_stream("maths")]
    return [*own, subjects.CARD_STREAM, subjects.BLOB_STREAM]


async def self_made(mallory: Intruder) -> None:
    """Store an outcome as a task, an event, and a chunk, with headers as if it were republished."""
    for id in (ID, f"{ID}-2"):
        event = f"xnai.v1.log.maths.alice.{id}.0badcafe.maths.outcome"
        head = f"Nats-Stream: XNAI_LOG_maths\r\nNats-Subject: {event}\r\nNats-Sequence: 9\r\n"
        for subject in (
            f"xnai.v1.log.mallory.mallory.{id}.i.mallory.outcome",
            f"xnai.v1.task.mallory.normal.mallory.hold.{id}",
            f"xnai.v1.blob.mallory.maths.{'0' * 64}.0",
        ):
            await put(mallory, subject, outcome(id), head)


def questions() -> list[tuple[str, bytes]]:
    """All that mallory may ask and is answered with more than a refusal."""
    own = "xnai.v1.log.mallory.mallory"
    encode = msgspec.json.encode
    return [
        (f"{API}.DIRECT.GET.XNAI_LOG_mallory", encode({"multi_last": [f"{own}.>"]})),
        (f"{API}.DIRECT.GET.XNAI_LOG_mallory", encode({"next_by_subj": f"{own}.>", "batch": 9})),
        (f"{API}.DIRECT.GET.XNAI_LOG_mallory.{own}.{ID}.i.mallory.outcome", b""),
        (f"{API}.DIRECT.GET.XNAI_TASK_mallory.xnai.v1.task.mallory.normal.mallory.hold.{ID}", b""),
        (f"{API}.DIRECT.GET.XNAI_BLOB.xnai.v1.blob.mallory.maths.{'0' * 64}.0", b""),
        (f"{API}.DIRECT.GET.XNAI_CARD", encode({"next_by_subj": "xnai.v1.card.>", "batch": 9})),
        (f"{API}.CONSUMER.MSG.NEXT.XNAI_TASK_mallory.normal", encode({"batch": 2, "no_wait": True})),
        (f"{API}.INFO", b""),
        (f"{API}.STREAM.NAMES", b""),
        (f"{API}.CONSUMER.INFO.XNAI_TASK_maths.normal", b""),
        (f"xnai.v1.blob.mallory.maths.{'0' * 64}.0", outcome(ID)),
        (f"{own}.{ID}.i.mallory.outcome", outcome(ID)),
        ("xnai.v1.declare.mallory", b""),
        (f"xnai.v1.read.mallory.mallory.{ID}", b"{}"),
    ]


async def test_a_genuine_event_that_is_sent_again_changes_nothing(known: Society) -> None:
    """mallory serves alice, and has the broker send what is stored about her task once more."""
    async with in_as(known, "mallory") as mallory, known.member("alice") as alice:
        id = await alice.send("mallory.work", 1)
        told = f"xnai.v1.log.mallory.alice.{id}.{alice.instance}.mallory"
        status = msgspec.json.encode({
            "taskId": id, "contextId": id,
            "status": {"state": "TASK_STATE_WORKING", "timestamp": format_timestamp(time.time())},
        })  # fmt: skip
        await put(mallory, f"{told}.working", status)
        kinds: list[str] = []
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                kinds.extend([event.kind async for event in alice.subscribe(id)])

            tasks.start_soon(read)
            body = msgspec.json.encode({"next_by_subj": f"xnai.v1.log.mallory.alice.{id}.>", "batch": 9})
            for _ in range(20):
                live = f"xnai.v1.live.mallory.alice.{id}.{alice.instance}.mallory.working"
                await mallory.post(f"{API}.DIRECT.GET.XNAI_LOG_mallory", body, reply=live)
            await mallory.settle()
            await put(mallory, f"{told}.outcome", outcome(id, answer=1))
        assert kinds == ["working", "outcome"]


# What is stored with headers of somebody else


@pytest.mark.parametrize(
    "head",
    [
        "Nats-Subject: xnai.v1.card.maths.00000000\r\n",
        "Nats-Sequence: 9000000000\r\n",
        "Nats-Sequence: x\r\nNats-Time-Stamp: x\r\n",
        "Nats-Marker-Reason: MaxAge\r\n",
        b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nNats-Subject: xnai.v1.card.maths.00000000\r\nX: yyy",
    ],
)
async def test_a_card_with_headers_of_another_is_nobody_elses(known: Society, head: str | bytes) -> None:
    async with in_as(known, "mallory") as mallory, known.member("alice") as alice:
        async with open_registry(alice) as registry, work(known):
            card = await known.keeper.api.last(subjects.CARD_STREAM, subjects.card("maths"))
            assert card is not None
            instance = card.subject.rpartition(".")[2].encode()
            forged = card.data.replace(b'"instance":"' + instance, b'"instance":"00000000')
            await put(mallory, "xnai.v1.card.mallory.00000000", forged, head)
        async with work(known):  # their cards stand behind the forged one now
            for instances in (await read_instances(alice), registry.instances()):
                assert ("maths", "00000000") not in {each.key for each in instances}
            assert {each.presence.agent for each in await read_instances(alice)} == {"maths", "helper"}
            assert await alice.call("maths.double", 2, int, timeout=PATIENCE) == 4


async def test_events_and_tasks_with_headers_of_another_move_no_keeper(known: Society) -> None:
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        await alice.send("maths.double", 1, id=ID)
        theirs = f"xnai.v1.log.maths.alice.{ID}.{alice.instance}.maths.outcome"
        old = f"Nats-Subject: {theirs}\r\nNats-Time-Stamp: 2020-01-01T00:00:00Z\r\n"
        await put(mallory, "xnai.v1.log.maths.mallory.t.i.mallory.outcome", outcome(ID), old)
        overdue = old.replace(theirs, f"xnai.v1.task.maths.normal.alice.double.{ID}")
        passed = envelope(ID, sender="alice", deadline="2020-01-01T00:00:00.000Z")
        await put(mallory, "xnai.v1.task.maths.normal.mallory.double.t", passed, overdue)
        keeper = Keeper(known.keeper, kept=600.0)
        assert await keeper.remove_old("maths") == 0
        await keeper.end_overdue("maths")
        assert (await alice.task(ID)).status.state is TaskState.SUBMITTED
        async with known.worker(Held().agent):
            with anyio.fail_after(PATIENCE):
                assert [event.kind async for event in alice.subscribe(ID)] == ["outcome"]


async def test_a_log_with_headers_of_another_ends_no_task_that_is_looked_up(known: Society) -> None:
    """A task that waited is looked up in the log, together with those of others."""
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        tasks = [await alice.send("maths.double", number) for number in range(3)]
        for number, id in enumerate(tasks):
            for kind in ("outcome", "cancel"):
                place = f"xnai.v1.log.maths.alice.{id}.{alice.instance}.alice.{kind}"
                subject = f"xnai.v1.log.maths.mallory.m{number}.i.mallory.{kind}"
                await put(mallory, subject, outcome(id), f"Nats-Subject: {place}\r\n")
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.m{number}", envelope(f"m{number}"))
        await handed_back(known, 6)
        async with work(known):
            with anyio.fail_after(PATIENCE):
                for id in tasks:
                    assert [event.kind async for event in alice.subscribe(id)][-1] == "outcome"
                    assert (await alice.task(id)).status.state is TaskState.COMPLETED


async def test_a_log_full_of_made_up_subjects_keeps_no_other_task_waiting(known: Society) -> None:
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        for number in range(1_100):
            await mallory.post(f"xnai.v1.log.maths.mallory.m.i{number}.mallory.cancel", b"{}")
        await put(mallory, "xnai.v1.log.maths.mallory.n.*.mallory.cancel", b"{}")
        for id in ("m", "n"):
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.{id}", envelope(id))
        id = await alice.send("maths.double", 21)
        await handed_back(known, 3)
        async with work(known):
            with anyio.fail_after(PATIENCE):
                assert [event.kind async for event in alice.subscribe(id)][-1] == "outcome"
            assert (await alice.task(id)).status.state is TaskState.COMPLETED


# What mallory may write in its own log about tasks of others


async def test_an_outcome_in_another_agents_log_ends_no_call(known: Society) -> None:
    async with holding(known) as (held, _, alice), in_as(known, "mallory") as mallory:
        answers: list[object] = []

        async def call() -> None:
            answers.append(await alice.call("maths.hold", 21, int, timeout=PATIENCE, id=ID))

        async def stream() -> None:
            chunks = alice.stream("maths.count", 3, int, timeout=PATIENCE, id=f"{ID}-2")
            answers.append([chunk async for chunk in chunks])

        async def follow() -> None:
            answers.append(str([event.writer async for event in alice.subscribe(ID)]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await held.begun.wait()
            held.begun = anyio.Event()
            tasks.start_soon(stream)
            await held.begun.wait()
            tasks.start_soon(follow)
            for id in (ID, f"{ID}-2"):
                chunk = msgspec.json.encode({
                    "taskId": id, "contextId": id, "append": False,
                    "artifact": {"artifactId": f"{id}-1", "parts": [{"data": 666}]},
                    "metadata": {"urn:xnai:agent-bus:v1": {"attempt": 1}},
                })  # fmt: skip
                place = f"mallory.alice.{id}.{alice.instance}.mallory"
                await mallory.post(f"xnai.v1.delta.{place}", chunk)
                await put(mallory, f"xnai.v1.log.{place}.artifact", chunk)
                await put(mallory, f"xnai.v1.log.{place}.outcome", outcome(id))
                assert (await alice.task(id)).status.state in (TaskState.SUBMITTED, TaskState.WORKING)
            held.released.set()
        assert sorted(answers, key=str) == [42, "['maths']", [0, 1, 2]]
        with pytest.raises(IdConflict, match="Several agents"):
            await alice.task(ID)


# Message ids


async def test_ids_that_mallory_knows_cannot_be_taken_before_their_owner_uses_them(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        for taken in (ID, f"alice.{ID}", f"{ID}.cancel.1", f"alice.{ID}.cancel.1"):
            id = f"m-{len(taken)}"
            head = f"Nats-Msg-Id: {taken}\r\n"
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.{id}", envelope(id), head)
            await put(mallory, f"xnai.v1.log.maths.mallory.{id}.i.mallory.input", b"{}", head)
        assert await alice.call("maths.double", 21, int, id=ID, timeout=PATIENCE) == 42


async def test_a_cancel_and_a_record_are_stored_whatever_ids_were_used_before(known: Society) -> None:
    async with holding(known) as (held, worker, alice), in_as(known, "mallory") as mallory:
        wanted = [
            f"{ID}.cancel.1",
            *(f"{ID}.{worker.bus.instance}.1.{kind}.1" for kind in ("working", "status")),
        ]
        for number, taken in enumerate(wanted):
            head = f"Nats-Msg-Id: {taken}\r\n"
            await put(mallory, f"xnai.v1.log.maths.mallory.m{number}.i.mallory.input", b"{}", head)
        await alice.send("maths.hold", 1, id=ID)
        await held.begun.wait()
        assert (await alice.cancel(ID)).status.state is TaskState.CANCELED
        kinds = [event.kind async for event in alice.subscribe(ID)]
        assert kinds[-2:] == ["cancel", "outcome"]


async def test_two_buses_of_one_sender_still_send_an_id_once(known: Society) -> None:
    async with known.member("alice") as one, known.member("alice") as other:
        async with anyio.create_task_group() as tasks:
            for bus in (one, other):
                for _ in range(5):
                    tasks.start_soon(functools.partial(bus.send, "maths.double", 1, id=ID))
        info = await known.keeper.api.stream_info(subjects.task_stream("maths"))
        assert info["state"]["messages"] == 1
