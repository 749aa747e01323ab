"""`xnai agents`, and asking by tag at the terminal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import a2a.types as reference
import pytest
from google.protobuf import json_format
from joining import worker
from terminal import Done, command

from xnai.agents import Agent
from xnai.bus import Server

painter = Agent("painter", description="Paints", version="2.0", roles=("artist",), concurrency=3)
quiet = Agent("quiet")


@painter.skill(tags=["fast"])
async def paint(colour: str) -> str:
    """A picture."""
    return f"a {colour} picture"


@quiet.skill
async def hush() -> None:
    """Nothing."""


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Mapping[str, str]]:
    async with worker(server, painter), worker(server, quiet):
        yield {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}


async def test_everybody_who_is_alive_stands_in_a_table(bus: Mapping[str, str], tmp_path: Path) -> None:
    done = await command("agents", folder=tmp_path, env=bus)
    assert (done.status, done.err) == (0, "")
    head, first, second = done.out.splitlines()
    assert head.split()[:2] == ["AGENT", "VERSION"]
    assert first.split()[:2] == ["painter", "2.0"]
    assert first.split()[4:] == ["progressing", "0", "3", "artist", "paint"]
    assert second.split()[0] == "quiet"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["painter"], ["painter"]),
        (["--tag", "fast"], ["painter"]),
        (["--role", "artist"], ["painter"]),
        (["--skill", "hush"], ["quiet"]),
        (["--skill", "hush", "--tag", "fast"], []),
    ],
)
async def test_json_is_a_list_of_agent_cards(
    bus: Mapping[str, str], tmp_path: Path, words: list[str], names: list[str]
) -> None:
    done = await command("agents", *words, "--json", folder=tmp_path, env=bus)
    cards = json.loads(done.out)
    assert [card["name"] for card in cards] == names
    for card in cards:
        json_format.ParseDict(card, reference.AgentCard())


async def test_nobody_is_said_in_words(server: Server, tmp_path: Path) -> None:
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    done = await command("agents", folder=tmp_path, env=env)
    assert done == Done(0, "Nobody is alive that is all of this.\n", "")


async def test_a_tag_finds_whoever_can_do_it(bus: Mapping[str, str], tmp_path: Path) -> None:
    done = await command("call", "tag:fast.paint", "red", folder=tmp_path, env=bus)
    assert done == Done(0, "a red picture\n", "")
    done = await command("call", "tag:slow.paint", "red", folder=tmp_path, env=bus)
    assert (done.status, done.out) == (1, "")
    assert done.err == "error[unknown_agent]: Nobody alive offers a skill paint with the tag slow.\n"
