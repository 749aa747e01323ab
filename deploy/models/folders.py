"""The GGUFs on this disk: those fetched here, the project's own, and those of other programs.

Where others keep theirs: Hugging Face's cache (https://huggingface.co/docs/huggingface_hub/guides/manage-cache),
Ollama (its manifests are OCI image manifests), LM Studio, GPT4All and llama.cpp (their documentation).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from xnai.deploy.environment import variable

OURS = "xnai"
PROJECT = "this project"
_DEEPEST, _MOST_FILES = 5, 20_000
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/(.+)", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OLLAMA_WEIGHTS = "application/vnd.ollama.image.model"
_LARGEST_MANIFEST = 1 << 20


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is named as a GGUF.

    Attributes:
        source: whose it is: `xnai`, `this project`, `Hugging Face`, `Ollama` and so on.
        sha256: what whoever put it there says of it, None if nothing.
    """

    name: str
    path: Path
    source: str
    sha256: str | None = None


class _Layer(msgspec.Struct):
    mediaType: str  # noqa: N815  # as the format spells it
    digest: str


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []


def find_models(fetched: Path, project: Path | None) -> list[Found]:
    """All of them, each once, whoever else has a link to it; those fetched here first."""
    found: list[Found] = []
    seen: set[tuple[int, int]] = set()
    for each in _everywhere(fetched, project):
        try:
            stat = each.path.stat()
        except OSError:  # a link to nothing, or a folder that is not ours
            continue
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            found.append(each)
    return found


def _everywhere(fetched: Path, project: Path | None) -> Iterator[Found]:
    yield from _plain(OURS, fetched)
    if project is not None:
        yield from _plain(PROJECT, project / "models", named=project)
    yield from _of_hugging_face(_hugging_face())
    for folder in _ollama():
        yield from _of_ollama(folder)
    home = Path.home()
    for source, folder in (
        ("LM Studio", home / ".lmstudio/models"),
        ("LM Studio", home / ".cache/lm-studio/models"),
        ("GPT4All", home / ".local/share/nomic.ai/GPT4All"),
        ("GPT4All", home / "Library/Application Support/nomic.ai/GPT4All"),
        ("llama.cpp", _set("LLAMA_CACHE") or _cache() / "llama.cpp"),
        ("llama.cpp", home / "Library/Caches/llama.cpp"),
    ):
        yield from _plain(source, folder)


def _plain(source: str, folder: Path, *, named: Path | None = None) -> Iterator[Found]:
    for path in _files(folder):
        yield Found(name=str(path.relative_to(named or folder)), path=path, source=source)


def _of_hugging_face(folder: Path) -> Iterator[Found]:
    for path in _files(folder):
        if found := _SNAPSHOT.fullmatch(path.relative_to(folder).as_posix()):
            blob = path.resolve().name
            yield Found(
                name=f"{found[1]}/{found[2]}/{found[3]}",
                path=path,
                source="Hugging Face",
                sha256=blob if _DIGEST.fullmatch(blob) else None,
            )


def _of_ollama(folder: Path) -> Iterator[Found]:
    manifests = folder / "manifests"
    for path in _files(manifests, suffix=""):
        try:
            if path.stat().st_size > _LARGEST_MANIFEST:
                continue
            manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
        except (OSError, msgspec.MsgspecError, RecursionError):
            continue
        *_, owner, model, tag = ("", "", *path.relative_to(manifests).parts)
        name = f"{model}:{tag}" if owner in ("", "library") else f"{owner}/{model}:{tag}"
        for layer in manifest.layers:
            digest = layer.digest.removeprefix("sha256:")
            if layer.mediaType == _OLLAMA_WEIGHTS and _DIGEST.fullmatch(digest):
                blob = folder / "blobs" / f"sha256-{digest}"
                yield Found(name=name, path=blob, source="Ollama", sha256=digest)


def _files(folder: Path, *, suffix: str = ".gguf") -> Iterator[Path]:
    """The files below a folder, in order; links to files too, links to folders not."""
    looked_at = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if len(Path(place).relative_to(folder).parts) >= _DEEPEST:
            folders.clear()
        for name in sorted(names):
            looked_at += 1
            if looked_at > _MOST_FILES:
                return
            if name.lower().endswith(suffix) and not name.startswith("."):
                yield Path(place, name)


def _hugging_face() -> Path:
    home = _set("HF_HOME") or _cache() / "huggingface"
    return _set("HF_HUB_CACHE") or home / "hub"


def _ollama() -> list[Path]:
    usual = [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    return [chosen] if (chosen := _set("OLLAMA_MODELS")) else usual


def _cache() -> Path:
    return _set("XDG_CACHE_HOME") or Path.home() / ".cache"


def _set(name: str) -> Path | None:
    """The folder that a variable names, if it is an absolute one."""
    path = Path(variable(name) or "").expanduser()
    return path if path.is_absolute() else None
