"""The commands of the operations guide, in an empty folder."""

from __future__ import annotations

from pathlib import Path

from terminal import ROOT
from transcript import Player


async def test_the_operations_guide_prints_what_it_shows(tmp_path: Path) -> None:
    await Player(tmp_path).play((ROOT / "docs" / "operations.md").read_text())
