"""The four levels of being alive, each broken alone, and what is told about them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from joining import member, open_link, worker
from terminal import EXAMPLES, PATIENCE, Program, program, until

from xnai.agents import Agent, Context, vitals
from xnai.agents.vitals import level_of
from xnai.bus import Bus, Limits, Server
from xnai.deploy.statuses import innermost
from xnai.protocol import subjects
from xnai.protocol.errors import NotConsuming, Unavailable
from xnai.protocol.presence import DRAIN, PING, PROBE, Level, Presence
from xnai.registry import read_instances

BLOCKER = """
import time
from xnai.agents import Agent
agent = Agent('blocker')
@agent.skill
async def block(seconds: float) -> str:
    time.sleep(seconds)
    return 'done'
"""


def where(server: Server) -> dict[str, str]:
    return {"XNAI_URL": server.url, "XNAI_TOKEN": server.token, "XNAI_LIMITS_LEASE": "1"}


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Bus]:
    async with member(server) as joined:
        yield joined


async def place_of(bus: Bus, agent: str) -> str:
    """The control subject of the one instance of an agent."""
    (presence,) = [one.presence for one in await read_instances(bus) if one.presence.agent == agent]
    return subjects.control(agent, presence.instance)


async def probe(bus: Bus, place: str, timeout: float = 5.0) -> Presence:
    answer = await bus.transport.ask_member(place, PROBE, timeout=timeout)
    return msgspec.json.decode(answer.data, type=Presence)


def resting() -> Agent:
    agent = Agent("resting", concurrency=2)

    @agent.skill
    async def hang(ctx: Context) -> None:
        while True:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                if vitals._OVERDUE:  # the test is over
                    raise

    @agent.skill
    async def fail(ctx: Context) -> None:
        raise RuntimeError("no luck")

    return agent


# The levels


async def test_a_worker_that_is_well_is_progressing_and_says_who_it_is(server: Server, bus: Bus) -> None:
    agent = Agent("well", version="3", roles=("any",), concurrency=5)

    @agent.skill
    async def one() -> int:
        return 1

    with anyio.fail_after(15):
        async with worker(server, agent) as serving:
            place = await place_of(bus, "well")
            assert (await bus.transport.ask_member(place, PING)).data == b"pong"
            assert await bus.call("well.one", None, int) == 1
            await until(lambda: serving.tally.done == 1)  # the caller may know before the worker does
            said = await probe(bus, place)
    assert (said.level, said.why) == (Level.PROGRESSING, None)
    assert (said.version, said.roles, said.concurrency, said.pid) == ("3", ("any",), 5, os.getpid())
    assert (said.done, said.failed, said.running, said.skills["one"].done) == (1, 0, 0, 1)
    assert said.memory_mb > 10


async def test_a_process_that_is_stopped_answers_nothing(server: Server, bus: Bus, tmp_path: Path) -> None:
    async with program("run", EXAMPLES / "maths.py", folder=tmp_path, env=where(server)) as maths:
        await maths.prints("ready maths")
        place = await place_of(bus, "maths")
        os.kill(maths.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await probe(bus, place, timeout=0.5)
        finally:
            os.kill(maths.pid, signal.SIGCONT)
        assert (await probe(bus, place)).level is Level.PROGRESSING


async def test_a_cut_link_leaves_the_process(server: Server) -> None:
    with anyio.fail_after(15):
        async with open_link(server) as link, worker(server, resting(), url=link.url) as serving:
            lost = anyio.Event()
            with serving.bus.transport.when_lost(lost.set):
                link.cut()
                await lost.wait()
            assert level_of(serving) == (Level.PROCESS, "The link to the broker is lost.")
            link.mend()
            async for _ in serving.bus.transport.reconnections():
                break
            assert level_of(serving)[0] is Level.PROGRESSING


async def test_a_blocked_loop_leaves_a_process_that_does_not_answer(
    server: Server, bus: Bus, tmp_path: Path
) -> None:
    (tmp_path / "blocker.py").write_text(BLOCKER)
    async with program("run", "blocker.py", folder=tmp_path, env=where(server)) as blocker:
        await blocker.prints("ready blocker")
        place = await place_of(bus, "blocker")
        id = await bus.send("blocker.block", 3.0)
        await blocker.says("blocks the event loop")
        with pytest.raises(Unavailable):
            await probe(bus, place, timeout=0.3)
        with anyio.fail_after(PATIENCE):
            async for _ in bus.subscribe(id):
                pass
            assert (await probe(bus, place, timeout=PATIENCE)).level is Level.PROGRESSING


async def test_a_consumer_that_is_deleted_is_made_again_and_counted(server: Server, bus: Bus) -> None:
    with anyio.fail_after(20):
        async with worker(server, resting()) as serving:
            stream = subjects.task_stream("resting")
            await bus.api.ask(f"CONSUMER.DELETE.{stream}.normal")
            await until(lambda: serving.healed == 1)
            await until(lambda: level_of(serving)[0] is Level.PROGRESSING)
            assert (await probe(bus, await place_of(bus, "resting"))).healed == 1


async def test_what_cannot_be_healed_ends_the_agent_and_says_why(
    server: Server, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(agent: str, lane: str) -> None:
        raise Unavailable("no leader")

    async def serve_without_a_consumer() -> None:
        async with worker(server, resting()) as serving:
            monkeypatch.setattr(serving._puller, "_heal", refuse)
            await bus.api.ask(f"CONSUMER.DELETE.{subjects.task_stream('resting')}.normal")
            await anyio.sleep_forever()

    monkeypatch.setattr("xnai.agents.worker._HOPELESS", 0.3)
    with anyio.fail_after(20), pytest.raises(ExceptionGroup) as caught:
        await serve_without_a_consumer()
    error = innermost(caught.value)
    assert isinstance(error, NotConsuming)
    assert str(error) == "resting has taken no tasks for 0.3 s: The queue of resting, lane normal, is gone."


async def test_pulls_that_are_not_answered_leave_the_link(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(20):
        async with worker(server, resting()) as serving:
            monkeypatch.setattr("xnai.bus.pull._SILENCE", -1.0)
            level, why = level_of(serving)
            assert level is Level.LINK
            assert why is not None
            assert why.startswith("Pulls from resting, lane urgent, were last answered")
            monkeypatch.undo()


async def test_a_handler_that_does_not_stop_keeps_its_process_from_progressing(
    server: Server, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "_OVERDUE", 0.0)
    with anyio.fail_after(30):
        async with worker(server, resting()) as serving:
            id = await bus.send("resting.hang")
            await until(lambda: serving.running == 1)
            cancelling = await bus.cancel(id)
            assert cancelling.id == id
            level, why = level_of(serving)
            assert level is Level.CONSUMING
            assert why is not None
            assert f"resting.hang of task {id}, attempt 1 goes on though it was stopped" in why
            monkeypatch.undo()


async def test_whoever_leaves_consumes_no_more(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, resting()) as serving:
            pass
        assert level_of(serving)[0] is not Level.PROGRESSING


async def test_the_last_error_is_told_in_one_line(server: Server, bus: Bus) -> None:
    with anyio.fail_after(15):
        async with worker(server, resting(), limits=Limits()) as serving:
            id = await bus.send("resting.fail")
            async for event in bus.subscribe(id):
                if event.kind == "failed":
                    break
            assert serving.tally.last_error == "fail: RuntimeError: no luck"
            await bus.cancel(id)


# Being asked to leave


async def test_an_agent_leaves_in_order_when_it_is_asked_to(server: Server, bus: Bus, tmp_path: Path) -> None:
    async with program("run", EXAMPLES / "maths.py", folder=tmp_path, env=where(server)) as maths:
        await maths.prints("ready maths")
        place = await place_of(bus, "maths")
        assert (await bus.transport.ask_member(place, DRAIN)).data == b"draining"
        assert await maths.ends() == 0
    assert "maths is asked to leave" in maths.err


# Outside the bus


async def health(maths: Program) -> tuple[int, dict[str, str]]:
    line = await maths.says("/healthz")
    address = line.partition("http://")[2].partition("/")[0]

    def get() -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(address, timeout=10)
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            return answer.status, msgspec.json.decode(answer.read())
        finally:
            connection.close()

    return await anyio.to_thread.run_sync(get)


async def test_healthz_is_200_while_tasks_are_taken_and_503_otherwise(server: Server, tmp_path: Path) -> None:
    words = ("run", EXAMPLES / "maths.py", "--health", "0")
    async with program(*words, folder=tmp_path, env=where(server)) as maths:
        assert await health(maths) == (200, {"level": "progressing", "why": None})
        await server.stop(kill=True)
        await maths.says("the link to the broker is lost")
        assert await health(maths) == (503, {"level": "process", "why": "The link to the broker is lost."})
        await server.start()


async def test_a_taken_port_for_healthz_is_one_sentence(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("run", EXAMPLES / "hello.py", "--health", str(port))
        async with program(*words, folder=tmp_path, env=where(server)) as hello:
            assert await hello.ends() == 2
    assert hello.err[-1].startswith(f"error[invalid_argument]: Port {port} cannot be used for /healthz")


async def test_systemd_hears_of_the_start_the_watchdog_and_the_end(server: Server, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        env = {**where(server), "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
        async with program("run", EXAMPLES / "maths.py", folder=tmp_path, env=env) as maths:
            said = [await anyio.to_thread.run_sync(manager.recv, 100) for _ in range(3)]
            assert said == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert await maths.stop() == 0
        while said[-1] == b"WATCHDOG=1":
            said.append(await anyio.to_thread.run_sync(manager.recv, 100))
    assert said[-1] == b"STOPPING=1"
