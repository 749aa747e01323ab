"""Asking the keeper, as the person that we are, to let somebody in who lives in this stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from xnai.bus.asking import ask_keeper
from xnai.bus.keys import SUFFIX, Key, make_key
from xnai.bus.locating import Address, find_bus, sender_name
from xnai.bus.permissions import Kind
from xnai.bus.transport import open_transport
from xnai.deploy.identity.keyring import Member
from xnai.deploy.identity.orders import Admit, Question, read_members
from xnai.protocol import subjects
from xnai.protocol.errors import NoBus

_TRY_AGAIN = 0.1


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
    (member,) = await ask(at, Admit(name=name, kind=kind, key=key.public, roles=tuple(roles)))
    return member


async def ask(at: Address, question: Question) -> list[Member]:
    """What the keeper answers to the person that we are; raises as `open_transport` and `ask_keeper` do."""
    me = sender_name(None)
    async with open_transport(at.url, access=at.access(me), name=me) as transport:
        return read_members(await ask_keeper(transport, subjects.administering(me), question))


async def _find(wait: float) -> Address:
    until = time.monotonic() + wait
    while True:
        try:
            return find_bus(Path.cwd())
        except NoBus:
            if time.monotonic() > until:
                raise
        await anyio.sleep(_TRY_AGAIN)
