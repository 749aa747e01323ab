"""The models of this machine by name: what was fetched, with its record, and what others have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from xnai.agents.inference.errors import InferenceError, ModelInvalid
from xnai.agents.inference.file_hash import file_hash
from xnai.agents.inference.gguf_file import GgufInfo, read_gguf
from xnai.deploy.models.errors import ModelChanged, ModelUnknown
from xnai.deploy.models.folders import OURS, Found, find_models
from xnai.deploy.models.naming import HubFile, Wanted, is_meant
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.names import nearest
from xnai.protocol.timestamps import format_timestamp

if TYPE_CHECKING:
    from xnai.deploy.models.fetching import Advance
    from xnai.deploy.models.hub import Hub


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a file that was fetched."""

    url: str
    repository: str | None
    sha256: str
    size: int
    fetched: str


class Store:
    """The models on this disk; those fetched here lie below `cache`, each with a record beside it.

    `project` is the folder of `xnai.toml`.
    """

    def __init__(self, cache: Path, project: Path | None) -> None:
        self._cache, self._project = cache, project

    def all(self) -> list[Found]:
        """With the SHA-256 of what was fetched here, from its record."""
        found = find_models(self._cache, self._project)
        return [
            msgspec.structs.replace(each, sha256=record.sha256)
            if each.source == OURS and (record := self.record(each.path))
            else each
            for each in found
        ]

    def one(self, name: str) -> Found:
        """The model that is called so: by its name, its end, its quantization, or as a path.

        Raises:
            ModelUnknown: there is none.
            InvalidArgument: there are several.
        """
        path = Path(name).expanduser()
        models = self.all()
        for each in models:
            if name == each.name or path.absolute() == each.path:
                return each
        if path.is_file():
            return Found(name=name, path=path.absolute(), source="a path")
        matching = [each for each in models if _is_called(each.name, name)]
        if len(matching) > 1:
            raise InvalidArgument(f"{name} may be {', '.join(each.name for each in matching)}: say which.")
        if matching:
            return matching[0]
        close = nearest(name, [each.name for each in models])
        hint = f"did you mean {close}?" if close else "`xnai model ls` shows those that there are."
        raise ModelUnknown(f"There is no model {name} here: {hint}")

    def record(self, path: Path) -> Record | None:
        """What was noted when the file was fetched here; None if it was not."""
        try:
            return msgspec.json.decode(_record_of(path).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def already(self, wanted: Wanted) -> Found | None:
        """What was fetched here before under the same name, without asking a hub."""
        for each in self.all():
            record = self.record(each.path) if each.source == OURS else None
            if record is None:
                continue
            if wanted.url is not None and record.url == wanted.url:
                return each
            named = wanted.which is not None and wanted.revision == "main"
            if named and wanted.repository == record.repository and is_meant(each.path.name, wanted.which):
                return each
        return None

    def same(self, file: HubFile) -> Found | None:
        """A file of the same content, whoever put it here. One of the same size is hashed once."""
        if file.sha256 is None:
            return None
        for each in self.all():
            if each.source == OURS and self.record(each.path) is None:
                continue  # an earlier call was killed in its last moment; `get` takes it in
            try:
                if each.path.stat().st_size == file.size and self.hash(each.path) == file.sha256:
                    return each
            except OSError:
                continue
        return None

    def get(self, hub: Hub, file: HubFile, advance: Advance) -> Found:
        """Fetch a file, and note what it is.

        Raises:
            FetchFailed: it did not come, or is not what it should be.
        """
        from xnai.deploy.models.fetching import fetch  # which alone needs an HTTP client

        folder = file.repository or urlsplit(file.url).netloc.replace(":", "-")
        target = self._cache / folder / file.name
        sha256 = self.hash(target) if target.exists() else fetch(hub, file, target, advance)
        if file.sha256 not in (None, sha256):
            raise ModelChanged(
                f"{target} is there with another content than the hub has now: "
                f"`xnai model rm {folder}/{file.name}` makes room for it."
            )
        record = Record(
            url=file.url,
            repository=file.repository,
            sha256=sha256,
            size=target.stat().st_size,
            fetched=format_timestamp(time.time()),
        )
        new = _record_of(target).with_suffix(".new")
        new.write_bytes(msgspec.json.encode(record))
        os.replace(new, _record_of(target))
        return Found(name=str(target.relative_to(self._cache)), path=target, source=OURS, sha256=sha256)

    def check_removable(self, model: Found) -> None:
        """Return if a file was fetched here.

        Raises:
            InvalidArgument: it was not.
        """
        if model.source != OURS or self.record(model.path) is None:
            raise InvalidArgument(f"{model.path} was not fetched by `xnai model get`, and stays.")

    def remove(self, model: Found) -> None:
        """Delete a file that was fetched here, and its record.

        Raises:
            InvalidArgument: it was not.
        """
        self.check_removable(model)
        model.path.unlink()
        _record_of(model.path).unlink()
        for folder in model.path.parents:
            if folder == self._cache or any(folder.iterdir()):
                break
            folder.rmdir()

    def hash(self, path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
        """The SHA-256, computed once.

        Raises:
            OSError: it cannot be read.
        """
        return file_hash(path.resolve(), self._cache, advance)

    def check(self, model: Found, advance: Callable[[int], None] = lambda _: None) -> str | None:
        """What is wrong with a file: its header, its size, its hash if one is known; None if nothing is."""
        try:
            read_gguf(model.path)
            record = self.record(model.path)
            if record is not None and record.size != (size := model.path.stat().st_size):
                return f"{model.path} has {size} bytes, and had {record.size} when it was fetched"
            if model.sha256 is not None and model.sha256 != (sha256 := self.hash(model.path, advance)):
                return f"{model.path} has the SHA-256 {sha256}, and should have {model.sha256}"
        except InferenceError as error:
            return str(error)
        except OSError as error:
            return f"{model.path} cannot be read: {error.strerror}"
        return None


def described(models: Iterable[Found]) -> list[tuple[Found, GgufInfo | ModelInvalid]]:
    """Each with what its header says, or why it cannot be used."""
    found: list[tuple[Found, GgufInfo | ModelInvalid]] = []
    for each in models:
        try:
            found.append((each, read_gguf(each.path)))
        except ModelInvalid as error:
            found.append((each, error))
    return found


def _is_called(name: str, said: str) -> bool:
    if name.endswith(f"/{said}") or name.removesuffix(".gguf").endswith(f"/{said}"):
        return True
    repository, _, which = said.partition(":")
    return bool(which) and name.startswith(f"{repository}/") and is_meant(name, which)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
