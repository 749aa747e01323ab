"""`xnai init`: what it makes, that it works as printed, and that it overwrites nothing."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from pathlib import Path

import pytest
from terminal import EXAMPLES, command, program

from xnai.deploy.settings import read_settings


async def test_what_it_prints_starts_a_stack_that_answers(tmp_path: Path) -> None:
    made = await command("init", "my agents", folder=tmp_path)
    assert (made.status, made.err) == (0, "")
    enter, start, again, ask = (shlex.split(line) for line in made.out.splitlines() if line.startswith("  "))
    assert enter == again == ["cd", "my agents"]
    assert (start[0], ask[0]) == ("xnai", "xnai")
    folder = tmp_path / enter[1]
    async with program(*start[1:], folder=folder) as stack:
        await stack.prints("ready")
        done = await command(*ask[1:], folder=folder)
    assert (done.status, done.out) == (0, "Hello, World!\n")


async def test_without_a_folder_it_makes_them_where_one_is(tmp_path: Path) -> None:
    done = await command("init", "--json", folder=tmp_path)
    assert json.loads(done.out) == {
        "files": ["xnai.toml", "hello.py"],
        "start": ["xnai up"],
        "ask": ["xnai call hello.greet World"],
    }
    assert sorted(os.listdir(tmp_path)) == ["hello.py", "xnai.toml"]
    assert set(read_settings(tmp_path / "xnai.toml", {}).agents) == {"hello"}


async def test_what_is_commented_out_can_be_used_too(tmp_path: Path) -> None:
    await command("init", folder=tmp_path)
    file = tmp_path / "xnai.toml"
    lines = [line.removeprefix("# ") for line in file.read_text().splitlines()]
    file.write_text("\n".join(line if "=" in line or line.startswith("[") else f"# {line}" for line in lines))
    assert set(tomllib.loads(file.read_text())) == {"agents", "server", "limits", "keeper"}
    settings = read_settings(file, {})
    assert set(settings.agents) == {"hello", "inference", "curation", "retrieval"}
    assert settings.agents["hello"].concurrency == 8
    assert settings.server.port == 4222


async def test_its_agent_is_that_of_the_examples(tmp_path: Path) -> None:
    await command("init", folder=tmp_path)
    code = [text.partition("\nfrom ")[2] for text in (_read(tmp_path), (EXAMPLES / "hello.py").read_text())]
    assert code[0] == code[1] != ""


def _read(folder: Path) -> str:
    return (folder / "hello.py").read_text()


@pytest.mark.parametrize("name", ["xnai.toml", "hello.py"])
async def test_it_overwrites_nothing_and_makes_no_half(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    done = await command("init", folder=tmp_path)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"error[already_exists]: {name} is there already; nothing was made.\n"
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


async def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "hello.py").symlink_to(tmp_path / "elsewhere")
    done = await command("init", folder=tmp_path)
    assert done.err.startswith("error[already_exists]: ")
    assert not (tmp_path / "elsewhere").exists()


async def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("")
    done = await command("init", "place", folder=tmp_path)
    assert (done.status, done.err) == (2, "error[invalid_argument]: place is no folder.\n")
