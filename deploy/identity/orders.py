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
        machine: where it lives; empty for the machine of the keeper.
    """

    name: str
    kind: Kind
    key: str
    roles: tuple[str, ...] = ()
    machine: str = ""


class Rotate(msgspec.Struct, frozen=True, tag="rotate"):
    """New keys for members that live where the keeper does; all of them where none is named."""

    names: list[str] = []


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """Let somebody in no more."""

    name: str
    machine: str | None = None


class Everybody(msgspec.Struct, frozen=True, tag="everybody"):
    """Who is known."""


Question: TypeAlias = Admit | Rotate | Revoke | Everybody
read_question = msgspec.json.Decoder(Question).decode
read_members = msgspec.json.Decoder(list[Member]).decode
