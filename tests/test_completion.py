"""Completion: what real shells make of a TAB, and what they are told."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from terminal import EXAMPLES, PATIENCE, XNAI, command, environment

SETTINGS = f"""
[agents.maths]
module = "{EXAMPLES / "maths.py"}"
[agents.inference]
[agents.spare]
module = "named.py:agent"
[agents.gone]
module = "nowhere.to.be.found"
"""
NAMED = '''
@agent.skill(tags=["a"], name="other")
def handler() -> None:
    """First line.

    Second."""


@cached
def no_skill() -> None: ...
'''
_SETUP = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "-i"),
}
_TELL = "told() { printf '<%s>' \"$@\"; echo END; }"
_BEGIN = {
    "bash": f"bind 'set bell-style none'; {_TELL}; eval \"$(xnai completion bash)\"",
    "zsh": f'bindkey -e; autoload -U compinit; compinit -u -D; {_TELL}; eval "$(xnai completion zsh)"',
    "fish": "function told; printf '<%s>' $argv; echo END; end; xnai completion fish | source",
}
_TOLD = re.compile(rb"((?:<[^<>]*>)+)END")
_HOME = "\x01"  # Ctrl-A: to the beginning of the line


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with settings and files in it, and beside it a folder with the program as shells find it."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "xnai.toml").write_text(SETTINGS)
    (folder / "named.py").write_text(NAMED)
    program = tmp_path / "bin" / "xnai"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec " + " ".join(XNAI) + ' "$@"\n')
    program.chmod(0o755)
    return folder


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._seen = terminal, b""

    def enter(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def made_of(self, typed: str) -> list[str]:
        """The words that a line has become when all is typed, TABs included."""
        self.enter(f"{typed}{_HOME}told \r")
        until = time.monotonic() + PATIENCE
        while not (found := _TOLD.search(self._seen)):
            assert time.monotonic() < until, self._seen
            if select.select([self._terminal], [], [], 1.0)[0]:
                self._seen += os.read(self._terminal, 4096)
        self._seen = self._seen[found.end() :]
        return found[1].decode().strip("<>").split("><")


@contextmanager
def shell(name: str, folder: Path) -> Iterator[Shell]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    env = environment(
        {"PATH": path, "TERM": "dumb" if name == "bash" else "xterm", "HOME": str(folder.parent)}
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        _SETUP[name],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # one system call
    )
    os.close(theirs)
    try:
        running = Shell(ours)
        running.enter(f"{_BEGIN[name]}\r")
        assert running.made_of("begun") == ["begun"]
        yield running
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("name", _SETUP)
def test_a_shell_completes_commands_options_values_addresses_and_files(name: str, place: Path) -> None:
    with shell(name, place) as running:
        assert running.made_of("xnai comp\t") == ["xnai", "completion"]
        assert running.made_of("xnai call --stre\t") == ["xnai", "call", "--stream"]
        assert running.made_of("xnai call m\tdo\t21") == ["xnai", "call", "maths.double", "21"]
        assert running.made_of("xnai send x --lane back\t") == ["xnai", "send", "x", "--lane", "background"]
        assert running.made_of("xnai send x --lane=back\t") == ["xnai", "send", "x", "--lane=background"]
        assert running.made_of("xnai run name\t") == ["xnai", "run", "named.py"]
        assert running.made_of("xnai cancel n\t") == ["xnai", "cancel", "n"]


def test_the_script_of_zsh_works_from_a_folder_of_functions(place: Path) -> None:
    with shell("zsh", place) as running:
        functions = place.parent / "functions"
        functions.mkdir()
        script = subprocess.run(
            [*XNAI, "completion", "zsh"], capture_output=True, check=True, cwd=place, env=environment()
        )
        (functions / "_xnai").write_bytes(script.stdout)
        running.enter(f"unfunction _xnai; fpath=({functions} $fpath); compinit -u -D\r")
        assert running.made_of("xnai comp\t") == ["xnai", "completion"]
        assert running.made_of("xnai canc\t") == ["xnai", "cancel"]


def test_fish_shows_what_a_word_means(place: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    path = f"{place.parent / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{_BEGIN['fish']}; complete -C 'xnai call maths.d'"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=place,
        env=environment({"PATH": path, "HOME": str(place.parent)}),
    )
    assert done.stdout == "maths.double\tTwice n.\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ca", "call\task an agent and print its answer\ncancel\tcancel a task\n"),
        ("call --ti", '--timeout\tdeadline, for example 90 or "5m"; default: 30 s, stream 15 m\n'),
        ("call --lane=u", "--lane=urgent\n"),
        ("call --lane = u", "--lane=urgent\n"),
        ("call --lane n", "normal\n"),
        ("call --timeout n", "\n"),
        ("call --lane urgent maths.c", "maths.count\tThe numbers from 1 to n, one after the other.\n"),
        ("call spare.x", "\n"),
        ("call -- maths.d", "maths.double\tTwice n.\n"),
        ("call spare.", "spare.other\tFirst line.\n"),
        ("call gone", "gone.\tnowhere.to.be.found\n"),
        ("call inference.emb", "inference.embed"),
        ("call maths.double --fi", "--file\ttake the payload from a file; - reads stdin\n"),
        ("call maths.double x", "\n"),
        ("call --file x", "/files\n"),
        ("ingest a b c", "/files\n"),
        ("run x", "/files\n"),
        ("completion f", "fish\n"),
        ("nothing x", "\n"),
    ],
)  # fmt: skip
async def test_what_a_shell_is_told(place: Path, words: str, told: str) -> None:
    done = await command(
        "completion", "fish", "--words", *(f"={each}" for each in words.split()), folder=place
    )
    assert (done.status, done.err) == (0, "")
    assert done.out == told or (not told.endswith("\n") and done.out.startswith(told))


async def test_settings_that_cannot_be_read_complete_nothing(place: Path) -> None:
    (place / "xnai.toml").write_text("[")
    done = await command("completion", "bash", "--words", "=call", "=m", folder=place)
    assert (done.status, done.out, done.err) == (0, "\n", "")


async def test_without_settings_there_are_the_agents_of_the_project(tmp_path: Path) -> None:
    done = await command("completion", "bash", "--words", "=call", "=retrieval.se", folder=tmp_path)
    assert done.out == "retrieval.search\n"


async def test_no_agent_is_run_to_be_completed(place: Path) -> None:
    (place / "named.py").write_text(f"{NAMED}\nopen('ran', 'w')\n")
    await command("completion", "bash", "--words", "=call", "=spare.", folder=place)
    assert not (place / "ran").exists()


async def test_an_unknown_shell_is_a_usage_error(tmp_path: Path) -> None:
    done = await command("completion", "csh", folder=tmp_path)
    assert done.status == 2
    assert "bash" in done.err
