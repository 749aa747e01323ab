"""The tutorial, followed word by word in an empty folder."""

from __future__ import annotations

from pathlib import Path

from terminal import ROOT
from transcript import Player


async def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    await Player(tmp_path).play((ROOT / "docs" / "tutorial.md").read_text())
