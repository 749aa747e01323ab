"""What tests of hostile members share: a society at work, a stranger in it, and what the broker keeps."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
from intruder import Intruder, intruder
from society import Society, agent, guest, person, society
from test_identity import helper, maths

from xnai.agents import Agent, Worker
from xnai.bus import Bus
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.timestamps import format_timestamp

SOON = 600.0


@asynccontextmanager
async def all_of_us() -> AsyncIterator[Society]:
    """maths and helper, who work; alice, who asks; and mallory, eve and a visitor, whose keys are stolen."""
    async with society(
        agent("maths", "reviewer"), agent("helper"), agent("mallory"),
        person("alice"), person("eve"), guest("visitor"),
    ) as everybody:  # fmt: skip
        yield everybody


@asynccontextmanager
async def in_as(known: Society, name: str) -> AsyncIterator[Intruder]:
    async with intruder(known.server.url, name, known.keys / f"{name}.nk") as somebody:
        yield somebody


@asynccontextmanager
async def work(known: Society) -> AsyncIterator[Bus]:
    """What goes on meanwhile: maths works, and alice asks."""
    async with (
        known.worker(maths(roles=("reviewer",))),
        known.worker(helper()),
        known.member("alice") as alice,
    ):
        yield alice


async def stored(known: Society, *, but: Iterable[str] = (subjects.CARD_STREAM,)) -> dict[str, object]:
    """What the broker keeps: every stream with its messages, every consumer with what it has handed out."""
    api = known.keeper.api
    kept: dict[str, object] = {}
    for name in await api.stream_names():
        info = await api.stream_info(name)
        consumers = (await api.ask(f"CONSUMER.LIST.{name}"))["consumers"]
        if name not in but:
            state = info["state"]
            kept[name] = (
                info["config"], state["messages"], state["last_seq"], state["bytes"],
                [(of["name"], of["config"], of["num_pending"], of["num_ack_pending"]) for of in consumers],
            )  # fmt: skip
        else:
            kept[name] = (info["config"], [])
    return kept


@asynccontextmanager
async def nobody_hears(known: Society) -> AsyncIterator[None]:
    """Where the streams are, nothing arrives meanwhile."""
    heard: list[str] = []

    def take(frame: Frame) -> None:
        heard.append(frame.subject)

    async with AsyncExitStack() as stack:
        for subject in (
            "xnai.v1.task.>",
            "xnai.v1.log.>",
            "xnai.v1.card.mallory.>",
            "xnai.v1.blob.>",
            "$SYS.>",
        ):
            await stack.enter_async_context(known.keeper.transport.listen(subject, take))
        await known.keeper.transport.flush()
        yield
        await known.keeper.transport.flush()
    assert heard == []


def in_the_log(known: Society) -> str:
    return (known.server.folder / "nats-server.log").read_text(errors="replace")


def envelope(id: str = "t", *, skill: object = "double", part: object = None, **more: object) -> bytes:
    """A task for maths as mallory would send it, with whatever else it likes to say."""
    said = {
        "v": 1, "id": id, "context": id, "agent": "maths", "skill": skill, "sender": "mallory",
        "instance": "0badcafe", "lane": "normal", "sent": format_timestamp(time.time()),
        "deadline": format_timestamp(time.time() + SOON),
        "message": {"messageId": id, "role": "ROLE_USER", "parts": [part or {"data": 1}]},
    }  # fmt: skip
    return msgspec.json.encode({**said, **more})


def outcome(id: str, *, answer: object = 666) -> bytes:
    """An outcome that nobody honest wrote."""
    return msgspec.json.encode({
        "id": id, "contextId": id,
        "status": {"state": "TASK_STATE_COMPLETED", "timestamp": format_timestamp(time.time())},
        "artifacts": [{"artifactId": f"{id}-1", "parts": [{"data": answer}]}],
    })  # fmt: skip


async def put(mallory: Intruder, subject: str, data: bytes, head: str | bytes = "") -> int:
    """Store it, as mallory may; its sequence."""
    answer = await mallory.ask(subject, data, head=head)
    assert answer is not None, mallory.errors
    receipt = msgspec.json.decode(answer.data)
    assert "error" not in receipt, receipt
    return int(receipt["seq"])


class Held:
    """An agent maths whose work goes on until it is released."""

    def __init__(self) -> None:
        self.begun, self.released = anyio.Event(), anyio.Event()
        self.starts = 0
        self.agent = made = Agent("maths", description="Arithmetic", version="1.0.0", roles=("reviewer",))

        @made.skill
        async def hold(n: int) -> int:
            """Twice n, later."""
            self.starts += 1
            self.begun.set()
            await self.released.wait()
            return 2 * n

        @made.skill
        async def count(n: int) -> AsyncIterator[int]:
            """The numbers below n, later."""
            self.starts += 1
            self.begun.set()
            await self.released.wait()
            for number in range(n):
                yield number

        @made.skill
        async def fail(n: int) -> int:
            """Raise."""
            raise ValueError(n)


@asynccontextmanager
async def holding(known: Society) -> AsyncIterator[tuple[Held, Worker, Bus]]:
    held = Held()
    async with known.worker(held.agent) as worker, known.member("alice") as alice:
        yield held, worker, alice
