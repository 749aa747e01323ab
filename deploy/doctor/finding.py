"""What a check looks at, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from xnai.deploy.settings import Settings

Level = Literal["fine", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        check: its name; stable, programs may compare it.
        level: a problem keeps something from working or leaves it open to others; a warning may become one.
        what: how it is, as a sentence.
        do: what to do about it; empty where all is well.
    """

    check: str
    level: Level
    what: str
    do: str = ""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to examine.

    Attributes:
        folder: the stack's `.xnai`; it need not exist.
        file: the settings file, if there is one.
        settings: what it says.
        root: where `proc` and `sys` are found.
    """

    folder: Path
    file: Path | None
    settings: Settings
    root: Path = Path("/")

    @property
    def project(self) -> Path:
        """Where relative paths of the settings begin."""
        return self.folder.parent

    @property
    def disk(self) -> Path:
        """What exists of the place where data goes: the stack's folder, otherwise the nearest above it."""
        return next(place for place in (self.folder, *self.folder.parents) if place.exists())


def fine(check: str, what: str) -> Finding:
    return Finding(check=check, level="fine", what=what)


def warning(check: str, what: str, do: str) -> Finding:
    return Finding(check=check, level="warning", what=what, do=do)


def problem(check: str, what: str, do: str) -> Finding:
    return Finding(check=check, level="problem", what=what, do=do)
