"""Finding the bus: what was said, the environment, or the stack of this folder."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from xnai.bus.access import Access
from xnai.bus.keys import SUFFIX
from xnai.bus.transport import Transport, open_transport
from xnai.protocol.errors import InvalidSettings, NoBus
from xnai.protocol.names import SYSTEM, as_token, check_name

STACK_FOLDER = ".xnai"
ADDRESS_FILE = "bus.json"
JOINED_FILE = "joined.json"
"""The broker of another machine, which this stack has joined."""
_TRY_AGAIN = 0.1


class Address(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a broker listens, and what it wants to see.

    Attributes:
        token: that whoever connects must show; or
        key: a file with the key of whoever connects, or a folder in which each name has one.
        ca: a file with the certificate of who vouches for the broker, for `tls://`.
        server_name: that its own certificate has, where it is not that of its address.
        pid: of the process that keeps the stack up.
    """

    url: str
    token: str | None = None
    key: str | None = None
    ca: str | None = None
    server_name: str | None = None
    pid: int | None = None

    def as_system(self) -> Address:
        """The same for whoever has the keeper's key."""
        if self.key is None:
            return self
        return msgspec.structs.replace(self, key=str(Path(self.key) / f"{SYSTEM}{SUFFIX}"))

    def access(self, name: str) -> Access:
        """What `name` shows there."""
        key = Path(self.key) if self.key else None
        if key is not None and key.is_dir():
            key /= f"{name}{SUFFIX}"
        ca = Path(self.ca) if self.ca else None
        return Access(token=self.token, key=key, ca=ca, server_name=self.server_name)


def find_bus(folder: Path) -> Address:
    """The bus that `XNAI_URL` names, otherwise the stack whose `.xnai/` stands in `folder` or above it.

    Raises:
        NoBus: there is neither.
    """
    if url := os.environ.get("XNAI_URL"):
        get = os.environ.get
        return Address(url=url, token=get("XNAI_TOKEN"), key=get("XNAI_KEY"), ca=get("XNAI_CA"))
    for place in (folder, *folder.parents):
        for name in (ADDRESS_FILE, JOINED_FILE):
            file = place / STACK_FOLDER / name
            if file.exists():
                return read_address(file)
    raise NoBus(f"No bus is up in {folder} or above it, and XNAI_URL is not set. Start one with: xnai up")


def read_address(file: Path) -> Address:
    """What a stack says of itself.

    Raises:
        InvalidSettings: the file cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Address)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise InvalidSettings(f"{file} cannot be read: {error}.") from error


def sender_name(name: str | None) -> str:
    """`name`, otherwise `XNAI_NAME`, otherwise the login name as a token.

    Raises:
        InvalidName: it cannot stand in a subject.
    """
    return check_name(name or os.environ.get("XNAI_NAME") or login_name(), "sender")


def login_name() -> str:
    """The name of who is logged in, as a token."""
    try:
        return as_token(getpass.getuser())
    except (KeyError, OSError):  # in a container the user may have no name
        return "anonymous"


@asynccontextmanager
async def reach(at: Address | None, *, name: str, wait: float = 0.0) -> AsyncIterator[Transport]:
    """Connect to the bus there, or to the one that is found, for `wait` seconds at least if it is not up yet.

    Raises:
        NoBus: there is none, or nothing answers.
        NotAllowed, ServerTooOld: it answers, and that is why not.
    """
    until = time.monotonic() + wait
    async with AsyncExitStack() as stack:
        transport: Transport | None = None
        while transport is None:
            try:
                there = at or find_bus(Path.cwd())
                opening = open_transport(there.url, access=there.access(name), name=name)
                transport = await stack.enter_async_context(opening)
            except NoBus:
                if time.monotonic() > until:
                    raise
                await anyio.sleep(_TRY_AGAIN)
        yield transport
