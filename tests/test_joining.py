"""TLS with certificates of our own or given ones, and a second folder that joins the broker of the first."""

from __future__ import annotations

import datetime
import ipaddress
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from stacks import QUICK, address, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, Done, command, program, up

from xnai.bus import Server, ServerOptions, open_server
from xnai.bus.locating import STACK_FOLDER, sender_name
from xnai.deploy.identity.certificates import Certificates, own_certificates
from xnai.deploy.identity.joining import as_text, from_text
from xnai.deploy.stack import Stack
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol import InvalidArgument

NAME = sender_name(None)
TLS = f"{QUICK}\n[server]\ntls = true\n"
DOUBLE = "@agent.skill\nasync def double(n: int) -> int:\n    return 2 * n\n"
VIA = (
    "from xnai.agents import Context\n@agent.skill\nasync def via(to: str, ctx: Context) -> int:\n"
    "    return await ctx.call(f'{to}.double', 4, int)\n"
)
ROLES = 'agent.roles = ("reviewer",)\n'
NOBODY_ELSE = stat.S_IRWXG | stat.S_IRWXO


def supervisor(folder: Path) -> str:
    return agent_name(folder / STACK_FOLDER)


def complaint(done: Done) -> str:
    """The error of a command: one sentence, the last on stderr, with nothing on stdout."""
    assert done.out == ""
    assert done.status != 0
    assert "Traceback" not in done.err
    return done.err.splitlines()[-1]


async def keys(folder: Path, *words: str) -> Done:
    return await command("keys", *words, folder=folder)


async def known(folder: Path) -> dict[str, dict[str, Any]]:
    """Who is known to the broker, by names and machines."""
    done = await keys(folder, "--json")
    assert done.status == 0, done.err
    return {f"{facts['name']} on {facts['machine']}": facts for facts in json.loads(done.out)}


async def invited(folder: Path, *options: str) -> str:
    done = await keys(folder, "invite", *options)
    assert done.status == 0, done.err
    return done.out.strip()


async def join(folder: Path, word: str) -> Done:
    return await command("join", "-", folder=folder, stdin=word.encode())


async def doubled(folder: Path, to: str) -> int:
    """What an agent answers to somebody on the stack of a folder."""
    done = await command("call", f"{to}.double", "21", folder=folder)
    assert done.status == 0, done.err
    return int(done.out)


async def double(folder: Path, to: str, *, env: dict[str, str] | None = None) -> str:
    done = await command("call", f"{to}.double", "21", folder=folder, env=env)
    return done.out + done.err


# TLS


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[tuple[Server, Certificates]]:
    own = await own_certificates(folder / "tls")
    options = ServerOptions(certificate=str(own.certificate), key=str(own.key))
    async with open_server(folder / "server", options) as server:
        yield server, own


async def call(folder: Path, url: str, **env: str) -> str:
    """What is said of a call on a broker that is known by its address."""
    return complaint(await command("call", "maths.double", "1", folder=folder, env={"XNAI_URL": url, **env}))


async def test_only_the_owner_reads_what_vouches_for_a_server(tmp_path: Path) -> None:
    own = await own_certificates(tmp_path / "tls")
    assert not any(file.stat().st_mode & NOBODY_ELSE for file in (tmp_path / "tls", *own))
    assert await own_certificates(tmp_path / "tls") == own
    kept = own.ca.read_bytes()
    own.key.unlink()  # without it the others are of no use
    assert await own_certificates(tmp_path / "tls") == own
    assert own.ca.read_bytes() != kept


async def test_a_server_that_is_not_the_one_it_should_be_is_told_nothing(tmp_path: Path) -> None:
    other = await own_certificates(tmp_path / "other")
    async with tls_server(tmp_path) as (server, own):
        secret = {"XNAI_TOKEN": server.token}
        for ca in (other.ca, own.key, tmp_path / "none.pem"):
            said = await call(tmp_path, server.url, XNAI_CA=str(ca), **secret)
            assert said.startswith("error[not_allowed]: The ")
            assert server.token not in said
        assert "error[unknown_agent]" in await call(tmp_path, server.url, XNAI_CA=str(own.ca), **secret)
        assert "is not who it should be" in await call(tmp_path, server.url, **secret)
        plain = await call(tmp_path, server.url.replace("tls:", "nats:"), **secret)
        assert plain.startswith("error[not_allowed]: The broker at nats://127.0.0.1:")


async def test_nothing_is_said_to_a_server_without_tls_where_tls_is_asked_for(tmp_path: Path) -> None:
    heard = b""
    own = await own_certificates(tmp_path / "tls")
    info = b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576,"nonce":"n"}\r\n'

    async def serve(client: anyio.abc.SocketStream) -> None:
        nonlocal heard
        async with client:
            await client.send(info)
            async for data in client:
                heard += data

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        said = await call(tmp_path, f"tls://127.0.0.1:{port}", XNAI_TOKEN="secret", XNAI_CA=str(own.ca))
        assert said.startswith("error[not_allowed]: The broker at tls://127.0.0.1:")
        assert said.endswith(" speaks no TLS, so nothing was said to it.")
        tasks.cancel_scope.cancel()
    assert heard == b""


def _certificate(name: str, key: Any, *, by: x509.Certificate | None, signer: Any) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .sign(signer, hashes.SHA256())
    )


def _given(folder: Path) -> None:
    """Certificates as somebody has them from an authority of the house."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("house", ca_key, by=None, signer=ca_key)
    server = _certificate("bus", key, by=ca, signer=ca_key)
    (folder / "house.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "bus.pem").write_bytes(server.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "bus.key").touch(0o600)
    (folder / "bus.key").write_bytes(pem)


async def test_given_certificates_are_used_and_travel_in_the_invitation(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    _given(first)
    write_agent(first, "maths", DOUBLE)
    given = '[server]\ncertificate = "bus.pem"\nkey = "bus.key"\nca = "house.pem"\n'
    write_stack(first, given, maths="")
    async with up(first) as stack:
        assert address(first).url.startswith("tls://127.0.0.1:")
        assert await doubled(first, "maths") == 42
        done = await join(second, await invited(first))
        assert done.status == 0, done.err
        assert await double(second, "maths") == "42\n"
        (first / "bus.key").chmod(0o644)
        found = json.loads((await command("doctor", "--json", folder=first)).out)
        what = [each["what"] for each in found if (each["check"], each["level"]) == ("secrets", "problem")]
        assert what == [f"Others may open {first / 'bus.key'}."]
        assert await stack.stop() == 0
    write_stack(first, given.replace('ca = "house.pem"\n', ""), maths="")
    assert "is not who it should be" in complaint(await command("up", folder=first))


# Invitations


def two_folders(folder: Path) -> tuple[Path, Path]:
    first, second = folder / "first", folder / "second"
    for each in (first, second):
        each.mkdir()
    write_agent(first, "maths", DOUBLE + VIA)
    write_agent(second, "helper", ROLES + DOUBLE + VIA)
    write_agent(second, "extra", DOUBLE)
    write_agent(second, "guest", DOUBLE)
    write_agent(second, "alice")
    return write_stack(first, TLS, maths=""), write_stack(second, QUICK, helper="")


async def test_a_second_folder_joins_works_and_is_sent_away(tmp_path: Path) -> None:
    first, second = two_folders(tmp_path)
    async with up(first) as stack:
        assert (await keys(first, "add", "alice")).status == 0
        await _refused(first, second)
        async with up(second) as joined:
            await _both_ways(first, second)
            await _changes(first, second)
            await _rotated(first, second)
            assert (
                await keys(first, "revoke", supervisor(second), "--machine", supervisor(second))
            ).status == 0
            assert await joined.ends() == 3
            assert any("error[not_allowed]" in line and "was revoked" in line for line in joined.err)
        assert not any(supervisor(second) in each for each in await known(first))
        assert "error[not_allowed]" in await double(second, "maths")
        done = await join(second, await invited(first))  # it may come again
        assert done.status == 0, done.err
        async with up(second) as joined:
            assert await doubled(first, "reviewer") == 42
            assert await joined.stop() == 0
        assert await stack.stop() == 0


async def _refused(first: Path, second: Path) -> None:
    """Words that are none, or over; a stack that is up; names that belong to others: nothing is joined."""
    word = await invited(first, "--host", "localhost")
    assert from_text(word).url == address(first).url.replace("127.0.0.1", "localhost")
    for wrong in ("", "hello", word.removeprefix("xnai-join-"), f"{word}x=", f"{word}é"):
        with pytest.raises(InvalidArgument, match="This is no invitation"):
            from_text(wrong)
    assert "error[invalid_argument]: This is no invitation" in complaint(await join(second, word[:-9]))
    with Stack(second / STACK_FOLDER).locked():
        assert "is up. Take it down first: xnai down" in complaint(await join(second, word))
    assert "error[not_allowed]" in complaint(await join(second, await invited(first, "--for", "1ms")))
    other = await own_certificates(second / "other")
    liar = msgspec.structs.replace(from_text(word), ca=other.ca.read_text())
    assert "is not who it should be" in complaint(await join(second, as_text(liar)))
    write_stack(second, QUICK, alice="")
    said = complaint(await join(second, word))
    assert "alice is a person already, and cannot be an agent as well." in said
    assert "error[no_bus]" in complaint(await keys(second, "invite"))
    write_stack(second, QUICK, helper="")
    done = await join(second, word)  # the same word, because nobody has used it
    assert done.status == 0, done.err
    assert sorted(done.out.split(": ")[1].strip().split(", ")) == sorted(["helper", NAME, supervisor(second)])
    assert "error[not_allowed]" in complaint(await join(second, word))
    assert f"{supervisor(second)} has joined already" in complaint(await join(second, await invited(first)))
    assert not [
        file for file in (second / STACK_FOLDER).rglob("*") if file.stat().st_mode & NOBODY_ELSE & 0o22
    ]


async def _both_ways(first: Path, second: Path) -> None:
    assert await doubled(first, "helper") == 42
    assert await doubled(first, "reviewer") == 42
    assert await doubled(second, "maths") == 42
    assert (await command("call", "maths.via", "reviewer", folder=second)).out == "8\n"
    assert (await command("call", "helper.via", "maths", folder=first)).out == "8\n"
    for folder in (first, second):
        rows = json.loads((await command("agents", "--json", folder=folder)).out)
        assert {"maths", "helper", supervisor(first), supervisor(second)} <= {row["name"] for row in rows}
    async with visitor(first) as bus:
        await bus.call(f"{supervisor(second)}.spawn", {"agent": "helper"}, timeout=PATIENCE)
        assert len(processes(second, "helper")) == 2
        await bus.call("supervisor.spawn", {"agent": "maths"}, timeout=PATIENCE)
        assert len(processes(first, "maths")) == 2


async def _changes(first: Path, second: Path) -> None:
    """Agents and people of the second folder are let in, and no more, as its settings say."""
    there = supervisor(second)
    write_stack(second, QUICK, helper="", extra="")
    assert (await command("up", folder=second)).out == "started extra\n"
    assert await doubled(first, "extra") == 42
    assert (await known(first))[f"extra on {there}"]["kind"] == "agent"
    write_stack(second, QUICK, helper="")
    assert (await command("up", folder=second)).out == "stopped extra\n"
    assert f"extra on {there}" not in await known(first)
    write_stack(second, QUICK, helper="", alice="")
    done = await command("up", folder=second)
    assert done.status == 1
    assert "not changed: alice: alice is a person already" in done.out
    write_stack(second, QUICK, helper="")
    assert (await command("up", folder=second)).out == "nothing has changed\n"
    assert (await keys(second, "add", "bob")).out == "bob is known\n"
    assert await double(second, "maths", env={"XNAI_NAME": "bob"}) == "42\n"
    async with program("run", "guest.py", folder=second) as guest:
        await guest.prints("ready guest")
        assert await doubled(first, "guest") == 42
        assert await guest.stop() == 0
    assert {f"bob on {there}", f"guest on {there}"} <= (await known(first)).keys()


async def _rotated(first: Path, second: Path) -> None:
    """On each side for those who live there; nothing is restarted."""
    there = supervisor(second)
    before, pids = await known(first), processes(second, "helper")
    done = await keys(second, "rotate", "--json")
    assert done.status == 0, done.err
    names = json.loads(done.out)
    assert names == sorted(["bob", "guest", "helper", NAME, there])
    assert "did you mean bob?" in complaint(await keys(second, "rotate", "bbo"))
    assert json.loads((await keys(first, "rotate", "maths", "--json")).out) == ["maths"]
    after = await known(first)
    for name in names:
        assert len(after[f"{name} on {there}"]["keys"]) == 1
        assert after[f"{name} on {there}"]["keys"] != before[f"{name} on {there}"]["keys"]
    assert await double(second, "maths", env={"XNAI_NAME": "bob"}) == "42\n"
    assert await doubled(first, "reviewer") == 42
    assert await doubled(second, "maths") == 42
    assert processes(second, "helper") == pids


async def test_the_joined_side_waits_for_a_broker_that_goes_and_comes(tmp_path: Path) -> None:
    first, second = two_folders(tmp_path)
    async with up(first) as stack:
        assert (await join(second, await invited(first))).status == 0
        async with up(second) as joined:
            pids = processes(second, "helper")
            async with visitor(first) as bus:
                ids = [await bus.send("helper.double", number) for number in range(20)]
            assert await stack.stop() == 0
            said = complaint(await command("call", "helper.double", "1", folder=second))
            assert said.startswith("error[no_bus]: Nothing answers at tls://127.0.0.1:")
            async with up(first) as again, visitor(first) as bus:
                assert await doubled(first, "reviewer") == 42
                for number, id in enumerate(ids):
                    assert await bus.call("helper.double", number, int, id=id, timeout=PATIENCE) == 2 * number
                assert processes(second, "helper") == pids
                rows = json.loads((await command("ps", "--json", folder=second)).out)
                assert [row["restarts"] for row in rows] == [0]
                assert await joined.stop() == 0
                assert await again.stop() == 0
    (second / "xnai.toml").write_text("[agents]\n")  # while it is down helper is named no more
    async with up(first) as stack, up(second) as joined:
        assert f"helper on {supervisor(second)}" not in await known(first)
        assert await joined.stop() == 0
        assert await stack.stop() == 0
    assert "error[no_bus]" in complaint(await command("up", folder=second))
    assert "error[no_bus]" in complaint(await keys(second))
    assert "error[no_bus]" in complaint(await keys(second, "rotate"))
