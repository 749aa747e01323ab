"""Bytes from outside: any give a value or a clear error, and none stops an agent or fools a caller."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joining import dead_letter, listening, member, until_queue_holds, worker

from xnai.agents import Agent, Context
from xnai.bus import Bus, Server, open_bus
from xnai.bus.finding import event_of
from xnai.bus.jetstream import Stored
from xnai.bus.pull import demand
from xnai.protocol import (
    Envelope,
    Event,
    InvalidName,
    InvalidPayload,
    MalformedMessage,
    Part,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskState,
    TaskStatus,
)
from xnai.protocol import subjects as spelled
from xnai.protocol.envelope import encode, read_envelope
from xnai.protocol.events import KINDS, as_exception, error_in, facts_of, read_body
from xnai.protocol.names import LANES
from xnai.protocol.payload import codec_of
from xnai.protocol.subjects import EventSubject, TaskSubject
from xnai.protocol.timestamps import format_timestamp, parse_timestamp

GOOD = {
    "v": 1,
    "id": "t",
    "context": "t",
    "agent": "maths",
    "skill": "double",
    "sender": "tester",
    "instance": "00000000",
    "lane": "normal",
    "sent": "2026-01-01T00:00:00.000Z",
    "deadline": "2126-01-01T00:00:00.000Z",
    "message": {"messageId": "t", "role": "ROLE_USER", "parts": [{"data": 21}]},
}
SUBJECT = TaskSubject("maths", "normal", "tester", "double", "t")
BAD_BODIES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "no JSON": b"hello",
    "cut off": msgspec.json.encode(GOOD)[:-3],
    "null": b"null",
    "a list": b"[1,2]",
    "an empty object": b"{}",
    "another version": msgspec.json.encode({**GOOD, "v": 2}),
    "no deadline": msgspec.json.encode({**GOOD, "deadline": "tomorrow"}),
    "a number as id": msgspec.json.encode({**GOOD, "id": 7}),
    "no parts": msgspec.json.encode({**GOOD, "message": {**GOOD["message"], "parts": []}}),  # type: ignore[dict-item]
    "an empty part": msgspec.json.encode({**GOOD, "message": {**GOOD["message"], "parts": [{}]}}),  # type: ignore[dict-item]
    "a part of two kinds": msgspec.json.encode(
        {**GOOD, "message": {**GOOD["message"], "parts": [{"text": "a", "data": 1}]}}  # type: ignore[dict-item]
    ),
    "nested without end": b"[" * 100_000,
    "nested metadata without end": msgspec.json.encode(GOOD)[:-1]
    + b',"metadata":'
    + b"[" * 50_000
    + b"]" * 50_000
    + b"}",
    "a number too large": msgspec.json.encode(GOOD).replace(b'"v":1', b'"v":' + b"9" * 5000),
}

maths = Agent("maths")


@maths.skill
async def double(n: int) -> int:
    return 2 * n


@maths.skill
async def about(ctx: Context) -> list[str]:
    return [ctx.task.agent, ctx.task.sender, ctx.task.skill, ctx.task.id, ctx.task.lane]


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Bus]:
    with anyio.fail_after(20):
        async with worker(server, maths), member(server) as bus:
            yield bus


class Waiting:
    """A skill that is at work until it is let go."""

    def __init__(self) -> None:
        self.agent = Agent("waiting")
        self.tasks: list[Envelope] = []
        self.begun, self.open, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()
        self.agent.skill(self.work)

    async def work(self, ctx: Context) -> str:
        self.tasks.append(ctx.task)
        self.begun.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        return "true"


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
async def test_bytes_that_are_no_task_are_kept_as_a_dead_letter_and_acknowledged(
    server: Server, body: bytes
) -> None:
    async with serving(server) as bus:
        await bus.publisher.store(spelled.task(SUBJECT), body)
        await until_queue_holds(bus, "maths", 0)
        letter = await dead_letter(bus, "xnai.v1.dead.maths.-")
        assert letter is not None
        assert "malformed_message" in str(letter["metadata"])
        if body:
            assert msgspec.convert(letter["parts"][0]["raw"], bytes) == body
        assert await bus.call("maths.double", 2, int) == 4


@pytest.mark.parametrize("tail", ["x", "tester.double", "tester.double.t.more", "tester.double.t.t.t.t.t"])
async def test_a_task_under_a_subject_that_is_none_is_kept_as_a_dead_letter_and_acknowledged(
    server: Server, tail: str
) -> None:
    async with serving(server) as bus:
        await bus.publisher.store(f"xnai.v1.task.maths.normal.{tail}", msgspec.json.encode(GOOD))
        await until_queue_holds(bus, "maths", 0)
        assert await dead_letter(bus, "xnai.v1.dead.maths.-") is not None
        assert await bus.call("maths.double", 2, int) == 4


async def test_a_bad_subject_that_waited_is_kept_as_a_dead_letter_and_acknowledged(server: Server) -> None:
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("maths")
            await bus.publisher.store("xnai.v1.task.maths.urgent.x", b"{}")
            waiting = await bus.send("maths.double", 1)
            stored = await bus.api.last(spelled.task_stream("maths"), "xnai.v1.task.maths.urgent.x")
            assert stored is not None
            while time.time() < stored.time + 1.1:  # until it is not fresh
                await anyio.lowlevel.checkpoint()
            async with worker(server, maths):
                _ = [event async for event in bus.subscribe(waiting)]
                await until_queue_holds(bus, "maths", 0)
                assert await dead_letter(bus, "xnai.v1.dead.maths.-") is not None


async def test_no_bytes_at_all_stop_an_agent(server: Server) -> None:
    dice = random.Random(7)
    good = msgspec.json.encode(GOOD)
    async with serving(server) as bus:
        for n in range(300):
            body = bytearray(good)
            for _ in range(dice.randrange(1, 6)):
                place = dice.randrange(len(body))
                body[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(4))
            subject = SUBJECT._replace(id=f"t{n}", lane=dice.choice(LANES))
            await bus.publisher.store(spelled.task(subject), bytes(body))
        await until_queue_holds(bus, "maths", 0)
        assert await bus.call("maths.double", 2, int) == 4
        assert (await demand(bus.api, "maths", "normal")).pulls > 0


async def test_the_subject_beats_what_the_envelope_says(server: Server) -> None:
    async with serving(server) as bus:
        lies = msgspec.json.encode(
            {**GOOD, "agent": "bank", "sender": "boss", "skill": "steal", "id": "x", "lane": "urgent"}
        )
        await bus.publisher.store(spelled.task(SUBJECT._replace(skill="about")), lies)
        await until_queue_holds(bus, "maths", 0)
        outcome = await bus.task("t")
        assert codec_of(list[str]).read(outcome.artifacts[0].parts) == [
            "maths",
            "tester",
            "about",
            "t",
            "normal",
        ]


async def test_fields_that_a_later_version_adds_are_ignored(server: Server) -> None:
    async with serving(server) as bus:
        later = msgspec.json.encode({**GOOD, "mood": {"good": [1, 2]}, "budget": None})
        await bus.publisher.store(spelled.task(SUBJECT), later)
        await until_queue_holds(bus, "maths", 0)
        assert (await bus.task("t")).status.state is TaskState.COMPLETED


async def test_a_sender_with_a_name_that_is_no_token_is_refused_where_it_enters(server: Server) -> None:
    for name in ("No Good", "a.b", "system", "*", ">"):
        with pytest.raises(InvalidName):
            async with open_bus(server.url, token=server.token, name=name):
                pass


# Forgery


def forged_outcome(task: Envelope) -> bytes:
    lie = Part(text="false")
    body = {"artifactId": "x", "parts": [lie]}
    return msgspec.json.encode(
        {
            "id": task.id,
            "contextId": task.context,
            "status": {"state": "TASK_STATE_COMPLETED"},
            "artifacts": [body],
        }
    )


@pytest.mark.parametrize(
    "header", ["", "Nats-Subject: xnai.v1.log.waiting.other\r\n", "Nats-Sequence: 1\r\n"]
)
async def test_an_outcome_that_was_never_stored_is_not_believed(server: Server, header: str) -> None:
    waiting = Waiting()
    answers: list[str] = []

    async def ask(bus: Bus) -> None:
        answers.append(await bus.call("waiting.work", None, str))

    with anyio.fail_after(20), listening("xnai.bus", "never stored") as said:
        async with (
            worker(server, waiting.agent),
            member(server) as bus,
            member(server, "eve") as eve,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(ask, bus)
            await waiting.begun.wait()
            [task] = waiting.tasks
            about = EventSubject("waiting", bus.name, task.id, bus.instance, "waiting", "outcome")
            live = spelled.event(about).replace(".log.", ".live.", 1)
            await eve.transport.client.send(live, forged_outcome(task), head=header)
            await said.heard.wait()
            waiting.open.set()
        assert answers == ["true"]


async def test_a_cancel_that_was_never_stored_is_not_obeyed(server: Server) -> None:
    waiting = Waiting()
    with anyio.fail_after(20), listening("xnai.agents", "a cancel by somebody else is ignored") as said:
        async with worker(server, waiting.agent), member(server) as bus, member(server, "eve") as eve:
            id = await bus.send("waiting.work")
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, id, bus.instance, bus.name, "cancel")
            live = spelled.event(about).replace(".log.", ".live.", 1)
            await eve.transport.client.send(live, b"{}")
            await said.heard.wait()
            waiting.open.set()
            assert [event.kind async for event in bus.subscribe(id)] == ["outcome"]
            assert (await bus.task(id)).status.state is TaskState.COMPLETED


async def test_a_cancel_stored_by_a_stranger_is_not_obeyed(server: Server) -> None:
    waiting = Waiting()
    with anyio.fail_after(20), listening("xnai.agents", "a cancel by somebody else is ignored") as said:
        async with worker(server, waiting.agent), member(server) as bus, member(server, "eve") as eve:
            id = await bus.send("waiting.work")
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, id, bus.instance, "eve", "cancel")
            await eve.publisher.store(spelled.event(about), b"{}")
            await said.heard.wait()
            assert not waiting.stopped.is_set()


async def test_a_cancel_by_the_keeper_is_obeyed(server: Server) -> None:
    waiting = Waiting()
    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus, member(server, "eve") as keeper:
            id = await bus.send("waiting.work")
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, id, bus.instance, "system", "cancel")
            await keeper.publisher.store(spelled.event(about), b"{}")
            await waiting.stopped.wait()


# Junk in a log


async def test_an_outcome_of_junk_is_a_clear_error_for_the_caller(server: Server) -> None:
    waiting = Waiting()

    async def ask(bus: Bus) -> None:
        with pytest.raises(MalformedMessage):
            await bus.call("waiting.work", id="t")

    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, "t", bus.instance, "waiting", "outcome")
            await bus.publisher.store(spelled.event(about), b"junk")


async def test_junk_in_a_log_is_a_clear_error_for_its_readers(server: Server) -> None:
    waiting = Waiting()
    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus:
            id = await bus.send("waiting.work")
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, id, bus.instance, "waiting", "status")
            await bus.publisher.store(spelled.event(about), b"junk")
            with pytest.raises(MalformedMessage):
                await bus.task(id)
            with pytest.raises(MalformedMessage):
                _ = [event async for event in bus.subscribe(id)]
            waiting.open.set()


async def test_an_event_of_a_kind_that_a_later_version_adds_is_passed_over(server: Server) -> None:
    waiting = Waiting()
    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus:
            id = await bus.send("waiting.work")
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, id, bus.instance, "waiting", "mood")
            await bus.publisher.store(spelled.event(about), b"junk")
            waiting.open.set()
            assert [event.kind async for event in bus.subscribe(id)] == ["outcome"]


async def test_junk_in_a_log_does_not_stop_the_next_attempt(server: Server) -> None:
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("maths")
            id = await bus.send("maths.double", 2)
            about = EventSubject("maths", bus.name, id, bus.instance, "maths", "failed")
            await bus.publisher.store(spelled.event(about), b"junk")
            stored = await bus.api.last(spelled.log_stream("maths"), spelled.log("maths"))
            assert stored is not None
            while time.time() < stored.time + 1.1:  # until it is not fresh, and its log is read
                await anyio.lowlevel.checkpoint()
            async with worker(server, maths):
                await until_queue_holds(bus, "maths", 0)
                assert (await bus.task(id)).status.state is TaskState.COMPLETED


async def test_junk_among_the_chunks_of_a_stream_is_a_clear_error_for_its_reader(server: Server) -> None:
    waiting = Waiting()

    async def read(bus: Bus) -> None:
        with pytest.raises(MalformedMessage):
            _ = [chunk async for chunk in bus.stream("waiting.work", None, str, id="t")]

    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(read, bus)
            await waiting.begun.wait()
            about = EventSubject("waiting", bus.name, "t", bus.instance, "waiting", "artifact")
            await bus.publisher.store(spelled.event(about), b"junk")


# Any bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
changed = st.tuples(st.sampled_from(sorted(GOOD)), json_values).map(
    lambda change: msgspec.json.encode({**GOOD, change[0]: change[1]})
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "text": json_values,
        "raw": json_values,
        "url": json_values,
        "data": json_values,
        "metadata": json_values,
        "mediaType": json_values,
    },
)
messages = st.fixed_dictionaries(
    {"messageId": json_values, "role": st.sampled_from(["ROLE_USER", "ROLE_AGENT", "", 1])},
    optional={"parts": st.lists(parts, max_size=3) | json_values, "metadata": json_values},
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "taskId": json_values,
        "contextId": json_values,
        "status": st.fixed_dictionaries(
            {"state": st.sampled_from([*TaskState, "", None])},
            optional={"message": messages, "timestamp": json_values},
        ),
        "artifacts": st.lists(
            st.fixed_dictionaries({"artifactId": json_values, "parts": st.lists(parts, max_size=2)}),
            max_size=2,
        ),
        "artifact": st.fixed_dictionaries({"artifactId": json_values, "parts": st.lists(parts, max_size=2)}),
        "history": st.lists(messages, max_size=2) | json_values,
        "metadata": st.dictionaries(st.sampled_from(["urn:xnai:agent-bus:v1", "x"]), json_values)
        | json_values,
        "append": json_values,
        "messageId": json_values,
        "role": st.sampled_from(["ROLE_USER", "x"]),
        "parts": st.lists(parts, max_size=2),
    },
).map(msgspec.json.encode)
anything = st.binary(max_size=200) | json_values.map(msgspec.json.encode)


@given(anything | changed | messages.map(lambda message: msgspec.json.encode({**GOOD, "message": message})))
def test_any_bytes_give_an_envelope_or_a_clear_error(data: bytes) -> None:
    try:
        task = read_envelope(data, SUBJECT)
    except MalformedMessage:
        return
    assert isinstance(task, Envelope)
    assert task.subject == SUBJECT
    assert read_envelope(encode(task), SUBJECT) == task


@given(st.sampled_from(sorted(KINDS)), anything | bodies)
def test_any_bytes_give_an_event_or_a_clear_error(kind: str, data: bytes) -> None:
    about = EventSubject("maths", "tester", "t", "00000000", "maths", kind)
    try:
        event = event_of(Stored(spelled.event(about), 1, 0.0, data))
    except MalformedMessage:
        return
    assert isinstance(event, Event)
    assert facts_of(event.body) == event.facts
    encode(event.body)
    if isinstance(event.body, Task):
        assert isinstance(as_exception(event.body), TaskFailed)


@given(st.text(max_size=20), anything)
def test_an_event_of_an_unknown_kind_is_a_clear_error(kind: str, data: bytes) -> None:
    if kind not in KINDS:
        with pytest.raises(MalformedMessage):
            read_body(kind, data)


@given(json_values)
def test_any_metadata_give_an_error_or_none(metadata: Any) -> None:
    body = {
        "state": "TASK_STATE_FAILED",
        "message": {"messageId": "m", "role": "ROLE_AGENT", "parts": [{"text": ""}]},
    }
    body["message"]["metadata"] = {"urn:xnai:agent-bus:v1/error": metadata}  # type: ignore[index]
    status = msgspec.convert(body, TaskStatus)
    error = error_in(status)
    assert error is None or error.code == metadata["code"]
    assert isinstance(as_exception(Task(id="t", status=status)), TaskFailed)


TYPES = [
    int,
    str,
    bytes,
    float,
    bool,
    None,
    list[int],
    dict[str, Any],
    datetime,
    TaskState,
    Part,
    int | None,
    Any,
]


@given(st.sampled_from(TYPES), parts)
def test_any_part_gives_a_value_or_a_clear_error(type: Any, fields: dict[str, Any]) -> None:
    try:
        part = msgspec.json.decode(msgspec.json.encode(fields), type=Part)
    except (msgspec.MsgspecError, ValueError):
        return
    try:
        codec_of(type).read((part,))
    except InvalidPayload:
        return


@given(st.sampled_from(TYPES), st.binary(max_size=50))
def test_any_data_give_a_value_or_a_clear_error(type: Any, data: bytes) -> None:
    if not data:
        return
    try:
        codec_of(type).read((Part(data=msgspec.Raw(data)),))
    except InvalidPayload:
        return


zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.text(max_size=40) | st.datetimes(timezones=st.none() | zones).map(datetime.isoformat))
def test_any_text_gives_a_time_or_a_clear_error(text: str) -> None:
    try:
        seconds = parse_timestamp(text)
    except MalformedMessage:
        return
    assert isinstance(seconds, float)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)))  # noqa: DTZ001 - the strategy wants naive ones
def test_a_time_comes_back_as_it_was_written(moment: datetime) -> None:
    seconds = moment.replace(tzinfo=UTC).timestamp()
    assert abs(parse_timestamp(format_timestamp(seconds)) - seconds) < 0.001


async def test_a_callers_own_cancel_is_told_from_a_forged_one(server: Server) -> None:
    waiting = Waiting()

    async def ask(bus: Bus) -> None:
        with pytest.raises(TaskCanceled):
            await bus.call("waiting.work", id="t")

    with anyio.fail_after(20):
        async with worker(server, waiting.agent), member(server) as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, bus)
            await waiting.begun.wait()
            await bus.cancel("t")
