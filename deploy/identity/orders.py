"""What the keeper may be asked about who is who, and what it says."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from xnai.bus.permissions import Kind
from xnai.deploy.identity.keyring import Member


class Admit(msgspec.Struct, frozen=True, kw_only=True, tag="admit"):
    """Let somebody in, whose key was made where it lives.

    Attributes:
        key: its public half.
        roles: that it is to serve; None leaves those that it has.
        machine: where it lives; empty for the machine of the keeper.
    """

    name: str
    kind: Kind
    key: str
    roles: tuple[str, ...] | None = None
    machine: str = ""


class Rotate(msgspec.Struct, frozen=True, tag="rotate"):
    """New keys for members that live where the keeper does; all of them where none is named."""

    names: list[str] = []


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """Let somebody in no more."""

    name: str
    machine: str | None = None


class ForgetKey(msgspec.Struct, frozen=True, kw_only=True, tag="forget_key"):
    """Take the old one of several keys from somebody."""

    name: str
    machine: str
    key: str


class Invite(msgspec.Struct, frozen=True, kw_only=True, tag="invite"):
    """Let another machine ask once to be let in.

    Attributes:
        seconds: for how long it may.
    """

    seconds: float


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine needs to ask to be let in. It is a secret: whoever has it first is let in.

    Attributes:
        url: of the broker, as that machine finds it.
        ca, server_name: who vouches for the broker, in the PEM form, and under what name.
        guest, seed: as whom it may ask, and the key of that.
    """

    url: str
    ca: str | None = None
    server_name: str | None = None
    guest: str
    seed: str


class Newcomer(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who lives on the machine that asks."""

    name: str
    kind: Kind
    key: str


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A machine asks to be let in, with its supervisor, its people and its agents."""

    machine: str
    members: list[Newcomer]


class Everybody(msgspec.Struct, frozen=True, tag="everybody"):
    """Who is known."""


Question: TypeAlias = Admit | Rotate | Revoke | ForgetKey | Invite | Everybody
read_question = msgspec.json.Decoder(Question).decode
read_join = msgspec.json.Decoder(Join).decode
read_invitation = msgspec.json.Decoder(Invitation).decode
read_members = msgspec.json.Decoder(list[Member]).decode
