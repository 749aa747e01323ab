"""A hub of models, asked over the HTTP API of the Hugging Face Hub.

A client of our own: `huggingface_hub` does not compare what it fetched with the SHA-256 that the hub
promises, and it brings a transfer protocol and telemetry of its own. Here are two requests, over httpx.

Source: https://huggingface.co/docs/hub/api, and https://huggingface.co/docs/huggingface_hub for the headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx
import msgspec

from xnai.deploy.models.errors import HubRefused, HubUnreachable, ModelSplit, ModelUnknown
from xnai.deploy.models.naming import HubFile, Wanted, is_meant, quantization
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.names import nearest

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MOST_PAGES = 20  # of a list of files; a page has 1,000
_LONGEST_PAGE = 16 << 20
_PLAIN_NAME = re.compile(r"[\w+][\w.+ -]*\.gguf", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q8_0")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Entry(msgspec.Struct):
    """A file of a repository, as the hub's tree says it."""

    type: str
    path: str
    size: int = 0
    lfs: _Lfs | None = None


class _Model(msgspec.Struct):
    id: str


class Hub:
    """An open link to a hub. The token goes to the hub's own address and nowhere else.

    Attributes:
        address: `https://huggingface.co` and the like.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._client = httpx.Client(
            timeout=_TIMEOUT,
            follow_redirects=True,
            headers={"User-Agent": "xnai-agent-bus", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find(self, wanted: Wanted) -> HubFile:
        """The file that is meant.

        Raises:
            ModelUnknown, ModelSplit, HubRefused, HubUnreachable.
        """
        if wanted.url is not None:
            return self._at(wanted.url)
        assert wanted.repository is not None
        hub = (wanted.hub or self.address).rstrip("/")
        place = f"{hub}/{wanted.repository}/resolve/{quote(wanted.revision, safe='')}/"
        entry = _choose(self._tree(hub, wanted), wanted)
        return HubFile(
            name=_plain(entry.path),
            repository=wanted.repository,
            url=place + quote(entry.path),
            size=entry.lfs.size if entry.lfs else entry.size,
            sha256=_sha256(entry.lfs.oid) if entry.lfs else None,
        )

    @contextmanager
    def get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """The answer to a request, its body still to be read; its status is 416 or that of a success.

        Raises:
            ModelUnknown, HubRefused, HubUnreachable.
        """
        sent = {**(headers or {})}
        if self._token and url.startswith(f"{self.address}/"):
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            with self._client.stream("GET", url, headers=sent) as response:
                if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                    _check(response, url, known="Authorization" in sent)
                yield response
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            raise HubUnreachable(f"{urlsplit(url).netloc} cannot be reached: {_reason(error)}.") from error
        except httpx.InvalidURL as error:
            raise InvalidArgument(f"{url!r} is no address: {error}.") from error

    def _at(self, url: str) -> HubFile:
        with self.get(url) as response:
            size = response.headers.get("Content-Length", "")
            tags = [each.headers.get("X-Linked-Etag", "") for each in (*response.history, response)]
        return HubFile(
            name=_plain(unquote(urlsplit(url).path)),
            repository=None,
            url=url,
            size=int(size) if size.isdecimal() else None,
            sha256=next((found for tag in tags if (found := _sha256(tag))), None),
        )

    def _tree(self, hub: str, wanted: Wanted) -> list[_Entry]:
        assert wanted.repository is not None
        url = f"{hub}/api/models/{wanted.repository}/tree/{quote(wanted.revision, safe='')}?recursive=true"
        entries: list[_Entry] = []
        try:
            for _ in range(_MOST_PAGES):
                with self.get(url) as response:
                    entries += _decode(response, list[_Entry])
                    following = response.links.get("next", {}).get("url")
                if not following or not following.startswith(f"{hub}/"):
                    return entries
                url = following
        except ModelUnknown:
            meant = self._similar(hub, wanted.repository)
            hint = (
                f" Did you mean {meant}?"
                if meant
                else " Mind its name; a private one needs XNAI_MODELS_TOKEN."
            )
            raise ModelUnknown(f"{hub} has no repository {wanted.repository}.{hint}") from None
        return entries

    def _similar(self, hub: str, repository: str) -> str | None:
        """A repository whose name is like this one's."""
        owner, _, name = repository.partition("/")
        for words in (name, owner):
            try:
                with self.get(f"{hub}/api/models?search={quote(words)}&filter=gguf&limit=50") as response:
                    known = [each.id for each in _decode(response, list[_Model]) if each.id != repository]
            except (ModelUnknown, HubRefused, HubUnreachable):
                return None
            if meant := nearest(repository, known):
                return meant
        return None


def _choose(entries: Sequence[_Entry], wanted: Wanted) -> _Entry:
    files = [
        each
        for each in entries
        if each.type == "file" and each.path.lower().endswith(".gguf") and "mmproj" not in each.path.lower()
    ]
    whole = [each for each in files if not _PART.search(each.path)]
    meant = [each for each in whole if is_meant(each.path, wanted.which)]
    if len(meant) == 1:
        return meant[0]
    if wanted.which is None:
        for each in _PREFERRED:
            if found := [file for file in meant if quantization(file.path) == each]:
                return found[0]
    known = [quantization(each.path) or each.path for each in whole]
    others = f"Known are {', '.join(dict.fromkeys(known))}." if known else "It has no GGUF in one piece."
    parts = [each for each in files if is_meant(_PART.sub(".gguf", each.path), wanted.which)]
    if not meant and parts:
        raise ModelSplit(
            f"{wanted.repository} has {wanted.which or 'this'} in {len(parts)} files, which are not put "
            f"together here; `llama-gguf-split --merge` does that. {others}"
        )
    if meant:
        names = ", ".join(each.path for each in meant[:20])
        raise ModelUnknown(
            f"{wanted.repository} has several files: write {wanted.repository}:FILE of {names}."
        )
    close = nearest((wanted.which or "").upper(), known)
    hint = f"Did you mean {wanted.repository}:{close}? {others}" if close else others
    raise ModelUnknown(f"{wanted.repository} has no {wanted.which or 'GGUF'}. {hint}")


def _plain(path: str) -> str:
    """The last part of a path of the hub's, which must be a name that can stand in a folder of ours."""
    name = PurePosixPath(path).name
    if not _PLAIN_NAME.fullmatch(name):
        raise ModelUnknown(f"{name!r} is no name of a GGUF.")
    return name


def _sha256(text: str) -> str | None:
    """In an ETag or an id, if that is one."""
    digits = text.strip().removeprefix("W/").strip('"').removeprefix("sha256:").lower()
    return digits if _SHA256.fullmatch(digits) else None


def _decode(response: httpx.Response, kind: type[list[_T]]) -> list[_T]:
    data = b""
    for piece in response.iter_raw():
        data += piece
        if len(data) > _LONGEST_PAGE:
            raise HubUnreachable(f"{response.url.host} answers with more than a list of files.")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise HubUnreachable(f"{response.url.host} does not answer as a hub of models: {error}.") from error


def _check(response: httpx.Response, url: str, *, known: bool) -> None:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status < 400:
        return
    where = urlsplit(url).netloc
    if code == "GatedRepo":
        raise HubRefused(
            f"{where} wants its conditions for this model accepted there, and a token of who accepted them: "
            "set XNAI_MODELS_TOKEN."
        )
    if status in (404, 410) or code == "RepoNotFound" or (status == 401 and not known):  # what may be private
        raise ModelUnknown(f"{where} has nothing at {urlsplit(url).path}; what is private needs a token.")
    if status in (401, 403):
        raise HubRefused(
            f"{where} refuses this ({status}): set XNAI_MODELS_TOKEN to a token that may read it."
        )
    raise HubUnreachable(f"{where} answers with the status {status}: try again later.")


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
