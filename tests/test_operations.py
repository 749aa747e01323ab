"""The commands of the operations guide, in an empty folder."""

from __future__ import annotations

from pathlib import Path

from terminal import ROOT, command, processes_of
from transcript import Player


async def test_the_operations_guide_prints_what_it_shows(tmp_path: Path) -> None:
    try:
        await Player(tmp_path).play((ROOT / "docs" / "operations.md").read_text())
        assert processes_of(tmp_path) == {}
    finally:
        for folder in (tmp_path / "there", tmp_path):
            if folder.exists():
                await command("down", folder=folder)
