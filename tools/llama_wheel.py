"""Compile llama-cpp-python once for each kind of processor, and keep the wheel in the user's cache.

    python tools/llama_wheel.py     prints the path of the wheel, building it first if need be

Only the library is built: no server, tools, examples, tests or vision parts. It is built for this very
processor, so the folder of the wheel is named for everything that the result depends on.
"""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from steps import CACHE, REQUIREMENTS, Command, digest, fail, run

LOCK = REQUIREMENTS / "llama.txt"
HOOK = Path(__file__).with_name("library_only.cmake")
OFF = (
    "LLAVA_BUILD",
    "LLAMA_BUILD_APP",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_SERVER",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_TOOLS",
    "LLAMA_OPENSSL",
)


def folder() -> Path:
    """Where the wheel for this machine belongs, whether it is there or not."""
    version = re.search(r"==(\S+)", LOCK.read_text())
    assert version is not None
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    built = digest(LOCK, HOOK, REQUIREMENTS / "build.txt", *OFF, _processor(), "-".join(platform.libc_ver()))
    return CACHE / "wheels" / f"{version[1]}-{tag}-{sys.platform}-{platform.machine()}-{built[:12]}"


def wheel() -> Path:
    """The wheel for this machine, from the cache or compiled now (minutes); ends the program if it fails."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clones at once: the second finds what the first has built
        return _kept(place) or _build(place)
    finally:
        os.close(lock)


def _kept(place: Path) -> Path | None:
    return next(place.glob("llama_cpp_python-*.whl"), None)


def _processor() -> str:
    """The instruction sets of this processor, as its system names them."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        names = re.search(r"^(?:flags|Features)\s*:(.*)$", described.read_text(), re.MULTILINE)
        return " ".join(sorted(names[1].split())) if names else ""
    sysctl = ["sysctl", "machdep.cpu", "hw.optional"]
    return subprocess.run(sysctl, capture_output=True, text=True, check=False).stdout


def _build(place: Path) -> Path:
    _need_compiler()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    log = place / "build.log"
    with tempfile.TemporaryDirectory(prefix="xnai-llama-") as temporary:
        builder, out = Path(temporary, "venv"), Path(temporary, "out")
        venv.create(builder, symlinks=True, with_pip=True)
        pip: Command = [builder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        tools: Command = [*pip, "install", "--require-hashes", "-r", REQUIREMENTS / "build.txt"]
        run("fetching CMake and Ninja", tools, log=log, otherwise="CMake and Ninja could not be fetched")
        # pip's own cache knows nothing of processors, and must not keep a wheel that is built for this one.
        build: Command = [*pip, "-v", "--no-cache-dir", "wheel", "--no-deps", "--no-build-isolation"]
        run(
            f"compiling llama.cpp on {cores} cores, once per machine ({200 // cores} to {400 // cores} s)",
            [*build, "--require-hashes", "--wheel-dir", out, "-r", LOCK],
            log=log,
            env=_settings(Path(temporary), cores),
            otherwise="llama-cpp-python could not be compiled",
        )
        made = next(out.glob("*.whl"))
        copy = place / f"{made.name}.part"
        shutil.copyfile(made, copy)
        return copy.rename(place / made.name)


def _settings(temporary: Path, cores: int) -> dict[str, str]:
    # CMAKE_ARGS is split at spaces, which the path of a clone may have.
    hook = shutil.copy(HOOK, temporary)
    options = [f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={hook}", "-DGGML_NATIVE=ON"]
    return {
        "CMAKE_ARGS": " ".join([*options, *(f"-D{name}=OFF" for name in OFF)]),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(cores),
        "PATH": f"{temporary / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        # llama.cpp installs itself a second time for C programs.
        "SKBUILD_WHEEL_EXCLUDE": "/lib/**;/include/**;/bin/**",
    }


def _need_compiler() -> None:
    for variable, names in (("CC", "cc gcc clang"), ("CXX", "c++ g++ clang++")):
        chosen = os.environ.get(variable, "").split()[:1]
        if not any(map(shutil.which, chosen or names.split())):
            fail("no C++ compiler was found: install g++ (Debian, Ubuntu) or clang, then run this again")


if __name__ == "__main__":
    print(wheel())
