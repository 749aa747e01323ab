"""What a broker wants to see of whoever connects, where answers come, and why there is no link."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from xnai.bus.client import NoTls
from xnai.protocol.errors import InvalidArgument, NoBus, NotAllowed, Unavailable

_SCHEMES, _PORT = ("nats", "tls"), 4222


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker wants to see, and how it is known itself.

    Attributes:
        token: that it wants; or
        key: the file of ours.
        ca: a file with who vouches for it, otherwise those whom the system trusts.
        server_name: that its certificate has, where it is not that of its address.
    """

    token: str | None = None
    key: Path | None = None
    ca: Path | None = None
    server_name: str | None = None


NOTHING = Access()
SERVICES, SERVICE_VERBS = "$SRV", ("PING", "INFO", "STATS")
ANSWERS = "_ANSWER"
"""Under what one member answers another: each answer has a place of its own."""


class HungUp(NoBus):
    """Somebody is there, and breaks off before we are in: so does a broker that reads its settings again."""


def shown(url: str) -> str:
    """The address without the secrets in it."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError:  # a port that is no number, a bracket that stays open
        parts, port = urlsplit(""), 0
    if parts.scheme not in _SCHEMES or not parts.hostname or "," in parts.netloc:
        raise InvalidArgument("This is no address of a broker. It looks like this: nats://127.0.0.1:4222")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def explained(error: Exception, address: str, access: Access) -> Unavailable:
    """Why there is no link, in our words."""
    if isinstance(error, Unavailable):
        return error
    if "authorization" in str(error).lower():
        shown = f"the key {access.key}" if access.key else "this token"
        return NotAllowed(f"The broker at {address} does not take {shown}.")
    if isinstance(error, NoTls):
        return NotAllowed(f"The broker at {address} speaks no TLS, so nothing was said to it.")
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or "no TLS"
        return NotAllowed(f"The broker at {address} is not who it should be: {reason}.")
    if isinstance(error, ConnectionError):  # not a refused one: nats-py keeps those to itself
        return HungUp(f"What answers at {address} breaks off before it has let us in.")
    return NoBus(f"Nothing answers at {address}: is the bus up? Start it with: xnai up")


def inbox_of(name: str) -> str:
    """Under what the answers to `name` come: nobody else may listen there."""
    return f"_INBOX_{name}"


def service_places(verb: str, name: str, instance: str) -> tuple[str, str, str]:
    """Where a NATS micro service is asked: all, those of a name, one instance.

    Each verb is spelled out: whoever may listen on `$SRV.*` may on `$SRV.>` too, where others are asked.
    """
    return f"{SERVICES}.{verb}", f"{SERVICES}.{verb}.{name}", f"{SERVICES}.{verb}.{name}.{instance}"


def answers_to(name: str) -> str:
    """Under what other members answer `name`: nobody else may listen there, and all agents may write."""
    return f"{ANSWERS}.{name}"


def tls(ca: Path | None) -> ssl.SSLContext:
    """Trust in whoever `ca` vouches for, and without it in those whom the system trusts."""
    logging.getLogger("asyncio").addFilter(_says_more)
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise NotAllowed(f"The certificate {ca} cannot be used: {error}.") from error


def _says_more(record: logging.LogRecord) -> bool:
    """Not what asyncio says at the end of each TLS link that its own streams have opened."""
    return not str(record.msg).startswith("returning true from eof_received()")
