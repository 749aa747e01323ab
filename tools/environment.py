"""Make .venv/ ready for work; `make setup` runs this. When nothing has changed it says nothing, at once.

Each step has a fingerprint of what it depends on, written to .venv/setup.json once the step has succeeded.
"""

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import venv

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"setup: Python 3.11 or newer is needed, and this is {sys.version.split()[0]}: make PYTHON=...")

# Older versions of Python cannot read these, so they come after the check.
from llama_wheel import folder, wheel
from steps import CACHE, REQUIREMENTS, ROOT, Command, digest, fail, run

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP: Command = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
STAMPS = VENV / "setup.json"
LOG = VENV / "setup.log"
MODELS = CACHE / "models"
# Installed by steps of their own.
OURS = {"pip", "llama-cpp-python", "xnai-agent-bus"}
NETWORK = "is this machine offline?"
CONVERTER = ROOT / "agents" / "inference" / "minilm.py"


def setup() -> None:
    """Bring every step up to date, in order. One that fails ends the program; the next run goes on there."""
    start = time.monotonic()
    done = False
    for name, fingerprint, do in (
        ("environment", digest(sys.version, sys.base_prefix, str(ROOT)), make_environment),
        ("packages", digest(REQUIREMENTS / "dev.txt"), install_packages),
        ("llama", folder().name, install_llama),
        ("project", digest(ROOT / "pyproject.toml", ROOT / "setup.py"), install_project),
        ("model", digest(CONVERTER), prepare_model),
    ):
        if stamps().get(name) == fingerprint and _stands(name):
            continue
        do()
        STAMPS.write_text(json.dumps({**stamps(), name: fingerprint}))
        done = True
    if done:
        print(f"setup: ready after {time.monotonic() - start:.0f} s", flush=True)


def stamps() -> dict[str, str]:
    """The fingerprints of the steps that have succeeded in this environment."""
    try:
        read: dict[str, str] = json.loads(STAMPS.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return read


def make_environment() -> None:
    """An empty environment, in the place of one that was made by another Python or for another folder."""
    if importlib.util.find_spec("ensurepip") is None:
        fail("this Python cannot make environments: install its venv package (Debian, Ubuntu: python3-venv)")
    print("setup: making .venv", flush=True)
    try:
        venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f".venv could not be made: {error}")


def install_packages() -> None:
    """Install what is locked, and remove what no longer is."""
    lock = REQUIREMENTS / "dev.txt"
    run(
        "installing the packages of requirements/dev.txt (about a minute the first time)",
        [*PIP, "install", "--require-hashes", "-r", lock],
        log=LOG,
        otherwise=f"the packages could not be installed: {NETWORK}",
    )
    listed = json.loads(subprocess.check_output([*PIP, "list", "--format=json"], cwd=ROOT))
    locked = {_plain(name) for name in re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE)}
    dropped = {_plain(entry["name"]) for entry in listed} - locked - OURS
    if dropped:
        removing = [*PIP, "uninstall", "--yes", *sorted(dropped)]
        run("removing what is locked no more", removing, log=LOG, otherwise="packages could not be removed")


def install_llama() -> None:
    """Install llama-cpp-python as compiled for this processor."""
    made = wheel()
    run(
        f"installing {made.name}",
        [*PIP, "install", "--no-deps", "--no-index", "--force-reinstall", made],
        log=LOG,
        otherwise="the compiled llama-cpp-python could not be installed",
    )


def install_project() -> None:
    """Install this repository, its sources staying where they are."""
    run(
        "installing the project",
        [*PIP, "install", "--no-deps", "--no-build-isolation", "--editable", ROOT],
        log=LOG,
        otherwise="the project could not be installed",
    )


def prepare_model() -> None:
    """Fetch the default embedding model and convert it for llama.cpp, both once, into the user's cache."""
    if CONVERTER.is_file():
        run(
            "preparing the embedding model (84 MB, fetched once)",
            [PYTHON, "-m", "xnai.agents.inference.minilm"],
            log=LOG,
            otherwise=f"the embedding model could not be prepared: {NETWORK}",
        )


def _stands(name: str) -> bool:
    """Whether what a step made outside the environment is still there."""
    if name == "project":
        return (ROOT / ".links" / "xnai").is_dir()
    return name != "model" or not CONVERTER.is_file() or any(MODELS.glob("*.gguf"))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    here = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(here, fcntl.LOCK_EX)  # two commands at once: the second waits, and finds everything done
    try:
        setup()
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the next run goes on where this one stopped")
