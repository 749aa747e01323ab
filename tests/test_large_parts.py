"""Large parts: what the broker does not take in one message travels apart, and nobody notices."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest
from joining import member, until_queue_holds, worker

from xnai.agents import Agent, Backoff, Context
from xnai.agents.testing import fresh_server, running
from xnai.bus import Bus, Limits, Server, ServerOptions
from xnai.protocol import (
    Busy,
    MalformedMessage,
    Message,
    Part,
    Role,
    TaskFailed,
    TaskState,
    Unavailable,
    XnaiError,
)
from xnai.protocol.events import BLOB_KEY, error_in
from xnai.protocol.subjects import BLOB_STREAM

MEGABYTE = 1 << 20
AT_ONCE = Backoff(first=0.01, most=0.01)

copier = Agent("copier")


@copier.skill
async def echo(content: bytes) -> bytes:
    return content


@copier.skill
async def size(content: bytes) -> int:
    return len(content)


@copier.skill
async def make(size: int) -> bytes:
    return pattern(size)


@copier.skill
async def text(size: int) -> str:
    return "é" * size


@copier.skill
async def say(words: str) -> str:
    return words


@copier.skill
async def numbers(values: list[int]) -> list[int]:
    return values[::-1]


@copier.skill
async def parts(message: Message) -> list[str]:
    return [hashlib.sha256(part.raw or (part.text or "").encode()).hexdigest() for part in message.parts]


@copier.skill
async def beside(sizes: list[int], ctx: Context) -> int:
    for number, size in enumerate(sizes):
        await ctx.artifact(f"part-{number}", pattern(size))
    return len(sizes)


def pattern(size: int) -> bytes:
    """Bytes that repeat nowhere near, so that a chunk out of place is seen."""
    block = b"".join(number.to_bytes(4, "big") for number in range(min(size // 4 + 1, 1 << 18)))
    return (block * (size // len(block) + 1))[:size]


async def blobs(bus: Bus) -> int:
    """How many chunks are kept."""
    messages: int = (await bus.api.stream_info(BLOB_STREAM))["state"]["messages"]
    return messages


async def test_fifty_megabytes_go_in_and_out() -> None:
    content = pattern(50 * MEGABYTE)
    with anyio.fail_after(60):
        async with running(copier) as bus:
            assert await bus.call("copier.echo", content, bytes, timeout=60) == content


async def test_the_same_content_is_stored_once() -> None:
    content = pattern(4 * MEGABYTE)
    with anyio.fail_after(20):
        async with running(copier) as bus:
            assert await bus.call("copier.size", content, int) == len(content)
            stored = await blobs(bus)
            assert stored == 8
            assert await bus.call("copier.size", content, int) == len(content)
            assert await blobs(bus) == stored


@pytest.mark.parametrize(
    "size",
    [0, 1, 500_000, 520_000, 589_000, 590_000, 785_000, 786_432, 1_048_575, 1_048_576, 1_048_577, 1_600_000],
)
async def test_every_size_around_the_limits_arrives(size: int) -> None:
    content = pattern(size)
    with anyio.fail_after(20):
        async with running(copier) as bus:
            assert await bus.call("copier.echo", content, bytes) == content


async def test_large_text_and_large_data_keep_their_kind() -> None:
    with anyio.fail_after(20):
        async with running(copier) as bus:
            assert await bus.call("copier.text", 2 * MEGABYTE, str) == "é" * 2 * MEGABYTE
            assert await bus.call("copier.say", "ü" * MEGABYTE, str) == "ü" * MEGABYTE
            values = list(range(400_000))
            assert await bus.call("copier.numbers", values, list[int]) == values[::-1]


async def test_text_that_grows_in_json_arrives() -> None:
    """Escapes make six bytes of one: the room is that of the bytes written."""
    words = '\x01"\\\n' * 200_000
    with anyio.fail_after(20):
        async with running(copier) as bus:
            assert await bus.call("copier.say", words, str) == words


async def test_a_message_of_many_parts_arrives_in_order() -> None:
    contents = [pattern(300_000 + n) for n in range(12)]
    some = [
        Part(raw=content, media_type="image/png", filename=f"{n}.png") for n, content in enumerate(contents)
    ]
    message = Message(message_id="m", role=Role.USER, parts=(Part(text="look"), *some))
    with anyio.fail_after(20):
        async with running(copier) as bus:
            sums = await bus.call("copier.parts", message, list[str], id="t")
            wanted = [hashlib.sha256(content).hexdigest() for content in (b"look", *contents)]
            assert sums == wanted
            history = (await bus.task("t")).history[0]
            assert [part.filename for part in history.parts[1:]] == [part.filename for part in some]
            assert history.parts[1:] == tuple(some)


async def test_many_small_parts_that_together_are_too_large_are_a_clear_error() -> None:
    message = Message(
        message_id="m", role=Role.USER, parts=tuple(Part(text="x" * 100) for _ in range(10_000))
    )
    with anyio.fail_after(20):
        async with running(copier) as bus:
            with pytest.raises(Unavailable, match="too many small parts"):
                await bus.call("copier.parts", message)
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_large_metadata_are_a_clear_error_and_leave_the_connection_alone() -> None:
    message = Message(
        message_id="m", role=Role.USER, parts=(Part(text="x"),), metadata={"notes": "x" * 2 * MEGABYTE}
    )
    with anyio.fail_after(20):
        async with running(copier) as bus:
            with pytest.raises(Unavailable):
                await bus.call("copier.parts", message)
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_a_task_shows_its_large_parts_whole() -> None:
    content = pattern(3 * MEGABYTE)
    with anyio.fail_after(20):
        async with running(copier) as bus:
            await bus.call("copier.echo", content, bytes, id="t")
            task = await bus.task("t")
            assert task.history[0].parts[0].raw == content
            assert task.artifacts[0].parts[0].raw == content
            assert task.artifacts[0].parts[0].media_type == "application/octet-stream"


async def test_a_waiting_task_shows_its_large_parts_whole(server: Server) -> None:
    content = pattern(3 * MEGABYTE)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("copier")
            id = await bus.send("copier.echo", content)
            assert (await bus.task(id)).history[0].parts[0].raw == content


async def test_artifacts_beside_the_answer_may_be_large() -> None:
    sizes = [10, 2 * MEGABYTE, 600_000, 600_000]
    with anyio.fail_after(20):
        async with running(copier) as bus:
            assert await bus.call("copier.beside", sizes, int, id="t") == 4
            task = await bus.task("t")
            assert [len(artifact.parts[0].raw or b"") for artifact in task.artifacts[1:]] == sizes
            assert all(
                artifact.parts[0].raw == pattern(size)
                for artifact, size in zip(task.artifacts[1:], sizes, strict=True)
            )


async def test_several_large_calls_at_once_do_not_mix() -> None:
    async def ask(bus: Bus, size: int) -> None:
        assert await bus.call("copier.echo", pattern(size), bytes) == pattern(size)

    with anyio.fail_after(40):
        async with running(copier) as bus, anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(ask, bus, 2_000_000 + n)


async def test_a_large_payload_outlives_a_failed_attempt() -> None:
    agent = Agent("shaky")

    @agent.skill(backoff=AT_ONCE)
    async def weigh(content: bytes, ctx: Context) -> int:
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return len(content)

    with anyio.fail_after(20):
        async with running(agent) as bus:
            assert await bus.call("shaky.weigh", pattern(2 * MEGABYTE), int) == 2 * MEGABYTE


async def test_large_parts_of_an_exhausted_task_leave_a_dead_letter() -> None:
    agent = Agent("hopeless")

    @agent.skill(backoff=AT_ONCE, max_attempts=2)
    async def weigh(content: bytes) -> int:
        raise RuntimeError("x" * 2 * MEGABYTE)  # not even its error fits into a message

    with anyio.fail_after(20):
        async with running(agent) as bus:
            with pytest.raises(TaskFailed) as caught:
                await bus.call("hopeless.weigh", pattern(2 * MEGABYTE), int, timeout=10)
            assert caught.value.code == "exhausted"


async def test_large_progress_does_not_end_the_connection() -> None:
    agent = Agent("chatty")

    @agent.skill(max_attempts=1)
    async def speak(size: int, ctx: Context) -> str:
        await ctx.progress("x" * size)
        return "said"

    with anyio.fail_after(20):
        async with running(agent) as bus:
            assert await bus.call("chatty.speak", 2 * MEGABYTE, str, timeout=10, id="t") == "said"
            assert await bus.call("chatty.speak", 10, str) == "said"
            events = [event async for event in bus.subscribe("t")]
            assert [event.kind for event in events] == ["status", "outcome"]


async def test_a_server_with_small_messages_takes_large_parts_or_says_that_it_does_not() -> None:
    content = pattern(3 * MEGABYTE)
    with anyio.fail_after(30):
        async with (
            fresh_server(ServerOptions(max_payload=64 * 1024)) as server,
            worker(server, copier),
            member(server) as bus,
        ):
            with suppress(XnaiError):  # its sentence is for a person; that it is one of ours counts
                assert await bus.call("copier.echo", content, bytes) == content
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_a_full_blob_store_refuses_clearly(server: Server) -> None:
    limits = Limits(blobs=3 * MEGABYTE)
    with anyio.fail_after(30):
        async with worker(server, copier, limits=limits), member(server) as bus:
            assert await bus.call("copier.size", pattern(2 * MEGABYTE), int) == 2 * MEGABYTE
            with pytest.raises(Busy) as caught:
                await bus.call("copier.size", pattern(5 * MEGABYTE), int)
            assert caught.value.code == "busy"
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_a_payload_whose_parts_are_gone_ends_as_failed_and_says_why(server: Server) -> None:
    agent = Agent("weigher")

    @agent.skill(backoff=AT_ONCE)
    async def weigh(content: bytes) -> int:
        return len(content)

    with anyio.fail_after(40):
        async with member(server) as bus:
            await bus.declare("weigher")
            id = await bus.send("weigher.weigh", pattern(2 * MEGABYTE), ttl=30)
            await bus.api.purge(BLOB_STREAM, "xnai.v1.blob.>")
            async with worker(server, agent):
                await until_queue_holds(bus, "weigher", 0)
            outcome = (await bus.found(id)).outcome
            assert outcome is not None
            assert outcome.status.state is TaskState.FAILED
            assert "no longer kept" in str(error_in(outcome.status))


async def test_a_task_whose_large_parts_are_gone_can_still_be_looked_at(server: Server) -> None:
    with anyio.fail_after(20):
        async with worker(server, copier), member(server) as bus:
            await bus.call("copier.echo", pattern(2 * MEGABYTE), bytes, id="t")
            await bus.api.purge(BLOB_STREAM, "xnai.v1.blob.>")
            task = await bus.task("t")
            assert task.status.state is TaskState.COMPLETED
            assert task.artifacts[0].parts[0].url is not None
            assert [event.kind async for event in bus.subscribe("t")] == ["outcome"]


async def test_an_answer_whose_parts_are_gone_is_a_clear_error() -> None:
    with anyio.fail_after(20):
        async with running(copier) as bus:
            await bus.call("copier.make", 2 * MEGABYTE, bytes, id="t")
            await bus.api.purge(BLOB_STREAM, "xnai.v1.blob.>")
            with pytest.raises(Unavailable, match="no longer kept"):
                await bus.call("copier.make", 2 * MEGABYTE, bytes, id="t")


async def test_a_part_that_was_changed_on_its_way_is_not_believed() -> None:
    with anyio.fail_after(20):
        async with running(copier) as bus:
            await bus.call("copier.make", 2 * MEGABYTE, bytes, id="t")
            some = [stored async for stored in bus.api.scan(BLOB_STREAM, "xnai.v1.blob.>")]
            await bus.publisher.store(some[1].subject, b"z" * len(some[1].data))
            with pytest.raises(MalformedMessage, match="not what its name promises"):
                await bus.call("copier.make", 2 * MEGABYTE, bytes, id="t")


@pytest.mark.parametrize(
    "url",
    [
        "xnai-blob:a/b",
        "xnai-blob:",
        "xnai-blob:a/b/*",
        "xnai-blob:>/b/c",
        "xnai-blob:a/b/c d",
        "xnai-blob:a/b/" + "0" * 64,
    ],
)
async def test_a_callers_own_part_with_a_made_up_name_is_rejected_or_an_error(url: str) -> None:
    part = Part(url=url, metadata={BLOB_KEY: {"kind": "raw", "size": 10}})
    with anyio.fail_after(20):
        async with running(copier) as bus:
            with pytest.raises((TaskFailed, Unavailable)):
                await bus.call("copier.size", part, int, timeout=4)
            assert await bus.call("copier.size", b"abc", int) == 3


@pytest.mark.parametrize(
    "reference", [None, {}, {"kind": "raw"}, {"kind": "raw", "size": -1}, {"kind": 1, "size": "x"}]
)
async def test_a_part_that_says_nothing_useful_of_itself_is_rejected(reference: Any) -> None:
    metadata = None if reference is None else {BLOB_KEY: reference}
    part = Part(url="xnai-blob:a/b/" + "0" * 64, metadata=metadata)
    with anyio.fail_after(20):
        async with running(copier) as bus:
            with pytest.raises((TaskFailed, Unavailable)):
                await bus.call("copier.size", part, int, timeout=4)
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_a_part_that_claims_an_absurd_size_costs_nothing() -> None:
    metadata = {BLOB_KEY: {"kind": "raw", "size": 1 << 60}}
    part = Part(url="xnai-blob:a/b/" + "0" * 64, metadata=metadata)
    with anyio.fail_after(20):
        async with running(copier) as bus:
            with pytest.raises((TaskFailed, Unavailable)):
                await bus.call("copier.size", part, int, timeout=4)
            assert await bus.call("copier.size", b"abc", int) == 3


async def test_a_part_by_an_address_of_the_web_is_passed_on_as_it_is() -> None:
    agent = Agent("reader")

    @agent.skill
    async def address(part: Part) -> str:
        return part.url or ""

    with anyio.fail_after(20):
        async with running(agent) as bus:
            url = "https://example.org/a.png"
            assert await bus.call("reader.address", Part(url=url), str) == url


async def test_large_chunks_of_a_stream_that_is_stored_arrive_once_each(server: Server) -> None:
    agent = Agent("streamer")

    @agent.skill
    async def run(n: int) -> AsyncIterator[bytes]:
        for i in range(n):
            yield pattern(400_000 + i)

    with anyio.fail_after(30):
        async with worker(server, agent), member(server) as bus, member(server) as second:
            chunks = [chunk async for chunk in bus.stream("streamer.run", 10, bytes, id="t")]
            assert chunks == [pattern(400_000 + i) for i in range(10)]
            again = [chunk async for chunk in second.stream("streamer.run", 10, bytes, id="t")]
            assert again == chunks
            assert (await bus.task("t")).status.state is TaskState.COMPLETED


async def test_references_say_their_kind_and_size(server: Server) -> None:
    content = pattern(2 * MEGABYTE)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("copier")
            await bus.send("copier.size", content, id="t")
            stored = await bus.api.last("XNAI_TASK_copier", "xnai.v1.task.copier.>")
            assert stored is not None
            part = msgspec.json.decode(stored.data)["message"]["parts"][0]
            sha256 = hashlib.sha256(content).hexdigest()
            assert part["url"] == f"xnai-blob:tester/copier/{sha256}"
            assert part["metadata"][BLOB_KEY] == {"kind": "raw", "size": len(content)}
            assert part["mediaType"] == "application/octet-stream"
