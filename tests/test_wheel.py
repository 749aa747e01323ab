"""What a user gets: the wheel in an empty environment, with nothing of the repository beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("protocol", "bus", "registry", "agents", "adapters", "deploy")

# Bounds for what hangs; a loaded machine takes a while.
READY, STOP = 120.0, 60.0

SETTINGS = """
[agents.hello]
module = "hello.py"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder beside the sources, and would use what it finds in it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        copy / "out",
        copy,
    )
    return next((copy / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel and what `[embedded]` brings, as locked."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True, with_pip=True)
    pip = (place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "embedded.txt")
    run(*pip, "--no-deps", "--no-index", wheel)
    run(place / "bin" / "python", "-m", "pip", "check")
    return place / "bin"


def run(*command: str | Path) -> None:
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """Ours, without what would lead to the repository or to a bus."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and name[:5] != "XNAI_"}


async def ask(command: Sequence[str | Path], *, folder: Path) -> str:
    words = [str(part) for part in command]
    with anyio.fail_after(READY):
        done = await anyio.run_process(words, cwd=folder, env=environment(), check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_the_wheel_holds_every_module_of_the_product_and_nothing_else(wheel: Path) -> None:
    files = (path for part in PARTS for path in (ROOT / part).rglob("*"))
    kept = (path for path in files if path.suffix in {".py", ".json", ".typed"})
    expected = {f"xnai/{path.relative_to(ROOT).as_posix()}" for path in kept}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


@asynccontextmanager
async def up(installed: Path, folder: Path) -> AsyncIterator[Process]:
    """A stack that is ready. However the test ends, the stack is asked to stop, and has stopped."""
    command = [str(installed / "xnai"), "up"]
    stack = await anyio.open_process(command, cwd=folder, env=environment(), stderr=None)
    try:
        with anyio.fail_after(READY):
            await said(stack, "ready")
        yield stack
    finally:
        # Killed, it would leave its broker behind: only a stack that does not stop when asked is.
        with anyio.move_on_after(STOP, shield=True):
            if stack.returncode is None:
                stack.terminate()
            await stack.wait()
        if stack.returncode is None:
            stack.kill()
        with anyio.CancelScope(shield=True):
            await stack.aclose()


async def said(process: Process, line: str) -> None:
    """Wait until the process has printed this line."""
    assert process.stdout is not None
    heard = ""
    async for text in TextReceiveStream(process.stdout):
        heard += text
        if line in heard.splitlines():
            return
    raise AssertionError(f"it ended without printing {line!r}: {heard!r}")


async def test_the_hello_agent_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "hello.py", tmp_path)
    (tmp_path / "xnai.toml").write_text(SETTINGS)
    async with up(installed, tmp_path) as stack:
        answer = await ask([installed / "xnai", "call", "hello.greet", "World"], folder=tmp_path)
    assert answer == "Hello, World!"
    assert stack.returncode == 0


async def test_what_is_imported_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = "import xnai.agents, xnai.bus, xnai.protocol as p; print(p.__file__)"
    where = await ask([installed / "python", "-c", program], folder=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
