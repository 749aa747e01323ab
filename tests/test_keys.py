"""`xnai keys` on real stacks: who is known, by which keys, and what becomes of who is known no more."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from history import AnyRecord, Returned, check
from stacks import QUICK, address, processes, visitor, write_agent, write_stack
from terminal import PATIENCE, Done, Program, command, program, until, up
from witness import ask, read, stored

from xnai.bus import open_bus
from xnai.bus.access import Access
from xnai.bus.locating import STACK_FOLDER, sender_name
from xnai.bus.transport import open_transport
from xnai.deploy.identity.keyring import Keyring, Member
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol import NotAllowed, subjects

TASKS = 330
NAME = sender_name(None)
DOUBLE = "@agent.skill\nasync def double(n: int) -> int:\n    return 2 * n\n"
COUNT = (
    "from collections.abc import AsyncIterator\nimport anyio\n"
    "@agent.skill\nasync def count(n: int) -> AsyncIterator[int]:\n"
    "    for number in range(n):\n        await anyio.sleep(0.01)\n        yield number\n"
)
ROLES = 'agent.roles = ("reviewer",)\n'


def agents(folder: Path) -> Path:
    """A stack of an agent with a role and of one without, and a third that its settings do not name."""
    write_agent(folder, "maths", ROLES + DOUBLE + COUNT)
    write_agent(folder, "helper", DOUBLE)
    write_agent(folder, "guest", 'agent.roles = ("visitor",)\n' + DOUBLE)
    return write_stack(folder, QUICK, maths="", helper="")


def keyring(folder: Path) -> Keyring:
    return Keyring(folder / STACK_FOLDER, agent_name(folder / STACK_FOLDER))


async def keys(folder: Path, *words: str, as_: str | None = None) -> Done:
    return await command("keys", *words, folder=folder, env={"XNAI_NAME": as_} if as_ else None)


async def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """What `xnai keys --json` says, by the names."""
    done = await keys(folder, "--json")
    assert done.status == 0, done.err
    return {facts["name"]: facts for facts in json.loads(done.out)}


def complaint(done: Done) -> str:
    """The error of a command: one sentence, the last on stderr, with nothing on stdout."""
    assert done.out == ""
    assert done.status != 0
    assert "Traceback" not in done.err
    return done.err.splitlines()[-1]


async def doubled(folder: Path, to: str) -> int:
    """What an agent answers to somebody on the stack of a folder."""
    async with visitor(folder) as bus:
        return await bus.call(f"{to}.double", 21, int, timeout=PATIENCE)


async def double(folder: Path, to: str, *, env: dict[str, str] | None = None) -> Done:
    return await command("call", f"{to}.double", "21", folder=folder, env=env)


async def until_refused(folder: Path, name: str, seed: Path) -> None:
    """Return once the broker does not take this seed: for a second after a rotation it may."""
    where = address(folder)
    access = where.access(name)
    await until(lambda: consistent(keyring(folder).members(), folder))
    with anyio.fail_after(PATIENCE):
        said = ""
        while "does not take the key" not in said:
            try:
                async with open_transport(where.url, access=_with_key(access, seed), name=name):
                    await anyio.sleep(0.05)
            except NotAllowed as error:
                said = str(error)


def _with_key(access: Access, seed: Path) -> Access:
    return msgspec.structs.replace(access, key=seed)


def copied(folder: Path) -> dict[str, Path]:
    """Copies of all seeds, by the names of their members, as whoever stole them has them."""
    stolen = folder / "stolen"
    shutil.rmtree(stolen, ignore_errors=True)
    shutil.copytree(folder / STACK_FOLDER / "keys", stolen)
    return {file.stem: file for file in stolen.glob("*.nk")}


def consistent(members: list[Member], folder: Path) -> bool:
    """Whether each is known by one key, that of its file."""
    files = [(each.keys, keyring(folder).key(each.name)) for each in members]
    return all(keys == (key.public,) for keys, key in files if key.file.exists() or len(keys) > 1)


# Who is known


async def test_people_and_agents_are_added_listed_and_revoked(tmp_path: Path) -> None:
    agents(tmp_path)
    async with up(tmp_path) as stack:
        await _first_members(tmp_path, stack)
        await _added(tmp_path)
        await _run_by_hand(tmp_path)
        await _refused(tmp_path)
        await _revoked(tmp_path)
        before = await listed(tmp_path)
        assert await stack.stop() == 0
    assert await listed(tmp_path) == before
    assert "error[no_bus]" in complaint(await keys(tmp_path, "add", "carol"))
    assert "error[no_bus]" in complaint(await keys(tmp_path, "revoke", "helper"))


async def _first_members(folder: Path, stack: Program) -> None:
    """Those of the settings and whoever starts them; roles are learnt from the modules, and nobody died."""
    table = (await keys(folder)).out.splitlines()
    assert table[0].split() == ["NAME", "KIND", "ROLES", "MACHINE", "KEYS"]
    supervisor = agent_name(folder / STACK_FOLDER)
    assert [line.split()[:3] for line in table[1:]] == [
        ["helper", "agent", "-"],
        ["maths", "agent", "reviewer"],
        [NAME, "person", "-"],
        [supervisor, "supervisor", "supervisor"],
        ["system", "system", "-"],
    ]
    known = await listed(folder)
    assert all(len(facts["keys"]) == 1 and facts["machine"] == supervisor for facts in known.values())
    assert sorted(stack.out) == ["helper | ready helper", "maths  | ready maths", "ready"]
    rows = json.loads((await command("ps", "--json", folder=folder)).out)
    assert [(row["restarts"], row["last_error"]) for row in rows] == [(0, None), (0, None)]
    assert await doubled(folder, "reviewer") == 42


async def _added(folder: Path) -> None:
    assert (await keys(folder, "add", "alice")).out == "alice is known\n"
    assert (await double(folder, "maths", env={"XNAI_NAME": "alice"})).out == "42\n"
    seed = keyring(folder).key("alice").file
    old = copied(folder)["alice"]
    seed.unlink()  # she has lost it, and gets another; the lost one is not taken any more
    assert (await keys(folder, "add", "alice")).status == 0
    await until_refused(folder, "alice", old)
    assert len((await listed(folder))["alice"]["keys"]) == 1
    added = json.loads((await keys(folder, "add", "tool", "--agent", "--json")).out)
    assert (added["name"], added["kind"], added["roles"]) == ("tool", "agent", [])
    assert (await keys(folder, "add", "maths", "--agent")).status == 0  # known already: nothing is taken
    assert (await listed(folder))["maths"]["roles"] == ["reviewer"]
    assert await doubled(folder, "reviewer") == 42


async def _run_by_hand(folder: Path) -> None:
    """An agent that the settings do not name is let in by itself, with its roles."""
    async with program("run", "guest.py", folder=folder) as guest:
        await guest.prints("ready guest")
        assert await doubled(folder, "guest") == 42
        assert await doubled(folder, "visitor") == 42
        assert (await listed(folder))["guest"]["roles"] == ["visitor"]
        assert await guest.stop() == 0


async def _refused(folder: Path) -> None:
    """What cannot be: the key of one for another, names that are none or taken; nothing is left of it."""
    helper = {"XNAI_URL": address(folder).url, "XNAI_KEY": str(keyring(folder).key("helper").file)}
    assert (await double(folder, "maths", env={**helper, "XNAI_NAME": "helper"})).out == "42\n"
    done = await double(folder, "maths", env={**helper, "XNAI_NAME": "maths"})
    assert "as that of somebody else" in complaint(done)
    done = await command("keys", folder=folder, env={**helper, "XNAI_NAME": "helper"})
    assert "error[not_allowed]" in complaint(done)
    before = sorted((folder / STACK_FOLDER).rglob("*.nk"))
    wrong = {
        ("add", "../x y"): "error[invalid_name]: '../x y' is no member",
        ("add", "maths"): "maths is an agent already, and cannot be a person as well",
        ("add", NAME, "--agent"): f"{NAME} is a person already, and cannot be an agent as well",
        ("revoke", "alcie"): "Nobody is known as alcie: did you mean alice?",
        ("revoke", "alice", "--machine", "elsewhere"): "Nobody is known as alice on elsewhere.",
        ("revoke", "system"): "system keeps this stack: without its key nothing would.",
        ("revoke", agent_name(folder / STACK_FOLDER)): "keeps this stack",
        ("revoke", NAME): f"For a new key: xnai keys rotate {NAME}",
        ("rotate", "maths", "helpr"): "Nobody of this stack is known as helpr: did you mean helper?",
        ("invite", "--for", "soon"): "error[usage]",
    }
    for words, said in wrong.items():
        assert said in complaint(await keys(folder, *words))
    assert sorted((folder / STACK_FOLDER).rglob("*.nk")) == before


async def _revoked(folder: Path) -> None:
    """A link is cut at once, and whoever comes again is told."""
    stolen = copied(folder)
    async with program("run", "guest.py", folder=folder) as guest:
        await guest.prints("ready guest")
        supervisor = agent_name(folder / STACK_FOLDER)
        done = await keys(folder, "revoke", "alice")
        assert done.out == f"alice on {supervisor} is known no more\n"
        said = complaint(await double(folder, "maths", env={"XNAI_NAME": "alice"}))
        assert said.startswith("error[not_allowed]: There is no key for alice in ")
        await until_refused(folder, "alice", stolen["alice"])
        assert (await keys(folder, "revoke", "guest")).status == 0
        assert await guest.ends() == 3
        assert "error[not_allowed]" in guest.err[-1]
        assert "was revoked" in guest.err[-1]
    assert "alice" not in await listed(folder)


async def test_an_agent_whose_key_is_revoked_is_given_up_until_it_is_let_in_again(tmp_path: Path) -> None:
    agents(tmp_path)
    async with up(tmp_path) as stack:
        for name in ("maths", "helper"):
            assert (await keys(tmp_path, "revoke", name)).status == 0
        for name in ("maths ", "helper"):
            await stack.says(f"{name} | error[not_allowed]: The broker at ")
        await stack.says("and is given up: error[not_allowed]", times=2)
        assert (await keys(tmp_path, "add", "helper", "--agent")).status == 0
        assert (await command("restart", "helper", folder=tmp_path)).status == 0
        assert await doubled(tmp_path, "helper") == 42
        assert (await command("up", folder=tmp_path)).out == "restarted maths\n"
        assert await doubled(tmp_path, "maths") == 42
        assert await doubled(tmp_path, "reviewer") == 42
        assert (await listed(tmp_path))["maths"]["roles"] == ["reviewer"]
        assert await stack.stop() == 0


# Rotation


@asynccontextmanager
async def busy(folder: Path, records: list[AnyRecord]) -> AsyncIterator[None]:
    """Calls and streams of the test, beside what the context does; at its end all have been answered."""
    slots = anyio.Semaphore(12)
    async with visitor(folder) as bus, anyio.create_task_group() as tasks:

        async def one(number: int) -> None:
            streams = number % 3 == 0
            to = "maths.count" if streams else ("maths.double", "helper.double")[number % 2]
            async with slots:
                do = read if streams else ask
                await do(
                    bus, to, 20 if streams else number, id=f"t{number}", by="caller", write=records.append
                )

        for number in range(TASKS):
            tasks.start_soon(one, number)
        yield


async def until_answered(records: list[AnyRecord], times: int) -> None:
    await until(lambda: sum(isinstance(record, Returned) for record in records) >= times)


async def test_no_task_is_lost_and_no_process_restarted_while_keys_change(tmp_path: Path) -> None:
    agents(tmp_path)
    records: list[AnyRecord] = []
    async with up(tmp_path) as stack:
        before = [processes(tmp_path, name) for name in ("maths", "helper")]
        stolen, public = copied(tmp_path), await listed(tmp_path)
        async with busy(tmp_path, records):
            for answered, names in ((20, ["maths"]), (70, ["maths", "helper"]), (120, []), (170, [])):
                await until_answered(records, answered)
                done = await keys(tmp_path, "rotate", *names, "--json")
                assert json.loads(done.out) == (names or sorted(public)), done.err
        async with open_bus(address(tmp_path).as_system(), name="keeper") as bus:
            for agent in ("maths", "helper"):
                log = bus.api.scan(subjects.log_stream(agent), subjects.log(agent))
                records += [stored(message) async for message in log]
        assert check(records) == []
        assert sum(isinstance(record, Returned) for record in records) == TASKS
        for name, seed in stolen.items():
            await until_refused(tmp_path, name, seed)
        now = await listed(tmp_path)
        assert all(not set(now[name]["keys"]) & set(facts["keys"]) for name, facts in public.items())
        assert consistent(keyring(tmp_path).members(), tmp_path)
        assert [processes(tmp_path, name) for name in ("maths", "helper")] == before
        assert len([line for line in stack.out if "ready" in line]) == 3
        assert await stack.stop() == 0


async def test_a_rotation_that_is_cut_short_leaves_the_newest_keys_alone(tmp_path: Path) -> None:
    agents(tmp_path)
    async with up(tmp_path) as stack:
        assert (await keys(tmp_path, "add", "alice")).status == 0
        first = copied(tmp_path)
        assert (await keys(tmp_path, "rotate")).status == 0
        assert await stack.stop(signal.SIGKILL) == -signal.SIGKILL
    assert set(await listed(tmp_path)) >= {"alice", "maths"}  # it says where its broker was, and is down
    ring = keyring(tmp_path)
    drafts = {each.name: ring.draft(each.name) for each in ring.members()}  # killed before these were taken
    ring.put(*(_also(each, drafts[each.name].public) for each in ring.members()))
    ring.take(drafts["alice"])
    async with up(tmp_path) as stack:
        assert consistent(ring.members(), tmp_path)
        assert not any(key.file.exists() for name, key in drafts.items())
        for name in ("alice", "maths", "system"):
            await until_refused(tmp_path, name, first[name])
        assert (await double(tmp_path, "reviewer", env={"XNAI_NAME": "alice"})).out == "42\n"
        second = copied(tmp_path)
        ring.key("alice").file.unlink()  # nobody has it any more: she gets one with the others
        assert (await keys(tmp_path, "rotate")).status == 0
        await until_refused(tmp_path, "alice", second["alice"])
        assert (await double(tmp_path, "maths", env={"XNAI_NAME": "alice"})).out == "42\n"
        assert await stack.stop() == 0
    third = copied(tmp_path)
    assert "did you mean alice" in complaint(await keys(tmp_path, "rotate", "alcie"))
    done = await keys(tmp_path, "rotate", "--json")
    assert json.loads(done.out) == sorted(third)
    async with up(tmp_path) as stack:
        for name, seed in third.items():
            await until_refused(tmp_path, name, seed)
        assert (await double(tmp_path, "reviewer", env={"XNAI_NAME": "alice"})).out == "42\n"
        assert await stack.stop() == 0


def _also(member: Member, key: str) -> Member:
    return msgspec.structs.replace(member, keys=(*member.keys, key))


# What is damaged


async def test_damaged_keys_and_lists_are_told_in_one_sentence_and_found_by_the_doctor(
    tmp_path: Path,
) -> None:
    agents(tmp_path)
    ring = keyring(tmp_path)
    async with up(tmp_path) as stack:
        assert (await keys(tmp_path, "add", "alice")).status == 0
        seed, members = ring.key("alice").file, ring.folder / "members.json"
        for text in (b"", b"SU", b"\xff\xfe", b"S" * 58, b"S" * 1000, seed.read_bytes()[:-1]):
            seed.write_bytes(text)
            with pytest.raises(NotAllowed, match="holds no key"):
                ring.key("alice").check()
        said = complaint(await double(tmp_path, "maths", env={"XNAI_NAME": "alice"}))
        assert said.startswith(f"error[not_allowed]: The file {seed} holds no key.")
        ring.key("helper").file.chmod(0o644)
        found = await _diagnosis(tmp_path)
        assert f"The file {seed} holds no key." in found["keys"]
        assert f"Others may open {ring.key('helper').file}." in found["secrets"]
        assert (await keys(tmp_path, "rotate", "alice")).status == 0
        assert (await double(tmp_path, "maths", env={"XNAI_NAME": "alice"})).out == "42\n"
        kept = members.read_bytes()
        members.write_text('[{"name":')
        sentence = f"{members} cannot be read: "
        for words in (["list"], ["rotate"], ["add", "bob"]):
            assert sentence in complaint(await keys(tmp_path, *words))
        assert sentence in (await _diagnosis(tmp_path))["keys"]
        assert await doubled(tmp_path, "maths") == 42
        assert await stack.stop() == 0
    for words in (["up"], ["keys", "rotate"]):
        said = complaint(await command(*words, folder=tmp_path))
        assert said.startswith("error[invalid_settings]: ")
        assert sentence in said
    members.write_bytes(kept)
    seed.write_text("nothing")
    assert "xnai keys rotate alice" in complaint(await command("up", folder=tmp_path))
    assert (await keys(tmp_path, "rotate", "alice")).status == 0
    async with up(tmp_path) as stack:
        assert (await double(tmp_path, "maths", env={"XNAI_NAME": "alice"})).out == "42\n"
        assert await stack.stop() == 0


async def _diagnosis(folder: Path) -> dict[str, str]:
    """The problems that `xnai doctor` has found, by the names of the checks."""
    said: dict[str, str] = {}
    for found in json.loads((await command("doctor", "--json", folder=folder)).out):
        if found["level"] == "problem":
            said[found["check"]] = f"{said.get(found['check'], '')}{found['what']}"
    return said


async def test_a_name_is_a_persons_or_an_agents_and_not_both(tmp_path: Path) -> None:
    write_agent(tmp_path, NAME)
    write_agent(tmp_path, "helper")
    write_stack(tmp_path, **{NAME: ""})
    said = complaint(await command("up", folder=tmp_path))
    assert f"{NAME} is a person already, and cannot be an agent as well." in said
    write_stack(tmp_path, QUICK, helper="")
    async with up(tmp_path) as stack:
        write_stack(tmp_path, QUICK, **{"helper": "", NAME: ""})
        done = await command("up", folder=tmp_path)
        assert done.status == 1
        assert f"not changed: {NAME}: {NAME} is a person already" in done.out
        write_stack(tmp_path, QUICK, helper="")
        assert (await command("up", folder=tmp_path)).out == "nothing has changed\n"
        assert await stack.stop() == 0
