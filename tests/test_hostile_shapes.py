"""Messages of a hostile member that are no messages, and more of them than anybody wants."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hostility import all_of_us, envelope, holding, in_as, in_the_log, outcome, put, stored, work
from intruder import PATIENCE
from society import Society
from test_identity import maths

from xnai.bus.indexing import TaskService
from xnai.bus.keeper import Keeper
from xnai.protocol import TaskState, subjects
from xnai.protocol.timestamps import format_timestamp

API = "$JS.API"
FORGED = "xnai.v1.log.maths.alice.forged.i.maths.outcome"
LATER = 600.0
SHA = "0" * 64


@pytest.fixture
async def known() -> AsyncIterator[Society]:
    async with all_of_us() as known:
        yield known


async def dead_letters(known: Society) -> int:
    messages: int = (await known.keeper.api.stream_info(subjects.DEAD_STREAM))["state"]["messages"]
    return messages


async def until_buried(known: Society, wanted: int) -> None:
    with anyio.fail_after(PATIENCE):
        while await dead_letters(known) < wanted:
            await anyio.lowlevel.checkpoint()


ODD = [
    f"i.maths.status 0 0\r\nPUB {FORGED} 5\r\nhello\r\nPUB xnai.v1.log.maths",
    f"i 12 12\r\nNATS/1.0\r\n\r\n\r\nPUB {FORGED} 5\r\nhello\r\nPUB x",
    "*",
    ">",
    "a.b",
    "",
    "x" * 5_000,
]


@pytest.mark.parametrize("instance", ODD, ids=[each[:12] for each in ODD])
async def test_what_an_envelope_says_of_its_bus_cannot_make_a_worker_say_more(
    known: Society, instance: str
) -> None:
    """The instance is the one token of the answer's subject that the broker has not checked."""
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        bodies = envelope("t", skill="large", instance=instance, part={"data": 10})
        await put(mallory, "xnai.v1.task.maths.normal.mallory.large.t", bodies)
        await until_buried(known, 1)
        assert await known.keeper.api.last(subjects.log_stream("maths"), FORGED) is None
        assert await alice.call("maths.double", 2, int, timeout=PATIENCE) == 4
        assert "Parse Error" not in in_the_log(known)


async def test_tokens_that_are_too_long_or_strange_are_buried_and_end_no_connection(known: Society) -> None:
    async with known.member("alice") as alice, known.worker(maths()) as worker:
        async with in_as(known, "mallory") as mallory:
            strange = ["x" * 3_990, "x" * 129, "*", ">", "ü", "a=b", "\x01"]
            for id in strange:
                await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.{id}", envelope(id))
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.{'s' * 3_000}.t", envelope("t"))
            await until_buried(known, len(strange) + 1)
            assert await alice.call("maths.double", 2, int, timeout=PATIENCE) == 4
        assert worker.running == 0
        assert worker.bus.transport.generation == 0, "its connection was cut"


async def test_a_worker_fetches_large_parts_of_nobody_but_the_sender(known: Society) -> None:
    """mallory knows the names of parts that alice sent to maths, and of what maths answered."""
    text = b"a secret of alice" * 100_000
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        assert await alice.call("maths.length", text.decode(), int, timeout=PATIENCE) == len(text)
        names = [stored.subject async for stored in known.keeper.api.scan("XNAI_BLOB", "xnai.v1.blob.>")]
        assert names
        sha = hashlib.sha256(b'"' + text + b'"').hexdigest()
        shas = {name.split(".")[5] for name in names} | {sha}
        about = {"urn:xnai:agent-bus:v1/blob": {"kind": "data", "size": len(text) + 2}}
        urls = [
            *(f"xnai-blob:{writer}/{reader}/{each}" for each in shas
              for writer, reader in (("alice", "maths"), ("maths", "alice"), ("alice", "*"), ("*", "maths"))),
            f"xnai-blob:mallory/{'x' * 5_000}/{SHA}", f"xnai-blob:mallory/maths/{'0' * 5_000}",
            f"xnai-blob:mallory/maths/{SHA}\r\nPUB x 0\r\n\r\n", "xnai-blob:mallory/>/>", "xnai-blob:", "xnai-blob://",
        ]  # fmt: skip
        for number, url in enumerate(urls):
            id = f"t{number}"
            body = envelope(id, skill="length", part={"url": url, "metadata": about})
            await mallory.listen(f"xnai.v1.live.maths.mallory.{id}.>")
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.length.{id}", body)
            await mallory.until(lambda id=id: any(f".{id}." in each.subject for each in mallory.heard))  # type: ignore[misc]
        answers = [each.data for each in mallory.heard if each.subject.endswith(".outcome")]
        assert len(answers) == len(urls)
        for answer in answers:
            assert b"TASK_STATE_REJECTED" in answer, answer
            assert b"secret" not in answer


async def test_an_envelope_that_names_others_is_that_of_its_subject(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        id = "mine"
        before = await stored(known, but=("XNAI_LOG_maths", "XNAI_TASK_maths", "XNAI_CARD"))
        others = {
            "id": "theirs",
            "sender": "alice",
            "agent": "helper",
            "lane": "urgent",
            "instance": alice.instance,
        }
        body = envelope(**{"skill": "twice", "depth": -5, "ancestors": ["a.b"] * 9, "context": "x", **others})  # type: ignore[arg-type]
        await mallory.listen(f"xnai.v1.live.maths.mallory.{id}.>")
        heard: list[str] = []
        alice.hearing.add("theirs", lambda frame, tokens: heard.append(frame.subject))
        alice.hearing.add(id, lambda frame, tokens: heard.append(frame.subject))
        await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.{id}", body)
        await mallory.until(lambda: any(each.subject.endswith(".outcome") for each in mallory.heard))
        (ended,) = [each for each in mallory.heard if each.subject.endswith(".outcome")]
        assert ended.subject == f"xnai.v1.live.maths.mallory.{id}.{alice.instance}.maths.outcome"
        facts = msgspec.json.decode(ended.data)["metadata"]["urn:xnai:agent-bus:v1"]
        assert (facts["sender"], facts["skill"], facts["lane"]) == ("mallory", "double", "normal")
        await alice.transport.flush()
        assert heard == []
        assert await stored(known, but=("XNAI_LOG_maths", "XNAI_TASK_maths", "XNAI_CARD")) == before


async def test_a_sub_task_is_sent_in_the_name_of_the_agent_that_works(known: Society) -> None:
    """maths asks helper while it works for mallory: it is maths who asks, and mallory hears nothing of it."""
    async with work(known), in_as(known, "mallory") as mallory:
        await mallory.listen("xnai.v1.live.*.mallory.>")
        await put(
            mallory,
            "xnai.v1.task.maths.normal.mallory.quadruple.t",
            envelope("t", skill="quadruple", sender="alice", ancestors=["helper.other"], depth=2),
        )
        await mallory.until(lambda: any(each.subject.endswith(".outcome") for each in mallory.heard))
        assert {each.subject.split(".")[3] for each in mallory.heard if ".live." in each.subject} == {"maths"}
        senders = {
            subjects.read_event(each.subject).sender
            async for each in known.keeper.api.scan("XNAI_LOG_helper", subjects.log("helper"))
        }
        assert senders == {"maths"}


@pytest.mark.parametrize("word", [b"{", b"[]", b'{"id":7}'])
async def test_a_story_that_its_sender_spoilt_stops_no_worker(known: Society, word: bytes) -> None:
    """The worker reads it as it gives a task up, and when its link was lost."""
    async with holding(known) as (held, worker, alice):
        async with in_as(known, "mallory") as mallory:
            for id, skill in (("f", "fail"), ("h", "hold")):
                place = f"xnai.v1.log.maths.mallory.{id}"
                await put(mallory, f"{place}.0badcafe.mallory.input", word)
                await put(mallory, f"{place}.*.mallory.input", word)
                await mallory.listen(f"xnai.v1.live.maths.mallory.{id}.>")
                body = envelope(id, skill=skill, max_attempts=1)
                await put(mallory, f"xnai.v1.task.maths.normal.mallory.{skill}.{id}", body)
            await mallory.until(lambda: any(each.subject.endswith(".outcome") for each in mallory.heard))
            await held.begun.wait()
        canceled = await alice.send("maths.hold", 1)
        generation = worker.bus.transport.generation
        await known.server.stop(kill=True)
        await known.server.start()
        with anyio.fail_after(PATIENCE):
            while worker.bus.transport.generation == generation:
                await anyio.lowlevel.checkpoint()
        held.released.set()
        with anyio.fail_after(PATIENCE):
            assert [event.kind async for event in alice.subscribe(canceled)][-1] == "outcome"


async def test_a_deadline_beyond_what_may_be_is_the_latest_that_may_be(known: Society) -> None:
    """No large part can be kept until the year 9999: its answer would be made again and again."""
    async with work(known), in_as(known, "mallory") as mallory:
        await mallory.listen("xnai.v1.live.maths.mallory.t.>")
        size = {"data": 2 << 20}
        body = envelope("t", skill="large", part=size, deadline="9999-12-31T23:59:59.000Z")
        await put(mallory, "xnai.v1.task.maths.normal.mallory.large.t", body)
        await mallory.until(lambda: any(each.subject.endswith(".outcome") for each in mallory.heard))
        assert b"TASK_STATE_COMPLETED" in mallory.heard[-1].data


# The keeper


DEEP = b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
CRAFTED = [
    b"", b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b"7", DEEP, b'{"after":"x"}', b'{"after":1e999}',
    b'{"after":-1}', b'{"after":%d}' % 2**63, b'{"after":%d}' % 10**400, b'{"after":null}',
    b"x" * (512 << 10),
]  # fmt: skip


async def test_crafted_questions_do_not_stop_the_keeper(known: Society) -> None:
    async with work(known) as alice, in_as(known, "mallory") as mallory:
        id = await alice.send("maths.large", 10)
        for question in CRAFTED:
            answer = await mallory.ask("xnai.v1.read.maths.mallory.t", question)
            assert answer is not None
            said = msgspec.json.decode(answer.data)
            assert said.get("result") in (None, {"messages": [], "more": False}), said
        for place in ("*.mallory.t", ">.mallory.t", "maths.mallory.*", "maths.mallory.>", "none.mallory.t",
                      f"{'x' * 3_900}.mallory.t", f"maths.mallory.{'x' * 3_900}", "_.mallory.t"):  # fmt: skip
            answer = await mallory.ask(f"xnai.v1.read.{place}", b'{"after":0}')
            assert answer is not None, place
            assert "error" in msgspec.json.decode(answer.data), place
        for question in CRAFTED:
            answer = await mallory.ask("xnai.v1.declare.mallory", question)
            assert answer is not None
        for _ in range(2_000):
            await mallory.post("xnai.v1.read.maths.mallory.t", b"{}", reply=f"{mallory.inbox}.many")
        kinds = [event.kind async for event in alice.subscribe(id)]
        assert kinds[-1] == "outcome"
        assert known.keeper.transport.generation == 0, "its connection was cut"


async def test_made_up_tasks_and_events_do_not_stop_the_keepers_rounds(known: Society) -> None:
    """Nobody works: what is overdue or old is the keeper's."""
    async with known.member("alice") as alice, in_as(known, "mallory") as mallory:
        passed = format_timestamp(time.time() - 60)
        odd: list[dict[str, object]] = [
            {"instance": ODD[0]}, {"instance": "*"}, {"deadline": "x"}, {"deadline": "9999-99-99"},
            {"max_attempts": -1}, {"depth": 10**30}, {"message": {}}, {"context": "x" * 100_000},
        ]  # fmt: skip
        for number, more in enumerate(odd):
            subject = f"xnai.v1.task.maths.normal.mallory.double.t{number}"
            await put(mallory, subject, envelope(f"t{number}", **{"deadline": passed, **more}))
        for id in ("*", ">", "x" * 3_900):
            body = envelope(id, deadline=passed)
            await put(mallory, f"xnai.v1.task.maths.normal.mallory.double.{id}", body)
            await put(mallory, f"xnai.v1.log.maths.mallory.{id}.i.mallory.outcome", outcome(id))
        await put(
            mallory, "xnai.v1.task.maths.normal.mallory.double.ended", envelope("ended", deadline=passed)
        )
        for word in (b"{", b"[]", DEEP):
            await put(mallory, "xnai.v1.log.maths.mallory.ended.0badcafe.mallory.outcome", word)
        await alice.send("maths.double", 1, id="still-open")
        late = await alice.send("maths.double", 1, ttl=0.01)
        keeper = Keeper(known.keeper, kept=LATER)
        with anyio.fail_after(PATIENCE):
            while (await alice.task(late)).status.state is not TaskState.FAILED:
                await keeper.end_overdue("maths")
        cleaning = Keeper(known.keeper, kept=0.0)
        with anyio.fail_after(PATIENCE):
            while await cleaning.remove_old("maths"):
                continue
        assert (await alice.task("still-open")).status.state is TaskState.SUBMITTED
        index = TaskService(known.keeper, known.keys / "tasks.sqlite")
        listed = await index.answer([subjects.EVERYBODY], b"{}")
        index.close()
        assert "still-open" in {task.id for task in listed.tasks}
        assert known.keeper.transport.generation == 0, "its connection was cut"
