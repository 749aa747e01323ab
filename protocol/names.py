"""Names and ids: what may stand as a token in a subject."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from functools import lru_cache

from xnai.protocol.errors import InvalidName

NAME, ID = "[a-z0-9][a-z0-9_-]{0,63}", "[A-Za-z0-9_-]{1,128}"
"""What a name and what an id looks like, as regular expressions."""
_TOKEN = re.compile(NAME).fullmatch
_ID = re.compile(ID).fullmatch
_NOT_IN_TOKENS = re.compile(r"[^a-z0-9_-]+")
SYSTEM = "system"
SUPERVISOR = "supervisor"
"""The role in which every supervisor is asked."""
LANES = ("urgent", "normal", "background")


def check_name(name: object, what: str = "name") -> str:
    """`name`, which may be a token of a subject and is not reserved.

    Raises:
        InvalidName: it may not.
    """
    if not isinstance(name, str) or not _TOKEN(name):
        raise InvalidName(
            f"{name!r} is no {what}: use up to 64 of a-z, 0-9, _ and -, beginning with a letter or digit."
        )
    if name == SYSTEM:
        raise InvalidName(f"{SYSTEM!r} is reserved and cannot be a {what}.")
    return name


def check_id(id: object, what: str = "id") -> str:
    """`id`, which may be the id of a task or of a context.

    Raises:
        InvalidName: it may not.
    """
    if not isinstance(id, str) or not _ID(id):
        raise InvalidName(f"{id!r} is no {what}: use 1 to 128 of A-Z, a-z, 0-9, _ and -.")
    return id


def check_lane(lane: str) -> str:
    """`lane`, one of urgent, normal, background.

    Raises:
        InvalidName: it is none of them.
    """
    if lane not in LANES:
        raise InvalidName(f"{lane!r} is no lane: use one of {', '.join(LANES)}.")
    return lane


@lru_cache(maxsize=1024)
def parse_address(to: object) -> tuple[str, str]:
    """The agent and the skill in "agent.skill".

    Raises:
        InvalidName: it is not of that form.
    """
    agent, dot, skill = to.partition(".") if isinstance(to, str) else ("", "", "")
    if not dot:
        raise InvalidName(f"{to!r} names no skill: write AGENT.SKILL, for example maths.double.")
    return check_name(agent, "agent name"), check_name(skill, "skill name")


def new_id() -> str:
    """128 random bits at least, in 22 characters: who knows the id of a task may end it."""
    return id_of(os.urandom(24))


def id_of(data: bytes) -> str:
    """The first 22 characters of these 24 bytes or more in base64url, from one that is no dash.

    An id is written behind commands, which would take it for an option.
    """
    return base64.urlsafe_b64encode(data).decode().lstrip("-")[:22]


def new_instance() -> str:
    """Eight random characters, new for each opened bus."""
    return os.urandom(4).hex()


def as_token(text: str) -> str:
    """A login or host name as a token: lower case, anything else than a-z, 0-9, _ and - becomes -."""
    token = _NOT_IN_TOKENS.sub("-", text.lower()).strip("-_")[:64]
    return token if token and token != SYSTEM else "anonymous"


def nearest(said: str, known: Iterable[str]) -> str | None:
    """What somebody who said this may have meant, of what is known."""
    import difflib  # only a mistake is worth its time

    return next(iter(difflib.get_close_matches(said, list(known), n=1)), None)
