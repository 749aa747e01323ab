"""The floor: a durable task round trip in raw nats-py, with the wire's promises and nothing else.

Promises kept: the task is stored once by id in a work queue (file), the outcome is admitted by the broker
only where none is stored, the caller hears only what was stored (republished), the task is acknowledged last.
No types, deadlines, cancel, retries. It is a program on nats-py and asyncio alone, so the rules of the house
about tasks do not bind it.

    python -m benchmarks.floor worker URL [CREDIT]   takes tasks until its input ends
    python -m benchmarks.floor caller URL            does what the lines of its input say, see `Caller`
    python -m benchmarks.floor start URL             says "ready" once it pulls, and ends: what a start costs

Each says `"ready"` first. The caller answers every line with one line of JSON.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RePublish, RetentionPolicy, StreamConfig

TASKS, LOG = "XNAI_TASK_echo", "XNAI_LOG_echo"
NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.normal"
CREDIT = 64
PING = "ping.echo"
CONSUMER = ConsumerConfig(
    durable_name="normal",
    filter_subject="xnai.v1.task.echo.normal.>",
    ack_policy=AckPolicy.EXPLICIT,
    ack_wait=10,
    max_ack_pending=-1,
)
encode, decode = msgspec.json.encode, msgspec.json.decode


async def declare(url: str) -> None:
    """Make the queue, the log and the consumer."""
    client = await nats.connect(url)
    stream = client.jetstream().add_stream
    await stream(
        StreamConfig(
            name=TASKS,
            subjects=["xnai.v1.task.echo.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
        )
    )
    await stream(
        StreamConfig(
            name=LOG,
            subjects=["xnai.v1.log.echo.>"],
            discard=DiscardPolicy.NEW,
            allow_direct=True,
            republish=RePublish(src="xnai.v1.log.echo.>", dest="xnai.v1.live.echo.>"),
        )
    )
    await client.jetstream().add_consumer(TASKS, CONSUMER)
    await client.close()


def say(value: object) -> None:
    print(encode(value).decode(), flush=True)


class Store:
    """Publishes and waits for the broker's confirmation: one inbox for all, one future each."""

    def __init__(self, client: Client) -> None:
        self._client, self._count = client, 0
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._inbox = client.new_inbox()

    async def open(self) -> Store:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._confirmed)
        return self

    async def _confirmed(self, msg: Msg) -> None:
        waiting = self._waiting.pop(msg.subject[len(self._inbox) + 1 :], None)
        if waiting and not waiting.done():
            waiting.set_result(msg.data)

    async def __call__(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        self._count += 1
        token = str(self._count)
        stored = self._waiting[token] = asyncio.get_running_loop().create_future()
        await self._client.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
        answer = decode(await stored)
        if "error" in answer:
            raise RuntimeError(answer)


async def work(url: str, credit: int = CREDIT) -> None:
    client = await nats.connect(url)
    store, inbox = await Store(client).open(), client.new_inbox()
    asked = running = 0
    alive: set[asyncio.Task[None]] = set()

    async def top_up() -> None:
        nonlocal asked
        free = credit - running - asked
        if 2 * free >= credit:
            asked += free
            await client.publish(NEXT, encode({"batch": free, "expires": 30_000_000_000}), reply=inbox)

    async def handle(msg: Msg) -> None:
        nonlocal running
        task = decode(msg.data)
        log = f"xnai.v1.log.echo.{task['sender']}.{task['id']}"
        gate = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Expected-Last-Subject-Sequence-Subject": f"{log}.*.*.outcome",
        }
        outcome = encode({"id": task["id"], "text": task["text"].upper()})
        await store(f"{log}.{task['instance']}.echo.outcome", outcome, gate)
        await client.publish(msg.reply, b"+ACK")
        running -= 1
        await top_up()

    async def receive(msg: Msg) -> None:
        nonlocal asked, running
        if not msg.reply:  # a status frame: how much of a request went unused
            asked -= int((msg.headers or {}).get("Nats-Pending-Messages", 0))
            return await top_up()
        asked, running = asked - 1, running + 1
        task = asyncio.create_task(handle(msg))
        alive.add(task)
        task.add_done_callback(alive.discard)

    async def ping(msg: Msg) -> None:
        await client.publish(msg.reply, msg.data)

    await client.subscribe(inbox, cb=receive)
    await client.subscribe(PING, cb=ping)
    await top_up()
    await client.flush()
    say("ready")
    await asyncio.to_thread(sys.stdin.read)
    await client.close()


class Caller:
    """Does slices of work. Each method is a verb of the program's input, its arguments are numbers."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store
        self._instance = secrets.token_hex(4)
        self._outcomes: dict[str, asyncio.Future[dict[str, str]]] = {}

    async def open(self) -> Caller:
        await self._client.subscribe(f"xnai.v1.live.*.caller.*.{self._instance}.>", cb=self._heard)
        return self

    async def _heard(self, msg: Msg) -> None:
        outcome = decode(msg.data)
        waiting = self._outcomes.pop(outcome["id"], None)
        if waiting and not waiting.done():
            waiting.set_result(outcome)

    async def _send(self) -> asyncio.Future[dict[str, str]]:
        id = secrets.token_urlsafe(16)
        outcome = self._outcomes[id] = asyncio.get_running_loop().create_future()
        task = encode({"id": id, "sender": "caller", "instance": self._instance, "text": "hello"})
        await self._store(f"xnai.v1.task.echo.normal.caller.run.{id}", task, {"Nats-Msg-Id": id})
        return outcome

    async def _call(self) -> None:
        assert (await (await self._send()))["text"] == "HELLO"

    async def throughput(self, tasks: int, in_flight: int) -> float:
        """Tasks per second, with so many calls in flight."""
        left = tasks

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._call()

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return tasks / (time.perf_counter() - began)

    async def latency(self, tasks: int) -> list[float]:
        """Milliseconds of each call, one after another."""
        return await timed(tasks, self._call)

    async def ping(self, requests: int) -> list[float]:
        """Milliseconds of each plain request to the worker and back, one after another."""
        return await timed(requests, lambda: self._client.request(PING, b"hello"))


async def timed(count: int, do: Callable[[], Awaitable[object]]) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await do()
        times.append((time.perf_counter() - began) * 1e3)
    return times


async def call(url: str) -> None:
    client = await nats.connect(url)
    caller = await Caller(client, await Store(client).open()).open()
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *numbers = line.split()
        say(await getattr(caller, verb)(*map(int, numbers)))
    await client.close()


async def start(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().add_consumer(TASKS, CONSUMER)
    inbox = client.new_inbox()
    await client.subscribe(inbox)
    await client.publish(NEXT, encode({"batch": CREDIT, "expires": 30_000_000_000}), reply=inbox)
    await client.flush()
    say("ready")
    await client.close()


def main(role: str, url: str, *numbers: str) -> None:
    roles: dict[str, Callable[..., Awaitable[None]]] = {"worker": work, "caller": call, "start": start}
    uvloop.run(roles[role](url, *map(int, numbers)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
