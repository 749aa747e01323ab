"""The server's view of who is who: streams in one account, everybody else in another, joined by exports.

Within one account whoever may read a stored message could have it sent to any subject, because the server
does not check where a reply goes; across accounts a reply stays with those who may not write there. Source:
nats-server's documentation of accounts, and its `server/client.go` (processServiceImport).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from xnai.bus.permissions import Identity, Kind, permissions_of
from xnai.protocol import subjects

STREAMS, MEMBERS = "XNAI", "MEMBERS"
_API = "$JS.API"
_OPEN_PULL = "15s"  # a question of which nothing is heard for so long is forgotten; open pulls say more

_LIMITS = {"max_connections": 4096, "max_subscriptions": 10_000}  # of all together, and of each connection

_ONE_ANSWER = (
    "xnai.v1.task.>",
    "xnai.v1.due.>",
    "xnai.v1.log.>",
    "xnai.v1.timer.>",
    subjects.DEAD_SUBJECTS,
    subjects.BLOB_SUBJECTS,
    subjects.CARD_SUBJECTS,
    subjects.declaring("*"),
    subjects.reading("*", "*", "*"),
    subjects.listing("*"),
    subjects.administering("*"),
    subjects.joining("*"),
    f"{_API}.INFO",
    f"{_API}.STREAM.NAMES",
    f"{_API}.CONSUMER.INFO.*.*",
    f"{_API}.DIRECT.GET.*.>",
    "$JS.ACK.>",
)
_MANY_ANSWERS = (
    f"{_API}.CONSUMER.MSG.NEXT.*.*",
    f"{_API}.DIRECT.GET.*",
)
_HEARD = ("xnai.v1.live.>", subjects.ALIVE_SUBJECTS)


def accounts(identities: Iterable[Identity]) -> str:
    """The part of the server's configuration that says who may connect, and what each may do."""
    known = list(identities)
    system = [{"nkey": key} for who in known if who.kind is Kind.SYSTEM for key in who.keys]
    members = [_user(who, key) for who in known if who.kind is not Kind.SYSTEM for key in who.keys]
    table = {
        STREAMS: {"jetstream": "enabled", "users": system, "exports": _exports()},
        MEMBERS: {"users": members, "imports": _imports(), "limits": _LIMITS},
    }
    return f"accounts: {msgspec.json.format(msgspec.json.encode(table)).decode()}"


def _user(who: Identity, key: str) -> dict[str, Any]:
    may = permissions_of(who)
    permissions = {"publish": {"allow": may.publish}, "subscribe": {"allow": may.subscribe}}
    return {"nkey": key, "permissions": permissions}


def _exports() -> list[dict[str, str]]:
    one = [{"service": subject} for subject in _ONE_ANSWER]
    many = [
        {"service": subject, "response_type": "stream", "threshold": _OPEN_PULL} for subject in _MANY_ANSWERS
    ]
    return [*one, *many, *({"stream": subject} for subject in _HEARD)]


def _imports() -> list[dict[str, dict[str, str]]]:
    services = [{"service": {"account": STREAMS, "subject": each}} for each in (*_ONE_ANSWER, *_MANY_ANSWERS)]
    return [*services, *({"stream": {"account": STREAMS, "subject": each}} for each in _HEARD)]
