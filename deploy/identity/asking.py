"""Asking the keeper, as the person that we are, to let somebody in who lives in this stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from xnai.bus.asking import ask_keeper
from xnai.bus.keys import SUFFIX, Key, make_key
from xnai.bus.locating import Address, find_bus, sender_name
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
from xnai.protocol.errors import Busy, InvalidArgument, NoBus, NotAllowed, Unavailable

_TRY_AGAIN = 0.1
_COMING_UP = 10.0


async def introduce(
    name: str, roles: Sequence[str] = (), *, kind: Kind = Kind.AGENT, wait: float = 0.0
) -> Member | None:
    """Have an agent or a person of this folder's stack let in, with a key made here if it has none.

    Returns None where the broker lets everybody do everything.

    Raises:
        NoBus: no bus is up, also not after `wait` seconds.
        NotAllowed: we may not.
    """
    at = await _find(wait)
    if at.key is None or not Path(at.key).is_dir():
        return None
    file = Path(at.key) / f"{name}{SUFFIX}"
    key = Key(file) if file.exists() else make_key(file)
    question = Admit(name=name, kind=kind, key=key.public, roles=tuple(roles))
    until = time.monotonic() + max(wait, _COMING_UP)
    while True:
        try:
            (member,) = await ask(at, question)
        except (NotAllowed, Busy):
            raise
        except Unavailable:  # the stack is just coming up: its broker listens before its keeper does
            if time.monotonic() > until:
                raise
            await anyio.sleep(_TRY_AGAIN)
        else:
            return member


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
    ours = {each.name: each for each in keyring.members() if each.machine == keyring.machine}
    if missing := [name for name in names if name not in ours]:
        raise InvalidArgument(f"Nobody of this stack is known as {', '.join(missing)}.")
    for name in names or sorted(ours):
        member, key = ours[name], keyring.key(name)
        old, new = key.public, make_key(key.file.with_suffix(".new"))
        roles, machine = member.roles, keyring.machine
        await ask(at, Admit(name=name, kind=member.kind, key=new.public, roles=roles, machine=machine))
        keyring.put(msgspec.structs.replace(member, keys=(new.public,)))
        new.file.replace(key.file)
        await ask(at, ForgetKey(name=name, machine=machine, key=old))
    return list(names or sorted(ours))


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
