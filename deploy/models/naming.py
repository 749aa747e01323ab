"""What models are called: on the command line, at a hub, and in the names of files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from xnai.protocol.errors import InvalidArgument

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?::(.+))?", re.ASCII)
_FILE_URL = re.compile(r"/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/(.+)", re.ASCII)
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d+(?:_\w+)*|TQ\d_\d|MXFP4(?:_\w+)?|NVFP4|BF16|F16|FP16|F32))(?=[-.]|$)",
    re.IGNORECASE,
)


class Wanted(msgspec.Struct, frozen=True):
    """What a person asked for: a repository and which of its files, or an address."""

    repository: str | None = None
    which: str | None = None
    revision: str = "main"
    url: str | None = None
    hub: str | None = None


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that can be fetched. `sha256` is None where nobody says it."""

    name: str
    repository: str | None
    url: str
    size: int | None
    sha256: str | None


def read_name(text: str) -> Wanted:
    """What NAME on the command line means: owner/repository[:quantization or file], or the address of a file.

    Raises:
        InvalidArgument: it is neither.
    """
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if found := _FILE_URL.fullmatch(unquote(parts.path)):
            hub = f"{parts.scheme}://{parts.netloc}"
            return Wanted(found[1], found[3], found[2], hub=hub)
        return Wanted(url=text)
    if found := _REPOSITORY.fullmatch(text):
        return Wanted(found[1], found[2])
    raise InvalidArgument(
        f"{text!r} names no model: write OWNER/REPOSITORY, OWNER/REPOSITORY:QUANTIZATION or an address."
    )


def quantization(name: str) -> str | None:
    """How the weights in a file of this name are stored: `Q4_K_M`; None if the name does not say."""
    found = _QUANTIZATION.findall(PurePosixPath(name).name)
    return found[-1].upper() if found else None


def is_meant(name: str, which: str | None) -> bool:
    """Whether a person who said `which` may mean the file of this name."""
    if which is None:
        return True
    return which.casefold() in (name.casefold(), PurePosixPath(name).name.casefold()) or (
        which.upper() == quantization(name)
    )
