"""Run the slow commands of the set-up: a person sees them go on, and is told in a sentence why one failed."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

TICK = 10.0
ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
_HOME = Path(os.environ.get("XDG_CACHE_HOME", ""))
CACHE = (_HOME if _HOME.is_absolute() else Path.home() / ".cache") / "xnai-agent-bus"


Command = list[str | Path]


def fail(sentence: str) -> NoReturn:
    """End the program with one sentence on standard error and exit status 1."""
    sys.exit(f"setup: {sentence}")


def digest(*parts: str | Path) -> str:
    """SHA-256 over texts and the contents of files; a file that is absent counts as empty."""
    total = hashlib.sha256()
    for part in parts:
        content = (part.read_bytes() if part.is_file() else b"") if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def run(
    title: str, command: Command, *, log: Path, env: Mapping[str, str] | None = None, otherwise: str
) -> None:
    """Run a command with its output in `log`, printing the seconds that have passed every ten.

    Ends the program with the last lines of the log and the sentence `otherwise` if the command fails.
    """
    print(f"setup: {title}", flush=True)
    start = time.monotonic()
    # A PYTHONPATH of the caller would let foreign packages into the environment that is being made.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as out:
        child = subprocess.Popen(command, cwd=ROOT, env={**clean, **(env or {})}, stdout=out, stderr=out)
        try:
            status = _wait(child, start, log)
        except BaseException:  # whatever ends the wait (Ctrl-C is no Exception), the child goes with us
            child.terminate()
            child.wait()
            raise
    if status:
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
        fail(f"{otherwise} (the whole output: {log})")
    print(f"setup:   done after {time.monotonic() - start:.0f} s", flush=True)


def _wait(child: subprocess.Popen[bytes], start: float, log: Path) -> int:
    while True:
        try:
            return child.wait(TICK)
        except subprocess.TimeoutExpired:
            print(f"setup:   {time.monotonic() - start:.0f} s{_progress(log)}", flush=True)


def _progress(log: Path) -> str:
    # Ninja counts what it has compiled as [12/78].
    counts = re.findall(r"\[(\d+)/(\d+)\]", log.read_text(errors="replace"))
    return f", {counts[-1][0]} of {counts[-1][1]} compiled" if counts else ""
