"""Joining the broker of another machine: an invitation, used once, brings this folder's members in."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xnai.bus.asking import ask_keeper
from xnai.bus.keys import SUFFIX
from xnai.bus.locating import JOINED_FILE, Address, login_name, sender_name
from xnai.bus.permissions import Kind
from xnai.bus.secrets import write_secret
from xnai.bus.transport import open_transport
from xnai.deploy.identity.keyring import Keyring
from xnai.deploy.identity.orders import Invitation, Join, Newcomer, read_invitation
from xnai.protocol import subjects
from xnai.protocol.errors import InvalidArgument, XnaiError
from xnai.protocol.names import SUPERVISOR

_MARK = "xnai-join-"
_TIMEOUT = 20.0
_CA = "joined.pem"


def as_text(invitation: Invitation) -> str:
    """One word, to be carried to the other machine."""
    return _MARK + base64.urlsafe_b64encode(msgspec.json.encode(invitation)).decode().rstrip("=")


def from_text(text: str) -> Invitation:
    """What `as_text` made; raises InvalidArgument."""
    word = text.strip()
    body = word.removeprefix(_MARK)
    try:
        if body == word:
            raise ValueError
        return read_invitation(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise InvalidArgument(
            f"This is no invitation: that is one word, {_MARK} and more, as `xnai keys invite` prints it."
        ) from None


async def join(stack: Path, machine: str, invitation: Invitation, *, agents: Sequence[str]) -> list[str]:
    """Let the members of `stack`, a `.xnai` folder, be known to the broker of the invitation.

    Their keys are made here, and stay here. Returns their names.

    Raises:
        NotAllowed: the invitation was used, or is over.
        InvalidArgument: a name belongs to somebody else there.
        NoBus: nothing answers there.
    """
    keyring = Keyring(stack, machine)
    before = keyring.members()
    wanted = {machine: Kind.SUPERVISOR, sender_name(None): Kind.PERSON, login_name(): Kind.PERSON}
    wanted |= dict.fromkeys(agents, Kind.AGENT)
    for name, kind in wanted.items():
        roles = (SUPERVISOR,) if kind is Kind.SUPERVISOR else ()
        keyring.ensure(name, kind, roles=roles, by_settings=kind is Kind.AGENT)
    ca = _keep_ca(stack, invitation, f"{_CA}.new")
    guest = keyring.folder / f"{invitation.guest}{SUFFIX}"
    write_secret(guest, invitation.seed)
    at = Address(url=invitation.url, key=str(guest), ca=ca, server_name=invitation.server_name)
    everybody = [
        Newcomer(name=name, kind=kind, key=keyring.key(name).public) for name, kind in wanted.items()
    ]
    question, us = Join(machine=machine, members=everybody), invitation.guest
    try:
        async with open_transport(at.url, access=at.access(us), name=us) as transport:
            await ask_keeper(transport, subjects.joining(us), question, timeout=_TIMEOUT)
    except XnaiError:
        old = {each.name for each in before}
        keyring.remove(*(each for each in keyring.members() if each.name not in old))
        raise
    finally:
        guest.unlink(missing_ok=True)
        if ca:
            Path(ca).unlink(missing_ok=True)
    joined = msgspec.structs.replace(at, key=str(keyring.folder), ca=_keep_ca(stack, invitation, _CA))
    write_secret(stack / JOINED_FILE, msgspec.json.encode(joined).decode())
    return list(wanted)


def _keep_ca(stack: Path, invitation: Invitation, name: str) -> str | None:
    """Who vouches for the broker, in a file: not that of one joined before, as long as we are not let in."""
    if invitation.ca is None:
        return None
    file = stack / "tls" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.parent.chmod(0o700)
    write_secret(file, invitation.ca)
    return str(file)
