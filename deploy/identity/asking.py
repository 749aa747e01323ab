"""Asking the keeper, as the person that we are, to let somebody in who lives in this stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from xnai.bus.asking import ask_keeper
from xnai.bus.keys import SUFFIX, Key, make_key
from xnai.bus.locating import JOINED_FILE, Address, find_bus, sender_name
from xnai.bus.permissions import Kind
from xnai.bus.transport import open_transport
from xnai.deploy.identity.keyring import Keyring, Member
from xnai.deploy.identity.orders import (
    Admit,
    ForgetKey,
    Invitation,
    Invite,
    Question,
    read_invitation,
    read_members,
)
from xnai.protocol import subjects
from xnai.protocol.errors import NoBus, XnaiError
from xnai.protocol.names import check_name

_TRY_AGAIN = 0.1


async def introduce(
    name: str, roles: Sequence[str] | None = None, *, kind: Kind = Kind.AGENT, wait: float = 0.0
) -> Member | None:
    """Have an agent or a person of this folder's stack let in, with a key made here if it has none.

    Where nothing is said of `roles`, an agent that is known already keeps its own.

    Returns None where the broker lets everybody do everything.

    Raises:
        NoBus: no bus is up, also not after `wait` seconds.
        NotAllowed: we may not.
        InvalidName, InvalidArgument: the name is none, or belongs to somebody of another kind.
    """
    check_name(name, "member")
    at = await _find(wait)
    if at.key is None or not Path(at.key).is_dir():
        return None
    keyring = _joined(Path(at.key).parent)
    file = Path(at.key) / f"{name}{SUFFIX}"
    is_new = not file.exists()
    key = make_key(file) if is_new else Key(file)
    machine = keyring.machine if keyring else ""
    who = Admit(name=name, kind=kind, key=key.public, machine=machine, roles=_tuple(roles))
    try:
        (member,) = await ask(at, who)
    except XnaiError:
        if is_new:
            file.unlink(missing_ok=True)
        raise
    if keyring:
        keyring.put(member)
    if is_new:  # whatever it had is lost
        await _forget_others(at, member, key.public)
    return member


def _tuple(roles: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if roles is None else tuple(roles)


def _joined(stack: Path) -> Keyring | None:
    """The keys of a stack whose broker is that of another machine; None for any other."""
    if not (stack / JOINED_FILE).exists():
        return None
    from xnai.deploy.supervisor.agent import agent_name  # only those that have joined need it

    return Keyring(stack, agent_name(stack))


async def _forget_others(at: Address, member: Member, key: str) -> None:
    for old in member.keys:
        if old != key:
            await ask(at, ForgetKey(name=member.name, machine=member.machine, key=old))


async def ask(at: Address, question: Question) -> list[Member]:
    """What the keeper answers to the person that we are; raises as `open_transport` and `ask_keeper` do."""
    return read_members(await _ask(at, question))


async def invite(at: Address, seconds: float) -> Invitation:
    """Let another machine ask once to be let in; raises as `ask` does."""
    return read_invitation(await _ask(at, Invite(seconds=seconds)))


async def rotate_joined(at: Address, keyring: Keyring, names: Sequence[str]) -> list[str]:
    """New keys for members that live here, whose broker is elsewhere; all of them where none is named.

    Raises:
        InvalidArgument: one of the names is nobody's who lives here.
    """
    chosen = keyring.residents(names)
    for member in chosen:
        name, machine, draft = member.name, keyring.machine, keyring.draft(member.name)
        new = draft.public
        (known,) = await ask(
            at, Admit(name=name, kind=member.kind, key=new, roles=member.roles, machine=machine)
        )
        keyring.put(msgspec.structs.replace(member, keys=(new,)))
        keyring.take(draft)
        await _forget_others(at, known, new)
    return [member.name for member in chosen]


async def _ask(at: Address, question: Question) -> bytes:
    me = sender_name(None)
    async with open_transport(at.url, access=at.access(me), name=me) as transport:
        return await ask_keeper(transport, subjects.administering(me), question)


async def _find(wait: float) -> Address:
    until = time.monotonic() + wait
    while True:
        try:
            return find_bus(Path.cwd())
        except NoBus:
            if time.monotonic() > until:
                raise
        await anyio.sleep(_TRY_AGAIN)
