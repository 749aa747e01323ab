"""What the inference agent is compared with, installed once into the user's cache.

The bindings' own server gets an environment of its own. llama.cpp's server is compiled from the sources
inside the package llama-cpp-python, those that our engine was compiled from, with the same settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks.harness import ROOT
from xnai.agents.inference.minilm import default_cache

REQUIREMENTS = ROOT / "requirements"
OFF = (
    "BUILD_SHARED_LIBS",
    "LLAMA_BUILD_APP",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_UI",
    "LLAMA_OPENSSL",
    "LLAMA_USE_PREBUILT_UI",
)
Command = list[str | Path]


@cache
def bindings_server() -> Path:
    """The Python of an environment in which `python -m llama_cpp.server` is there."""
    return _made("bindings-server", _install_bindings_server) / "bin" / "python"


@cache
def llama_server() -> Path:
    """llama.cpp's own server. The first time it is compiled: eight minutes on two idle cores."""
    return _made("llama-server", _compile_llama_server) / "llama-server"


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this peer for this Python, processor and version; whoever makes it now is waited for."""
    locked = hashlib.sha256((REQUIREMENTS / "peer-server.txt").read_bytes()).hexdigest()[:12]
    place = default_cache().parent / "bench" / f"{name}-{_wheel().parent.name}-{locked}"
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            make(place)
            (place / "made").touch()
        return place
    finally:
        os.close(lock)


@cache
def _wheel() -> Path:
    """Of llama-cpp-python, as `make setup` compiled it. The name of its folder says for which processor."""
    command: Command = [sys.executable, ROOT / "tools" / "llama_wheel.py"]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return Path(said.splitlines()[-1])


def _install_bindings_server(place: Path) -> None:
    _say("installing the bindings' own server")
    pip = _environment(place)
    locked: Command = ["--require-hashes", "-r", REQUIREMENTS / "peer-server.txt"]
    _run([*pip, "install", "--quiet", *locked], place)
    _run([*pip, "install", "--quiet", "--no-deps", _wheel()], place)


def _compile_llama_server(place: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    _say(f"compiling llama.cpp's own server, once per machine (about {1_000 // cores} s)")
    with tempfile.TemporaryDirectory(prefix="xnai-llama-server-") as temporary:
        folder = Path(temporary)
        pip = _environment(folder / "tools")
        _run([*pip, "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS / "build.txt"], place)
        source = _sources(folder, pip, place)
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in OFF)]
        build = folder / "build"
        _run(["cmake", "-G", "Ninja", "-S", source, "-B", build, *options], place, folder / "tools" / "bin")
        command: Command = ["ninja", "-C", build, f"-j{cores}", "llama-server"]
        _run(command, place, folder / "tools" / "bin")
        part = place / "llama-server.part"
        shutil.copy(build / "bin" / "llama-server", part)
        part.rename(place / "llama-server")


def _sources(folder: Path, pip: Command, place: Path) -> Path:
    """llama.cpp's, out of the package's."""
    options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes"]
    fetch: Command = [*pip, "download", "--quiet", *options, "-r", REQUIREMENTS / "llama.txt", "-d", folder]
    _run(fetch, place, folder / "tools" / "bin")
    (package,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return Path(re.sub(r"\.tar\.gz$", "", str(package))) / "vendor" / "llama.cpp"


def _environment(place: Path) -> Command:
    """The pip of a new environment."""
    venv.create(place, symlinks=True, with_pip=True)
    return [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]


def _run(command: Command, place: Path, tools: Path | None = None) -> None:
    """Runs it, with `tools` first in the path; what it says is in `place`, and on stderr where it fails."""
    path = os.environ["PATH"] if tools is None else f"{tools}{os.pathsep}{os.environ['PATH']}"
    log = place / "made.log"
    with log.open("a") as out:
        done = subprocess.run(command, env={**os.environ, "PATH": path}, stdout=out, stderr=out, check=False)
    if done.returncode:
        _say("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        raise RuntimeError(f"{command[0]} failed; the whole output is in {log}")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
